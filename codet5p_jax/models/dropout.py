"""Dropout on 16 random bits per element, half of what jax.random.bernoulli draws."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Zeroes elements with probability `rate` (to 1/65536) and rescales the rest; key None: x."""
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 65536)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(threshold)
    scale = jnp.asarray(65536 / (65536 - threshold), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))
