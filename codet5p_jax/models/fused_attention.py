"""`attention` that keeps no array of T × S: one kernel on a TPU, split over any mesh.

On other devices the same maths runs as `attention` has it, with the same dropout, so that a network
is the same everywhere; nothing is saved there.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from codet5p_jax.models import attention_kernels as kernels
from codet5p_jax.models.attention import attention, laid_out, segment_mask
from codet5p_jax.models.attention_kernels import Inputs, Kind, Place
from codet5p_jax.models.dropout import kept
from codet5p_jax.sharding import dividing_spec, first_on_device, on_each_device

SAVED = "fused_attention"  # by which a policy of what to keep knows the result
_FEW_KEYS = 8  # below, scores are no longer than queries are wide, and Mosaic takes no single key


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("q_segments_BT", "kv_segments_BS", "values_PHN"),
    meta_fields=("causal", "window"),
)
@dataclasses.dataclass(frozen=True)
class Relations:
    """Which keys a query looks at and with what bias, told by what that follows from.

    Attributes:
      q_segments_BT, kv_segments_BS, causal, window: as of `segment_mask`.
      values_PHN: as of `relative_values`; None: there is no bias.
    """

    q_segments_BT: Int[Array, "B T"]
    kv_segments_BS: Int[Array, "B S"]
    values_PHN: Float[Array, "P H N"] | None = None
    causal: bool = False
    window: int | None = None


def fused_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    relations: Relations,
    *,
    scale: float = 1.0,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> Float[Array, "B T H K"]:
    """`attention` as of `relations`, with dropout where there is a key.

    Which weights it takes follows from the key and their place, so it does not depend on the mesh.
    """
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    kind = Kind(
        head_dim=K,
        causal=relations.causal,
        window=relations.window,
        scale=scale,
        zero=T - 1,
        dropout_rate=0.0 if key is None else dropout_rate,
    )
    words = jnp.zeros(2, jnp.uint32) if key is None else jax.random.bits(key, (2,))

    queries = dividing_spec((B, T, G), ("batch", "length", "kv_heads"))
    rows, length, heads = queries
    keys = PartitionSpec(rows, None, heads)
    arrays = [
        q_BTHK.reshape(B, T, H * K),
        k_BSGK.reshape(B, S, G * K),
        v_BSGK.reshape(B, S, G * K),
        relations.q_segments_BT,
        relations.kv_segments_BS,
        jax.lax.bitcast_convert_type(words, jnp.int32),
    ]
    specs = [queries, keys, keys, PartitionSpec(rows, length), PartitionSpec(rows), PartitionSpec()]
    if relations.values_PHN is not None:
        own_part = len(relations.values_PHN) > 1
        arrays.append(relations.values_PHN.astype(jnp.float32))  # of a frozen table, bf16
        specs.append(PartitionSpec(rows if own_part else None, heads))

    def local(
        q: Array, k: Array, v: Array, q_segments: Array, kv_segments: Array, words: Array,
        values_PHN: Array | None = None,
    ) -> Array:  # fmt: skip
        place = Place(
            query=first_on_device(length, q.shape[1]),
            row=first_on_device(rows, q.shape[0]),
            head=first_on_device(heads, q.shape[2] // K),
            words=(words[0], words[1]),
        )
        k, v = (_repeated(x, H // G, K) for x in (k, v))
        values_HN = None if values_PHN is None else values_PHN[0]
        return _fused(kind, Inputs(q, k, v, q_segments, kv_segments, values_HN, place))

    out_BTF = on_each_device(local, specs, queries)(*arrays)
    return checkpoint_name(out_BTF, SAVED).reshape(B, T, H, K)


def _repeated(x_BSF: Array, times: int, head_dim: int) -> Array:
    """Each head as often as query heads share it."""
    by_head = x_BSF.reshape(*x_BSF.shape[:2], -1, head_dim)
    return jnp.repeat(by_head, times, axis=2).reshape(*x_BSF.shape[:2], -1)


def _by_platform(
    kernel: Callable[..., Any], plain: Callable[..., Any], inputs: Inputs, *d: Array
) -> Any:
    if inputs.k.shape[1] < _FEW_KEYS:
        return plain(inputs, *d)
    return jax.lax.platform_dependent(inputs, *d, tpu=kernel, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(kind: Kind, inputs: Inputs) -> Array:
    kernel, plain = (functools.partial(of, kind) for of in (kernels.forward, _plain))
    return _by_platform(kernel, plain, inputs)


def _forward(kind: Kind, inputs: Inputs) -> tuple[Array, Inputs]:
    return _fused(kind, inputs), inputs


def _backward(kind: Kind, inputs: Inputs, d_out: Array) -> tuple[Inputs]:
    def plain(inputs: Inputs, d_out: Array) -> Any:
        def of(q: Array, k: Array, v: Array, values: Array | None) -> Array:
            return _plain(kind, inputs._replace(q=q, k=k, v=v, values=values))

        return jax.vjp(of, inputs.q, inputs.k, inputs.v, inputs.values)[1](d_out)

    kernel = functools.partial(kernels.backward, kind)
    d_q, d_k, d_v, d_values = _by_platform(kernel, plain, inputs, d_out)
    no_place = Place(None, None, None, (None, None))  # pyright: ignore[reportArgumentType]
    return (Inputs(d_q, d_k, d_v, None, None, d_values, no_place),)  # pyright: ignore[reportArgumentType]


_fused.defvjp(_forward, _backward)


def _plain(kind: Kind, inputs: Inputs) -> Float[Array, "B T F"]:
    """What `attention_kernels.forward` computes, by `attention`."""
    (B, T, F), S, place = inputs.q.shape, inputs.k.shape[1], inputs.place
    by_head = lambda x: x.reshape(*x.shape[:2], -1, kind.head_dim)  # noqa: E731
    bias = None
    if inputs.values is not None:
        start = kind.zero - (T - 1) - place.query
        own = jax.lax.dynamic_slice_in_dim(inputs.values, start, T + S - 1, axis=1)
        bias = laid_out(own[None], T)

    def drop(weights_BHTS: Array) -> Array:
        if not kind.dropout_rate:
            return weights_BHTS
        row_B = place.row + jnp.arange(B)
        head_H = place.head + jnp.arange(F // kind.head_dim)
        pair_TS = (place.query + jnp.arange(T))[:, None] * S + jnp.arange(S)
        keep_BHTS = kept(
            place.words,
            row_B[:, None, None, None],
            head_H[:, None, None],
            pair_TS,
            kind.dropout_rate,
        )
        return jnp.where(keep_BHTS, weights_BHTS / (1 - kind.dropout_rate), 0)

    out = attention(
        by_head(inputs.q),
        by_head(inputs.k),
        by_head(inputs.v),
        mask_B1TS=segment_mask(
            inputs.q_segments,
            inputs.kv_segments,
            causal=kind.causal,
            window=kind.window,
            first=place.query,
        ),
        bias_PHTS=bias,
        scale=kind.scale,
        drop=drop,
    )
    return out.reshape(B, T, F)
