"""Mathematical questions with Python programs: MathQA-Python and GSM8K-Python."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.files import split_of
from codet5p_jax.data.corpora.finetuning.calculator import NotAProgramError, final_answer, program
from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    find_optional,
    full,
    split_name,
)
from codet5p_jax.data.corpora.jsonl import check_fields
from codet5p_jax.data.corpora.malformed import Malformed, check_share

NAMES = {"train": "train", "validation": "dev", "test": "test"}


def mathqa(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, Any]]:
    """MathQA-Python: `source` (question and ` n0 = 5.0 …`), `target` (program), `answer`, `place`.

    Args:
      folder: holds `{train,dev,test}.jsonl` (or `.json`, a list) of what trax's
        `CreateMathQAInputs(cumulative=False, python_code=True, full_dict=True)` yields: {text,
        code, answer, …}. The `# ` that trax puts before a question is taken off.
      split: "train", "validation" or "test".
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    name = split_name(split, NAMES)
    file = find_file(folder, f"{name}.jsonl", f"{name}.json", setting=setting)
    return converted(file, _mathqa, malformed)


def gsm8k(
    folder: str | Path,
    split: str,
    *,
    held_out: float = 0.05,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, Any]]:
    """GSM8K with programs: `source` (question), `target` (program), `answer`, `place`.

    The paper's own conversion of solutions to programs (5,861 of those for training) is not
    released. Here a program is made of the calculator's marks in a solution, see `calculator`; what
    cannot be converted is left out, but for "test", where `target` is then empty. A record may come
    with its `code` instead.

    Args:
      folder: holds `{train,test}.jsonl` of {question, answer}; `dev.jsonl` if there is one.
      split: "train", "validation" or "test".
      held_out: the share of "train" that is "validation" where there is no `dev.jsonl`, by a hash
        of the question. NOT STATED in the paper.
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
      ValueError: at once, if `held_out` is no share.
    """
    check_share(held_out, "held_out")
    name = split_name(split, NAMES)
    shares = None
    if split != "test" and find_optional(Path(folder), "dev.jsonl") is None:
        name, shares = "train", {"train": 1 - held_out, "validation": held_out}
    path = find_file(folder, f"{name}.jsonl", setting=setting)
    return (
        example
        for example in converted(path, _gsm8k, malformed)
        if (example["target"] or split == "test")
        and (shares is None or split_of(example["source"], shares) == split)
    )


def _mathqa(record: Record) -> Record:
    check_fields(record, {"text": str, "code": str})
    answer = record.get("answer")
    if not isinstance(answer, int | float):
        raise ValueError(f"expected field 'answer' with a number, got {answer!r}")
    texts = full(text=record["text"].strip().removeprefix("#"), code=record["code"])
    return {"source": texts["text"].strip(), "target": texts["code"].strip(), "answer": answer}


def _gsm8k(record: Record) -> Record:
    check_fields(record, {"question": str, "answer": str})
    question = full(question=record["question"])["question"].strip()
    answer = final_answer(record["answer"])
    code = record.get("code")
    if code is None:
        try:
            code = program(record["answer"])
        except NotAProgramError:
            code = ""
    return {"source": question, "target": str(code).strip(), "answer": answer}
