"""Python programs from a description: HumanEval (to evaluate on) and MBPP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    full,
    read_json_records,
)
from codet5p_jax.data.corpora.jsonl import check_fields
from codet5p_jax.data.corpora.malformed import Malformed, intolerant

MBPP_IDS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}


def human_eval(
    folder: str | Path, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, str]]:
    """The problems of HumanEval, all of them the test: `task_id`, `prompt`, `entry_point`,
    `canonical_solution`, `test`, `place`.

    Args:
      folder: holds `HumanEval.jsonl`.
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    malformed = malformed or intolerant()
    records = read_json_records(find_file(folder, "HumanEval.jsonl", setting=setting), malformed)
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")

    def convert(record: Record) -> Record:
        check_fields(record, dict.fromkeys(names, str))
        return {name: record[name] for name in names}

    return converted(records, convert, malformed)


def mbpp(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, Any]]:
    """The problems of MBPP: `source`, `target`, `task_id`, `test_setup_code`, `test_list`,
    `challenge_test_list`, `place`.

    `source` is the description and the tests, a line each, `target` the program. Lines end in a
    newline alone.

    Args:
      folder: holds `mbpp.jsonl`, 974 problems. Which is of which split is decided by `task_id`.
      split: "train", "validation", "test" or "prompt" (meant for prompts, 10 problems).
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    if split not in MBPP_IDS:
        raise ValueError(f"expected a split among {', '.join(MBPP_IDS)}, got {split!r}")
    malformed = malformed or intolerant()
    records = read_json_records(find_file(folder, "mbpp.jsonl", setting=setting), malformed)
    problems = converted(records, _mbpp, malformed)
    return (problem for problem in problems if problem["task_id"] in MBPP_IDS[split])


def _mbpp(record: Record) -> Record:
    check_fields(record, {"text": str, "code": str, "task_id": int, "test_list": list})
    texts = full(text=record["text"], code=record["code"])
    if not all(isinstance(test, str) for test in record["test_list"]):
        raise ValueError("expected test_list to have texts alone")
    tests = [test.strip() for test in record["test_list"]]
    return {
        "source": "\n".join((texts["text"].strip(), *tests)),
        "target": "\n".join(line.rstrip() for line in texts["code"].splitlines()).strip("\n"),
        "task_id": record["task_id"],
        "test_setup_code": record.get("test_setup_code", ""),
        "test_list": record["test_list"],
        "challenge_test_list": record.get("challenge_test_list", []),
    }
