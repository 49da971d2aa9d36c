"""Filters and penalties against transformers; draws against exact probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.decoding.sampling import Sampling, choose, draw, filter_logits, penalize


@pytest.fixture(scope="module")
def logits():
    drawn = np.random.default_rng(0).normal(size=(4, 60)) * np.array([[0.1], [1], [3], [10]])
    return drawn.astype(np.float32)


def test_filter_logits():
    logits = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))
    kept = lambda **kwargs: np.isfinite(filter_logits(logits, **kwargs))[0].tolist()  # noqa: E731
    assert kept() == [True] * 4
    assert kept(top_k=3) == [True, False, True, True]
    assert kept(top_p=0.7) == [True, False, True, False]
    assert kept(top_p=0.81) == [True, False, True, True]
    assert kept(top_p=1e-6) == [True, False, False, False]
    assert kept(top_k=2, top_p=0.9) == [True, False, True, False]
    assert kept(min_p=0.2) == [True, False, True, True]
    assert kept(min_p=1.0) == [True, False, False, False]


SETTINGS = [
    *({"top_k": k} for k in (1, 7, 60, 100)),
    *({"top_p": p} for p in (0.01, 0.3, 0.5, 0.9, 0.999)),
    *({"min_p": p} for p in (0.001, 0.05, 0.5, 1.0)),
    {"top_k": 20, "top_p": 0.8, "min_p": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_filters_keep_what_transformers_keeps(logits, settings):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    scores = torch.tensor(logits)
    for name, value in settings.items():  # in their order there
        warper = {"top_k": "TopK", "top_p": "TopP", "min_p": "MinP"}[name]
        scores = getattr(transformers, f"{warper}LogitsWarper")(value)(None, scores)
    np.testing.assert_array_equal(filter_logits(jnp.asarray(logits), **settings), scores)


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_the_penalty_is_that_of_transformers(logits, penalty):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokens = np.random.default_rng(1).integers(0, 60, (4, 9))
    expected = transformers.RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor(tokens), torch.tensor(logits)
    )
    seen = (tokens[..., None] == np.arange(60)).any(1)
    got = penalize(jnp.asarray(logits)[:, None], jnp.asarray(seen)[:, None], penalty)[:, 0]
    np.testing.assert_allclose(got, expected, rtol=2**-23)  # a division, or times the inverse


def test_samples_follow_the_filtered_distribution():
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    draws = 20_000
    logits = jnp.tile(jnp.log(jnp.asarray(probabilities, jnp.float32)), (draws, 1))
    sampling = Sampling(max_length=1, temperature=0.5, top_k=3)
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = np.array(jax.jit(choose, static_argnums=1)(logits, sampling, keys))
    expected = np.where(np.arange(4) < 3, probabilities**2, 0)
    expected /= expected.sum()
    counts = np.bincount(tokens, minlength=4)
    assert counts[3] == 0
    chi_square = ((counts - draws * expected)[:3] ** 2 / (draws * expected[:3])).sum()
    assert chi_square < 13.8  # 99.9 % of correct ones, with 2 degrees of freedom


def test_draws_of_a_vocabulary_of_several_blocks_follow_its_softmax():
    """Every token of 300 has its share, the rare ones and those at the ends among them."""
    probabilities = np.random.default_rng(0).dirichlet(np.full(300, 0.5))
    draws = 60_000
    logits = jnp.log(jnp.asarray(probabilities, jnp.float32))
    keys = jax.random.split(jax.random.key(1), draws)
    tokens = np.array(jax.jit(jax.vmap(lambda key: draw(logits, key)))(keys))
    counts = np.bincount(tokens, minlength=300)
    expected = draws * probabilities
    common = expected >= 5
    rest = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    statistic = ((rest - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert statistic < freedom + 3.5 * np.sqrt(2 * freedom)
    assert not counts[probabilities * draws < 1e-6].any()


def test_what_is_impossible_is_not_drawn():
    logits = jnp.full(300, -jnp.inf).at[jnp.array([0, 299])].set(0.0)
    keys = jax.random.split(jax.random.key(0), 200)
    tokens = np.array(jax.vmap(lambda key: draw(logits, key))(keys))
    assert set(tokens.tolist()) == {0, 299}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_length", 0),
        ("min_length", 9),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("samples", 0),
        ("samples", 2),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(Sampling(max_length=8), **{field: value})
