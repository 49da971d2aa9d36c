"""`dense` against einsum and JAX's own gradient of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models.dense import dense


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


def test_the_gradient_of_a_widening_kernel_transposes_the_narrow_operand():
    x, kernel = jnp.ones((8, 16, 4)), jnp.ones((4, 64))
    text = str(jax.make_jaxpr(jax.grad(lambda k: dense(x, k).sum()))(kernel))
    # [4, 64] is made as such; JAX's own rule makes [64, 4] and transposes it
    assert "f32[64,4]" not in text, text
    assert "f32[64,4]" in str(
        jax.make_jaxpr(jax.grad(lambda k: jnp.einsum("BTD,DF->BTF", x, k).sum()))(kernel)
    )
