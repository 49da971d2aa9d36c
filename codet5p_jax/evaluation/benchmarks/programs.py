"""Programs that are run: HumanEval, HumanEval-X, MBPP, MathQA-Python, GSM8K-Python."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax

from codet5p_jax.decoding.prompts import Prompt
from codet5p_jax.evaluation import code_t, humaneval_x
from codet5p_jax.evaluation.benchmarks.agreement import agreed_pass_at_k
from codet5p_jax.evaluation.benchmarks.base import (
    Benchmark,
    Data,
    Model,
    Prediction,
    Problem,
    Settings,
    first_of_each,
)
from codet5p_jax.evaluation.benchmarks.files import GrowingFile, read_objects
from codet5p_jax.evaluation.benchmarks.generation import (
    Decoding,
    check_generation,
    check_positions,
    framed,
    generate_texts,
)
from codet5p_jax.evaluation.benchmarks.instructed import instructed
from codet5p_jax.evaluation.metrics.pass_at_k import pass_at_k
from codet5p_jax.evaluation.programs import (
    ANSWER,
    Verdict,
    answer_verdict,
    check_program,
    mbpp_program,
    verdict,
)
from codet5p_jax.evaluation.progress import progress_bar
from codet5p_jax.evaluation.sandbox.pool import Sandbox, run_programs
from codet5p_jax.evaluation.sandbox.program import Outcome, Program, PythonSource

Check = Callable[[Problem, str], tuple[Program, Callable[[Outcome], Verdict]]]
RESULTS, TESTS = "results.jsonl", "tests.jsonl"
# Of texts with tests; CodeT's.
_OF_TESTS = Decoding(max_tokens=300, temperature=0.8, top_p=0.95, samples=100)


@dataclass(frozen=True, kw_only=True)
class ProgramBenchmark(Benchmark):
    """Problems whose answers are programs; pass@k of several for each.

    Attributes:
      check: (problem, what was written) -> the program to run, and what judges its outcome.
      ks: of pass@k; k = 1 comes with them, and those above the number of samples are left out.
      decoding: how they are written.
      inputs_length: tokens of the encoder at most.
      tabs: every four spaces are a tab to the model, in prompts and in what it writes.
      stop: ends a program, and is not part of it.
      imports: packages of this Python that programs may import.
      readable: more that they may read.
      ending: follows the prompt.
      instructed: the model is tuned on instructions, and given one: see `instructed.py`.
      tests_prompt: the same the prompt where the model is to write tests; "": it cannot be asked.
      task_id: the field of a problem that names it; None: its number.
    """

    check: Check
    ks: tuple[int, ...]
    decoding: Decoding
    inputs_length: int
    tabs: bool = False
    stop: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    readable: Callable[[], Sequence[str]] = tuple
    ending: str = ""
    instructed: bool = False
    tests_prompt: str = ""
    task_id: str | None = "task_id"

    key: ClassVar[str] = "task_id"
    value: ClassVar[str] = "completion"

    def key_of(self, record: Mapping[str, Any], number: int) -> str:
        """The task's own name."""
        return str(number if self.task_id is None else record[self.task_id])

    def samples(self, settings: Settings) -> int:
        """Programs of each problem."""
        return self.decoding.of(settings).samples

    def also(self, settings: Settings) -> list[tuple[Benchmark, Settings, str]]:
        """Tests, for CodeT."""
        if not settings.code_t or not self.tests_prompt:
            return []
        writer = replace(self, ending=self.tests_prompt, stop=(), decoding=_OF_TESTS)
        given = replace(settings, samples=settings.code_t, temperature=None, top_p=None, beams=None)
        return [(writer, given, TESTS)]

    def check_scoring(self, data: Data, settings: Settings) -> None:
        """The sandbox has to start, and what programs are compiled with has to be there."""
        super().check_scoring(data, settings)
        Sandbox(**self._sandbox(settings)).close()
        for problem in data.problems[:1]:
            self.check(problem, "")

    def check_model(self, model: Model, settings: Settings) -> None:
        """It has to write, and several samples have to differ."""
        decoding = self.decoding.of(settings)
        if decoding.samples > 1 and not decoding.temperature:
            raise ValueError(
                f"{self.name}: {decoding.samples} samples at temperature 0 would be the same "
                "program each time; set --temperature, or --samples=1"
            )
        check_generation(self.name, model)

    def check_lengths(self, model: Model, data: Data, settings: Settings) -> None:
        """Of every prompt, those for tests too."""
        prompts = (self.prompt(model, problem) for problem in data.problems)
        check_positions(self.name, model, prompts, self.decoding.of(settings))
        for other, how, _ in self.also(settings):
            other.check_lengths(model, data, replace(how, code_t=0))

    def predict(
        self,
        model: Model,
        data: Data,
        todo: Sequence[Problem],
        settings: Settings,
        key: jax.Array,
    ) -> Iterator[list[Prediction]]:
        """Writes programs."""
        del data
        problems = {problem["key"]: problem for problem in todo}
        times = Counter(problem["key"] for problem in todo)
        prompts = [self.prompt(model, problem) for problem in problems.values()]
        decoding, size = self.decoding.of(settings), settings.batch_size
        keys, wanted = [*problems], [times[name] for name in problems]
        for batch in generate_texts(model, prompts, decoding, key, size, self.stop, wanted):
            yield [{self.key: keys[place], self.value: self.finish(text)} for place, text in batch]

    def prompt(self, model: Model, problem: Problem) -> Prompt:
        """What the model reads."""
        asked, length = self.asked(problem), self.inputs_length
        if self.instructed:
            return instructed(model, problem["prompt"], asked, length)
        return framed(model, asked, length)

    def asked(self, problem: Problem) -> str:
        """What the model continues."""
        text = problem["source"] if "source" in problem else problem["prompt"]
        if self.ending:
            text += self.ending.format(entry_point=problem["entry_point"])
        return text.replace("    ", "\t") if self.tabs else text

    def finish(self, text: str) -> str:
        """A program, up to what stops it."""
        if self.tabs:
            text = text.replace("\t", "    ")
        for stop in self.stop:
            text = text.split(stop)[0]
        return text

    def parse(self, path: Path, data: Data) -> list[Prediction]:
        """JSON lines of {task_id, completion}, as of HumanEval's evaluator, in any number."""
        known = {problem["key"] for problem in data.problems}
        found = read_objects(path, {self.key: (str, int), self.value: (str,)})
        for prediction in found:
            prediction[self.key] = str(prediction[self.key])
        strange = next((p[self.key] for p in found if p[self.key] not in known), None)
        if strange is not None:
            raise ValueError(
                f"{path}: expected a task_id of {self.name} such as {min(known)!r}, got {strange!r}"
            )
        return found

    def score(
        self, data: Data, predictions: Sequence[Prediction], settings: Settings, folder: Path
    ) -> dict[str, float]:
        """Runs what was not run before, and writes verdicts as it goes."""
        results = self._results(data, predictions, settings, folder)
        total = Counter(result[self.key] for result in results)
        right = Counter(result[self.key] for result in results if result["passed"])
        counts, correct = list(total.values()), [right[key] for key in total]
        ks = [k for k in sorted({1, *self.ks}) if k <= min(counts)]
        figures = {f"pass@{k}": pass_at_k(counts, correct, k) for k in ks}
        if settings.code_t:
            written = GrowingFile(folder / TESTS).read({self.key: (str,), self.value: (str,)})
            texts = first_of_each(written, self.key, settings.code_t)
            sandbox = self._sandbox(settings)
            figures |= agreed_pass_at_k(data.problems, results, texts, ks, sandbox)
        return figures

    def _results(
        self, data: Data, predictions: Sequence[Prediction], settings: Settings, folder: Path
    ) -> list[dict[str, Any]]:
        """A verdict for each prediction; equal programs run once."""
        problems = {problem["key"]: problem for problem in data.problems}
        file = GrowingFile(folder / RESULTS)
        known = {
            self._program(result): result
            for result in file.read({self.key: (str,), self.value: (str,)})
        }
        asked = dict.fromkeys(map(self._program, predictions))
        todo = [program for program in asked if program not in known]
        if todo:
            self._run([(problems[key], text) for key, text in todo], known, file, settings)
        return [known[self._program(p)] for p in predictions]

    def _run(
        self,
        todo: Sequence[tuple[Problem, str]],
        known: dict[tuple[str, str], dict[str, Any]],
        file: GrowingFile,
        settings: Settings,
    ) -> None:
        """Runs programs, and adds verdicts to `known` and the file as they come."""
        checks = [self.check(problem, text) for problem, text in todo]
        with progress_bar(f"{self.name}: programs", len(todo)) as advance:
            programs = (program for program, _ in checks)
            outcomes = run_programs(programs, progress=advance, **self._sandbox(settings))
            for (problem, text), (_, judge), outcome in zip(todo, checks, outcomes, strict=True):
                named = {self.key: problem["key"], self.value: text}
                known[self._program(named)] = {**named, **asdict(judge(outcome))}
                # The disk may take longer than a program, which can be run again.
                file.append([known[self._program(named)]], sync=False)

    def _program(self, record: Mapping[str, Any]) -> tuple[str, str]:
        return record[self.key], record[self.value]

    def _sandbox(self, settings: Settings) -> dict[str, Any]:
        return {
            "packages": self.imports,
            "readable": self.readable(),
            "allow_weaker": settings.allow_weaker_sandbox,
        }


def with_its_test(seconds: float) -> Check:
    """A completion of a prompt, followed by a test."""

    def check(problem: Problem, text: str) -> tuple[Program, Callable[[Outcome], Verdict]]:
        return PythonSource(check_program(problem, text), seconds), verdict

    return check


def whole_program(seconds: float) -> Check:
    """A program, followed by assertions: MBPP as published."""

    def check(problem: Problem, text: str) -> tuple[Program, Callable[[Outcome], Verdict]]:
        return PythonSource(mbpp_program(problem, text), seconds), verdict

    return check


def with_an_answer(seconds: float) -> Check:
    """A program whose variable `answer` is compared."""

    def check(problem: Problem, text: str) -> tuple[Program, Callable[[Outcome], Verdict]]:
        gold = problem["answer"]
        return PythonSource(text, seconds, ANSWER), lambda ran: answer_verdict(ran, gold)

    return check


HUMANEVAL_STOP = code_t.STOP
check_x: Check = humaneval_x.check
