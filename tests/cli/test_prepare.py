"""What a command that needs a mixture says when another process fails to prepare it."""

import argparse

import pytest

from codet5p_jax.cli import child, data_options
from codet5p_jax.cli.prepare import ensure_prepared
from tests.data.tiny import make_mixture


def ensure(cache_dir, mixture):
    parser = argparse.ArgumentParser()
    data_options.add_arguments(parser)
    ensure_prepared([mixture], str(cache_dir), parser.parse_args([]))


def test_the_other_process_has_the_last_word(tmp_path, monkeypatch, capfd):
    make_mixture(tmp_path, {"a": ("one", 1.0, 2)}, name="my_mixture")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        ensure(tmp_path, "my_mixtur")
    assert ended.value.code == 1
    preparing, failed = capfd.readouterr().err.splitlines()
    assert preparing == f"mixture 'my_mixtur' is not prepared in {tmp_path}: preparing it"
    assert "no mixture or task 'my_mixtur' is registered; did you mean 'my_mixture'?" in failed


def test_what_is_prepared_is_left_alone(tmp_path, monkeypatch):
    make_mixture(tmp_path, {"a": ("one", 1.0, 2)})
    monkeypatch.setattr(child, "codet5p", None)
    ensure(tmp_path, "mix")


def test_a_process_that_was_killed_says_nothing_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "codet5p", lambda *_: -9)
    with pytest.raises(ChildProcessError, match=r"preparing mix in .* was ended by signal 9"):
        ensure(tmp_path, "mix")
