"""How the next token is chosen: penalties, filters, the most likely one or a drawn one."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 128


@dataclass(frozen=True)
class Sampling:
    """Greedy decoding, or sampling.

    What changes logits is applied in the order of the fields, as in transformers, but `min_length`
    after the penalty.

    Attributes:
      max_length: tokens written after the prefix at most, end token included.
      min_length: tokens written at least, counted likewise: an earlier end token is forbidden.
      repetition_penalty: logits of what the decoder has read or written are divided by it where
        they are positive, else multiplied (Keskar et al. 2019); 1 changes nothing.
      temperature: logits are divided by it; 0 takes the most likely token (greedy).
      top_k: sample among the k most likely tokens only; 0 means all.
      top_p: sample among the fewest tokens whose probabilities add up to at least this (nucleus).
      min_p: sample among tokens with at least this share of the highest probability.
      samples: continuations of each prompt, which is encoded once.
    """

    max_length: int
    min_length: int = 0
    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        check_ranges(
            self,
            max_length=self.max_length >= 1,
            min_length=0 <= self.min_length <= self.max_length,
            repetition_penalty=self.repetition_penalty > 0,
            temperature=self.temperature >= 0,
            top_k=self.top_k >= 0,
            top_p=0 < self.top_p <= 1,
            min_p=0 <= self.min_p <= 1,
            samples=self.samples >= 1,
        )
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"Sampling.samples = {self.samples} at temperature 0 would be the same text each "
                "time; set temperature, or use BeamSearch.outputs"
            )

    @property
    def rows(self) -> int:
        """Rows that continue each prompt."""
        return self.samples


def check_ranges(settings: object, **checks: bool) -> None:
    """Raises ValueError for a setting out of range, naming it and its value."""
    for name, ok in checks.items():
        if not ok:
            value = getattr(settings, name)
            raise ValueError(f"{type(settings).__name__}.{name} = {value} is out of range")


def penalize(
    logits_BNV: Float[Array, "B N V"], seen_BNV: Bool[Array, "B N V"], penalty: float
) -> Float[Array, "B N V"]:
    """Makes tokens that were seen less likely: negative logits times the penalty, others divided
    by it."""
    penalized = jnp.where(logits_BNV < 0, logits_BNV * penalty, logits_BNV / penalty)
    return jnp.where(seen_BNV, penalized, logits_BNV)


def forbid_end(logits: Array, step: Array, ends: Sequence[int], min_length: int) -> Array:
    """-inf for the end tokens where a text that ends in this step would be too short."""
    if min_length <= 1:
        return logits
    end = is_end(jnp.arange(logits.shape[-1]), ends)
    return jnp.where(end & (step + 1 < min_length), -jnp.inf, logits)


def is_end(ids: Int[Array, "*B"], ends: Sequence[int]) -> Bool[Array, "*B"]:
    """Whether a token is one of those that end a text."""
    return (ids[..., None] == jnp.asarray(ends)).any(-1)


def filter_logits(
    logits_BV: Float[Array, "*B V"], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Float[Array, "*B V"]:
    """Sets the logits of tokens outside the top k, then outside the nucleus, then of those far
    below the most likely one, to -inf.

    Each is taken after the cut before it, and always holds the most likely token; equal logits stay
    or go together. With probabilities 0.5, 0.3, 0.15, 0.05 the first two remain of `top_p=0.7` and
    of `min_p=0.5`.
    """
    if 0 < top_k < logits_BV.shape[-1]:
        logits_BV = _highest(logits_BV, jnp.ones_like(logits_BV), float(top_k))
    if top_p < 1.0:
        weights = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        logits_BV = _highest(logits_BV, weights, top_p * total)
    if min_p > 0.0:
        top = jnp.max(logits_BV, axis=-1, keepdims=True)
        logits_BV = jnp.where(jnp.exp(logits_BV - top) >= min_p, logits_BV, -jnp.inf)
    return logits_BV


def _highest(logits_BV: Array, weights_BV: Array, wanted: Array | float) -> Array:
    """The highest logits whose weights add up to at least `wanted`; -inf for the others.

    The lowest of them is searched among the bit patterns of fp32, in 32 sums over the vocabulary.
    Sorting takes 25 times as long on CPU (8 rows of 32,128), and so does `lax.top_k`.
    """
    bits = jax.lax.bitcast_convert_type(logits_BV, jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the numbers

    def halve(_: Array, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        middle = (low & high) + ((low ^ high) >> 1)
        above = jnp.sum(jnp.where(order >= middle, weights_BV, 0), axis=-1, keepdims=True)
        return jnp.where(above >= wanted, middle, low), jnp.where(above >= wanted, high, middle)

    limits = jnp.iinfo(jnp.int32)
    low, high = (jnp.full_like(order[..., :1], x) for x in (limits.min, limits.max))
    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(order >= low, logits_BV, -jnp.inf)


def most_likely(logits_BV: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The first of the highest logits: two passes that are vectorised, where argmax is not."""
    V = logits_BV.shape[-1]
    is_top = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_top, jnp.arange(V), V - 1), axis=-1).astype(jnp.int32)


def draw(logits_BV: Float[Array, "*B V"], keys_B: jax.Array) -> Int[Array, "*B"]:
    """One token for each row of logits and key, with the probabilities of its softmax.

    One uniform number a row is looked up in sums of blocks, then within a block: nothing random is
    made for every token, which would take longer than a small network does.
    """
    V = logits_BV.shape[-1]
    weights = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -V % _BLOCK)])
    weights = weights.reshape(*weights.shape[:-1], -1, _BLOCK)
    sums = jnp.sum(weights, axis=-1)
    upto = jnp.cumsum(sums, axis=-1)
    uniform = jax.vmap(jax.random.uniform)(keys_B.reshape(-1)).reshape(keys_B.shape)
    at = (uniform * upto[..., -1])[..., None]
    block = _first(upto > at, sums > 0)[..., None]
    before = jnp.take_along_axis(upto - sums, block, axis=-1)
    inside = jnp.take_along_axis(weights, block[..., None], axis=-2)[..., 0, :]
    token = _first(before + jnp.cumsum(inside, axis=-1) > at, inside > 0)
    return (block[..., 0] * _BLOCK + token).astype(jnp.int32)


def _first(passed: Array, possible: Array) -> Array:
    """The first that passed among the possible ones, or the last of these (after rounding)."""
    places = jnp.arange(possible.shape[-1])
    last = jnp.max(jnp.where(possible, places, 0), axis=-1, keepdims=True)
    return jnp.min(jnp.where(passed & possible, places, last), axis=-1)


def choose(
    logits_BV: Float[Array, "*B V"], sampling: Sampling, keys_B: jax.Array | None
) -> Int[Array, "*B"]:
    """Draws one token per row, or takes the most likely one at temperature 0."""
    if sampling.temperature == 0:
        return most_likely(logits_BV)
    assert keys_B is not None, "sampling needs keys"
    filtered_BV = filter_logits(
        logits_BV / sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
    )
    return draw(filtered_BV, keys_B)
