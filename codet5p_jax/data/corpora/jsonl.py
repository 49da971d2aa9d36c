"""JSON lines and JSON lists, plain or gzipped. UTF-8, with or without a byte order mark."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.files import require_files
from codet5p_jax.data.corpora.malformed import Malformed

_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


def read_jsonl(
    paths: str | Path | Sequence[str | Path],
    *,
    fields: Mapping[str, type] | None = None,
    malformed: Malformed | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of JSON lines files in the order of their names, each with its `place` (file:line).

    Blank lines are skipped. A line that is not UTF-8, not JSON, not an object, or that lacks one of
    `fields` is malformed.

    Args:
      paths: one file or several; names ending in `.gz` are decompressed.
      fields: name -> type of fields that every record must have.
      malformed: counts and reports.

    Raises:
      FileNotFoundError: at once, if a file is missing.
      ValueError: while reading, if a compressed file is damaged; records would be lost unseen.
    """
    listed = [paths] if isinstance(paths, str | Path) else paths
    files = require_files([Path(p) for p in listed], "JSON lines files", "paths")
    return _records(files, fields or {}, malformed or Malformed())


def read_json_list(
    path: str | Path, *, malformed: Malformed | None = None
) -> Iterator[dict[str, Any]]:
    """Records of a file that is one JSON list, each with its `place` (file:row, from 0).

    A row that is not an object is malformed, as is text that no UTF-8 can hold. A file whose name
    ends in `.gz` is decompressed.

    Raises:
      FileNotFoundError: at once, if the file is missing.
      ValueError: while reading, if the file is no list or damaged; nothing of it can be read.
    """
    (file,) = require_files([Path(path)], "JSON file", "path")
    return _rows(file, malformed or Malformed())


def is_json_list(path: Path) -> bool:
    """Whether a file begins as a JSON list; some call JSON lines `.json`.

    Raises:
      ValueError: a compressed file is damaged.
    """
    return _read(path, 1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def check_fields(record: Any, fields: Mapping[str, type]) -> None:
    """Raises ValueError unless `record` is an object that has `fields`, each of its type."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind):
            found = type(record[name]).__name__ if name in record else "nothing"
            raise ValueError(f"expected field {name!r} of type {kind.__name__}, got {found}")


def _records(
    files: Sequence[Path], fields: Mapping[str, type], malformed: Malformed
) -> Iterator[dict[str, Any]]:
    for path in files:
        for number, line in _lines(path):
            place = f"{path}:{number}"
            try:
                record = json.loads(line.decode("utf-8"))
                check_fields(record, fields)
                if b"\\ud" in line.lower():
                    _check_unicode(record)
            except (ValueError, RecursionError) as error:
                malformed.bad(place, error)
                continue
            malformed.good()
            yield {**record, "place": place}
    malformed.judge()


def _rows(path: Path, malformed: Malformed) -> Iterator[dict[str, Any]]:
    text = _read(path)
    try:
        rows = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON list: {error}; fetch the file again") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a JSON list, got {type(rows).__name__}")
    for number, record in enumerate(rows):
        place = f"{path}:row {number}"
        try:
            check_fields(record, {})
            _check_unicode(record)
        except ValueError as error:
            malformed.bad(place, error)
            continue
        malformed.good()
        yield {**record, "place": place}
    malformed.judge()


def _check_unicode(record: Any) -> None:
    """Half a surrogate pair: JSON allows it, Unicode does not."""
    json.dumps(record, ensure_ascii=False).encode("utf-8")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, text
        except _DAMAGE as error:
            raise _damaged(path, error, f" after line {number}") from error


def _read(path: Path, size: int = -1) -> bytes:
    with _open(path) as file:
        try:
            return file.read(size)
        except _DAMAGE as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, where: str = "") -> ValueError:
    return ValueError(f"{path} is damaged{where}: {error}; fetch the file again")


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")
