"""Cached generation against recomputing everything for each token; ends, prefixes, sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding import generate as decoding
from codet5p_jax.decoding.generate import Sampling
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import init_params

VOCAB = 24
SPECIAL = SpecialTokens(
    pad=0, bos=1, eos=2, unk=3, sentinels=(20,), decoder_start=0, enc=21, tdec=22, cdec=23
)
CONFIG = t5(
    vocab_size=VOCAB,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
LONGEST = 12
FREE = np.zeros((3, 0), np.int32)
NONE = np.zeros(3, np.int32)


@pytest.fixture(scope="module")
def model():
    return CodeT5p(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    params = init_params(model.specs, jax.random.key(0))
    # Sharper than at initialisation, so that argmax differs from row to row and step to step.
    return jax.tree.map(lambda p: 2 * p, params)


@pytest.fixture(scope="module")
def prompts():
    tokens = np.random.default_rng(0).integers(4, 20, (3, 7)).astype(np.int32)
    segments = (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int32)
    return jnp.asarray(tokens * segments), jnp.asarray(segments)


@pytest.fixture(scope="module")
def recompute(model, params, prompts):
    """Greedy decoding without a cache: the whole decoder again for every token of every row."""

    @jax.jit
    def all_logits(params, decoder_tokens, encoder_tokens, encoder_segments):
        bound = model.bind(params)
        encoded = bound.encode(encoder_tokens, encoder_segments)
        ones = jnp.ones_like(decoder_tokens)
        return bound.logits(bound.decode(decoder_tokens, ones, encoded, encoder_segments))

    def run(params, prefix, prefix_lengths, max_length, min_length=0):
        return _recompute(
            lambda *args: np.array(all_logits(params, *args))[0],
            prompts,
            prefix,
            prefix_lengths,
            max_length,
            min_length,
        )

    return run


def _recompute(all_logits, prompts, prefix, prefix_lengths, max_length, min_length):
    rows = []
    for i in range(len(prefix)):
        decoder = np.zeros((1, LONGEST + 1), np.int32)  # causal: what is still 0 is not seen
        decoder[0, 0] = SPECIAL.decoder_start
        made = []
        while len(made) < max_length:
            if len(made) < prefix_lengths[i]:
                made.append(int(prefix[i, len(made)]))
            else:
                prompt = prompts[0][i : i + 1], prompts[1][i : i + 1]
                logits = all_logits(decoder, *prompt)[len(made)]
                if len(made) + 1 < min_length:
                    logits[SPECIAL.eos] = -np.inf
                made.append(int(logits.argmax()))
                if made[-1] == SPECIAL.eos:
                    break
            decoder[0, len(made)] = made[-1]
        rows.append(made)
    return rows


def check(result, expected, max_length):
    for tokens, length, row in zip(result.tokens, result.lengths, expected, strict=True):
        assert tokens.tolist() == row + [SPECIAL.pad] * (max_length - len(row))
        assert int(length) == len(row)


def test_greedy_is_full_recomputation(model, params, prompts, recompute):
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=LONGEST))
    expected = recompute(params, FREE, NONE, LONGEST)
    assert len({tuple(row) for row in expected}) > 1
    check(run(params, *prompts, FREE, NONE, jax.random.key(0)), expected, LONGEST)


def test_ragged_prefixes_are_forced_and_then_continued(model, params, prompts, recompute):
    prefix = np.array([[22, 0, 0], [23, 5, 9], [0, 0, 0]], np.int32)
    lengths = np.array([1, 3, 0], np.int32)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=9))
    expected = recompute(params, prefix, lengths, 9)
    result = run(params, *prompts, prefix, lengths, jax.random.key(0))
    check(result, expected, 9)
    assert result.tokens[0, 0] == 22
    assert result.tokens[1, :3].tolist() == [23, 5, 9]


def favour_eos(params, amount):
    """The same model with an embedding that makes the end token likely (embeddings are tied)."""
    changed = jax.tree.map(lambda p: p, params)
    changed["embedding"] = changed["embedding"].at[SPECIAL.eos].mul(amount)
    return changed


def test_rows_end_at_the_end_token_and_not_before_min_length(model, params, prompts, recompute):
    keen = favour_eos(params, 8.0)
    expected = recompute(keen, FREE, NONE, 10)
    assert min(map(len, expected)) < 5  # the test is about rows that end
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=10))
    check(run(keen, *prompts, FREE, NONE, jax.random.key(0)), expected, 10)

    expected = recompute(keen, FREE, NONE, 10, min_length=5)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=10, min_length=5))
    result = run(keen, *prompts, FREE, NONE, jax.random.key(0))
    check(result, expected, 10)
    assert int(result.lengths.min()) >= 5


def test_an_end_token_in_the_prefix_does_not_end_the_row(model, params, prompts):
    prefix = np.full((3, 2), SPECIAL.eos, np.int32)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=6, min_length=6))
    result = run(params, *prompts, prefix, NONE + 2, jax.random.key(0))
    assert result.lengths.tolist() == [6, 6, 6]


def test_filter_logits():
    logits = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))
    kept = lambda **kwargs: np.isfinite(decoding.filter_logits(logits, **kwargs))[0].tolist()  # noqa: E731
    assert kept() == [True] * 4
    assert kept(top_k=3) == [True, False, True, True]
    assert kept(top_p=0.7) == [True, False, True, False]
    assert kept(top_p=0.81) == [True, False, True, True]
    assert kept(top_p=1e-6) == [True, False, False, False]
    assert kept(top_k=2, top_p=0.9) == [True, False, True, False]


def test_samples_follow_the_filtered_distribution():
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    draws = 20_000
    logits = jnp.tile(jnp.log(jnp.asarray(probabilities, jnp.float32)), (draws, 1))
    sampling = Sampling(max_length=1, temperature=0.5, top_k=3)
    tokens = np.array(decoding.choose(logits, sampling, jax.random.key(0)))
    expected = np.where(np.arange(4) < 3, probabilities**2, 0)
    expected /= expected.sum()
    observed = np.bincount(tokens, minlength=4) / draws
    np.testing.assert_allclose(observed, expected, atol=4 * 0.5 / np.sqrt(draws))
    assert observed[3] == 0


def test_sampling_is_repeatable_and_differs_by_key_and_row(model, params):
    prompts = jnp.full((3, 2), 7), jnp.ones((3, 2), jnp.int32)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=12, min_length=12, temperature=2.0))
    one, again, other = (
        np.array(run(params, *prompts, FREE, NONE, jax.random.key(seed)).tokens)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[0] != one[1]).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_length", 0), ("min_length", 9), ("temperature", -1.0), ("top_k", -1), ("top_p", 0.0)],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(Sampling(max_length=8), **{field: value})


def test_a_prefix_longer_than_the_output_is_an_error(model, params, prompts):
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=2))
    with pytest.raises(ValueError, match="raise max_length"):
        run(params, *prompts, np.zeros((3, 3), np.int32), NONE, jax.random.key(0))


def test_a_prompt_for_the_decoder_is_not_forgotten(model, params, prompts):
    config = dataclasses.replace(model.config, prompt_to_decoder=True)
    run = decoding.compiled(CodeT5p(config), SPECIAL, Sampling(max_length=4))
    with pytest.raises(ValueError, match="prompt has to be the prefix as well"):
        run(params, *prompts, FREE, NONE, jax.random.key(0))
