"""Texts that commands read: files as they are, and their lines."""

from pathlib import Path


def read_text(path: Path) -> str:
    """The text of a file, whose lines end as in the file; bytes that are not UTF-8 are kept as
    `surrogateescape` does.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    return path.read_bytes().decode("utf-8", "surrogateescape")


def lines_of(text: str) -> list[str]:
    r"""Lines as `\n` or `\r\n` ends them, and as tools count them: a form feed ends none.

    >>> lines_of("a\fb\n\nc\r\n")
    ['a\x0cb', '', 'c']
    """
    *lines, rest = text.split("\n")
    return [line.removesuffix("\r") for line in [*lines, *([rest] if rest else [])]]
