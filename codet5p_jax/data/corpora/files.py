"""Finding files, and sharing things out between splits by a hash of their name."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def require_folder(path: str | Path, setting: str) -> Path:
    """`path` as a folder that exists; `setting` names what to change where it does not."""
    folder = Path(path)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{setting}: expected a folder, but {folder} {kind}")
    return folder


def require_files(paths: list[Path], wanted: str, setting: str) -> list[Path]:
    """`paths` sorted, all of them existing; an empty list is an error as well."""
    if not paths:
        raise FileNotFoundError(f"{setting}: found no {wanted}")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{setting}: no such file: {path}")
    return sorted(paths)


def identities(files: list[Path]) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time in ns) of each, to tell whether a corpus has changed."""
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def split_of(key: str, shares: Mapping[str, float]) -> str:
    """Which split `key` belongs to: the same for everybody, always.

    Args:
      key: name of what must not be torn between splits (a module, a repository).
      shares: split -> share; they add to 1, and what rounding leaves goes to the last.
    """
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    for split, share in shares.items():
        position -= share
        if position < 0:
            return split
    return list(shares)[-1]
