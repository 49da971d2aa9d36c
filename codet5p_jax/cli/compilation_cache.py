"""Compiled programs are kept on disk, so that a program is compiled once and not at every start.

The cache is JAX's, and so are its settings: JAX_COMPILATION_CACHE_DIR puts it elsewhere,
JAX_ENABLE_COMPILATION_CACHE=0 turns it off. Here it only gets a folder where it has none.
"""

from collections.abc import MutableMapping
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled(environ: MutableMapping[str, str]) -> None:
    """Names a folder of the user's caches, unless there is a name; before JAX is imported."""
    if FOLDER in environ:
        return
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # to be ignored, says the XDG specification
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # a user without a home has no caches
            return
    environ[FOLDER] = str(base / "codet5p_jax" / "compiled")
