"""Span denoising (paper §3.1; T5, CodeT5): restore whole words that were taken out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int, Int32

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Features
from codet5p_jax.objectives.rows import as_tokens, window, wrap
from codet5p_jax.objectives.teacher_forcing import TeacherForced


@dataclass(frozen=True, kw_only=True)
class SpanDenoising(TeacherForced):
    """Inputs: the text with each span replaced by a sentinel. Targets: sentinel, span, sentinel, …

    With words of one token and spans over 3 and 6-7:

        tokens    1 2 3 4 5 6 7 8
        inputs    <s> 1 2 <extra_id_0> 4 5 <extra_id_1> 8 </s>
        targets   <extra_id_0> 3 <extra_id_1> 6 7 </s>

    Spans are runs of whole words, their lengths uniform between `min_span_words` and
    `max_span_words`, with at least one word between two spans. The number of spans is random with
    mean noise_density × words / mean span length, so the share of words (and hence of tokens) that
    is noised is `noise_density` in expectation. Where that is less than one span (under 20 words
    with the defaults) there is one all the same, for a row without a span teaches nothing; it
    leaves at least one word. Examples of one word or none have no span: inputs `<s> word </s>`,
    targets `</s>`.

    A longer example is first cropped to inputs_length - 2 tokens at a random offset; a word that
    the crop cuts counts as a word. NOT STATED in the paper, chosen here: the `<s> … </s>` around
    the inputs (how CodeT5's tokenizer encodes any input), T5's order of targets and their `</s>`.

    Attributes:
      inputs_length: 512 (paper §4).
      targets_length: NOT STATED. On average 15 % of 510 tokens, up to 26 sentinels and `</s>`, so
        at most 103; on Python's standard library in CodeT5's tokens 87 ± 18, over 128 in 1.3 % of
        rows, never over 170. Where the targets do not fit, the last spans stay in the inputs.
      noise_density: share of the tokens to restore (paper §3.1).
      min_span_words, max_span_words: bounds of the uniform span length, mean 3 (CodeT5).
      max_spans: never more than this, nor than the vocabulary has sentinels.
    """

    inputs_length: int = 512
    targets_length: int = 256
    noise_density: float = 0.15
    min_span_words: int = 1
    max_span_words: int = 5
    max_spans: int = 100

    name: ClassVar[str] = "span_denoising"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs_length < 3:
            raise ValueError(
                f"{self.name}: inputs_length={self.inputs_length} has no room for <s> word </s>"
            )
        if not 1 <= self.min_span_words <= self.max_span_words:
            raise ValueError(
                f"{self.name}: expected 1 <= min_span_words <= max_span_words, "
                f"found {self.min_span_words} and {self.max_span_words}"
            )
        if self.max_spans < 1:
            raise ValueError(f"{self.name}: max_spans must be 1 or more, not {self.max_spans}")
        limit = self._mean_span / (self.max_span_words + 1)
        if not 0 < self.noise_density < limit:
            raise ValueError(
                f"{self.name}: noise_density={self.noise_density} must be above 0 and below "
                f"{limit:.2f}, or spans of up to {self.max_span_words} words cannot stay apart; "
                "lower noise_density or bring max_span_words nearer to min_span_words"
            )

    @property
    def _mean_span(self) -> float:
        return (self.min_span_words + self.max_span_words) / 2

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """`tokens` int32 [n] and `word_starts` bool [n] -> the teacher-forced row."""
        if not special.sentinels:
            raise ValueError(
                f"{self.name}: the tokenizer has no sentinels; name some in its roles.json, under "
                "`sentinels` and, where its vocabulary lacks them, `append`"
            )
        tokens = as_tokens(example["tokens"])
        crop = window(len(tokens), self.inputs_length - 2, rng)
        tokens, starts = tokens[crop], np.array(example["word_starts"][crop], dtype=bool)
        starts[:1] = True
        edges = np.append(np.flatnonzero(starts), len(tokens))  # word w is tokens edges[w:w+2]

        max_spans = min(self.max_spans, len(special.sentinels))
        first, words = self._spans(len(edges) - 1, max_spans, rng)
        begin, end = edges[first], edges[first + words]
        fits = np.cumsum(end - begin + 1) < self.targets_length  # < leaves room for </s>
        inputs, targets = take_out(tokens, begin[fits], end[fits], special)
        return self.row(wrap(inputs, self.inputs_length, special), targets, special)

    def _spans(
        self, num_words: int, max_spans: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(first word, number of words) of each span, in order; spans leave a word between them."""
        if num_words < 2:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # Rounding up with the fraction's probability keeps the mean; lengths are drawn without
        # regard to their sum, so they stay uniform.
        expected = self.noise_density * num_words / self._mean_span
        count = min(max(int(expected + rng.random()), 1), max_spans)
        words = rng.integers(self.min_span_words, self.max_span_words + 1, size=count)
        words = np.minimum(words, num_words - 1)
        # Only texts of a few words under a high density can lack the room for the last spans.
        words = words[np.cumsum(words + 1) <= num_words + 1]
        # U words remain and leave U + 1 places for a span; distinct places keep spans apart.
        places = num_words - int(words.sum()) + 1
        place = np.sort(rng.choice(places, size=len(words), replace=False))
        return place + np.cumsum(words) - words, words


def take_out(
    tokens: Int32[np.ndarray, "n"],
    begin: Int[np.ndarray, "k"],
    end: Int[np.ndarray, "k"],
    special: SpecialTokens,
) -> tuple[Int32[np.ndarray, "inputs"], Int32[np.ndarray, "targets"]]:
    """Moves the spans `tokens[begin[i]:end[i]]` into the targets.

    Args:
      tokens: int32 [n].
      begin, end: [k], ascending, end[i] < begin[i + 1]; k at most the number of sentinels.
      special: gives the sentinels and `</s>`.

    Returns:
      (inputs without `<s>` and `</s>`, targets with `</s>`), int32.
    """
    sentinels = np.asarray(special.sentinels[: len(begin)], dtype=np.int32)
    lengths = end - begin
    change = np.zeros(len(tokens) + 1, dtype=np.int32)
    change[begin], change[end] = 1, -1
    noise = np.cumsum(change[:-1]).astype(bool)

    inputs, keep = tokens.copy(), ~noise
    inputs[begin], keep[begin] = sentinels, True
    targets = np.insert(tokens[noise], np.cumsum(lengths) - lengths, sentinels)
    return inputs[keep], np.append(targets, special.eos).astype(np.int32)
