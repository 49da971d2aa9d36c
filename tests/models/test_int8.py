"""Kernels in 8 bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p, Lora, ModelConfig, StackConfig, init_params
from codet5p_jax.models.dense import dense
from codet5p_jax.models.int8 import dense_int8, dequantize, initializers, quantize, scale_of
from codet5p_jax.models.params import flatten, nested

KEY = jax.random.key(0)


@pytest.mark.parametrize("size", [1e-44, 1e-6, 1.0, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_value_is_off_by_more_than_half_a_scale(size, dtype):
    w = (size * jax.random.normal(KEY, (3, 40, 2, 8))).astype(dtype)
    w = w.at[1, :, 0, 3].set(0)
    q, scale = quantize(w, (3, 1, 2, 8))
    assert (q.dtype, scale.dtype, scale.shape) == (jnp.int8, jnp.float32, (3, 1, 2, 8))
    assert np.min(q) >= -127
    w, q, scale = (np.asarray(x, np.float64) for x in (w, q, scale))
    # The bound, and what rounding to fp32 adds to it. Below 1.2e-38 values count as zero.
    slack = 2**-20 * np.max(np.abs(w)) + 2e-38
    assert np.all(np.abs(w - scale * q) <= scale / 2 + slack)
    if size > 1e-30:
        assert np.all(np.max(np.abs(q), axis=1)[scale[:, 0] > 0] == 127)
    np.testing.assert_array_equal(q[1, :, 0, 3], 0)


def test_what_is_not_finite_shows_in_the_scale():
    for wrong in (jnp.nan, jnp.inf):
        _, scale = quantize(jnp.ones((4, 3)).at[2, 1].set(wrong), (1, 3))
        np.testing.assert_array_equal(np.isfinite(scale), [[True, False, True]])


@pytest.mark.parametrize(("kernel", "axes"), [((6, 4, 8), 1), ((4, 8, 6), 2)])
def test_a_product_and_its_gradient_are_those_of_the_scaled_kernel(kernel, axes):
    w = jax.random.normal(KEY, kernel)
    q, scale = quantize(w, (*(1,) * axes, *kernel[axes:]))
    x = jax.random.normal(jax.random.key(1), (2, 5, *kernel[:axes]))
    g = jax.random.normal(jax.random.key(2), (2, 5, *kernel[axes:]))
    y, back = jax.vjp(lambda x: dense_int8(x, q, scale, axes=axes), x)
    expected, expected_back = jax.vjp(
        lambda x: dense(x, dequantize(q, scale, jnp.float32), axes=axes), x
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(back(g)[0], expected_back(g)[0], atol=1e-5)
    # Against the kernel itself: each of the values that are added is off by half a scale at most.
    off = np.abs(y - dense(x, w, axes=axes))
    inputs = tuple(range(2, 2 + axes))
    most = np.sum(np.abs(x), axis=inputs).reshape(2, 5, *(1,) * (len(kernel) - axes))
    assert np.all(off <= most * scale.reshape(kernel[axes:]) / 2 + 1e-5)


def test_half_precision_does_not_overflow_before_it_is_scaled():
    q, scale = jnp.full((8192, 1), 127, jnp.int8), jnp.full((1, 1), 1e-3)
    y = dense_int8(jnp.ones((1, 8192), jnp.float16), q, scale)
    np.testing.assert_allclose(y, [[127 * 8.192]], rtol=1e-3)
    assert y.dtype == jnp.float16


def in_8_bits(config: ModelConfig, params):
    """The network of which the decoder's kernels are int8, its parameters, and those of the network
    as it was with kernels of the same values."""
    decoder = dataclasses.replace(config.decoder, int8=True)
    config = dataclasses.replace(config, decoder=decoder)
    specs = dict(flatten(CodeT5p(config).specs))
    flat = dict(flatten(params))
    narrow, same = dict(flat), dict(flat)
    for name in [name for name, spec in specs.items() if spec.dtype == jnp.int8]:
        q, scale = quantize(flat[name], specs[scale_of(name)].shape)
        narrow |= {name: q, scale_of(name): scale}
        same[name] = dequantize(q, scale, jnp.float32)
    assert narrow.keys() == specs.keys()
    assert {n: (x.shape, x.dtype) for n, x in narrow.items()} == {
        n: (x.shape, x.dtype) for n, x in specs.items()
    }
    return config, nested(narrow), nested(same)


LLAMA = StackConfig(
    num_layers=3, d_model=16, num_heads=4, head_dim=4, d_ff=32, num_kv_heads=2, causal=True,
    cross_attention=(2,), activation="silu", gated=True, position="rotary", scale_attention=True,
    lora=Lora(rank=2, targets=Lora.PROJECTIONS),
)  # fmt: skip
PARALLEL = dataclasses.replace(
    LLAMA, num_kv_heads=1, gated=False, parallel=True, norm="layer", mlp_bias=True, lora=None
)
ENCODER = StackConfig(num_layers=1, d_model=16, num_heads=2, head_dim=8, d_ff=32)
TOKENS, ONES = jnp.arange(1, 7)[None], jnp.ones((1, 6), jnp.int32)


@pytest.mark.parametrize(
    ("decoder", "scan"),
    [
        pytest.param(LLAMA, False, id="llama"),
        pytest.param(PARALLEL, True, id="parallel, scanned"),
        pytest.param(LLAMA, True, id="llama, scanned", marks=pytest.mark.slow),
        pytest.param(PARALLEL, False, id="parallel", marks=pytest.mark.slow),
    ],
)
def test_a_network_in_8_bits_is_the_one_with_the_scaled_kernels(decoder, scan):
    config = ModelConfig(20, ENCODER, decoder, dropout=0.0, scan_layers=scan)
    params = init_params(CodeT5p(config).specs, KEY)
    params = jax.tree.map(lambda x: x + 0.01, params)  # no addition of zero
    int8, narrow, same = in_8_bits(config, params)

    def both(config, params):
        model = CodeT5p(config).bind(params)

        @jax.jit
        def run(encoded):
            return model.logits(model.decode(TOKENS, ONES, encoded, ONES))

        encoded = model.encode(TOKENS, ONES)
        y, back = jax.vjp(run, encoded)
        cache = model.init_cache(encoded, ONES, 6)
        states = []
        for i in range(3):
            state, cache = model.decode_step(TOKENS[:, i : i + 1], cache)
            states.append(model.logits(state))
        return y, back(jnp.ones_like(y))[0], jnp.concatenate(states, axis=1)

    y, gradient, steps = both(int8, narrow)
    expected, expected_gradient, _ = both(config, same)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(y, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(steps, expected[:, :3], atol=1e-5 * scale)
    np.testing.assert_allclose(
        gradient, expected_gradient, atol=1e-5 * np.max(np.abs(expected_gradient))
    )


def test_a_network_in_8_bits_is_near_the_one_it_was_made_of():
    """To first order, the loss is off by the sum of gradient times error, which is half a scale for
    each value at most."""
    config = ModelConfig(20, ENCODER, LLAMA, dropout=0.0)
    params = init_params(CodeT5p(config).specs, KEY)
    int8, narrow, same = in_8_bits(config, params)

    def loss(params, config):
        model = CodeT5p(config).bind(params)
        states = model.decode(TOKENS, ONES, model.encode(TOKENS, ONES), ONES)
        return model.token_losses(states, TOKENS, ONES.astype(jnp.float32)).loss

    whole, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, config)
    off = float(jax.jit(loss, static_argnums=1)(narrow, int8) - whole)
    gradients, scales = dict(flatten(gradient)), dict(flatten(narrow))
    error = jax.tree.map(jnp.subtract, same, params)
    first_order = sum(float(jnp.vdot(gradients[name], change)) for name, change in flatten(error))
    most = sum(
        float(jnp.sum(jnp.abs(g) * scales[scale_of(name)] / 2))
        for name, g in gradients.items()
        if scale_of(name) in scales
    )
    assert 0 < abs(off) <= most
    assert abs(off - first_order) < 0.05 * most


def test_drawn_values_have_the_deviation_that_is_asked_for():
    values, scale = initializers(0.02)
    q = values(KEY, (200, 300), jnp.int8)
    assert (int(np.min(q)), int(np.max(q))) == (-127, 127)
    kernel = dequantize(q, scale(KEY, (1, 300), jnp.float32), jnp.float32)
    np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.01)
    assert abs(np.mean(kernel)) < 0.0003
