"""Programs from a description: MBPP, and those to evaluate on, HumanEval, HumanEval-X and the tasks
of mxeval."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    full,
)
from codet5p_jax.data.corpora.jsonl import check_fields
from codet5p_jax.data.corpora.malformed import Malformed

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
    fields = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    return _tested(folder, ("HumanEval.jsonl",), fields, malformed, setting)


def human_eval_x(
    folder: str | Path,
    language: str,
    *,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """The problems of HumanEval-X in a language: as of `human_eval` but for `entry_point`, and with
    `declaration`.

    Args:
      folder: holds `humaneval_<language>.jsonl`.
      language: `python`, `cpp`, `java`, `js`, `go` or `rust`.
      malformed, setting: as for `human_eval`, which says what is raised.
    """
    fields = ("task_id", "prompt", "canonical_solution", "test", "declaration")
    return _tested(folder, (f"humaneval_{language}.jsonl",), fields, malformed, setting)


def mxeval(
    folder: str | Path,
    *names: str,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """MBPP or MathQA-Python as mxeval publishes them: `task_id`, `prompt`, `entry_point`, `test`.

    Args:
      folder: holds one file of `names`.
      names: what the file may be called.
      malformed, setting: as for `human_eval`, which says what is raised.
    """
    fields = ("task_id", "prompt", "entry_point", "test")
    return _tested(folder, names, fields, malformed, setting)


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
    path = find_file(folder, "mbpp.jsonl", setting=setting)
    problems = converted(path, _mbpp, malformed)
    return (problem for problem in problems if problem["task_id"] in MBPP_IDS[split])


def _tested(
    folder: str | Path,
    names: Sequence[str],
    fields: Sequence[str],
    malformed: Malformed | None,
    setting: str,
) -> Iterator[Record]:
    """Records of a file of problems with tests, `fields` of them and `place`."""

    def convert(record: Record) -> Record:
        check_fields(record, dict.fromkeys(fields, str))
        return {name: record[name] for name in fields}

    return converted(find_file(folder, *names, setting=setting), convert, malformed)


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
