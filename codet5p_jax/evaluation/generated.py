"""Held-out metrics of what the model generates, by which a run can choose its best weights.

train.Evaluation.metrics = @generated.metrics()
early_stopping.EarlyStopping.metric = 'bleu+exact_match'
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from codet5p_jax.data.cache import CacheError, open_mixture
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.decoding.prompts import Prompt
from codet5p_jax.decoding.writer import Writer
from codet5p_jax.evaluation.benchmarks.generation import Decoding
from codet5p_jax.evaluation.benchmarks.text import Figures, code_figures
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import Params
from codet5p_jax.objectives.seq2seq import Seq2Seq

Metric = Callable[[CodeT5p, Params], float]


def metrics(
    *,
    cache_dir: str | Path,
    mixture: str,
    objective: Seq2Seq,
    figures: Figures = code_figures,
    rows: int | None = None,
    beams: int = 1,
    batch_size: int = 32,
    split: str = "validation",
) -> dict[str, Metric]:
    """Metrics for `Evaluation.metrics`: those of `figures`, and their sum where there are several.

    CodeT5 chooses by the sum of BLEU and exact match where it has both, on 5,000 rows at most, with
    10 beams. All metrics come from one writing, in the run's mesh; every process reads all of the
    rows, writes its part of each batch, and has the same values.

    Args:
      cache_dir, mixture: of the run.
      objective: of the run; the encoder reads what it does in training, and as many tokens as there
        are targets are written at most. References are not cut. Encoder and decoder have one
        tokenizer.
      figures: of references and texts, in percent: of `evaluation/benchmarks/text.py`.
      rows: of each task of the mixture, from all over the split; None: all.
      beams: of beam search; 1: the most likely token.
      batch_size: rows at a time, on all devices.
      split: of the mixture.

    Raises:
      ValueError: a number is below 1.
    """
    if any(n is not None and n < 1 for n in (rows, beams, batch_size)):
        raise ValueError(
            "generated.metrics: expected rows, beams and batch_size of 1 or more, found "
            f"{rows}, {beams}, {batch_size}"
        )
    names = list(figures(["x"], ["x"]))
    texts = _Texts(Path(cache_dir), mixture, objective, figures, rows, beams, batch_size, split)
    of_all = [*names, "+".join(names)] if len(names) > 1 else names
    return {name: _Sum(texts, name.split("+")) for name in of_all}


@dataclass
class _Sum:
    """A metric: the sum of some figures."""

    texts: "_Texts"
    names: Sequence[str]

    def __call__(self, model: CodeT5p, params: Params) -> float:
        found = self.texts.figures_of(model, params)
        return sum(found[name] for name in self.names)


@dataclass
class _Texts:
    """The fields are as `metrics` takes them."""

    cache_dir: Path
    mixture: str
    objective: Seq2Seq
    figures: Figures
    rows: int | None
    beams: int
    batch_size: int
    split: str

    def __post_init__(self) -> None:
        self._writer: Writer | None = None
        self._of: list[weakref.ref[jax.Array]] = []
        self._found: Mapping[str, float] = {}

    def figures_of(self, model: CodeT5p, params: Params) -> Mapping[str, float]:
        """Those of the last call, if it was with the same weights, which are not kept alive."""
        arrays = jax.tree.leaves(params)
        same = len(self._of) == len(arrays) and all(
            ref() is array for ref, array in zip(self._of, arrays, strict=True)
        )
        if not same:
            self._found = self._judge(model, params)
            self._of = [weakref.ref(array) for array in arrays]
        return self._found

    def _judge(self, model: CodeT5p, params: Params) -> Mapping[str, float]:
        tokenizer, prompts, references = self._held_out
        if self._writer is None or self._writer.model is not model:  # else it is compiled
            how = Decoding(self.objective.targets_length, self.beams).how()
            mesh = jax.sharding.get_mesh()
            self._writer = Writer(
                model, None, tokenizer.special, how, batch_size=self.batch_size, mesh=mesh
            )
        self._writer.params = params
        try:
            written = dict(self._writer.write(prompts, jax.random.key(0)))
        finally:
            self._writer.params = None
        texts = [tokenizer.decode(written[place][0]) for place in range(len(prompts))]
        return self.figures(references, texts)

    @cached_property
    def _held_out(self) -> tuple[Tokenizer, list[Prompt], list[str]]:
        mixture = open_mixture(self.cache_dir, self.mixture, self.split)
        tokenizer = Tokenizer.load(mixture.tokenizer)
        prompts, references = [], []
        for task in mixture.tasks_of(self.objective.name):
            number = task.examples.manifest.epochs[0]
            picked = np.linspace(0, number - 1, min(self.rows or number, number)).astype(int)
            for index in picked.tolist():
                example = task.examples[index]
                prompts.append(self._prompt(example, tokenizer))
                references.append(tokenizer.decode(example["targets"]))
        if not prompts:
            raise CacheError(
                f"generated.metrics: mixture {self.mixture!r} has no task of objective "
                f"{self.objective.name!r}, which is what it can generate for"
            )
        return tokenizer, prompts, references

    def _prompt(self, example: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> Prompt:
        row = self.objective.features(example, np.random.default_rng(0), tokenizer.special)
        given = (row["decoder_segments"] > 0) & (row["decoder_weights"] == 0)
        encoder = row["encoder_tokens"][row["encoder_segments"] > 0]
        return Prompt(encoder, row["decoder_targets"][given])
