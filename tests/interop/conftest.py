"""What tests of code in exported folders run under."""

import pytest


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and a folder of this test's own for code that transformers copies."""
    from transformers import dynamic_module_utils

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
