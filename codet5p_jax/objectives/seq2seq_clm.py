"""Sequence-to-sequence causal language modelling (paper §3.1): continue a file from a pivot."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Features
from codet5p_jax.objectives.rows import as_tokens, close
from codet5p_jax.objectives.teacher_forcing import TeacherForced


@dataclass(frozen=True, kw_only=True)
class Seq2SeqCLM(TeacherForced):
    """Inputs `[CLM] prefix`, targets `suffix </s>`, split at a pivot.

    [CLM] is the unk token; NOT STATED is whether `<s>` and `</s>` surround the source: here they do
    not, as they cannot in the decoder-only variant, whose source has one token.

    The pivot is uniform over the whole example. Of what does not fit, the prefix keeps its end and
    the suffix its beginning (the tokens next to the pivot); a suffix that is cut has no `</s>`.
    An example of fewer than two tokens has an empty prefix.

    Attributes:
      inputs_length: of [CLM] and prefix; 768 (paper §4).
      targets_length: of suffix and `</s>`; 600 (paper §4).
      min_pivot, max_pivot: the pivot's range as shares of the example's length.
      prompt_to_decoder: the decoder reads the prefix too, before the suffix, in positions besides
        targets_length; the loss is of the same suffix.
    """

    inputs_length: int = 768
    targets_length: int = 600
    min_pivot: float = 0.1
    max_pivot: float = 0.9
    prompt_to_decoder: bool = False

    name: ClassVar[str] = "seq2seq_clm"
    cuts_beginning: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_pivot <= self.max_pivot <= 1:
            raise ValueError(
                f"{self.name}: expected 0 <= min_pivot <= max_pivot <= 1, "
                f"found {self.min_pivot} and {self.max_pivot}"
            )

    @property
    def prompt_length(self) -> int:
        """Of the prefix in the decoder."""
        return self.inputs_length - 1 if self.prompt_to_decoder else 0

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """`tokens` int32 [n] -> the teacher-forced row."""
        tokens = as_tokens(example["tokens"])
        pivot = self._pivot(len(tokens), rng)
        prefix = tokens[max(0, pivot - (self.inputs_length - 1)) : pivot]
        inputs = np.append(special.unk, prefix).astype(np.int32)
        targets = close(tokens[pivot:], special)[: self.targets_length]
        return self.row(inputs, targets, special, prefix if self.prompt_to_decoder else None)

    def _pivot(self, size: int, rng: np.random.Generator) -> int:
        """Tokens in the prefix: at least one, and at least one left over, where there are two."""
        if size < 2:
            return 0
        low = min(max(math.ceil(self.min_pivot * size), 1), size - 1)
        high = min(max(math.floor(self.max_pivot * size), low), size - 1)
        return int(rng.integers(low, high + 1))
