"""Classes of functions, or of pairs of them: defects and clones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from codet5p_jax.data.buckets import batches, pad
from codet5p_jax.evaluation.benchmarks.base import (
    Benchmark,
    Data,
    Model,
    Prediction,
    Problem,
    Settings,
    check_reading,
)
from codet5p_jax.evaluation.benchmarks.files import is_json, read_objects, read_texts
from codet5p_jax.evaluation.metrics import classification
from codet5p_jax.objectives.rows import wrap
from codet5p_jax.sharding import on_mesh, placed


@dataclass(frozen=True, kw_only=True)
class LabelBenchmark(Benchmark):
    """Functions with a class, 0 or 1.

    Attributes:
      figures: of labels and predictions.
      length: tokens of each function, `<s>` and `</s>` included.
      sides: fields of a problem with the functions.
      names: fields of a problem that name it.
    """

    figures: Callable[[Sequence[int], Sequence[int]], Mapping[str, float]]
    length: int
    sides: tuple[str, ...] = ("code",)
    names: tuple[str, ...] = ("idx",)

    value: ClassVar[str] = "label"

    def key_of(self, record: Mapping[str, Any], number: int) -> str:
        """The name in the file, or of two functions both, a tab apart; else the number."""
        if record[self.names[0]] == -1:
            return str(number)
        return "\t".join(str(record[name]) for name in self.names)

    def check_model(self, model: Model, settings: Settings) -> None:
        """It has to have the head."""
        del settings
        config, pairs = model.network.config, len(self.sides) == 2
        if config.classes != 2 or config.classify_pairs != pairs:
            raise ValueError(
                f"{self.name} needs a model with 2 classes and classify_pairs = {pairs}, found "
                f"{config.classes} and {config.classify_pairs}; fine-tune one, see "
                "docs/finetuning.md"
            )
        check_reading(self.name, config, self.length)

    def predict(
        self,
        model: Model,
        data: Data,
        todo: Sequence[Problem],
        settings: Settings,
        key: jax.Array,
    ) -> Iterator[list[Prediction]]:
        """The class with the larger logit."""
        del data, key
        tokenizer, special = model.tokenizer, model.tokenizer.special

        @jax.jit
        def classify(params, *sides):
            network = model.network.bind(params)
            encoded = [(network.encode(*side), side[1]) for side in sides]
            return jnp.argmax(network.classify(*encoded), axis=1)

        @cache  # a method of BigCloneBench is in some 90 pairs
        def row(code: str) -> np.ndarray:
            return wrap(np.array(tokenizer.encode(code), np.int32), self.length, special)

        rows = [[row(problem[side]) for problem in todo] for side in self.sides]
        lengths = [max(map(len, functions)) for functions in zip(*rows, strict=True)]
        for size, picked, real in batches(lengths, self.length, settings.batch_size):
            sides = [pad([side[i] for i in picked], size, special.pad) for side in rows]
            with on_mesh(model.mesh):
                labels = np.asarray(classify(model.params, *placed(sides, model.mesh)))
            yield [
                {self.key: todo[place]["key"], self.value: int(label)}
                for place, label in zip(picked[:real], labels, strict=False)
            ]

    def parse(self, path: Path, data: Data) -> list[Prediction]:
        """JSON lines, or lines of names and a label, a tab apart."""
        known = {problem["key"] for problem in data.problems}
        if is_json(path):
            found = read_objects(path, {self.key: (str,), self.value: (int,)})
        else:
            texts = [line.strip().rpartition("\t") for line in read_texts(path) if line.strip()]
            found: list[Prediction] = [{self.key: k, self.value: label} for k, _, label in texts]
        form = "<tab>".join((*self.names, "label"))
        for line, prediction in enumerate(found, start=1):
            key, label = prediction[self.key], str(prediction[self.value])
            if label not in ("0", "1") or key not in known:
                raise ValueError(
                    f"{path}:{line}: expected {form} of a problem of {self.name}, the label 0 or "
                    f"1, got {key!r} with {label!r}"
                )
            prediction[self.value] = int(label)
        return found

    def score(
        self, data: Data, predictions: Sequence[Prediction], settings: Settings, folder: Path
    ) -> dict[str, float]:
        """The last prediction of a problem counts, as in the official evaluators."""
        del settings, folder
        last = {prediction[self.key]: prediction[self.value] for prediction in predictions}
        labels = [problem["label"] for problem in data.problems]
        return dict(self.figures(labels, [last[problem["key"]] for problem in data.problems]))


def defect_figures(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Accuracy."""
    return {"accuracy": classification.accuracy(labels, predictions)}


def clone_figures(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Precision, recall and F1 of clones."""
    return classification.precision_recall_f1(labels, predictions)._asdict()
