import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.objectives import SpanDenoising
from codet5p_jax.objectives.span_denoising import take_out
from tests.objectives.helpers import FIRST, SPECIAL, chi_square, labels, real, words

# As many sentinels as CodeT5 has, above every ordinary id of these tests.
MANY = dataclasses.replace(SPECIAL, sentinels=tuple(range(10_099, 9_999, -1)))


def spans_of(row, special):
    """The spans in the targets, after checking their sentinels and the closing `</s>`."""
    targets = labels(row)
    assert targets[-1] == special.eos
    spans = []
    for token in targets[:-1]:
        if len(spans) < len(special.sentinels) and token == special.sentinels[len(spans)]:
            spans.append([])
        else:
            spans[-1].append(token)
    return spans


def merge(row, special):
    """Puts the spans back where their sentinels stand."""
    inputs, spans = real(row, "encoder"), spans_of(row, special)
    assert (inputs[0], inputs[-1]) == (special.bos, special.eos)
    merged, used = [], 0
    for token in inputs[1:-1]:
        if used < len(spans) and token == special.sentinels[used]:
            merged += spans[used]
            used += 1
        else:
            merged.append(token)
    assert used == len(spans)
    return merged


def test_layout_of_the_documented_example(special):
    tokens = np.arange(1, 9, dtype=np.int32)
    inputs, targets = take_out(tokens, np.array([2, 5]), np.array([3, 7]), special)
    first, second = special.sentinels[:2]
    assert inputs.tolist() == [1, 2, first, 4, 5, second, 8]
    assert targets.tolist() == [first, 3, second, 6, 7, special.eos]
    assert tokens.tolist() == list(range(1, 9))  # the cached example is not written to


def test_spans_at_both_ends(special):
    tokens = np.arange(1, 6, dtype=np.int32)
    inputs, targets = take_out(tokens, np.array([0, 3]), np.array([2, 5]), special)
    first, second = special.sentinels[:2]
    assert inputs.tolist() == [first, 3, second]
    assert targets.tolist() == [first, 1, 2, second, 4, 5, special.eos]


@given(
    sizes=st.lists(st.integers(1, 6), max_size=80),
    seed=st.integers(0, 2**32 - 1),
    inputs_length=st.integers(3, 90),
    targets_length=st.integers(1, 60),
    density=st.floats(0.05, 0.45),
)
def test_tokens_are_conserved(sizes, seed, inputs_length, targets_length, density):
    objective = SpanDenoising(
        inputs_length=inputs_length, targets_length=targets_length, noise_density=density
    )
    example = words(sizes)
    row = objective.features(example, np.random.default_rng(seed), MANY)
    assert {k: (v.shape, v.dtype) for k, v in row.items()} == {
        k: (s.shape, s.dtype) for k, s in objective.spec.items()
    }
    merged = merge(row, MANY)
    tokens = example["tokens"]
    start = merged[0] - FIRST if merged else 0
    assert len(merged) == min(len(tokens), inputs_length - 2)
    assert merged == tokens[start : start + len(merged)].tolist()


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=80), seed=st.integers(0, 2**32 - 1))
def test_spans_are_whole_words_and_separated(sizes, seed):
    example = words(sizes)
    objective = SpanDenoising()
    row = objective.features(example, np.random.default_rng(seed), MANY)
    word = np.cumsum(example["word_starts"]) - 1
    previous_end = -1
    for span in spans_of(row, MANY):
        position = np.array(span) - FIRST
        inside = np.unique(word[position])
        assert np.array_equal(position, np.flatnonzero(np.isin(word, inside)))
        assert 1 <= len(inside) <= 5
        assert previous_end < 0 or inside[0] > previous_end + 1
        previous_end = inside[-1]


def test_rate_and_span_lengths_match_in_expectation():
    rng = np.random.default_rng(1)
    objective = SpanDenoising(inputs_length=1026, targets_length=600)
    rates, lengths = [], []
    for _ in range(800):
        example = words(rng.integers(1, 5, size=300))
        word = np.cumsum(example["word_starts"]) - 1
        spans = spans_of(objective.features(example, rng, MANY), MANY)
        rates.append(sum(map(len, spans)) / len(word))
        lengths += [len(np.unique(word[np.array(span) - FIRST])) for span in spans]
    error = np.std(rates) / np.sqrt(len(rates))
    assert error < 0.002
    assert abs(np.mean(rates) - 0.15) < 3.3 * error
    counts = np.bincount(lengths, minlength=6)[1:]
    assert len(counts) == 5
    assert chi_square(counts, [0.2] * 5) < 18.5  # 4 degrees of freedom, p = 0.001


def test_every_word_is_as_likely_to_be_noised():
    rng = np.random.default_rng(2)
    objective = SpanDenoising()
    noised = np.zeros(100)
    for _ in range(3000):
        for span in spans_of(objective.features(words([1] * 100), rng, MANY), MANY):
            noised[np.array(span) - FIRST] += 1
    inner = noised[5:-5] / 3000  # spans cannot start before the first word
    assert abs(inner.mean() - 0.15) < 0.01
    assert np.all(np.abs(inner - inner.mean()) < 4.5 * np.sqrt(0.15 * 0.85 / 3000))


def test_same_generator_same_row(special):
    example = words([2, 1, 3] * 20)
    objective = SpanDenoising(inputs_length=50)
    first, second, other = (
        objective.features(example, np.random.default_rng(seed), MANY) for seed in (5, 5, 6)
    )
    assert all(np.array_equal(first[k], second[k]) for k in first)
    assert not np.array_equal(first["encoder_tokens"], other["encoder_tokens"])


def test_empty_and_one_word_examples_have_no_span(special, rng):
    objective = SpanDenoising(inputs_length=8, targets_length=4)
    for sizes in ([], [1], [3]):
        row = objective.features(words(sizes), rng, special)
        tokens = words(sizes)["tokens"].tolist()
        assert real(row, "encoder") == [special.bos, *tokens, special.eos]
        assert labels(row) == [special.eos]
        assert row["decoder_weights"].tolist() == [1, 0, 0, 0]


def test_short_examples_have_one_span_and_keep_a_word(special, rng):
    for number in range(2, 20):
        row = SpanDenoising().features(words([1] * number), rng, special)
        (span,) = spans_of(row, special)
        assert 1 <= len(span) <= min(5, number - 1)


def test_spans_are_capped_by_sentinels_and_max_spans(special, rng):
    example = words([1] * 500)
    assert len(spans_of(SpanDenoising().features(example, rng, special), special)) == 10
    row = SpanDenoising(max_spans=4).features(example, rng, special)
    assert len(spans_of(row, special)) == 4
    long = SpanDenoising(inputs_length=4096, targets_length=2048)
    assert len(spans_of(long.features(words([1] * 4000), rng, MANY), MANY)) == 100


def test_default_targets_length_drops_no_span():
    rng = np.random.default_rng(3)
    for _ in range(200):
        # Words of 1 to 7 tokens: the targets' length varies more than with words of one.
        example = words(rng.integers(1, 8, size=130))
        wide, default = (
            SpanDenoising(targets_length=n).features(example, np.random.default_rng(7), MANY)
            for n in (512, 256)
        )
        assert labels(wide) == labels(default)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"noise_density=0\.6 must be above 0 and below 0\.50"):
        SpanDenoising(noise_density=0.6)
    with pytest.raises(ValueError, match="min_span_words <= max_span_words"):
        SpanDenoising(min_span_words=4, max_span_words=3)
    with pytest.raises(ValueError, match="inputs_length=2 has no room"):
        SpanDenoising(inputs_length=2)
    with pytest.raises(ValueError, match="targets_length must be 1 or more"):
        SpanDenoising(targets_length=0)
