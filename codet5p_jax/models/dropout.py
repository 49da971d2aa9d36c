"""Dropout on 16 random bits per element, half of what jax.random.bernoulli draws; and what to keep
by a hash, where random bits would fill as much memory as what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Zeroes elements with probability `rate` (to 1/65536) and rescales the rest; key None: x."""
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 65536)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(threshold)
    scale = jnp.asarray(65536 / (65536 - threshold), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def kept(
    words: tuple[Int[Array, ""], Int[Array, ""]],
    row: Int[Array, "*#B"],
    head: Int[Array, "*#B"],
    pair: Int[Array, "*#B"],
    rate: float,
) -> Bool[Array, "*#B"]:
    """Whether an element stays, with probability 1 - `rate` (to 2^-24); int32, broadcast.

    A function of its place alone: any part of an array is made where it is needed, also inside a
    kernel, and is the same however the array is split. The hash is Wellons' lowbias32 with a
    second word mixed in halfway.
    """
    # Heads or rows whose words differ in a few bits would drop alike: both words come of both.
    of_row = _mixed(words[0] + row * _signed(0x9E3779B9))
    of_head = _mixed(words[1] + head * _signed(0x85EBCA77))
    first = _mixed(of_row + of_head)
    second = _mixed(of_row ^ (of_head * 5 + _signed(0xC2B2AE3D)))
    x = (pair ^ first) ^ _shifted(pair ^ first, 16)
    x = (x * _signed(0x7FEB352D)) ^ second
    x = (x ^ _shifted(x, 15)) * _signed(0x846CA68B)
    return _shifted(x ^ _shifted(x, 16), 8) >= round(rate * 2**24)


def _mixed(x: Array) -> Array:
    x = (x ^ _shifted(x, 16)) * _signed(0x7FEB352D)
    x = (x ^ _shifted(x, 15)) * _signed(0x846CA68B)
    return x ^ _shifted(x, 16)


def _shifted(x: Array, bits: int) -> Array:
    return jax.lax.shift_right_logical(x, jnp.int32(bits))


def _signed(x: int) -> np.int32:
    return np.uint32(x).astype(np.int32)
