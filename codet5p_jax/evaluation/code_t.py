"""CodeT: samples ranked by how many agree on how many generated tests (Chen et al. 2022).

The rules are those of microsoft/CodeT. Settings of CodeT5+ are not stated; those here are CodeT's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from codet5p_jax.evaluation.metrics.pass_at_k import pass_at_k
from codet5p_jax.evaluation.sandbox.program import Outcome, PythonSource

SECONDS = 0.1  # for an assertion
ASSERTIONS = 5  # taken of a generated text: the first
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

_HEAD = """
class _TimeLimit:
    def __init__(self, seconds):
        self.seconds = seconds
    def __enter__(self):
        import signal
        def raise_it(number, frame):
            raise TimeoutError
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        signal.signal(signal.SIGALRM, raise_it)
    def __exit__(self, *error):
        import signal
        signal.setitimer(signal.ITIMER_REAL, 0)
def _verdicts():
    passed = []
"""
_ASSERTION = """
    try:
        with _TimeLimit({seconds}):
            {assertion}
        passed.append(True)
    except Exception:
        passed.append(False)
"""
_TAIL = """
    return passed
_passed = _verdicts()
"""


def assertions(text: str, entry_point: str) -> list[str]:
    """Tests in what a model wrote after a prompt that ends with `assert `.

    >>> assertions("f(1) == 2\\nassert f(2) == 3\\nassert f(\\nprint(f)", "f")
    ['assert f(1) == 2', 'assert f(2) == 3']
    """
    found = []
    for part in f"assert {text}".split("assert "):
        if entry_point.strip() not in part or not part.strip():
            continue
        assertion = f"assert {part}".strip()
        for stop in STOP:
            assertion = assertion.split(stop)[0]
        assertion = assertion.strip()
        if _compiles(assertion):
            found.append(assertion)
    return found


def _compiles(assertion: str) -> bool:
    inner = assertion.replace("\n", "\n    ")
    try:
        compile(f"try:\n    {inner}\nexcept:\n    pass\n", "", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def assertions_program(
    prompt: str, completion: str, tests: Sequence[str], *, seconds: float = SECONDS
) -> PythonSource:
    """A sample with tests, each of which has its own verdict: see `passed_of`."""
    blocks = [
        _ASSERTION.format(seconds=seconds, assertion=test.strip().replace("\n", "\n" + " " * 12))
        for test in tests
    ]
    source = f"{prompt}{completion}\n{_HEAD}{''.join(blocks)}{_TAIL}"
    return PythonSource(source, seconds * len(tests) + 0.1, answer="_passed")


def passed_of(outcome: Outcome, tests: int) -> Bool[np.ndarray, " tests"]:
    """Which of the tests of `assertions_program` a sample passes; none if it did not get there."""
    value = outcome.value if outcome.status == "finished" else None
    if not isinstance(value, list) or len(value) != tests:
        return np.zeros(tests, np.bool_)
    return np.array([item is True for item in value], np.bool_)


@dataclass(frozen=True)
class Group:
    """Samples that pass the same tests.

    Args:
      samples: their numbers.
      score: √(number of samples) × number of tests.
    """

    samples: tuple[int, ...]
    score: float


def agreement(
    passed: Bool[np.ndarray, "samples tests"], times: Int[np.ndarray, " tests"] | None = None
) -> list[Group]:
    """Groups of samples by the tests they pass, the best first, without samples that pass none.

    agreement([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
        == [Group((0, 1), √2 · 2), Group((2,), 2)]

    Args:
      passed: a row for every sample; equal samples have rows of their own.
      times: how often each test was generated; default: once.
    """
    times = np.ones(passed.shape[1], np.int64) if times is None else times
    members: dict[bytes, list[int]] = {}
    for sample, row in enumerate(passed):
        if row.any():
            members.setdefault(row.tobytes(), []).append(sample)
    groups = [
        Group(tuple(samples), math.sqrt(len(samples)) * int(times[passed[samples[0]]].sum()))
        for samples in members.values()
    ]
    return sorted(groups, key=lambda group: -group.score)


def ranking(groups: Sequence[Group], samples: int) -> list[int]:
    """All samples: those of the best group first, those that pass no test last."""
    ranked = [sample for group in groups for sample in group.samples]
    return [*ranked, *sorted(set(range(samples)) - set(ranked))]


def reranked_pass_at_k(
    groups: Sequence[Sequence[Group]], correct: Sequence[Bool[np.ndarray, "_"]], k: int
) -> float:
    """Chance that one of k samples is correct, one drawn from each of the k best groups in turn.

    Groups of equal score are one. Problems none of whose samples pass a test count by the plain
    estimator. It is not the estimator of `pass_at_k`: draws are with replacement.

    Args:
      groups: of each problem, from `agreement`.
      correct: whether each sample of a problem passes the problem's own tests.
    """
    total = 0.0
    for of_problem, right in zip(groups, correct, strict=True):
        if not of_problem:
            total += pass_at_k([len(right)], [int(right.sum())], k)
            continue
        merged: dict[float, list[int]] = {}
        for group in of_problem:
            merged.setdefault(group.score, []).extend(group.samples)
        wrong = [1 - float(np.mean(right[samples])) for samples in merged.values()]
        total += 1 - math.prod(wrong[draw % len(wrong)] for draw in range(k))
    return total / len(groups)
