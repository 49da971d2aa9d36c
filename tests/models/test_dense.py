"""`dense` against einsum and JAX's own gradient of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models.dense import dense, folded
from codet5p_jax.models.int8 import dense_int8


@pytest.mark.parametrize(
    ("equation", "x_shape", "kernel_shape", "axes"),
    [
        ("BTD,DF->BTF", (2, 3, 4), (4, 12), 1),  # the gradient rule of our own
        ("BTF,FD->BTD", (2, 3, 12), (12, 4), 1),  # JAX's
        ("BTD,DHK->BTHK", (2, 3, 4), (4, 2, 3), 1),
        ("BTHK,HKD->BTD", (2, 3, 2, 2), (2, 2, 5), 2),
        ("BTHK,HKD->BTD", (2, 3, 2, 4), (2, 4, 5), 2),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients(equation, x_shape, kernel_shape, axes, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=x_shape), dtype)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)

    def reference(x, kernel):
        return jnp.einsum(equation, x, kernel.astype(x.dtype))

    got, pull = jax.vjp(lambda x, kernel: dense(x, kernel, axes=axes), x, kernel)
    want, pull_reference = jax.vjp(reference, x, kernel)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)
    cotangent = jnp.asarray(rng.normal(size=got.shape), dtype)
    tolerance = {jnp.float32: 1e-6, jnp.bfloat16: 2e-2}[dtype]
    for mine, theirs in zip(pull(cotangent), pull_reference(cotangent), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(
            mine.astype(np.float32), theirs.astype(np.float32), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "axes"),
    [((2, 3, 4), (4, 2, 3), 1), ((2, 3, 2, 4), (2, 4, 5), 2), ((2, 3, 4), (4, 12), 1)],
)
@pytest.mark.parametrize("int8", [False, True])
def test_folded_products_are_the_same(x_shape, kernel_shape, axes, int8):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=x_shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)
    scale = jnp.asarray(rng.uniform(size=(1,) * axes + kernel_shape[axes:]), jnp.float32)
    if int8:
        kernel = jnp.round(10 * kernel).astype(jnp.int8)

    def product(fold, x, *kernel):
        kind = dense_int8 if int8 else dense
        return folded(kind, x, *kernel, axes=axes) if fold else kind(x, *kernel, axes=axes)

    arguments = (x, kernel, scale) if int8 else (x, kernel)
    (got, pull), (want, pull_reference) = (
        jax.vjp(lambda *a, fold=fold: product(fold, *a), *arguments) for fold in (True, False)
    )
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    cotangent = jnp.asarray(rng.normal(size=got.shape), jnp.float32)
    found, expected = (p(cotangent)[: 1 if int8 else 2] for p in (pull, pull_reference))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_widening_kernel_transposes_the_narrow_operand():
    x, kernel = jnp.ones((8, 16, 4)), jnp.ones((4, 64))
    text = str(jax.make_jaxpr(jax.grad(lambda k: dense(x, k).sum()))(kernel))
    # [4, 64] is made as such; JAX's own rule makes [64, 4] and transposes it
    assert "f32[64,4]" not in text, text
    assert "f32[64,4]" in str(
        jax.make_jaxpr(jax.grad(lambda k: jnp.einsum("BTD,DF->BTF", x, k).sum()))(kernel)
    )
