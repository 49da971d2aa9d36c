"""Text-code matching (paper §3.2): tell a pair from a hard negative, drawn by similarity."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from codet5p_jax.objectives.contrastive import MASKED


class Texts(NamedTuple):
    """Encoded texts: states [.., S, D] and segments [.., S]."""

    states: Float[Array, "*B S D"]
    segments: Int[Array, "*B S"]


class Codes(NamedTuple):
    """Codes as the matching decoder reads them (see `decoder_input`)."""

    tokens: Int[Array, "*B T"]
    segments: Int[Array, "*B T"]


class Outcome(NamedTuple):
    """Sums over the pairs that were judged, fp32 scalars."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    number: Float[Array, ""]


def decoder_input(tokens_BT: Int[Array, "B T"], enc_token_B: Int[Array, "B"]) -> Int[Array, "B T"]:
    """Code `<s> … </s>` with [ENC] for `<s>`; not shifted, so that the last state is `</s>`'s."""
    return tokens_BT.at[:, 0].set(enc_token_B)


def draw_negatives(
    logits_BN: Float[Array, "B N"], key: jax.Array
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """One candidate per row in proportion to softmax(logits) without the row's own partner.

    Args:
      logits_BN: similarity over temperature; `MASKED` where a candidate is not a negative. The
        partner of row b is candidate b.
      key: of the draw.

    Returns:
      (index into the candidates, whether the row has any negative at all).
    """
    own_BN = jnp.eye(*logits_BN.shape, dtype=bool)
    masked_BN = jax.lax.stop_gradient(jnp.where(own_BN, MASKED, logits_BN))
    return jax.random.categorical(key, masked_BN), jnp.any(masked_BN > MASKED / 2, axis=1)


def matching_loss(
    model: Any,
    texts: Texts,
    codes: Codes,
    negative_texts: Texts,
    negative_codes: Codes,
    judged_B3: Float[Array, "B 3"],
    key: jax.Array | None,
) -> Outcome:
    """Two-way cross-entropy over each row's pair, its pair with another text, with another code.

    Args:
      model: bound, with a matching head.
      texts, codes: the B matching pairs.
      negative_texts, negative_codes: what replaces one side of each pair.
      judged_B3: weight of the three; 0 where a row has no negative.
      key: of the dropout, or None.
    """

    def interleave(first: Array, second: Array, third: Array) -> Array:
        # [B, 3, ...] -> [3B, ...]: the three pairs of a row stay on the row's device
        stacked = jnp.stack((first, second, third), axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])

    text = jax.tree.map(interleave, texts, negative_texts, texts)
    code = jax.tree.map(interleave, codes, codes, negative_codes)
    states = model.decode(code.tokens, code.segments, text.states, text.segments, key=key)
    logits = model.match(states, code.segments).astype(jnp.float32)

    labels = jnp.tile(jnp.array([1, 0, 0]), len(logits) // 3)
    judged = judged_B3.reshape(-1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    hits = (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
    return Outcome(jnp.sum(judged * nll), jnp.sum(judged * hits), jnp.sum(judged))
