"""Retrieval-augmented generation: code that is found, and code that is written with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax

from codet5p_jax.data.corpora.finetuning import retrieved
from codet5p_jax.decoding.prompts import Prompt
from codet5p_jax.evaluation.benchmarks.base import (
    Data,
    Model,
    Prediction,
    Problem,
    Settings,
)
from codet5p_jax.evaluation.benchmarks.generation import framed_ids
from codet5p_jax.evaluation.benchmarks.search import check_embedding, pair_encoder
from codet5p_jax.evaluation.benchmarks.text import ReferenceBenchmark, TextBenchmark
from codet5p_jax.evaluation.code_search import CodeSearch


@dataclass(frozen=True, kw_only=True)
class NearestBenchmark(ReferenceBenchmark):
    """The code nearest to a text, in place of the code to write.

    Attributes:
      text_length, code_length: tokens, `<s>` and `</s>` included.
    """

    text_length: int = 64
    code_length: int = 360

    def load(self, root: Path, split: str | None = None) -> Data:
        """Problems, and the code base."""
        problems = super().load(root, split).problems
        folder = root / self.folder
        base = retrieved.code_base(folder, self.language, setting="finetune_dir")
        if len(base) < 2:
            raise ValueError(
                f"{self.name}: expected a code base of 2 or more below {folder}, found {len(base)}"
            )
        return Data(problems, base)

    def check_model(self, model: Model, settings: Settings) -> None:
        """It has to embed."""
        del settings
        check_embedding(self.name, model, max(self.text_length, self.code_length))

    def predict(
        self,
        model: Model,
        data: Data,
        todo: Sequence[Problem],
        settings: Settings,
        key: jax.Array,
    ) -> Iterator[list[Prediction]]:
        """The first that is not the code to write."""
        del key
        codes = [*data.candidates.values()]
        encoder = pair_encoder(model, self.text_length, self.code_length, settings.batch_size)
        search = CodeSearch(encoder, model.tokenizer, codes, self.name)
        found, _ = search.nearest([problem["source"] for problem in todo], 2)
        predictions = []
        for problem, row in zip(todo, found, strict=True):
            (code,) = retrieved.without(problem["target"], [codes[place] for place in row], 1)
            predictions.append({self.key: problem["key"], self.value: code})
        yield predictions


@dataclass(frozen=True, kw_only=True)
class AugmentedBenchmark(TextBenchmark):
    """Code for a text and the code found for it."""

    unused: ClassVar[tuple[str, ...]] = ()

    def prompt(self, model: Model, problem: Problem, settings: Settings) -> Prompt:
        """[SEP] between them, as in fine-tuning."""
        ids = retrieved.encode_source(
            problem["source"],
            model.tokenizer.encode,
            model.tokenizer.special.eos,
            settings.code_separator or retrieved.EOS,
        )
        return framed_ids(model, ids, self.inputs_length)
