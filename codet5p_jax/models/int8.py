"""Kernels in 8 bits, for projections that do not train: int8 values, and an fp32 scale for each
output and layer, so that the kernel is `scale · q`.

The scale multiplies the result of a product, never the kernel: what a product reads is int8.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from codet5p_jax.models.params import Initializer, Params, flatten

_LARGEST = 127
_DEVIATION = math.sqrt(_LARGEST * (_LARGEST + 1) / 3)  # of the integers from -127 to 127


def scale_of(path: str) -> str:
    """Path of the scale of a kernel: `…/q_scale` of `…/q`."""
    return f"{path}_scale"


def scales_of(specs: Params) -> frozenset[str]:
    """Paths of the scales of all int8 kernels of a tree of declarations."""
    return frozenset(scale_of(path) for path, spec in flatten(specs) if spec.dtype == jnp.int8)


@functools.partial(jax.jit, static_argnums=1)
def quantize(
    kernel: Float[Array, "..."], scale_shape: tuple[int, ...]
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """A kernel in 8 bits; no value is off by more than half a scale.

    Args:
      kernel: finite; a channel of zeros has scale 0.
      scale_shape: that of the kernel, with 1 for the axes that a product contracts.

    Returns:
      (q, scale): int8 in [-127, 127] in the shape of the kernel, and fp32 of `scale_shape`.

    >>> quantize(jnp.array([[0.5, 0.0], [-1.0, 0.0]]), (1, 2))
    (Array([[  64,    0], [-127,    0]], dtype=int8), Array([[0.00787402, 0.]], dtype=float32))
    """
    axes = tuple(axis for axis, size in enumerate(scale_shape) if size == 1)
    w = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(w), axis=axes, keepdims=True) / _LARGEST
    steps = jnp.round(w / jnp.where(scale > 0, scale, 1.0))
    # Past the end only where a channel is so small that its scale has lost digits.
    return jnp.clip(steps, -_LARGEST, _LARGEST).astype(jnp.int8), scale


def dequantize(
    q: Int8[Array, "..."], scale: Float[Array, "..."], dtype: Any
) -> Float[Array, "..."]:
    """The kernel `scale · q`, rounded to `dtype`."""
    return (q.astype(jnp.float32) * scale).astype(dtype)


def initializers(stddev: float) -> tuple[Initializer, Initializer]:
    """Of q and of its scale: a kernel of uniform values with this standard deviation."""

    def values(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.randint(key, shape, -_LARGEST, _LARGEST + 1, dtype)

    def scale(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        del key
        return jnp.full(shape, stddev / _DEVIATION, dtype)

    return values, scale


def dense_int8(
    x: Float[Array, "..."], q: Int8[Array, "..."], scale: Float[Array, "..."], *, axes: int = 1
) -> Float[Array, "..."]:
    """`dense` with a kernel in 8 bits: contracts the last `axes` axes of x with the first of q, in
    the dtype of x. Neither q nor its scale has a gradient.

    Example: x [B, T, D], q [D, H, K] and scale [1, H, K] give [B, T, H, K].
    """
    return _dense_int8(x, q, scale, axes)


def _product(x: Array, q: Array, scale: Array, axes: int) -> Array:
    first = x.ndim - axes
    contract = (tuple(range(first, x.ndim)), tuple(range(axes)))
    # Before it is scaled, a result may be too large for fp16: that accumulates in fp32.
    wide = jnp.promote_types(x.dtype, jnp.bfloat16)
    y = jax.lax.dot_general(x, q.astype(x.dtype), (contract, ((), ())), preferred_element_type=wide)
    return (y.astype(jnp.float32) * scale.reshape(q.shape[axes:])).astype(x.dtype)


def _forward(x: Array, q: Array, scale: Array, axes: int) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, q, scale, axes), (q, scale)


def _backward(axes: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, None, None]:
    q, scale = saved
    scaled = (g.astype(jnp.float32) * scale.reshape(q.shape[axes:])).astype(g.dtype)
    outputs = q.ndim - axes
    contract = (tuple(range(g.ndim - outputs, g.ndim)), tuple(range(axes, q.ndim)))
    return jax.lax.dot_general(scaled, q.astype(g.dtype), (contract, ((), ()))), None, None


_dense_int8 = jax.custom_vjp(_product, nondiff_argnums=(3,))
_dense_int8.defvjp(_forward, _backward)
