"""Verdicts on programs in Python: HumanEval, MBPP, MathQA-Python and GSM8K-Python."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codet5p_jax.evaluation.sandbox.program import Outcome

# Seconds that the official evaluators give a program.
HUMANEVAL_SECONDS, MBPP_SECONDS, MATHQA_SECONDS, GSM8K_SECONDS = 3.0, 10.0, 10.0, 5.0
# The variable with the answer: of CodeT5+'s targets, and of program-of-thoughts.
ANSWER, THOUGHTS_ANSWER = "answer", "ans"


@dataclass(frozen=True)
class Verdict:
    """`passed`, `timed out` or `failed: why`, as the official evaluators say it."""

    passed: bool
    result: str


def check_program(problem: Mapping[str, str], completion: str) -> str:
    """A completion and its test as one program: HumanEval, and MBPP and MathQA in mxeval's form.

    Args:
      problem: with `prompt`, `test` and `entry_point`.
    """
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})"


def mbpp_program(problem: Mapping[str, Any], code: str) -> str:
    """A whole solution and its test as one program: MBPP as published (`mbpp.jsonl`)."""
    return "\n".join([problem["test_setup_code"], code, *problem["test_list"]])


def verdict(outcome: Outcome) -> Verdict:
    """Of a program that has its test in it: it passes by reaching its end.

    Where a process ended in another way, official evaluators say `timed out` as well; here it is
    `failed: ` and how.
    """
    if outcome.status == "finished":
        return Verdict(True, "passed")
    if outcome.status == "timed out":
        return Verdict(False, "timed out")
    over = f"more {outcome.status} than its limit"
    why = outcome.message if outcome.status in ("raised", "ended") else over
    return Verdict(False, f"failed: {why}")


def gsm8k_answer(text: str) -> float:
    """The number after the mark in an answer of GSM8K.

    >>> gsm8k_answer("She has 2 * 700 = <<2*700=1400>>1400.\\n#### 1,400")
    1400.0
    """
    return float(text.rpartition("####")[2].replace(",", ""))


def answer_of(outcome: Outcome) -> bool | float | str | None:
    """What a program found: the value of its variable, else the number that it printed last.

    As in program-of-thoughts, of several values it is the first.
    """
    value = outcome.value
    while isinstance(value, list):
        value = value[0] if value else None
    if outcome.status != "finished" or value is not None:
        return value
    lines = outcome.output.split()
    try:
        return float(lines[-1]) if lines else None
    except ValueError:
        return None


def answer_verdict(
    outcome: Outcome, gold: float, *, relative_tolerance: float | None = None
) -> Verdict:
    """Of a program whose answer is compared with a number.

    Args:
      relative_tolerance: None: equal after rounding to the fewer decimals of the two, as the
        evaluator of program-of-thoughts has it. The paper states no tolerance.
    """
    if outcome.status != "finished":
        return verdict(outcome)
    found = answer_of(outcome)
    if found is None:
        return Verdict(False, "failed: no answer")
    if isinstance(found, bool | str):
        return Verdict(False, f"failed: {found!r} is no number")
    if relative_tolerance is None:
        equal = _equal_rounded(found, gold)
    else:
        equal = math.isclose(found, gold, rel_tol=relative_tolerance)
    return Verdict(equal, "passed" if equal else f"failed: {found} is not {gold}")


def _equal_rounded(found: float, gold: float) -> bool:
    """Decimals are those that Python prints; of a number without a point in it, 5."""
    decimals = min(len(str(x).rpartition(".")[2]) if "." in str(x) else 5 for x in (found, gold))
    try:
        return round(found, decimals) == round(gold, decimals)
    except (OverflowError, ValueError):  # infinite, or not a number
        return False
