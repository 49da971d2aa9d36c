"""Text-to-code and code-to-text language models (paper §3.2): read one side, write the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Features
from codet5p_jax.objectives.rows import as_tokens, close, wrap
from codet5p_jax.objectives.teacher_forcing import TeacherForced


@dataclass(frozen=True, kw_only=True)
class PairLM(TeacherForced):
    """Encoder input `<s> source </s>`, decoder targets `[PREFIX] target </s>`.

    NOT STATED in the paper is where the prefix stands. The released bimodal checkpoint is called
    with encoder ids only and starts to decode from the decoder start id, which works only if it
    learnt to emit the prefix itself: the prefix is the first label. Set `prefix_is_label=False` to
    feed it without learning it; decoding must then force it.

    The source is cut to fit with its `</s>` kept; a target that is cut has no `</s>`.

    Attributes:
      inputs_length, targets_length: 420 tokens of code, 128 of text (paper §4).
      prefix_is_label: whether the prefix counts in the loss.
    """

    prefix_is_label: bool = True

    source: ClassVar[str]
    target: ClassVar[str]
    prefix: ClassVar[str]

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """`text` and `code` int32 [n], [m], no special tokens -> the teacher-forced row."""
        del rng
        prefix = getattr(special, self.prefix)
        if prefix is None:
            raise ValueError(
                f"{self.name} needs a vocabulary with [{self.prefix.upper()}]; its special tokens "
                f"set {self.prefix}=None"
            )
        inputs = wrap(as_tokens(example[self.source]), self.inputs_length, special)
        targets = close(np.append(prefix, as_tokens(example[self.target])), special)
        row = self.row(inputs, targets, special)
        if not self.prefix_is_label:
            row["decoder_weights"][0] = 0.0
        return row


@dataclass(frozen=True, kw_only=True)
class TextToCode(PairLM):
    """Writes code from text; the prefix is [CDEC]. See `PairLM`."""

    inputs_length: int = 128
    targets_length: int = 420

    name: ClassVar[str] = "text_to_code"
    source: ClassVar[str] = "text"
    target: ClassVar[str] = "code"
    prefix: ClassVar[str] = "cdec"


@dataclass(frozen=True, kw_only=True)
class CodeToText(PairLM):
    """Writes text from code; the prefix is [TDEC]. See `PairLM`."""

    inputs_length: int = 420
    targets_length: int = 128

    name: ClassVar[str] = "code_to_text"
    source: ClassVar[str] = "code"
    target: ClassVar[str] = "text"
    prefix: ClassVar[str] = "tdec"
