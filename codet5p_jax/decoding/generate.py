"""Greedy decoding and sampling with a key-value cache, as one compiled loop of static shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from codet5p_jax.data.tokens import SpecialTokens


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      max_length: tokens produced at most, forced prefix and end token included.
      min_length: tokens produced at least, counted likewise: an earlier end token is forbidden.
      temperature: logits are divided by it; 0 takes the most likely token (greedy).
      top_k: sample among the k most likely tokens only; 0 means all.
      top_p: sample among the fewest tokens whose probabilities add up to at least this (nucleus).
    """

    max_length: int
    min_length: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "max_length": self.max_length >= 1,
            "min_length": 0 <= self.min_length <= self.max_length,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
        }
        for name, ok in checks.items():
            if not ok:
                raise ValueError(f"Sampling.{name} = {getattr(self, name)} is out of range")


class Generation(NamedTuple):
    """Tokens after the decoder start id.

    Attributes:
      tokens: int32, forced prefix first, end token included, padding after it.
      lengths: int32, number of tokens before the padding.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]


def filter_logits(
    logits_BV: Float[Array, "B V"], top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "B V"]:
    """Sets the logits of tokens outside the top k, then outside the nucleus, to -inf.

    The nucleus is taken after the cut to k and always holds the most likely token. With
    probabilities 0.5, 0.3, 0.15, 0.05 and `top_p=0.7` the first two remain.
    """
    if 0 < top_k < logits_BV.shape[-1]:
        kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
    if top_p < 1.0:
        descending_BV = -jnp.sort(-logits_BV, axis=-1)
        probabilities_BV = jax.nn.softmax(descending_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        # The first token stays whatever rounding does: nothing comes before it.
        kept_BV = jnp.where(before_BV < top_p, descending_BV, jnp.inf)
        logits_BV = jnp.where(logits_BV >= kept_BV.min(-1, keepdims=True), logits_BV, -jnp.inf)
    return logits_BV


def choose(logits_BV: Float[Array, "B V"], sampling: Sampling, key: jax.Array) -> Int[Array, " B"]:
    """Draws one token per row, or takes the most likely one at temperature 0."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    filtered_BV = filter_logits(
        logits_BV / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
    return jax.random.categorical(key, filtered_BV).astype(jnp.int32)


def generate(
    model: Any,
    encoder_tokens_BS: Int[Array, "B S"] | None,
    encoder_segments_BS: Int[Array, "B S"] | None,
    prefix_BP: Int[Array, "B P"],
    prefix_lengths_B: Int[Array, " B"],
    key: jax.Array,
    special: SpecialTokens,
    sampling: Sampling,
    start_B: Int[Array, " B"] | None = None,
) -> Generation:
    """Continues each row until its end token or `sampling.max_length`.

    The encoder reads the prompt. The decoder starts from `special.decoder_start`, is then given the
    row's prefix token by token, and goes on by itself. A forced first token such as `[TDEC]` is a
    prefix of length 1; a free start is a prefix of width 0:

      prefix [[TDEC]], lengths [1]      ->  tokens [[TDEC], a, b, </s>, <pad>], lengths [4]
      prefix zeros((1, 0)), lengths [0] ->  tokens [[a, b, </s>, <pad>, <pad>]], lengths [3]

    With `ModelConfig.prompt_to_decoder` the prefix is the prompt again, in the decoder's tokens.

    A decoder alone is given a prompt `[a, b, c]` as start a and prefix [b, c], without a start id.

    Traceable: called inside `jax.jit`, usually through `compiled`. The whole batch runs until its
    last row has ended.

    Args:
      model: bound CodeT5p (parameters inside).
      encoder_tokens_BS, encoder_segments_BS: the prompts; segment 0 is padding. None: the decoder
        alone.
      prefix_BP, prefix_lengths_B: right-padded forced tokens and their counts, at most max_length.
      key: for sampling; unused at temperature 0.
      special: token ids.
      sampling: how to choose, and the lengths.
      start_B: what the decoder reads first; None: `special.decoder_start`.

    Raises:
      ValueError: the prefix is longer than `max_length`, or absent where the model has
        `prompt_to_decoder`.
    """
    batch, prefix_width = prefix_BP.shape
    length = sampling.max_length
    if prefix_width > length:
        raise ValueError(
            f"prefix of width {prefix_width} does not fit max_length = {length}; raise max_length"
        )
    if encoder_tokens_BS is not None and model.config.prompt_to_decoder and not prefix_width:
        raise ValueError(
            "the model has prompt_to_decoder, so the prompt has to be the prefix as well; found a "
            "prefix of width 0"
        )
    forced_BT = jnp.pad(prefix_BP, ((0, 0), (0, length - prefix_width)))
    encoded_BSD = None
    if encoder_tokens_BS is not None:
        encoded_BSD = model.encode(encoder_tokens_BS, encoder_segments_BS)
    cache = model.init_cache(encoded_BSD, encoder_segments_BS, length, batch)
    if start_B is None:
        start_B = jnp.full(batch, special.decoder_start, jnp.int32)

    def running(carry: tuple) -> Array:
        step, _, _, _, ended_B = carry
        return (step < length) & ~ended_B.all()

    def advance(carry: tuple) -> tuple:
        step, cache, last_B1, tokens_BT, ended_B = carry
        states_B1D, cache = model.decode_step(last_B1, cache)
        logits_BV = model.logits(states_B1D)[:, 0].astype(jnp.float32)
        too_short = step + 1 < sampling.min_length
        logits_BV = logits_BV.at[:, special.eos].add(jnp.where(too_short, -jnp.inf, 0.0))
        chosen_B = choose(logits_BV, sampling, jax.random.fold_in(key, step))
        is_forced_B = step < prefix_lengths_B
        next_B = jnp.where(is_forced_B, forced_BT[:, step], chosen_B)
        next_B = jnp.where(ended_B, special.pad, next_B)
        # A prefix may hold end tokens (a separator); only a chosen one ends the row.
        ended_B = ended_B | ((next_B == special.eos) & ~is_forced_B)
        return step + 1, cache, next_B[:, None], tokens_BT.at[:, step].set(next_B), ended_B

    start = (
        jnp.int32(0),
        cache,
        start_B[:, None].astype(jnp.int32),
        jnp.full((batch, length), special.pad, jnp.int32),
        jnp.zeros(batch, bool),
    )
    _, _, _, tokens_BT, ended_B = jax.lax.while_loop(running, advance, start)
    return Generation(tokens_BT, _lengths(tokens_BT, prefix_lengths_B, ended_B, special.eos))


def _lengths(tokens_BT: Array, prefix_lengths_B: Array, ended_B: Array, eos: int) -> Array:
    """Tokens up to and including the first end token after the prefix; all of them without one."""
    length = tokens_BT.shape[1]
    after_prefix_BT = jnp.arange(length) >= prefix_lengths_B[:, None]
    first_end_B = jnp.argmax((tokens_BT == eos) & after_prefix_BT, axis=1)
    return jnp.where(ended_B, first_end_B + 1, length).astype(jnp.int32)


def compiled(model: Any, special: SpecialTokens, sampling: Sampling) -> Callable[..., Generation]:
    """`(params, encoder_tokens, encoder_segments, prefix, prefix_lengths, key, start=None) ->
    Generation`, compiled once for each set of shapes."""

    @jax.jit
    def run(params, encoder_tokens, encoder_segments, prefix, prefix_lengths, key, start=None):
        return generate(
            model.bind(params),
            encoder_tokens,
            encoder_segments,
            prefix,
            prefix_lengths,
            key,
            special,
            sampling,
            start,
        )

    return run
