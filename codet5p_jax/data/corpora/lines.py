"""Files as bytes and lines, plain or gzipped."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of every line; a byte order mark is left out.

    Raises:
      ValueError: while reading, if a compressed file is damaged; lines would be lost unseen.
    """
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except _DAMAGE as error:
            raise _damaged(path, error, f" after line {number}") from error


def read_bytes(path: Path, size: int = -1) -> bytes:
    """The content, or its first `size` bytes.

    Raises:
      ValueError: a compressed file is damaged.
    """
    with _open(path) as file:
        try:
            return file.read(size)
        except _DAMAGE as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, where: str = "") -> ValueError:
    return ValueError(f"{path} is damaged{where}: {error}; fetch the file again")


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")
