"""JSON lines and JSON lists, plain or gzipped. UTF-8, with or without a byte order mark."""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from codet5p_jax.data.corpora.files import require_files
from codet5p_jax.data.corpora.lines import numbered_lines, read_bytes
from codet5p_jax.data.corpora.malformed import Malformed

_T = TypeVar("_T", dict, list)


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


def read_json_object(path: str | Path) -> dict[str, Any]:
    """A file that is one JSON object; decompressed where its name ends in `.gz`.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: it is no object or damaged.
    """
    (file,) = require_files([Path(path)], "JSON file", "path")
    return _whole(file, dict, "object")


def is_json_list(path: Path) -> bool:
    """Whether a file begins as a JSON list; some call JSON lines `.json`.

    Raises:
      ValueError: a compressed file is damaged.
    """
    return read_bytes(path, 1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


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
        for number, line in numbered_lines(path):
            if not line.strip():
                continue
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
    rows = _whole(path, list, "list")
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


def _whole(path: Path, kind: type[_T], name: str) -> _T:
    text = read_bytes(path)
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        message = f"{path}: expected a JSON {name}: {error}; fetch the file again"
        raise ValueError(message) from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {name}, got {type(value).__name__}")
    return value


def _check_unicode(record: Any) -> None:
    """Half a surrogate pair: JSON allows it, Unicode does not."""
    json.dumps(record, ensure_ascii=False).encode("utf-8")
