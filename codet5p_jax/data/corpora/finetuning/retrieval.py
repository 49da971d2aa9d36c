"""Text-to-code retrieval: CodeSearchNet (as GraphCodeBERT filtered it), AdvTest, CosQA."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.codesearchnet import SPLITS as NAMES
from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    full,
    joined,
    split_name,
    words,
)
from codet5p_jax.data.corpora.jsonl import check_fields, read_json_object
from codet5p_jax.data.corpora.malformed import Malformed

COSQA_NAMES = {"train": "train-19604", "validation": "dev-500", "test": "test-500"}


def escaped(text: str) -> str:
    """Names of special tokens changed, as the released retrieval script does.

    >>> escaped("print('<s>')")
    "print('<ss>')"
    """
    for name, other in (("<pad>", "</pad>"), ("<s>", "<ss>"), ("</s>", "</ss>")):
        text = text.replace(name, other)
    return text


def functions(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, str]]:
    """Documented functions: `text`, `code`, `url`, `place`, of CodeSearchNet or AdvTest, and `idx`
    where the file has it, as AdvTest's does.

    Args:
      folder: holds `{train,valid,test}.jsonl` (and, of CodeSearchNet, `codebase.jsonl`) of one
        language, with `docstring_tokens`, `code_tokens` (or `function_tokens`) and `url`.
      split: "train", "validation" or "test"; or "codebase", whose `text` may be empty. The right
        answer to a query of CodeSearchNet is the function of the code base with its `url`, to one
        of AdvTest its own function among all of the split.
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    name = split_name(split, {**NAMES, "codebase": "codebase"})
    path = find_file(folder, f"{name}.jsonl", setting=setting)

    def convert(record: Record) -> Record:
        check_fields(record, {"url": str})
        code = escaped(joined(record, "function_tokens", "code_tokens"))
        full(code=code)
        named = {name: record[name] for name in ("url", "idx") if name in record}
        if split == "codebase":
            return {"text": "", "code": code, **named}
        text = escaped(joined(record, "docstring_tokens"))
        return {**full(text=text, code=code), **named}

    return converted(path, convert, malformed)


def cosqa(
    folder: str | Path,
    split: str,
    *,
    only_matching: bool = True,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, Any]]:
    """Queries of CosQA with their functions: `text`, `code`, `retrieval_idx`, `idx`, `place`.

    Args:
      folder: holds `cosqa-retrieval-{train-19604,dev-500,test-500}.json`, lists of {doc,
        code_tokens (one text), label, retrieval_idx}.
      split: "train", "validation" or "test".
      only_matching: leave out what annotators found not to match, label 0, which only "train" has.
        The released loader does not look at labels.
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    name = f"cosqa-retrieval-{split_name(split, COSQA_NAMES)}.json"
    pairs = converted(find_file(folder, name, setting=setting), _cosqa, malformed)
    return (
        {name: value for name, value in pair.items() if name != "label"}
        for pair in pairs
        if pair["label"] == 1 or not only_matching
    )


def cosqa_codebase(folder: str | Path, *, setting: str = "folder") -> dict[int, str]:
    """Candidates of CosQA by `retrieval_idx`, as they are in `code_idx_map.txt`.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is no JSON object of code and numbers.
    """
    path = find_file(folder, "code_idx_map.txt", setting=setting)
    numbers = read_json_object(path)
    if not all(isinstance(number, int) for number in numbers.values()):
        raise ValueError(f"{path}: expected a JSON object of code and numbers")
    return {number: code for code, number in numbers.items()}


def _cosqa(record: Record) -> Record:
    check_fields(record, {"doc": str, "label": int})
    text, code = escaped(words(record["doc"])), escaped(joined(record, "code_tokens"))
    return {
        **full(text=text, code=code),
        "label": record["label"],
        "retrieval_idx": record.get("retrieval_idx", -1),
        "idx": str(record.get("idx", "")),
    }
