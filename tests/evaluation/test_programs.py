"""Verdicts on real samples equal those that the official evaluators gave."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from codet5p_jax.evaluation import programs
from codet5p_jax.evaluation.programs import Verdict
from codet5p_jax.evaluation.sandbox.pool import LayerMissing, Sandbox, run_programs
from codet5p_jax.evaluation.sandbox.program import Outcome, PythonSource

DATA = Path(__file__).parents[2] / "../shared/data"
# Samples, recorded verdicts, problems, seconds, packages that the evaluator's Python had.
RECORDED = {
    "humaneval": (
        "humaneval/codegen16b_T0.8_first5.jsonl",
        "humaneval/codegen16b_T0.8_first5.official_results.jsonl",
        "humaneval/HumanEval.jsonl",
        programs.HUMANEVAL_SECONDS,
        ["numpy"],
    ),
    "mbpp": (
        "mbpp/mbpp_samples.part.jsonl",
        "mbpp/mbpp_samples.part.official_results.jsonl",
        "mbpp/mbpp_release_v1.mxeval.jsonl",
        programs.MBPP_SECONDS,
        [],
    ),
    "mathqa": (
        "mathqa_python/samples.part.jsonl",
        "mathqa_python/samples.part.official_results.jsonl",
        "mathqa_python/mathqa-test-python.part.jsonl",
        programs.MATHQA_SECONDS,
        [],
    ),
    "mathqa, canonical": (
        "mathqa_python/canonical.part.jsonl",
        "mathqa_python/canonical.part.official_results.jsonl",
        "mathqa_python/mathqa-test-python.part.jsonl",
        programs.MATHQA_SECONDS,
        ["scipy", "numpy"],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _a_sandbox():
    try:
        Sandbox().close()
    except LayerMissing as error:
        pytest.skip(str(error))


def records(name: str) -> list[dict]:
    path = DATA / name
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists() and not packed.exists():
        pytest.skip(f"needs {path}")
    text = path.read_text("utf-8") if path.exists() else gzip.decompress(packed.read_bytes())
    return [json.loads(line) for line in text.splitlines()]


def compare(name: str, every: int) -> None:
    sample_file, verdict_file, problem_file, seconds, packages = RECORDED[name]
    for package in packages:
        pytest.importorskip(package)
    problems = {problem["task_id"]: problem for problem in records(problem_file)}
    samples, recorded = records(sample_file)[::every], records(verdict_file)[::every]
    assert samples
    sources = (
        PythonSource(
            programs.check_program(problems[sample["task_id"]], sample["completion"]), seconds
        )
        for sample in samples
    )
    outcomes = run_programs(sources, packages=packages)
    for sample, expected, outcome in zip(samples, recorded, outcomes, strict=True):
        found = programs.verdict(outcome)
        assert sample["task_id"] == expected["task_id"]
        assert found.passed == expected["passed"], (sample, found, expected)
        if sys.version_info[:2] == (3, 11):  # as recorded; messages change with versions
            assert found.result == expected["result"], sample


@pytest.mark.parametrize("name", RECORDED)
def test_some_recorded_verdicts(name):
    compare(name, every=19)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_verdicts(name):
    compare(name, every=1)


def compare_thoughts(every: int) -> None:
    """Two programs count for seconds until they know: on a busy machine longer than the official
    limit, so they have more time here. Two others never end."""
    recorded = records("gsm8k_python/pot_gsm8k_fewshot_codedavinci002.jsonl")[::every]
    sources = (
        PythonSource(record["program"], 4 * programs.GSM8K_SECONDS, programs.THOUGHTS_ANSWER)
        for record in recorded
    )
    for record, outcome in zip(recorded, run_programs(sources), strict=True):
        assert programs.answer_of(outcome) == record["executed_rerun"], record
        found = programs.answer_verdict(outcome, record["answer"])
        assert found.passed == record["correct_rerun"], (record, found)


def test_some_answers_of_program_of_thoughts():
    compare_thoughts(every=20)


@pytest.mark.slow
def test_answers_of_program_of_thoughts():
    compare_thoughts(every=1)


def test_solutions_of_humaneval_pass():
    problems = records("humaneval/HumanEval.jsonl")[::4]
    sources = [programs.check_program(p, p["canonical_solution"]) for p in problems]
    outcomes = run_programs(PythonSource(source, programs.MBPP_SECONDS) for source in sources)
    assert all(programs.verdict(outcome).passed for outcome in outcomes)


def test_solutions_of_mbpp_pass_its_tests():
    problems = records("mbpp/mbpp.jsonl")[:20]
    sources = [programs.mbpp_program(problem, problem["code"]) for problem in problems]
    sources += [programs.mbpp_program(problem, "") for problem in problems[:3]]
    outcomes = run_programs(PythonSource(source, programs.MBPP_SECONDS) for source in sources)
    assert [programs.verdict(outcome).passed for outcome in outcomes] == [True] * 20 + [False] * 3


def test_gold_of_gsm8k_is_that_of_program_of_thoughts():
    gold = {r["question"]: programs.gsm8k_answer(r["answer"]) for r in records("gsm8k/test.jsonl")}
    for record in records("gsm8k_python/pot_gsm8k_fewshot_codedavinci002.jsonl"):
        assert gold.get(record["question"], record["answer"]) == record["answer"]


def test_what_ends_otherwise_fails():
    assert programs.verdict(Outcome("finished")) == Verdict(True, "passed")
    assert programs.verdict(Outcome("timed out")) == Verdict(False, "timed out")
    assert programs.verdict(Outcome("raised", "x")) == Verdict(False, "failed: x")
    assert programs.verdict(Outcome("ended", "exited with 0")).result == "failed: exited with 0"
    assert programs.verdict(Outcome("memory")).result == "failed: more memory than its limit"


@pytest.mark.parametrize(
    ("value", "output", "passed"),
    [
        (18.0, "", True),
        ([18.0, 5.0], "", True),
        (18.04, "", True),  # 18.0 has one decimal
        (18.06, "", False),
        (None, "the answer:\n18\n", True),
        (None, "eighteen", False),
        (None, "", False),
        ([], "", False),
        (True, "", False),
        ("18.0", "", False),
        (float("nan"), "", False),
        (float("inf"), "", False),
    ],
)
def test_answers(value, output, passed):
    outcome = Outcome("finished", value=value, output=output)
    assert programs.answer_verdict(outcome, 18.0).passed == passed


def test_an_answer_within_a_tolerance():
    outcome = Outcome("finished", value=18.1)
    assert programs.answer_verdict(outcome, 18.0, relative_tolerance=0.01).passed
    assert not programs.answer_verdict(outcome, 18.0, relative_tolerance=0.001).passed
    assert not programs.answer_verdict(Outcome("timed out", value=18.0), 18.0).passed
