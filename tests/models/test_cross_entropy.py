"""Chunked cross-entropy against a computation in fp64 NumPy, and what the compiler makes of it."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models.cross_entropy import token_losses


def reference(states, kernel, targets, weights, z_loss, smoothing):
    """Loss, z-loss and accuracy sums, written from the definition."""
    logits = states.astype(np.float64) @ kernel.astype(np.float64).T
    V = logits.shape[-1]
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    log_p = logits - log_z[..., None]
    one_hot = np.eye(V)[targets]
    q = one_hot * (1 - smoothing) + (1 - one_hot) * smoothing / (V - 1)
    entropy = -np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0), -1)
    z = z_loss * log_z**2
    loss = np.sum(weights * (-np.sum(q * log_p, -1) - entropy + z))
    return loss, np.sum(weights * z), np.sum(weights * (logits.argmax(-1) == targets))


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    B, T, D, V = 3, 11, 8, 29
    states = rng.normal(size=(B, T, D)).astype(np.float32)
    kernel = rng.normal(size=(V, D)).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = (rng.random((B, T)) < 0.7).astype(np.float32)
    return tuple(map(jnp.asarray, (states, kernel, targets, weights)))


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_values(arrays, chunk, z_loss, smoothing):
    got = token_losses(*arrays, chunk=chunk, z_loss=z_loss, label_smoothing=smoothing)
    expected = reference(*map(np.asarray, arrays), z_loss, smoothing)
    np.testing.assert_allclose(got[:3], expected, rtol=1e-5)
    assert float(got.weight) == arrays[3].sum()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_gradients_equal_those_of_plain_autodiff(arrays, z_loss, smoothing, with_bias):
    states, kernel, targets, weights = arrays
    bias = jnp.linspace(-1, 1, len(kernel)) if with_bias else None

    def plain(states, kernel, bias):
        logits = jnp.einsum("BTD,VD->BTV", states, kernel)
        logits = logits if bias is None else logits + bias
        log_z = jax.nn.logsumexp(logits, axis=-1)
        V = kernel.shape[0]
        q = jnp.where(jnp.arange(V) == targets[..., None], 1 - smoothing, smoothing / (V - 1))
        nll = -jnp.sum(q * (logits - log_z[..., None]), -1)
        return jnp.sum(weights * (nll + z_loss * log_z**2))

    def ours(states, kernel, bias):
        sums = token_losses(states, kernel, targets, weights, bias, chunk=4, z_loss=z_loss,
                            label_smoothing=smoothing)  # fmt: skip
        return sums.loss

    # scaled, so that a cotangent other than one is seen to be honoured
    inputs, number = (states, kernel, bias), (0, 1, 2) if with_bias else (0, 1)
    if not smoothing:  # else less the entropy, a constant
        np.testing.assert_allclose(ours(*inputs), plain(*inputs), rtol=1e-5)
    got = jax.grad(lambda *x: 3.0 * ours(*x), argnums=number)(*inputs)
    expected = jax.grad(lambda *x: 3.0 * plain(*x), argnums=number)(*inputs)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, atol=1e-5)


def test_a_perfect_prediction_costs_nothing_under_smoothing():
    V, eps = 7, 0.1
    q = np.full(V, eps / (V - 1))
    q[2] = 1 - eps
    states = jnp.asarray(np.log(q), jnp.float32)[None, None]
    sums = token_losses(states, jnp.eye(V), jnp.array([[2]]), jnp.ones((1, 1)), chunk=1,
                        label_smoothing=eps)  # fmt: skip
    assert abs(float(sums.loss)) < 1e-6


def largest_buffer(hlo: str) -> int:
    """Elements of the largest array named in an HLO module."""
    shapes = re.findall(r"(?:f32|bf16|s32|pred|u32|f16)\[([\d,]+)\]", hlo)
    return max(math.prod(map(int, s.split(","))) for s in shapes)


def test_the_compiled_gradient_holds_no_logits_of_the_whole_batch():
    B, T, D, V, chunk = 4, 64, 16, 512, 16
    f = jax.grad(lambda s, k, t, w: token_losses(s, k, t, w, chunk=chunk).loss, argnums=(0, 1))
    args = (
        jax.ShapeDtypeStruct((B, T, D), jnp.float32),
        jax.ShapeDtypeStruct((V, D), jnp.float32),
        jax.ShapeDtypeStruct((B, T), jnp.int32),
        jax.ShapeDtypeStruct((B, T), jnp.float32),
    )
    assert largest_buffer(jax.jit(f).lower(*args).compile().as_text()) == B * chunk * V
    whole = jax.jit(
        jax.grad(lambda s, k, t, w: token_losses(s, k, t, w, chunk=T).loss, argnums=(0, 1))
    )
    assert largest_buffer(whole.lower(*args).compile().as_text()) == B * T * V
