"""Batches and padded lengths change nothing; the inputs are laid out as in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.data.buckets import batches, buckets
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import abstract_params, logical_axes
from codet5p_jax.objectives import TextCodePairs
from codet5p_jax.objectives.rows import wrap
from codet5p_jax.sharding import MeshConfig, make_mesh, param_shardings

TEXTS = ["a", "parse a date", "x" * 60, "open"]
CODES = ["def f(): pass", "y = 1\n" * 20, "z", "def g(a):\n    return a + 1\n"]


@pytest.fixture(scope="module")
def encoder(model, params, special):
    return PairEncoder(model, params, special, text_length=32, code_length=80, batch_size=3)


def test_buckets():
    assert buckets(160) == [64, 128, 160]
    assert buckets(64) == [64]
    assert buckets(16) == [16]


def test_batches_hold_every_row_once_and_long_enough():
    lengths = [3, 32, 33, 80, 5, 6, 7, 64]
    seen = []
    for length, rows, real in batches(lengths, 80, 3):
        assert len(rows) == 3
        assert all(lengths[row] <= length for row in rows)
        seen += rows[:real].tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_embeddings_are_those_of_single_rows(encoder, model, params, special, tokenize):
    together = encoder.embed_codes([tokenize(code) for code in CODES])

    @jax.jit
    def embed(params, tokens):
        bound, ones = model.bind(params), jnp.ones_like(tokens)
        return bound.embed(bound.encode(tokens, ones), ones)

    for i in (0, 1):  # one short, one cut
        tokens = wrap(np.array(tokenize(CODES[i])), 80, special)[None]
        np.testing.assert_allclose(together[i], embed(params, tokens)[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_match_is_that_of_single_pairs(encoder, model, params, special, tokenize):
    pairs = np.array([(q, c) for q in range(4) for c in range(4)])
    logits = encoder.match([tokenize(t) for t in TEXTS], [tokenize(c) for c in CODES], pairs)

    @jax.jit
    def match(params, text, code):
        bound, ones = model.bind(params), jnp.ones_like(code)
        encoded = bound.encode(text, jnp.ones_like(text))
        return bound.match(bound.decode(code, ones, encoded, jnp.ones_like(text)), ones)

    for q, c in [(2, 1), (1, 3)]:
        text = wrap(np.array(tokenize(TEXTS[q])), 32, special)[None]
        code = wrap(np.array(tokenize(CODES[c])), 80, special)[None]
        code[:, 0] = special.enc
        np.testing.assert_allclose(logits[q * 4 + c], match(params, text, code)[0], atol=1e-4)


def test_over_a_mesh(encoder, model, params, special, tokenize):
    """Eight devices embed and match as one does."""
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    shardings = param_shardings(logical_axes(model.specs), abstract_params(model.specs), mesh)
    lengths = {"text_length": 32, "code_length": 80}
    many = PairEncoder(
        model,
        jax.device_put(params, shardings),
        special,
        **lengths,
        batch_size=4,
        mesh=mesh,
    )
    texts, codes = [tokenize(text) for text in TEXTS[:3]], [tokenize(code) for code in CODES]
    np.testing.assert_allclose(many.embed_texts(texts), encoder.embed_texts(texts), atol=1e-6)
    np.testing.assert_allclose(many.embed_codes(codes), encoder.embed_codes(codes), atol=1e-6)
    pairs = np.array([(2, 1), (0, 3), (1, 0), (2, 2), (0, 0)])
    np.testing.assert_allclose(
        many.match(texts, codes, pairs), encoder.match(texts, codes, pairs), atol=1e-5
    )
    assert many.temperature == pytest.approx(encoder.temperature)
    with pytest.raises(ValueError, match="a batch of texts: axis 'batch' of size 3"):
        PairEncoder(model, params, special, **lengths, batch_size=3, mesh=mesh)


def test_progress_counts_every_row(model, params, special, tokenize):
    done = []
    encoder = PairEncoder(
        model, params, special, text_length=32, code_length=80, batch_size=3, progress=done.append
    )
    encoder.embed_codes([tokenize(code) for code in CODES])
    assert sum(done) == len(CODES)


@pytest.mark.parametrize(
    ("learned", "used"), [(0.01, 0.01), (0.0001, 0.001), (3.0, 0.5), (0.07, 0.07)]
)
def test_the_temperature_is_clamped_as_in_training(model, params, special, learned, used):
    """What the contrastive objective reports for the same parameters."""
    params = params | {"log_temperature": jnp.log(jnp.float32(learned))}
    objective = TextCodePairs(text_length=8, code_length=8, matching=False)
    example = {"text": np.array([9]), "code": np.array([9, 10])}
    row = objective.features(example, np.random.default_rng(0), special)
    batch = {name: jnp.asarray(value)[None] for name, value in row.items()}
    bound = model.bind(params)
    losses, _ = objective.loss(bound, batch, {}, jax.random.key(0), False)
    trained, _ = losses["contrastive"].metrics["temperature"]
    encoder = PairEncoder(model, params, special, text_length=8, code_length=8)
    assert encoder.temperature == pytest.approx(float(trained), rel=1e-6)
    assert encoder.temperature == pytest.approx(used, rel=1e-6)
    wider = PairEncoder(
        model, params, special, text_length=8, code_length=8, temperature_bounds=(1e-9, 1e9)
    )
    assert wider.temperature == pytest.approx(learned, rel=1e-6)


def test_models_without_the_heads_are_refused(model, params, special):
    lengths = {"text_length": 8, "code_length": 8}
    bare = CodeT5p(dataclasses.replace(model.config, embed_dim=None))
    with pytest.raises(ValueError, match="embed_dim"):
        PairEncoder(bare, params, special, **lengths)
    headless = CodeT5p(dataclasses.replace(model.config, matching_head=False))
    encoder = PairEncoder(headless, params, special, **lengths)
    with pytest.raises(ValueError, match="matching_head"):
        encoder.match([[9]], [[9]], np.array([[0, 0]]))
