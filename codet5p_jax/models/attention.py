"""Attention: one function, one contract, and the two ways of telling it about positions."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from codet5p_jax.sharding import constrain, moved

# Added to a masked score. Large against any score, yet finite: a row with every key masked
# (padding) has to stay finite.
MASKED = -1e9


class Terms(NamedTuple):
    """What is added to scores.

    Attributes:
      mask_B1TS: as of `segment_mask`.
      bias_PHTS: P copies, each for B / P rows in a row: one for the rows of each device (see
        `relative_values`). None: there is none.
    """

    mask_B1TS: Float[Array, "#B 1 #T S"]
    bias_PHTS: Float[Array, "P H T S"] | None = None


def segment_mask(
    q_segments_BT: Int[Array, "B T"],
    kv_segments_BS: Int[Array, "B S"],
    *,
    causal: bool,
    window: int | None = None,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B 1 T S"]:
    """0 where a query may look, else `MASKED`: the same segment and, if causal, not ahead, and no
    further back than the last `window` positions. The first query is at position `first`.

    >>> segments = jnp.array([[1, 1, 0]])
    >>> (segment_mask(segments, segments, causal=True)[0, 0] == 0).astype(int)
    Array([[1, 0, 0],
           [1, 1, 0],
           [0, 0, 1]], dtype=int32)
    """
    mask_BTS = q_segments_BT[:, :, None] == kv_segments_BS[:, None, :]
    if causal:
        T, S = mask_BTS.shape[1:]
        distance_TS = jnp.arange(S) - (first + jnp.arange(T)[:, None])
        mask_BTS &= distance_TS <= 0
        if window is not None:
            mask_BTS &= distance_TS > -window
    return as_mask(mask_BTS[:, None])


def as_mask(allowed: Bool[Array, "..."]) -> Float[Array, "..."]:
    """0 where allowed, else `MASKED`: a sum has no backward pass to pay for, a selection has."""
    return jnp.where(allowed, 0.0, MASKED)


def attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    *,
    mask_B1TS: Float[Array, "#B 1 #T S"],
    bias_PHTS: Float[Array, "P H T S"] | None = None,
    scale: float = 1.0,
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> Float[Array, "B T H K"]:
    """softmax(scale · q kᵀ + bias + mask) v, in fp32 between the two products.

    Each of the G key-value heads serves H / G query heads in a row, and each of the P copies of the
    bias B / P rows in a row. `drop` is the dropout of the weights [B, H, T, S], which come to it
    before they are divided by their sums.
    """
    # Every query looks at every position.
    k_BSGK, v_BSGK = (moved(x, "batch", "keys", "kv_heads", "head_dim") for x in (k_BSGK, v_BSGK))
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    # The small arrays are turned round (T and K), never the T × S ones.
    q_BGRTK = jnp.einsum("BTGRK->BGRTK", q_BTHK.reshape(B, T, G, H // G, K))
    scores = jnp.einsum("BGRTK,BSGK->BGRTS", q_BGRTK, k_BSGK, preferred_element_type=jnp.float32)
    scores_BHTS = scores.reshape(B, H, T, S) * scale
    if bias_PHTS is not None:
        P = bias_PHTS.shape[0]
        biased = scores_BHTS.reshape(P, B // P, H, T, S) + bias_PHTS[:, None]
        scores_BHTS = biased.reshape(B, H, T, S)
    scores_BHTS += mask_B1TS
    top_BHT1 = jax.lax.stop_gradient(jnp.max(scores_BHTS, axis=-1, keepdims=True))
    weights_BHTS = jnp.exp(scores_BHTS - top_BHT1)
    # Dividing the result instead of the weights saves a pass over T × S, forwards and backwards.
    total_BHT1 = jnp.sum(weights_BHTS, axis=-1, keepdims=True)
    weights_BHTS = drop(weights_BHTS.astype(v_BSGK.dtype))
    weights_BGRTS = weights_BHTS.reshape(B, G, H // G, T, S)
    out = jnp.einsum("BGRTS,BSGK->BGRTK", weights_BGRTS, v_BSGK, preferred_element_type=jnp.float32)
    out_BHTK = (out.reshape(B, H, T, K) / total_BHT1).astype(v_BSGK.dtype)
    return jnp.einsum("BHTK->BTHK", out_BHTK)


class Keys(NamedTuple):
    """Keys and values that queries of a cache look at.

    Attributes:
      k, v: [B, G, S, K], read by all N queries of a row, or [B, N, G, S, K], one's own.
      mask: [#B, 1, #N, S], as of `as_mask`.
      bias: [1, H, 1, S], or None.
    """

    k: Array
    v: Array
    mask: Array
    bias: Array | None = None


def attend(
    q_BNHK: Float[Array, "B N H K"], parts: Sequence[Keys], *, scale: float = 1.0
) -> Float[Array, "B N H K"]:
    """`attention` to several sets of keys at once: one softmax over all of them.

    Arrays of keys are read where they are: nothing as long as they are is made but scores.
    """
    B, N, H, K = q_BNHK.shape
    G = parts[0].k.shape[-3]
    # Products with G heads first are what libraries do fastest; only the small arrays turn round.
    q_BGRNK = jnp.einsum("BNGRK->BGRNK", q_BNHK.reshape(B, N, G, H // G, K))
    scores = []
    for part in parts:
        layout = "BGSK" if part.k.ndim == 4 else "BNGSK"
        s = jnp.einsum(
            f"BGRNK,{layout}->BGRNS", q_BGRNK, part.k, preferred_element_type=jnp.float32
        ).reshape(B, H, N, -1)
        s = s * scale + part.mask
        scores.append(s if part.bias is None else s + part.bias)
    tops = [jnp.max(s, axis=-1, keepdims=True) for s in scores]
    top_BHN1 = functools.reduce(jnp.maximum, tops)
    weights = [jnp.exp(s - top_BHN1) for s in scores]
    total_BHN1 = functools.reduce(jnp.add, [jnp.sum(w, axis=-1, keepdims=True) for w in weights])
    outs = []
    for part, w in zip(parts, weights, strict=True):
        layout = "BGSK" if part.v.ndim == 4 else "BNGSK"
        w_BGRNS = w.astype(part.v.dtype).reshape(B, G, H // G, N, -1)
        outs.append(
            jnp.einsum(
                f"BGRNS,{layout}->BGRNK", w_BGRNS, part.v, preferred_element_type=jnp.float32
            )
        )
    out_BHNK = (functools.reduce(jnp.add, outs).reshape(B, H, N, K) / total_BHN1).astype(
        parts[0].v.dtype
    )
    return jnp.einsum("BHNK->BNHK", out_BHNK)


def relative_bucket(
    distance: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """T5's bucket of a signed distance (key position − query position), int32.

    Half of the buckets are exact distances, the rest grow logarithmically up to `max_distance`;
    a bidirectional stack spends half of all on each sign.

    >>> relative_bucket(np.array([-3, 0, 3]), bidirectional=True, num_buckets=32, max_distance=128)
    array([ 3,  0, 19], dtype=int32)
    """
    offset = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distance > 0, num_buckets, 0)
        n = np.abs(distance)
    else:
        n = np.maximum(-distance, 0)
    exact = num_buckets // 2
    # fp32 as in the published models: in fp64 a few distances fall into the neighbouring bucket.
    ratio = np.log(np.maximum(n, 1).astype(np.float32) / exact) / np.float32(
        math.log(max_distance / exact)
    )
    large = exact + (ratio * (num_buckets - exact)).astype(np.int32)
    bucket = np.where(n < exact, n, np.minimum(large, num_buckets - 1))
    return (offset + bucket).astype(np.int32)


def relative_values(
    table_RH: Float[Array, "R H"],
    num_queries: int,
    num_keys: int,
    *,
    bidirectional: bool,
    max_distance: int,
    parts: int = 1,
) -> Float[Array, "P H N"]:
    """The learned bias of each of the N = T + S - 1 distances, ascending from -(T - 1), once for
    each of `parts` parts of the batch.

    With a part for each device that holds rows, gradients are summed over its rows and folded into
    a table there; only tables are summed over devices, not heads × T × S values of every layer.
    """
    N = num_queries + num_keys - 1
    buckets_N = relative_bucket(
        np.arange(N) - (num_queries - 1),
        bidirectional=bidirectional,
        num_buckets=table_RH.shape[0],
        max_distance=max_distance,
    )
    one_hot_RN = jnp.asarray(np.arange(table_RH.shape[0])[:, None] == buckets_N, table_RH.dtype)
    table_PRH = jnp.broadcast_to(table_RH, (parts, *table_RH.shape))
    table_PRH = constrain(table_PRH, "batch", "buckets", "heads") if parts > 1 else table_PRH
    return jnp.einsum("PRH,RN->PHN", table_PRH, one_hot_RN, precision="highest")


def laid_out(values_PHN: Float[Array, "P H N"], num_queries: int) -> Float[Array, "P H T S"]:
    """A value per distance along the diagonals of the pairs (query, key).

    By reshapes: neither a T × S gather nor, backwards, a T × S scatter.
    """
    P, H, N = values_PHN.shape
    T = num_queries
    # A row of period N + 1 read in strides of N moves one step to the right per row.
    period_PHN1 = jnp.pad(values_PHN, ((0, 0), (0, 0), (0, 1)))
    tiled = jnp.broadcast_to(period_PHN1[:, :, None], (P, H, T, N + 1)).reshape(P, H, T * (N + 1))
    return tiled[:, :, : T * N].reshape(P, H, T, N)[:, :, :, T - 1 :]


def relative_bias_row(
    table_RH: Float[Array, "R H"],
    position: Int[Array, ""],
    num_keys: int,
    *,
    bidirectional: bool,
    max_distance: int,
) -> Float[Array, "1 H 1 S"]:
    """The row of the bias at a position known only at run time, for decoding."""
    all_buckets = relative_bucket(
        np.arange(-num_keys + 1, num_keys),
        bidirectional=bidirectional,
        num_buckets=table_RH.shape[0],
        max_distance=max_distance,
    )
    buckets_S = jax.lax.dynamic_slice(
        jnp.asarray(all_buckets), (num_keys - 1 - position,), (num_keys,)
    )
    return table_RH[buckets_S].T[None, :, None]


def rotary(
    x_BTHK: Float[Array, "B T H K"],
    positions_T: Int[Array, "*#B #T"],
    *,
    dim: int,
    base: float,
    interleaved: bool,
    scale: float = 1.0,
) -> Float[Array, "B T H K"]:
    """Rotates the first `dim` features of each head by angles that grow with position / `scale`.

    Pairs are features (2i, 2i+1) when interleaved (GPT-J), (i, i + dim/2) otherwise (LLaMA).
    """
    frequencies = base ** -(np.arange(0, dim, 2, dtype=np.float32) / dim)
    angles_TF = positions_T[..., None].astype(jnp.float32) / scale * frequencies
    cos_T1F, sin_T1F = jnp.cos(angles_TF)[..., None, :], jnp.sin(angles_TF)[..., None, :]
    rotated, rest = x_BTHK[..., :dim].astype(jnp.float32), x_BTHK[..., dim:]
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
    else:
        a, b = jnp.split(rotated, 2, axis=-1)
    parts = (a * cos_T1F - b * sin_T1F, b * cos_T1F + a * sin_T1F)
    if interleaved:
        turned = jnp.stack(parts, axis=-1).reshape(rotated.shape)
    else:
        turned = jnp.concatenate(parts, axis=-1)
    return jnp.concatenate([turned.astype(x_BTHK.dtype), rest], axis=-1)
