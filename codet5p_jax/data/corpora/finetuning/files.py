"""Finding the published files, which may be gzipped, and reading their records."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.files import require_folder
from codet5p_jax.data.corpora.jsonl import is_json_list, read_json_list, read_jsonl
from codet5p_jax.data.corpora.malformed import Malformed, intolerant

Record = dict[str, Any]

SPLITS = ("train", "validation", "test")


def split_name(split: str, names: Mapping[str, str]) -> str:
    """How files call a split.

    Raises:
      ValueError: there is no such split.
    """
    if split not in names:
        raise ValueError(f"expected a split among {', '.join(names)}, got {split!r}")
    return names[split]


def find_file(folder: str | Path, *names: str, setting: str = "folder") -> Path:
    """The first of `names` that the folder has, as it is or with `.gz`.

    Raises:
      FileNotFoundError: there is none; says which were looked for.
    """
    found = find_optional(require_folder(folder, setting), *names)
    if found is None:
        raise FileNotFoundError(f"{setting}: expected {' or '.join(names)} (.gz too) in {folder}")
    return found


def find_optional(folder: Path, *names: str) -> Path | None:
    """As `find_file`, or None."""
    paths = (folder / (name + end) for name in names for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def read_json_records(path: Path, malformed: Malformed) -> Iterator[Record]:
    """Records of a JSON list or of JSON lines, whatever the file is called."""
    return (read_json_list if is_json_list(path) else read_jsonl)(path, malformed=malformed)


def converted(
    path: Path, convert: Callable[[Record], Record], malformed: Malformed | None
) -> Iterator[Record]:
    """What `convert` makes of each record of a file, as `read_json_records` reads it, and `place`;
    one that it raises ValueError for is malformed."""
    malformed = malformed or intolerant()
    return _converted(read_json_records(path, malformed), convert, malformed)


def _converted(
    records: Iterator[Record], convert: Callable[[Record], Record], malformed: Malformed
) -> Iterator[Record]:
    for record in records:
        try:
            example = convert(record)
        except ValueError as error:
            malformed.reject(record["place"], error)
            continue
        yield {**example, "place": record["place"]}
    malformed.judge()


def words(text: str) -> str:
    """Text on one line, its words a space apart, as CodeT5's readers leave code and text.

    >>> words(" int f ( )\\n{ }")
    'int f ( ) { }'
    """
    return " ".join(text.split())


def joined(record: Record, *names: str) -> str:
    """A list of tokens, or a text of them, as one line; of the first field there is.

    Raises:
      ValueError: there is none of these fields, or it is neither.
    """
    value = next((record[name] for name in names if name in record), None)
    if isinstance(value, str):
        return words(value)
    if isinstance(value, list) and all(isinstance(token, str) for token in value):
        return words(" ".join(value))
    raise ValueError(
        f"expected field {' or '.join(map(repr, names))} with a list of tokens, got "
        + ("nothing" if value is None else type(value).__name__)
    )


def full(**texts: str) -> dict[str, str]:
    """The texts, none of them empty.

    Raises:
      ValueError: one is empty, or nothing but space.
    """
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"expected a {name}, got {text!r}")
    return texts
