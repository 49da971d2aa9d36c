"""CONCODE: Java methods from a description and the class around them."""

from collections.abc import Iterator
from pathlib import Path

from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    full,
    split_name,
)
from codet5p_jax.data.corpora.jsonl import check_fields
from codet5p_jax.data.corpora.malformed import Malformed

NAMES = {"train": "train", "validation": "dev", "test": "test"}


def concode(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, str]]:
    """Descriptions and methods: `source`, `target`, `place`. Those of "test" are published without
    the methods; their `target` is then empty.

    Args:
      folder: holds `{train,dev,test}.json`, JSON lines of {nl, code}.
      split: "train", "validation" or "test".
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    name = split_name(split, NAMES)
    names = (f"{name}.json", f"{name}_no_answers.json") if split == "test" else (f"{name}.json",)

    def convert(record: Record) -> Record:
        check_fields(record, {"nl": str, "code": str})
        source, target = record["nl"].strip(), record["code"].strip()
        full(nl=source)
        if split != "test":
            full(code=target)
        return {"source": source, "target": target}

    return converted(find_file(folder, *names, setting=setting), convert, malformed)
