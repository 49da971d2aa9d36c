"""Line completion (CodeXGLUE): PY150 and JavaCorpus."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    full,
    split_name,
)
from codet5p_jax.data.corpora.jsonl import check_fields
from codet5p_jax.data.corpora.lines import numbered_lines
from codet5p_jax.data.corpora.malformed import Malformed, intolerant

CORPORA = ("py150", "javaCorpus")
LINE_END = "<EOL>"
NAMES = {"train": "train", "validation": "dev"}


def completion_files(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, str]]:
    """Source files to learn from: `code`, `place`.

    `code` is a file's tokens, a space apart, without the `<s>` and `</s>` around them; where a line
    ends there is `<EOL>`. Literals stay as they are (`<STR_LIT:utf-8>`).

    Args:
      folder: holds `train.txt` and `dev.txt`, a source file a line: `<s> token … <EOL> … </s>`.
      split: "train" or "validation".
      malformed: counts and reports lines of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    path = find_file(folder, f"{split_name(split, NAMES)}.txt", setting=setting)
    return _files(path, malformed or intolerant())


def completion_questions(
    folder: str | Path, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, Any]]:
    """What is asked in the test: `prefix`, `target`, `id`, `place`.

    `prefix` is as `code` of `completion_files`, up to somewhere in a line; `target` the rest of it.

    Args:
      folder: holds `test.json`, JSON lines of {id, input, gt}.
      malformed, setting: as for `completion_files`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    return converted(find_file(folder, "test.json", setting=setting), _question, malformed)


def _files(path: Path, malformed: Malformed) -> Iterator[dict[str, str]]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            tokens = line.decode().split()
            if len(tokens) < 3 or (tokens[0], tokens[-1]) != ("<s>", "</s>"):
                raise ValueError(f"expected '<s> … </s>', got {' '.join(tokens)[:40]!r}")
        except ValueError as error:
            malformed.bad(f"{path}:{number}", error)
            continue
        malformed.good()
        yield {"code": " ".join(tokens[1:-1]), "place": f"{path}:{number}"}
    malformed.judge()


def _question(record: Record) -> Record:
    check_fields(record, {"input": str, "gt": str})
    tokens = record["input"].split()
    if tokens[:1] != ["<s>"]:
        raise ValueError(f"expected an input that begins with '<s>', got {record['input'][:40]!r}")
    full(gt=record["gt"])
    return {
        "prefix": " ".join(tokens[1:]),
        "target": record["gt"].strip(),
        "id": record.get("id", -1),
    }
