import os
import subprocess
import sys
from pathlib import Path

import pytest

from codet5p_jax.cli.compilation_cache import FOLDER, keep_compiled
from codet5p_jax.cli.main import COMMANDS, COMPILING


def kept(**environ):
    keep_compiled(environ)
    return environ.get(FOLDER)


def test_programs_go_to_the_caches_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = str(tmp_path / ".cache/codet5p_jax/compiled")
    assert kept() == kept(XDG_CACHE_HOME="") == kept(XDG_CACHE_HOME="relative") == home
    assert kept(XDG_CACHE_HOME="/caches") == "/caches/codet5p_jax/compiled"


def test_what_the_user_says_stays():
    assert kept(JAX_COMPILATION_CACHE_DIR="/mine", XDG_CACHE_HOME="/caches") == "/mine"
    assert kept(JAX_COMPILATION_CACHE_DIR="") == ""


def test_without_a_home_nothing_is_kept(monkeypatch):
    def home():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", home)
    assert kept() is None


PROGRAM = """
import sys
from codet5p_jax.cli import main
try:
    main.main([sys.argv[1], "--help"])
except SystemExit:
    import jax
print("FOLDER", jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)
"""


@pytest.mark.parametrize("command", ["train", "precompile"])
def test_commands_that_compile_tell_jax(command, tmp_path):
    """`precompile` is not one: it says how long compiling takes."""
    assert COMMANDS.keys() > COMPILING
    assert "precompile" not in COMPILING
    environ = {k: v for k, v in os.environ.items() if k != FOLDER}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command],
        env={**environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "0"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    folder = tmp_path / "codet5p_jax/compiled" if command == "train" else None
    assert done.stdout.splitlines()[-1] == f"FOLDER {folder} False"
    assert list(tmp_path.iterdir()) == []
