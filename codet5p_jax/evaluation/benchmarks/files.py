"""Files of predictions: those that others wrote, and those that grow as a run goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.lines import numbered_lines, read_bytes


def is_json(path: Path) -> bool:
    """Whether a file, plain or gzipped, begins as JSON lines do."""
    return read_bytes(path, 1 << 16).lstrip()[:1] == b"{"


def read_texts(path: Path) -> list[str]:
    """The lines of a file, plain or gzipped, without their ends.

    Raises:
      ValueError: it is no UTF-8.
    """
    lines = []
    for number, line in numbered_lines(path):
        try:
            lines.append(line.decode().rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: expected UTF-8: {error}") from error
    return lines


def read_objects(path: Path, fields: Mapping[str, tuple[type, ...]]) -> list[dict[str, Any]]:
    """Objects of JSON lines, plain or gzipped; empty lines are passed over.

    Args:
      fields: name -> types that it may have.

    Raises:
      ValueError: a line is no JSON object, or lacks a field.
    """
    found = []
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: expected a JSON object: {error}") from error
        for name, types in fields.items():
            value = record.get(name) if isinstance(record, dict) else None
            if not isinstance(value, types) or isinstance(value, bool):
                wanted = " or ".join(kind.__name__ for kind in types)
                raise ValueError(
                    f"{path}:{number}: expected an object with {name!r} of type {wanted}, "
                    f"got {line.decode(errors='replace').strip()[:60]}"
                )
        found.append(record)
    return found


def read_json(path: Path, *fields: str) -> dict[str, Any]:
    """An object with these fields, that a run wrote.

    Raises:
      ValueError: it is damaged.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; set --out to another folder") from error
    if not isinstance(found, dict) or not found.keys() >= {*fields}:
        wanted = f" with {', '.join(fields)}" if fields else ""
        raise ValueError(
            f"{path} is damaged: expected an object{wanted}; set --out to another folder"
        )
    return found


class GrowingFile:
    """JSON lines that are appended, one after another, and read again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """Without its folder."""
        return self._path.name

    def read(self, fields: Mapping[str, tuple[type, ...]]) -> list[dict[str, Any]]:
        """What is there; a last line that was cut short is taken away.

        Args:
          fields: as of `read_objects`.

        Raises:
          ValueError: another line is no JSON object, or lacks a field.
        """
        if not self._path.exists():
            return []
        text = self._path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with open(self._path, "r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        return read_objects(self._path, fields)

    def append(self, records: Sequence[Mapping[str, Any]], *, sync: bool = True) -> None:
        """Adds lines, which outlive this process; on the disk when it returns if `sync`."""
        if not records:
            return
        # ASCII: what a model writes may hold lone surrogates, which UTF-8 has no bytes for.
        lines = "".join(json.dumps(record) + "\n" for record in records)
        with open(self._path, "ab") as file:
            file.write(lines.encode())
            file.flush()
            if sync:
                os.fsync(file.fileno())
