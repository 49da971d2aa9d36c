"""Shapes, initial values, modes and packing of the network."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p, abstract_params, codet5p_codegen, init_params, t5
from codet5p_jax.models.dropout import dropout
from codet5p_jax.models.params import count, flatten

TINY = t5(
    vocab_size=64, d_model=16, num_heads=2, head_dim=8, d_ff=32,
    num_encoder_layers=2, num_decoder_layers=2, embed_dim=8, matching_head=True,
)  # fmt: skip
BASE = t5(
    vocab_size=32_100, d_model=768, num_heads=12, head_dim=64, d_ff=3072,
    num_encoder_layers=12, num_decoder_layers=12,
)  # fmt: skip
LARGE = t5(
    vocab_size=32_100, d_model=1024, num_heads=16, head_dim=64, d_ff=4096,
    num_encoder_layers=24, num_decoder_layers=24,
)  # fmt: skip


def test_published_sizes():
    assert count(CodeT5p(BASE).specs) == 222_882_048
    assert count(CodeT5p(LARGE).specs) == 737_639_424


def test_stage_two_heads():
    bimodal = dataclasses.replace(BASE, vocab_size=32_103, embed_dim=256, matching_head=True)
    specs = CodeT5p(bimodal).specs
    temperature = specs.pop(
        "log_temperature"
    )  # learned in pretraining, not part of published files
    assert temperature.shape == ()
    assert count(specs) == 223_082_754


def test_initial_values_are_t5s():
    """Standard deviations of SPEC: the factor 1/sqrt(d_kv) of attention sits in the queries."""
    cfg = dataclasses.replace(BASE, vocab_size=4096)
    specs = CodeT5p(
        dataclasses.replace(
            cfg,
            encoder=dataclasses.replace(cfg.encoder, num_layers=1),
            decoder=dataclasses.replace(cfg.decoder, num_layers=1),
        )
    ).specs
    params = dict(flatten(init_params(specs, jax.random.key(0))))
    D, K, H, F = 768, 64, 12, 3072
    expected = {
        "embedding": 1.0,
        "encoder/layers/attention/q": (D * K) ** -0.5,
        "decoder/layers/cross_attention/k": D**-0.5,
        "decoder/layers/attention/v": D**-0.5,
        "decoder/layers/attention/o": (H * K) ** -0.5,
        "encoder/layers/feed_forward/wi": D**-0.5,
        "encoder/layers/feed_forward/wo": F**-0.5,
    }
    for name, std in expected.items():
        assert abs(float(jnp.std(params[name])) / std - 1) < 0.01, name
    bias = params["encoder/relative_bias"]  # 384 numbers only
    assert abs(float(jnp.std(bias)) / D**-0.5 - 1) < 0.15
    assert np.all(params["encoder/layers/attention_norm/scale"] == 1)


def test_a_parameter_keeps_its_value_when_others_come_and_go():
    with_heads = init_params(CodeT5p(TINY).specs, jax.random.key(0))
    bare = dataclasses.replace(TINY, embed_dim=None, matching_head=False)
    without = init_params(CodeT5p(bare).specs, jax.random.key(0))
    for name, value in flatten(without):
        np.testing.assert_array_equal(value, dict(flatten(with_heads))[name])


def test_layers_start_out_different():
    q = init_params(CodeT5p(TINY).specs, jax.random.key(0))["encoder"]["layers"]["attention"]["q"]
    assert not np.allclose(q[0], q[1])


def test_abstract_tree_matches():
    specs = CodeT5p(TINY).specs
    params = jax.eval_shape(lambda: init_params(specs, jax.random.key(0)))
    assert params == abstract_params(specs)


@pytest.fixture(scope="module")
def bound():
    model = CodeT5p(TINY)
    return model.bind(init_params(model.specs, jax.random.key(0)))


def test_packed_rows_equal_separate_rows(bound):
    rng = np.random.default_rng(0)
    a, b, x, y = (jnp.asarray(rng.integers(0, 64, (1, n)), jnp.int32) for n in (5, 6, 4, 3))
    ones = jnp.ones_like
    packed = bound.decode(
        jnp.concatenate([x, y], 1),
        jnp.concatenate([ones(x), 2 * ones(y)], 1),
        bound.encode(jnp.concatenate([a, b], 1), jnp.concatenate([ones(a), 2 * ones(b)], 1)),
        jnp.concatenate([ones(a), 2 * ones(b)], 1),
    )
    first = bound.decode(x, ones(x), bound.encode(a, ones(a)), ones(a))
    second = bound.decode(y, ones(y), bound.encode(b, ones(b)), ones(b))
    np.testing.assert_allclose(packed, jnp.concatenate([first, second], 1), atol=1e-5)


def test_decoder_alone_ignores_cross_attention(bound):
    tokens = jnp.arange(6)[None]
    alone = bound.decode(tokens, jnp.ones_like(tokens))
    cfg = dataclasses.replace(
        TINY, decoder=dataclasses.replace(TINY.decoder, cross_attention="none")
    )
    params = init_params(CodeT5p(TINY).specs, jax.random.key(0))
    for part in ("cross_attention", "cross_attention_norm"):
        del params["decoder"]["layers"][part]
    without = CodeT5p(cfg).bind(params).decode(tokens, jnp.ones_like(tokens))
    np.testing.assert_array_equal(alone, without)


def test_embeddings_are_unit_vectors_and_ignore_padding(bound):
    tokens = jnp.arange(8)[None]
    segments = (jnp.arange(8) < 5).astype(jnp.int32)[None]
    e = bound.embed(bound.encode(tokens, segments), segments)
    np.testing.assert_allclose(jnp.linalg.norm(e, axis=-1), 1.0, rtol=1e-6)
    short = bound.embed(bound.encode(tokens[:, :5], segments[:, :5]), segments[:, :5])
    np.testing.assert_allclose(e, short, atol=1e-6)


def test_mean_pooling_averages_real_tokens():
    model = CodeT5p(dataclasses.replace(TINY, pooling="mean"))
    bound = model.bind(init_params(model.specs, jax.random.key(0)))
    states = jax.random.normal(jax.random.key(1), (1, 4, 16))
    segments = jnp.array([[1, 1, 0, 0]])
    mean = jnp.broadcast_to(states[:, :2].mean(1, keepdims=True), states.shape)
    np.testing.assert_allclose(
        bound.embed(states, segments), bound.embed(mean, jnp.ones_like(segments)), atol=1e-6
    )


@pytest.mark.parametrize("pairs", [False, True])
def test_classes_are_read_off_the_first_state(pairs):
    model = CodeT5p(dataclasses.replace(TINY, classes=3, classify_pairs=pairs))
    bound = model.bind(init_params(model.specs, jax.random.key(0)))
    one, other = jax.random.normal(jax.random.key(1), (2, 3, 4, 16))
    segments = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    sides = [(one, segments), (other, segments)][: 1 + pairs]
    head, first = bound.classifier, one[:, 0]
    if pairs:
        first = jnp.tanh(head.hidden(jnp.concatenate((first, other[:, 0]), axis=1)))
    np.testing.assert_allclose(bound.classify(*sides), head.output(first), rtol=1e-5)


def test_matching_reads_the_last_real_token(bound):
    states = jax.random.normal(jax.random.key(1), (2, 4, 16))
    logits = bound.match(states, jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]]))
    every = bound.matching_head(states)
    np.testing.assert_allclose(logits, jnp.stack([every[0, 1], every[1, 3]]), rtol=1e-6)


def test_bf16_activations_leave_parameters_fp32():
    model = CodeT5p(dataclasses.replace(TINY, dtype=jnp.bfloat16))
    params = init_params(model.specs, jax.random.key(0))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    tokens = jnp.arange(6)[None]
    bound = model.bind(params)
    states = bound.encode(tokens, jnp.ones_like(tokens))
    assert states.dtype == jnp.bfloat16
    assert bound.logits(states).dtype == jnp.float32
    reference = CodeT5p(TINY).bind(params).encode(tokens, jnp.ones_like(tokens))
    np.testing.assert_allclose(states.astype(jnp.float32), reference, atol=0.1)


def test_dropout_rate_scale_and_repeatability():
    x = jnp.ones((200, 500))
    y = dropout(x, 0.1, jax.random.key(0))
    zeros = float(jnp.mean(y == 0))
    assert abs(zeros - 0.1) < 4 * (0.1 * 0.9 / x.size) ** 0.5
    np.testing.assert_allclose(jnp.unique(y), [0.0, 1 / 0.9], rtol=1e-4)
    np.testing.assert_array_equal(y, dropout(x, 0.1, jax.random.key(0)))
    assert dropout(x, 0.1, None) is x


def test_dropout_differs_between_layers_and_needs_a_key(bound):
    tokens = jnp.arange(6)[None]
    segments = jnp.ones_like(tokens)
    a = bound.encode(tokens, segments, key=jax.random.key(0))
    b = bound.encode(tokens, segments, key=jax.random.key(1))
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(bound.encode(tokens, segments), bound.encode(tokens, segments))


def test_widths_that_cannot_share_an_embedding():
    decoder = dataclasses.replace(TINY.decoder, d_model=24)
    with pytest.raises(ValueError, match=r"d_model 16 of the encoder and 24 of the decoder"):
        dataclasses.replace(TINY, decoder=decoder)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "number", "trainable"),
    [
        (32, 2_560, 32, 3_112_427_008, 10.7),
        (33, 4_096, 16, 7_439_753_216, 5.05),
        (34, 6_144, 24, 16_493_680_640, 2.80),
    ],
)
def test_parameters_of_the_large_ones(layers, width, heads, number, trainable):
    """As published: all parameters, and the share of encoder, cross-attention and projection."""
    config = codet5p_codegen(num_decoder_layers=layers, d_model=width, num_heads=heads)
    sizes = {name: math.prod(s.shape) for name, s in flatten(CodeT5p(config).specs)}
    assert sum(sizes.values()) == number
    new = sum(n for name, n in sizes.items() if "encoder" in name or "cross_attention" in name)
    assert abs(100 * new / number - trainable) < 0.05


COMPOSED = codet5p_codegen(
    num_decoder_layers=3, d_model=32, num_heads=4, num_encoder_layers=2, encoder_d_model=16,
    encoder_num_heads=2, encoder_rotary_dim=4, rotary_dim=4, vocab_size=64,
)  # fmt: skip


def drawn(config, seed=0):
    """Initial values moved a little, so that biases and norms count."""
    params = init_params(CodeT5p(config).specs, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape).astype(np.float32)), params
    )


@pytest.mark.parametrize("cross_parallel", [None, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_large_decoder_starts_out_as_without_encoder(parallel, cross_parallel):
    decoder = dataclasses.replace(
        COMPOSED.decoder, parallel=parallel, cross_parallel=cross_parallel, cross_zero_init=True
    )
    config = dataclasses.replace(COMPOSED, decoder=decoder)
    params = drawn(config)
    fresh = dict(flatten(init_params(CodeT5p(config).specs, jax.random.key(0))))
    params["decoder"]["layers_2"]["cross_attention"]["o"] = fresh[
        "decoder/layers_2/cross_attention/o"
    ]
    bound = CodeT5p(config).bind(params)
    tokens, ones = jnp.arange(12).reshape(2, 6), jnp.ones((2, 6), jnp.int32)
    alone = bound.decode(tokens, ones)
    joined = bound.decode(tokens, ones, bound.encode(tokens, ones), ones)
    np.testing.assert_array_equal(alone, joined)
    params["decoder"]["layers_2"]["cross_attention"]["o"] = drawn(config)["decoder"]["layers_2"][
        "cross_attention"
    ]["o"]
    bound = CodeT5p(config).bind(params)
    moved = bound.decode(tokens, ones, bound.encode(tokens, ones), ones)
    assert float(jnp.max(jnp.abs(moved - alone))) > 1e-3


@pytest.mark.parametrize("cross_parallel", [None, False])
def test_a_cache_of_a_large_decoder_equals_recomputation(cross_parallel):
    decoder = dataclasses.replace(COMPOSED.decoder, cross_parallel=cross_parallel)
    config = dataclasses.replace(COMPOSED, decoder=decoder)
    bound = CodeT5p(config).bind(drawn(config))
    tokens, ones = jnp.arange(12).reshape(2, 6), jnp.ones((2, 6), jnp.int32)
    encoded = bound.encode(tokens, ones)
    whole = bound.decode(tokens, ones, encoded, ones)
    cache = bound.init_cache(encoded, ones, 6)
    for t in range(6):
        state, cache = bound.decode_step(tokens[:, t : t + 1], cache)
        np.testing.assert_allclose(state[:, 0], whole[:, t], atol=1e-5)
