"""A matrix product whose gradient turns round the smaller operand."""

import math
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from codet5p_jax.sharding import result_of_product

LANES = 128  # of a TPU: its arrays lie in tiles that are as wide


def dense(
    x: Float[Array, "..."], kernel: Float[Array, "..."], *, axes: int = 1
) -> Float[Array, "..."]:
    """Contracts the last `axes` axes of x with the first `axes` of kernel, in the dtype of x.

    Example: x [B, T, D] and kernel [D, H, K] give [B, T, H, K].

    JAX's own rule makes the gradient of the kernel as (gᵀ x)ᵀ. XLA on CPU then writes the cotangent
    g transposed, as part of whatever made it: strided stores, which a feed-forward layer feels most
    because there g is the wide one (a quarter of a training step). xᵀ g transposes the narrow one.
    """
    kernel = kernel.astype(x.dtype)
    if math.prod(kernel.shape[axes:]) < math.prod(kernel.shape[:axes]):
        return _product(x, kernel, axes)  # x is the wide one: JAX's rule is the better
    return _dense(x, kernel, axes)


def folded(product: Callable[..., Array], x: Array, *kernel: Array, axes: int) -> Array:
    """`product(x, *kernel, axes=axes)`, a product of matrices: the inputs of a kernel are one axis,
    and so are its outputs.

    Heads of 64 would half fill the lanes of a TPU, so XLA makes [B, T, H, 64] with T last, and has
    to turn it round for a kernel that reads [B, T, H * 64]. Nothing is won where a device's heads
    do not fill lanes together (three of 64), nor for attention in plain operations, whose products
    go by heads.
    """
    rows, outputs = x.shape[: x.ndim - axes], kernel[0].shape[axes:]
    matrices = [k.reshape(math.prod(k.shape[:axes]), -1) for k in kernel]
    return product(x.reshape(*rows, -1), *matrices, axes=1).reshape(*rows, *outputs)


def _product(x: Array, kernel: Array, axes: int) -> Array:
    first = x.ndim - axes
    contract = (tuple(range(first, x.ndim)), tuple(range(axes)))
    out = result_of_product(x, kernel, contract)
    return jax.lax.dot_general(x, kernel, (contract, ((), ())), out_sharding=out)


def _forward(x: Array, kernel: Array, axes: int) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel, axes), (x, kernel)


def _backward(axes: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - axes))
    columns = tuple(range(len(rows), g.ndim)), tuple(range(axes, kernel.ndim))
    d_x = jax.lax.dot_general(g, kernel, (columns, ((), ())))
    d_kernel = jax.lax.dot_general(x, g, ((rows, rows), ((), ())))
    return d_x, d_kernel


_dense = jax.custom_vjp(_product, nondiff_argnums=(2,))
_dense.defvjp(_forward, _backward)
