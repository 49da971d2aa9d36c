"""A folder of source files, by suffix."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from codet5p_jax.data.corpora.files import require_files, require_folder, split_of
from codet5p_jax.data.corpora.languages import BY_KEY, BY_SUFFIX
from codet5p_jax.data.corpora.malformed import Malformed


def source_files(
    folder: str | Path,
    languages: Collection[str] | None = None,
    split: str | None = None,
    *,
    shares: Mapping[str, float] | None = None,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """Source files below `folder` in order of their path: `code`, `path` (relative), `language`,
    `place`. Hidden files and folders are skipped. `.h` counts as C, as in github-code.

    Args:
      folder: root of the tree.
      languages: keys of `languages.BY_KEY`; None: all nine.
      split: one of `shares`; None: all files. A file is in one split, by a hash of its path.
      shares: split -> share of files; by default 90 % train, 5 % validation, 5 % test.
      malformed: counts files that are not UTF-8, or that one may not read.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if there is no such folder or no file of these languages in it.
    """
    shares = shares or {"train": 0.9, "validation": 0.05, "test": 0.05}
    wanted = set(BY_KEY if languages is None else languages)
    if unknown := wanted - set(BY_KEY):
        raise ValueError(f"expected languages among {', '.join(BY_KEY)}, got {sorted(unknown)}")
    if split is not None and split not in shares:
        raise ValueError(f"expected a split among {', '.join(shares)}, got {split!r}")
    root = require_folder(folder, setting)
    found = [
        path
        for path in root.rglob("*")
        if path.suffix in BY_SUFFIX
        and BY_SUFFIX[path.suffix].key in wanted
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    files = require_files(found, f"files of {', '.join(sorted(wanted))} in {root}", setting)
    return _files(root, files, split, shares, malformed or Malformed())


def _files(
    root: Path,
    files: list[Path],
    split: str | None,
    shares: Mapping[str, float],
    malformed: Malformed,
) -> Iterator[dict[str, str]]:
    for path in files:
        relative = path.relative_to(root).as_posix()
        if split is not None and split_of(relative, shares) != split:
            continue
        try:
            code = path.read_bytes().decode("utf-8")  # not read_text: it would turn CRLF into LF
        except (UnicodeDecodeError, PermissionError) as error:
            malformed.bad(str(path), error)
            continue
        malformed.good()
        language = BY_SUFFIX[path.suffix].key
        yield {"code": code, "path": relative, "language": language, "place": str(path)}
    malformed.judge()
