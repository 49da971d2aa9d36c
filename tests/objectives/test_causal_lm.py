import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.objectives import DecoderCLM, Seq2SeqCLM
from tests.objectives.helpers import SPECIAL, chi_square, labels, real


def example(size: int) -> dict[str, np.ndarray]:
    return {"tokens": np.arange(10, 10 + size, dtype=np.int32)}


@given(
    size=st.integers(0, 300),
    seed=st.integers(0, 2**32 - 1),
    inputs_length=st.integers(1, 200),
    targets_length=st.integers(1, 200),
)
def test_seq2seq_clm_keeps_the_tokens_around_the_pivot(size, seed, inputs_length, targets_length):
    objective = Seq2SeqCLM(inputs_length=inputs_length, targets_length=targets_length)
    row = objective.features(example(size), np.random.default_rng(seed), SPECIAL)
    inputs, targets = real(row, "encoder"), labels(row)
    closed = [*example(size)["tokens"].tolist(), SPECIAL.eos]

    assert inputs[0] == SPECIAL.unk
    joined = inputs[1:] + targets
    pivot = closed.index(targets[0])
    start = pivot - len(inputs) + 1
    assert joined == closed[start : start + len(joined)]
    assert len(inputs) == min(pivot + 1, inputs_length)
    assert len(targets) == min(len(closed) - pivot, targets_length)
    if size >= 2:
        assert max(1, 0.1 * size - 1e-9) <= pivot <= min(size - 1, 0.9 * size + 1e-9)
    else:
        assert pivot == 0


def test_seq2seq_clm_pivot_is_uniform(special, rng):
    objective = Seq2SeqCLM()
    rows = [objective.features(example(101), rng, special) for _ in range(2000)]
    prefix = np.array([row["encoder_segments"].sum() - 1 for row in rows])
    assert (prefix.min(), prefix.max()) == (11, 90)
    counts = np.bincount((prefix - 11) // 8, minlength=10)
    assert chi_square(counts, [0.1] * 10) < 27.9  # 9 degrees of freedom, p = 0.001


@given(
    size=st.integers(0, 300),
    seed=st.integers(0, 2**32 - 1),
    inputs_length=st.integers(1, 200),
    targets_length=st.integers(1, 200),
)
def test_a_prefix_in_the_decoder_leaves_the_targets_as_they_are(
    size, seed, inputs_length, targets_length
):
    lengths = {"inputs_length": inputs_length, "targets_length": targets_length}
    plain, prompted = (
        Seq2SeqCLM(**lengths, prompt_to_decoder=prompt).features(
            example(size), np.random.default_rng(seed), SPECIAL
        )
        for prompt in (False, True)
    )
    spec = Seq2SeqCLM(**lengths, prompt_to_decoder=True).spec
    assert {name: x.shape for name, x in prompted.items()} == {n: s.shape for n, s in spec.items()}
    assert real(prompted, "encoder") == real(plain, "encoder")
    prefix = real(plain, "encoder")[1:]
    judged = prompted["decoder_weights"] > 0
    assert prompted["decoder_targets"][judged].tolist() == labels(plain)
    assert real(prompted, "decoder") == [SPECIAL.decoder_start, *prefix, *labels(plain)[:-1]]
    assert judged[: len(prefix)].sum() == 0


def test_seq2seq_clm_refuses_a_reversed_range():
    with pytest.raises(ValueError, match=r"found 0\.9 and 0\.1"):
        Seq2SeqCLM(min_pivot=0.9, max_pivot=0.1)


def test_decoder_clm_encoder_sees_one_token(special, rng):
    row = DecoderCLM(targets_length=6).features(example(3), rng, special)
    assert row["encoder_tokens"].tolist() == [special.unk]
    assert row["encoder_segments"].tolist() == [1]
    assert labels(row) == [10, 11, 12, special.eos]
    assert real(row, "decoder") == [special.decoder_start, 10, 11, 12]
    assert row["decoder_weights"].tolist() == [1, 1, 1, 1, 0, 0]


@given(size=st.integers(0, 300), seed=st.integers(0, 2**32 - 1), length=st.integers(1, 200))
def test_decoder_clm_windows_of_long_examples(size, seed, length):
    objective = DecoderCLM(targets_length=length)
    targets = labels(objective.features(example(size), np.random.default_rng(seed), SPECIAL))
    closed = [*example(size)["tokens"].tolist(), SPECIAL.eos]
    start = closed.index(targets[0])
    assert len(targets) == min(len(closed), length)
    assert targets == closed[start : start + len(targets)]


def test_decoder_clm_windows_are_spread_over_the_example(special, rng):
    objective = DecoderCLM(targets_length=5)
    rows = [objective.features(example(8), rng, special) for _ in range(500)]
    starts = [labels(row)[0] - 10 for row in rows]
    assert chi_square(np.bincount(starts, minlength=5), [0.2] * 5) < 18.5


@pytest.mark.parametrize("objective", [Seq2SeqCLM(), DecoderCLM(targets_length=50)])
def test_same_generator_same_row(objective, special):
    first, second, other = (
        objective.features(example(200), np.random.default_rng(seed), special) for seed in (5, 5, 6)
    )
    assert all(np.array_equal(first[k], second[k]) for k in first)
    assert any(not np.array_equal(first[k], other[k]) for k in first)
