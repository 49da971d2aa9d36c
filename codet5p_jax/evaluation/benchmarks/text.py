"""Texts that are compared with a reference: summaries, translations, repairs, methods, lines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from codet5p_jax.data.corpora.finetuning.completion import LINE_END
from codet5p_jax.decoding.prompts import Prompt
from codet5p_jax.evaluation.benchmarks.base import (
    Benchmark,
    Data,
    Model,
    Prediction,
    Problem,
    Settings,
)
from codet5p_jax.evaluation.benchmarks.files import is_json, read_objects, read_texts
from codet5p_jax.evaluation.benchmarks.generation import (
    Decoding,
    check_generation,
    check_positions,
    framed,
    generate_texts,
)
from codet5p_jax.evaluation.metrics import bleu, code_bleu
from codet5p_jax.evaluation.metrics.exact_match import exact_match
from codet5p_jax.evaluation.metrics.line_completion import line_completion

Figures = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class ReferenceBenchmark(Benchmark):
    """Texts that are compared with a reference, `target`.

    Attributes:
      figures: of references and predictions.
      language: whose CodeBLEU is a figure as well, of `code_bleu.LANGUAGES`; "": none.
      numbered: a line of a file of predictions is `number<tab>text`, not the text alone.
    """

    figures: Figures
    language: str = ""
    numbered: bool = False

    value: ClassVar[str] = "prediction"

    def left_out(self) -> str:
        """CodeBLEU, where its packages are missing."""
        if not self.language or not code_bleu.missing(self.language):
            return ""
        return "CodeBLEU needs `pip install codet5p_jax[metrics]` and a Python below 3.13"

    def check_scoring(self, data: Data, settings: Settings) -> None:
        """References have to be there: those of some tests are not published."""
        super().check_scoring(data, settings)
        empty = [problem["place"] for problem in data.problems if not problem["target"].strip()]
        if empty:
            raise ValueError(
                f"{self.name}: {len(empty)} problems have no reference, {empty[0]} first; set "
                "--split to one that has, as validation"
            )

    def parse(self, path: Path, data: Data) -> list[Prediction]:
        """JSON lines, or a line for each problem."""
        known = {problem["key"] for problem in data.problems}
        if is_json(path):
            found = read_objects(path, {self.key: (str,), self.value: (str,)})
        elif self.numbered:
            fields = [(*line.split("\t"), "")[:2] for line in read_texts(path)]
            found = [{self.key: number.strip(), self.value: text} for number, text in fields]
        else:
            lines = enumerate(read_texts(path))
            found = [{self.key: str(number), self.value: text} for number, text in lines]
        for line, prediction in enumerate(found, start=1):
            if prediction[self.key] not in known:
                form = "number<tab>text" if self.numbered else "a text"
                raise ValueError(
                    f"{path}:{line}: expected {form} of one of the {len(known)} problems of "
                    f"{self.name}, got that of problem {prediction[self.key][:40]!r}"
                )
        return found

    def score(
        self, data: Data, predictions: Sequence[Prediction], settings: Settings, folder: Path
    ) -> dict[str, float]:
        """The last prediction of a problem counts, as in the official evaluators."""
        del settings, folder
        last = {prediction[self.key]: prediction[self.value] for prediction in predictions}
        wanted = [problem["target"] for problem in data.problems]
        found = [last[problem["key"]] for problem in data.problems]
        scores = dict(self.figures(wanted, found))
        if self.language and not code_bleu.missing(self.language):
            scores["code_bleu"] = code_bleu.codebleu(wanted, found, self.language).score
        return scores


@dataclass(frozen=True, kw_only=True)
class TextBenchmark(ReferenceBenchmark):
    """`source` -> `target`, both text.

    Attributes:
      decoding: the paper's.
      inputs_length: tokens of the encoder at most.
      stop: ends a prediction, and is not part of it.
    """

    decoding: Decoding
    inputs_length: int = 256
    stop: str = ""

    def remark(self, settings: Settings) -> str:
        """Another number of beams."""
        theirs, ours = self.decoding.beams, self.decoding.of(settings).beams
        beams = f"published with {theirs} beams, decoded here with {ours}" if ours != theirs else ""
        return "; ".join(filter(None, (self.note, beams)))

    def check_model(self, model: Model, settings: Settings) -> None:
        """It has to write."""
        del settings
        check_generation(self.name, model)

    def check_lengths(self, model: Model, data: Data, settings: Settings) -> None:
        """Of every prompt."""
        prompts = (self.prompt(model, problem, settings) for problem in data.problems)
        check_positions(self.name, model, prompts, self.decoding.of(settings))

    def prompt(self, model: Model, problem: Problem, settings: Settings) -> Prompt:
        """What the network reads."""
        del settings
        return framed(model, problem["source"], self.inputs_length)

    def finish(self, text: str) -> str:
        """A prediction is one line, up to what stops it."""
        text = text.split(self.stop)[0] if self.stop else text
        return " ".join(text.split())

    def predict(
        self,
        model: Model,
        data: Data,
        todo: Sequence[Problem],
        settings: Settings,
        key: jax.Array,
    ) -> Iterator[list[Prediction]]:
        """Writes."""
        del data
        prompts = [self.prompt(model, problem, settings) for problem in todo]
        decoding = self.decoding.of(settings)
        stop = (self.stop,) if self.stop else ()
        for batch in generate_texts(model, prompts, decoding, key, settings.batch_size, stop):
            yield [
                {self.key: todo[place]["key"], self.value: self.finish(text)}
                for place, text in batch
            ]


@dataclass(frozen=True, kw_only=True)
class LineBenchmark(TextBenchmark):
    """The rest of a line of code: `prefix` -> `target`. The decoder alone reads the prefix, the
    encoder [CLM].

    Attributes:
      prefix_length: tokens, the last ones of the file before.
    """

    prefix_length: int = 924

    packages: ClassVar[tuple[str, ...]] = ("rapidfuzz",)

    def prompt(self, model: Model, problem: Problem, settings: Settings) -> Prompt:
        """`<EOL>` is `</s>`, and the words around it lose their space, as in training."""
        del settings
        tokenizer, special = model.tokenizer, model.tokenizer.special
        *lines, rest = problem["prefix"].split(LINE_END)
        tokens: list[int] = []
        for line in lines:
            tokens += [*tokenizer.encode(line.strip()), special.eos]
        tokens += tokenizer.encode(rest.strip())
        return Prompt(
            np.array([special.unk], np.int32), np.array(tokens[-self.prefix_length :], np.int32)
        )


def summary_figures(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Smoothed sentence BLEU-4."""
    return {"bleu": bleu.mean_sentence_bleu(references, predictions)}


def code_figures(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Of refinement, translation and REDCODER: lines are equal without the space around them."""
    return {
        "bleu": bleu.corpus_bleu(references, predictions).score,
        "exact_match": exact_match(references, predictions),
    }


def method_figures(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Of Concode: tokens are equal."""
    return {
        "bleu": bleu.corpus_bleu(references, predictions).score,
        "exact_match": exact_match(references, predictions, str.split),
    }


def line_figures(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Of line completion, literals restored."""
    return line_completion(references, predictions)._asdict()
