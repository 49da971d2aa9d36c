"""The parts of a block, and the block: norms, projections, attention and feed-forward layers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from codet5p_jax.models.attention import Keys, Terms, attend, attention, rotary
from codet5p_jax.models.configs import Lora, StackConfig
from codet5p_jax.models.dense import LANES, dense, folded
from codet5p_jax.models.dropout import dropout
from codet5p_jax.models.fused_attention import Relations, fused_attention
from codet5p_jax.models.int8 import dense_int8, initializers, scale_of
from codet5p_jax.models.params import declare, normal, ones, zeros
from codet5p_jax.sharding import on_device

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}

Cache = dict[str, Any]  # arrays of one block: k, v; prefix_k, prefix_v; cross_k, cross_v


class StepContext(NamedTuple):
    """What all layers read in a step of decoding.

    Attributes:
      positions: int32 [#B, 1], of the row that is read.
      written, prefix, cross: (mask, bias) of the parts of a cache, as in `Keys`; None: not there.
    """

    positions: Array
    written: tuple[Array, Array | None]
    prefix: tuple[Array, Array | None] | None
    cross: tuple[Array, None] | None


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm with bias; statistics in fp32."""

    def __init__(self, cfg: StackConfig):
        self.kind, self.eps, self.plus_one = cfg.norm, cfg.norm_eps, cfg.norm_plus_one
        self.scale = declare((cfg.d_model,), ("norm",), zeros if cfg.norm_plus_one else ones)
        if cfg.norm == "layer":
            self.bias = declare((cfg.d_model,), ("norm",), zeros)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last axis; the result has the dtype of `x`."""
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y *= self.scale[...] + 1 if self.plus_one else self.scale[...]
        if self.kind == "layer":
            y += self.bias[...]
        return y.astype(x.dtype)


def _deviation(cfg: StackConfig, inputs: int) -> float:
    """Of the initial values of a kernel."""
    return cfg.init_stddev or inputs**-0.5


def _declare_kernel(
    module: Any,
    name: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    input_axes: tuple[str, ...],
    output_axes: tuple[str, ...],
    stddev: float,
) -> None:
    """A kernel [*inputs, *outputs] of the module, with its scale where it is int8, and what `Lora`
    adds to it. A `stddev` of 0 is a kernel of zeros."""
    shape, axes = (*inputs, *outputs), (*input_axes, *output_axes)
    if module.int8:
        values, scale = initializers(stddev)
        setattr(module, name, declare(shape, axes, values, jnp.int8))
        ones_axes = len(inputs)
        scale_shape = (*(1,) * ones_axes, *outputs)
        scale_axes = (*("one",) * ones_axes, *output_axes)
        setattr(module, scale_of(name), declare(scale_shape, scale_axes, scale))
    else:
        setattr(module, name, declare(shape, axes, normal(stddev) if stddev else zeros))
    lora = module.lora
    if lora is None or name not in lora.targets:
        return
    a_init = normal(math.prod(inputs) ** -0.5)
    a = declare((*inputs, lora.rank), (*input_axes, "lora"), a_init)
    b = declare((lora.rank, *outputs), ("lora", *output_axes), zeros)
    setattr(module, f"{name}_lora_a", a)
    setattr(module, f"{name}_lora_b", b)


def _project(module: Any, name: str, x: Array, axes: int = 1, *, fold: bool = False) -> Array:
    """x times a kernel of the module, in 8 bits or not, and what `Lora` adds.

    `fold`: where a device's heads fill lanes, as in `folded`.
    """
    if fold:
        shape = getattr(module, name).shape
        heads, head_dim = shape[:2] if axes == 2 else shape[1:]
        fold = on_device(heads, "heads") * head_dim % LANES == 0

    def times(product: Callable[..., Array], x: Array, *names: str, axes: int) -> Array:
        kernel = [getattr(module, n)[...] for n in names]
        return folded(product, x, *kernel, axes=axes) if fold else product(x, *kernel, axes=axes)

    if module.int8:
        y = times(dense_int8, x, name, scale_of(name), axes=axes)
    else:
        y = times(dense, x, name, axes=axes)
    if module.lora is None or name not in module.lora.targets:
        return y
    low = times(dense, x, f"{name}_lora_a", axes=axes)
    return y + module.lora.scale * times(dense, low, f"{name}_lora_b", axes=1)


class Attention(nnx.Module):
    """Projections around `attention`. Kernels are [D, H, K], so that heads shard as one axis."""

    def __init__(
        self,
        cfg: StackConfig,
        kv_width: int | None = None,
        zero_output: bool = False,
        lora: Lora | None = None,
        int8: bool = False,
    ):
        self.cfg, self.lora, self.int8 = cfg, lora, int8
        D, H, K = cfg.d_model, cfg.num_heads, cfg.head_dim
        G, Dkv = cfg.num_kv_heads or H, kv_width or D
        # T5 has no 1/sqrt(K) in attention: it is folded into the initial queries.
        q_inputs = D if cfg.scale_attention else D * K
        q, kv = ("heads", "head_dim"), ("kv_heads", "head_dim")
        _declare_kernel(self, "q", (D,), (H, K), ("embed",), q, _deviation(cfg, q_inputs))
        _declare_kernel(self, "k", (Dkv,), (G, K), ("embed",), kv, _deviation(cfg, Dkv))
        _declare_kernel(self, "v", (Dkv,), (G, K), ("embed",), kv, _deviation(cfg, Dkv))
        o_stddev = 0.0 if zero_output else _deviation(cfg, H * K)
        _declare_kernel(self, "o", (H, K), (D,), q, ("embed",), o_stddev)
        if cfg.qkv_bias:
            self.q_bias = declare((H, K), ("heads", "head_dim"), zeros)
            self.k_bias = declare((G, K), ("kv_heads", "head_dim"), zeros)
            self.v_bias = declare((G, K), ("kv_heads", "head_dim"), zeros)
        if cfg.out_bias:
            self.o_bias = declare((D,), ("norm",), zeros)

    def queries(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_T: Int[Array, "*#B #T"],
        *,
        fold: bool = False,
    ) -> Float[Array, "B T H K"]:
        """Projected and rotated queries."""
        q = _project(self, "q", x_BTD, fold=fold)
        if self.cfg.qkv_bias:
            q += self.q_bias[...].astype(q.dtype)
        return self._rotate(q, positions_T)

    def keys_values(
        self,
        x_BSD: Float[Array, "B S Dkv"],
        positions_S: Int[Array, "*#B #S"],
        *,
        fold: bool = False,
    ) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        """Projected keys, rotated, and values."""
        k = _project(self, "k", x_BSD, fold=fold)
        v = _project(self, "v", x_BSD, fold=fold)
        if self.cfg.qkv_bias:
            k += self.k_bias[...].astype(k.dtype)
            v += self.v_bias[...].astype(v.dtype)
        return self._rotate(k, positions_S), v

    def attend(
        self,
        q_BTHK: Float[Array, "B T H K"],
        k_BSGK: Float[Array, "B S G K"],
        v_BSGK: Float[Array, "B S G K"],
        relations: Terms | Relations,
        dropout_rate: float,
        key: jax.Array | None,
    ) -> Float[Array, "B T D"]:
        """Attention and its output projection."""
        if isinstance(relations, Relations):
            out = fused_attention(
                q_BTHK,
                k_BSGK,
                v_BSGK,
                relations,
                scale=self._scale,
                dropout_rate=dropout_rate,
                key=key,
            )
        else:
            out = attention(
                q_BTHK,
                k_BSGK,
                v_BSGK,
                mask_B1TS=relations.mask_B1TS,
                bias_PHTS=relations.bias_PHTS,
                scale=self._scale,
                drop=lambda weights: dropout(weights, dropout_rate, key),
            )
        return self._output(out, fold=isinstance(relations, Relations))

    def attend_parts(
        self, q_BNHK: Float[Array, "B N H K"], parts: list[Keys]
    ) -> Float[Array, "B N D"]:
        """Attention to the parts of a cache, and its output projection."""
        return self._output(attend(q_BNHK, parts, scale=self._scale))

    @property
    def _scale(self) -> float:
        return self.cfg.head_dim**-0.5 if self.cfg.scale_attention else 1.0

    def _output(self, out_BTHK: Array, *, fold: bool = False) -> Array:
        y = _project(self, "o", out_BTHK, axes=2, fold=fold)
        return y + self.o_bias[...].astype(y.dtype) if self.cfg.out_bias else y

    def _rotate(self, x: Array, positions: Array) -> Array:
        if self.cfg.position != "rotary":
            return x
        return rotary(
            x,
            positions,
            dim=self.cfg.rotary_dim or self.cfg.head_dim,
            base=self.cfg.rotary_base,
            interleaved=self.cfg.rotary_interleaved,
            scale=self.cfg.rotary_scale,
        )


class FeedForward(nnx.Module):
    """act(x wi) wo, or (act(x gate) · x wi) wo when gated."""

    def __init__(self, cfg: StackConfig):
        self.cfg = cfg
        D, F = cfg.d_model, cfg.d_ff
        self.lora, self.int8 = cfg.lora, cfg.int8
        for name in ("wi", "gate") if cfg.gated else ("wi",):
            _declare_kernel(self, name, (D,), (F,), ("embed",), ("mlp",), _deviation(cfg, D))
        _declare_kernel(self, "wo", (F,), (D,), ("mlp",), ("embed",), _deviation(cfg, F))
        if cfg.mlp_bias:
            self.wi_bias = declare((F,), ("mlp",), zeros)
            if cfg.gated:
                self.gate_bias = declare((F,), ("mlp",), zeros)
            self.wo_bias = declare((D,), ("norm",), zeros)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], dropout_rate: float, key: jax.Array | None
    ) -> Float[Array, "B T D"]:
        """Applies both products; dropout falls between them."""
        dtype, act = x_BTD.dtype, ACTIVATIONS[self.cfg.activation]
        h_BTF = _project(self, "wi", x_BTD)
        if self.cfg.mlp_bias:
            h_BTF += self.wi_bias[...].astype(dtype)
        if self.cfg.gated:
            gate_BTF = _project(self, "gate", x_BTD)
            if self.cfg.mlp_bias:
                gate_BTF += self.gate_bias[...].astype(dtype)
            h_BTF *= act(gate_BTF)
        else:
            h_BTF = act(h_BTF)
        h_BTF = dropout(h_BTF, dropout_rate, key)
        y_BTD = _project(self, "wo", h_BTF)
        return y_BTD + self.wo_bias[...].astype(dtype) if self.cfg.mlp_bias else y_BTD


class Block(nnx.Module):
    """Self-attention, cross-attention where asked for, feed-forward; sequential or parallel."""

    def __init__(self, cfg: StackConfig, *, cross: bool, encoder_width: int, dropout_rate: float):
        self.cfg, self.cross, self.dropout_rate = cfg, cross, dropout_rate
        self.attention_norm = Norm(cfg)
        self.attention = Attention(cfg, lora=cfg.lora, int8=cfg.int8)
        if cross:
            own = None if cfg.lora is None else cfg.lora.of_cross_attention()
            self.cross_attention = Attention(cfg, encoder_width, cfg.cross_zero_init, lora=own)
            if not cfg.parallel_cross_attention:
                self.cross_attention_norm = Norm(cfg)
        self.feed_forward = FeedForward(cfg)
        if not (cfg.parallel and cfg.shared_norm):
            self.feed_forward_norm = Norm(cfg)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        *,
        relations: Terms | Relations,
        positions_T: Int[Array, "*#B #T"],
        encoded_BSD: Float[Array, "B Se De"] | None,
        cross_relations: Terms | Relations | None,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Runs the block over whole sequences; also what a cache keeps of them: keys and values
        [B, G, T, K], and those of the encoder.

        Without `encoded_BSD` cross-attention is bypassed.
        """
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        rate = self.dropout_rate
        kept: Cache = {}

        def self_attention(u: Array) -> Array:
            fold = isinstance(relations, Relations)
            k, v = self.attention.keys_values(u, positions_T, fold=fold)
            kept["prefix_k"], kept["prefix_v"] = _by_heads(k), _by_heads(v)
            q = self.attention.queries(u, positions_T, fold=fold)
            y = self.attention.attend(q, k, v, relations, rate, keys[0])
            return dropout(y, rate, keys[1])

        def cross_attention(u: Array) -> Array:
            assert cross_relations is not None, "`encoded` comes with its segments"
            assert encoded_BSD is not None, "else cross-attention is bypassed"
            fold = isinstance(cross_relations, Relations)
            k, v = self._encoder_keys_values(encoded_BSD, fold=fold)
            kept["cross_k"], kept["cross_v"] = _by_heads(k), _by_heads(v)
            q = self.cross_attention.queries(u, positions_T, fold=fold)
            y = self.cross_attention.attend(q, k, v, cross_relations, rate, keys[2])
            return dropout(y, rate, keys[3])

        def feed_forward(u: Array) -> Array:
            return dropout(self.feed_forward(u, rate, keys[4]), rate, keys[5])

        reads_encoder = self.cross and encoded_BSD is not None
        y = self._joined(
            x_BTD, self_attention, cross_attention if reads_encoder else None, feed_forward
        )
        return y, kept

    def step(
        self,
        x_BND: Float[Array, "B N D"],
        cache: Cache,
        context: StepContext,
        write: Callable[[Array, Array], tuple[Array, Array]],
    ) -> Float[Array, "B N D"]:
        """Runs the block over one position of N rows of each prompt.

        `write` puts keys and values [B, N, G, K] into the cache, and gives all that were written.
        """

        def self_attention(u: Array) -> Array:
            k, v = write(*self.attention.keys_values(u, context.positions))
            parts = [Keys(k, v, *context.written)]
            if context.prefix is not None:
                parts.insert(0, Keys(cache["prefix_k"], cache["prefix_v"], *context.prefix))
            q = self.attention.queries(u, context.positions)
            return self.attention.attend_parts(q, parts)

        def cross_attention(u: Array) -> Array:
            assert context.cross is not None, "else cross-attention is bypassed"
            q = self.cross_attention.queries(u, context.positions)
            encoder = Keys(cache["cross_k"], cache["cross_v"], *context.cross)
            return self.cross_attention.attend_parts(q, [encoder])

        def feed_forward(u: Array) -> Array:
            return self.feed_forward(u, 0.0, None)

        reads_encoder = "cross_k" in cache
        return self._joined(
            x_BND, self_attention, cross_attention if reads_encoder else None, feed_forward
        )

    def _joined(
        self,
        x: Array,
        self_attention: Callable[[Array], Array],
        cross_attention: Callable[[Array], Array] | None,
        feed_forward: Callable[[Array], Array],
    ) -> Array:
        parallel_cross = self.cfg.parallel_cross_attention
        u = self.attention_norm(x)
        y = x + self_attention(u)
        if self.cfg.parallel:
            y += feed_forward(u if self.cfg.shared_norm else self.feed_forward_norm(x))
        if cross_attention and parallel_cross:
            y += cross_attention(u)
        if cross_attention and not parallel_cross:
            y += cross_attention(self.cross_attention_norm(y))
        if not self.cfg.parallel:
            y += feed_forward(self.feed_forward_norm(y))
        return y

    def cross_keys_values(self, encoded_BSD: Float[Array, "B S De"]) -> Cache:
        """What a cache keeps for cross-attention: keys and values [B, G, S, K]."""
        k, v = self._encoder_keys_values(encoded_BSD)
        return {"cross_k": _by_heads(k), "cross_v": _by_heads(v)}

    def _encoder_keys_values(
        self, encoded_BSD: Array, *, fold: bool = False
    ) -> tuple[Array, Array]:
        # Encoder positions count from 0.
        positions_S = jnp.arange(encoded_BSD.shape[1])
        return self.cross_attention.keys_values(encoded_BSD, positions_S, fold=fold)


def _by_heads(x_BSGK: Array) -> Array:
    return jnp.einsum("BSGK->BGSK", x_BSGK)
