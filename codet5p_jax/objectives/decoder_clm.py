"""Decoder-only causal language modelling (paper §3.1): the encoder sees one token and no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Features
from codet5p_jax.objectives.rows import as_tokens, close, window
from codet5p_jax.objectives.teacher_forcing import TeacherForced


@dataclass(frozen=True, kw_only=True)
class DecoderCLM(TeacherForced):
    """Inputs `[CLM]`, targets `tokens </s>`.

    [CLM] is the unk token, without `<s>` or `</s>` around it, so S = 1; a network that is a decoder
    alone does without it. Of a longer example a window at a random offset is taken; it has `</s>`
    only if it reaches the end.

    Attributes:
      targets_length: 1,024 (paper §4).
    """

    targets_length: int = 1024

    name: ClassVar[str] = "decoder_clm"
    inputs_length: ClassVar[int] = 1

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """`tokens` int32 [n] -> the teacher-forced row."""
        targets = close(as_tokens(example["tokens"]), special)
        targets = targets[window(len(targets), self.targets_length, rng)]
        return self.row(np.array([special.unk], np.int32), targets, special)
