"""CodeT on samples of a benchmark: pass@k where samples are ranked by tests that a model wrote."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codet5p_jax.evaluation import code_t
from codet5p_jax.evaluation.benchmarks.base import Problem
from codet5p_jax.evaluation.progress import progress_bar
from codet5p_jax.evaluation.sandbox.pool import run_programs

PROMPT = "    pass\n\n# check the correctness of {entry_point}\nassert "
"""What follows a function's head and docstring in CodeT's prompts."""


def agreed_pass_at_k(
    problems: Sequence[Problem],
    results: Sequence[Mapping[str, Any]],
    texts: Sequence[Mapping[str, Any]],
    ks: Sequence[int],
    sandbox: Mapping[str, Any],
) -> dict[str, float]:
    """`code_t_pass@k` for each k.

    Args:
      problems: with `key`, `prompt` and `entry_point`.
      results: `task_id`, `completion`, `passed` of every sample.
      texts: `task_id` and `completion`, what was written after `PROMPT`.
      ks: of pass@k.
      sandbox: arguments of `run_programs`.
    """
    samples: dict[str, list[Mapping[str, Any]]] = {p["key"]: [] for p in problems}
    for result in results:
        samples[result["task_id"]].append(result)
    tests = {key: Counter[str]() for key in samples}
    entry_points = {problem["key"]: problem["entry_point"] for problem in problems}
    for text in texts:
        key = text["task_id"]
        if key in tests:
            found = code_t.assertions(text["completion"], entry_points[key])
            tests[key].update(found[: code_t.ASSERTIONS])
    tested = [problem for problem in problems if tests[problem["key"]]]
    programs = (
        code_t.assertions_program(p["prompt"], sample["completion"], [*tests[p["key"]]])
        for p in tested
        for sample in samples[p["key"]]
    )
    total = sum(len(samples[problem["key"]]) for problem in tested)
    groups: dict[str, list[code_t.Group]] = {key: [] for key in samples}
    with progress_bar("samples against tests", total) as advance:
        outcomes = run_programs(programs, progress=advance, **sandbox)
        for problem in tested:
            times = tests[problem["key"]]
            passed = [code_t.passed_of(next(outcomes), len(times)) for _ in samples[problem["key"]]]
            counts = np.array([*times.values()], np.int64)
            groups[problem["key"]] = code_t.agreement(np.stack(passed), counts)
    correct = [np.array([s["passed"] for s in of], np.bool_) for of in samples.values()]
    return {
        f"code_t_pass@{k}": code_t.reranked_pass_at_k([*groups.values()], correct, k) for k in ks
    }
