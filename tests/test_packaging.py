"""What an installed copy holds and asks for: builds a wheel from the sources."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import codet5p_jax

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
INSTALLED = {  # folder of the repository -> folder of the wheel
    "codet5p_jax": "codet5p_jax",
    "tasks": "codet5p_jax/tasks",
    "gin_configs": "codet5p_jax/gin_configs",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built in a copy, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in INSTALLED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_holds_every_module_and_gin_file(wheel: zipfile.ZipFile):
    expected = {
        f"{target}/{path.relative_to(ROOT / source)}"
        for source, target in INSTALLED.items()
        for pattern in ("*.py", "*.gin")
        for path in (ROOT / source).rglob(pattern)
    }
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_metadata(wheel: zipfile.ZipFile, metadata: Message):
    assert metadata["Version"] == codet5p_jax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    extras = {"tpu", "precompile", "cuda", "torch", "sentence-transformers", "wandb", "metrics"}
    assert set(metadata.get_all("Provides-Extra")) == extras | {"faiss", "test", "dev"}


def test_dependencies_come_from_pypi_within_bounds(metadata: Message):
    for requirement in metadata.get_all("Requires-Dist"):
        specifier = requirement.partition(";")[0]
        assert "@" not in specifier, f"{requirement}: not from PyPI"
        assert re.search(r">=\d", specifier), f"{requirement}: no lower bound"
        assert re.search(r"<\d", specifier), f"{requirement}: no upper bound"


def test_tested_versions_lie_within_the_bounds(metadata: Message):
    """And torch and transformers, which parity is tested against, are pinned exactly."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints" / "test.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line and line[0] != "#")
    assert pins["torch"] == "2.13.0"
    assert pins["transformers"].startswith("5.")
    pins = {name.replace("_", "-"): version for name, version in pins.items()}
    for text in metadata.get_all("Requires-Dist"):
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        extras = 'extra == "(test|torch|metrics|faiss)"'
        tested = requirement.marker is None or re.search(extras, text)
        if tested and name != "setuptools":  # pip freeze leaves it out
            assert pins[name] in requirement.specifier, f"{text}: tested with {pins[name]}"


def test_scripts_parse():
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
    assert len(scripts) >= 4
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
