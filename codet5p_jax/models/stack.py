"""A tower of blocks, run as one scanned body (or unrolled) over parameters stacked by layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from codet5p_jax.models.attention import as_mask, relative_bias, relative_bias_row, segment_mask
from codet5p_jax.models.configs import ModelConfig, StackConfig
from codet5p_jax.models.dropout import dropout
from codet5p_jax.models.layers import Block, Norm
from codet5p_jax.models.params import ParamSpec, declare, is_spec, normal
from codet5p_jax.sharding import batch_parts, constrain_between_blocks

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _stacked(block: Block, num_layers: int) -> Block:
    """The block with every declared parameter repeated along a leading `layers` axis."""
    graphdef, state = nnx.split(block)
    add = lambda s: ParamSpec(  # noqa: E731
        (num_layers, *s.shape), ("layers", *s.axes), _per_layer(s.init), s.dtype
    )
    return nnx.merge(graphdef, jax.tree.map(add, state, is_leaf=is_spec))


def _per_layer(init: Any) -> Any:
    def stacked_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        draw = lambda k: init(k, shape[1:], dtype)  # noqa: E731
        return jax.vmap(draw)(jax.random.split(key, shape[0]))

    return stacked_init


def layer_groups(cfg: StackConfig) -> dict[str, tuple[int, int, bool]]:
    """Runs of layers of one kind as (first, number, whether they read the encoder), under the names
    of their parameters: `layers` where there is one, else `layers_<first>`."""
    runs: list[tuple[int, int, bool]] = []
    for layer in range(cfg.num_layers):
        cross = cfg.reads_encoder(layer)
        if runs and runs[-1][2] == cross:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, cross)
        else:
            runs.append((layer, 1, cross))
    return {"layers" if len(runs) == 1 else f"layers_{run[0]}": run for run in runs}


class Stack(nnx.Module):
    """Blocks and the final norm.

    Layers that all have the same parts are stored stacked under `layers`; where only some read the
    encoder, each run of equal layers is stored under `layers_<first>`.
    """

    def __init__(self, cfg: StackConfig, model_cfg: ModelConfig):
        self.cfg, self.model_cfg = cfg, model_cfg
        groups = layer_groups(cfg)
        self.group_names = tuple(groups)
        for name, (_, number, cross) in groups.items():
            lora = None if cfg.lora is None else cfg.lora.of_layers(name)
            block = Block(
                dataclasses.replace(cfg, lora=lora),
                cross=cross,
                encoder_width=(
                    cfg.d_model if model_cfg.project_encoder else model_cfg.encoder.d_model
                ),
                dropout_rate=model_cfg.dropout,
            )
            setattr(self, name, _stacked(block, number))
        if cfg.position == "relative":
            self.relative_bias = declare(
                (cfg.relative_buckets, cfg.num_heads),
                ("buckets", "heads"),
                normal(cfg.d_model**-0.5),
            )
        if cfg.position == "learned":
            assert cfg.max_positions is not None
            shape, stddev = (cfg.max_positions, cfg.d_model), model_cfg.embedding_stddev
            self.positions = declare(shape, ("positions", "embed"), normal(stddev))
        self.final_norm = Norm(cfg)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segments_BT: Int[Array, "B T"],
        encoded_BSD: Float[Array, "B S De"] | None = None,
        encoder_segments_BS: Int[Array, "B S"] | None = None,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """States after the final norm, for embedded inputs.

        Without `encoded_BSD`, cross-attention is bypassed: the stack is a plain language model.
        """
        cfg, T = self.cfg, x_BTD.shape[1]
        rate = self.model_cfg.dropout
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        args = {
            "mask_B1TS": segment_mask(
                segments_BT, segments_BT, causal=cfg.causal, window=cfg.attention_window
            ),
            "bias_PHTS": self._bias(len(x_BTD), T),
            "positions_T": jnp.arange(T),
            "encoded_BSD": encoded_BSD,
            "cross_mask_B1TS": None
            if encoder_segments_BS is None
            else segment_mask(segments_BT, encoder_segments_BS, causal=False),
        }
        self._check_length(T)
        if cfg.position == "learned":
            x_BTD += self.positions[...][:T].astype(x_BTD.dtype)
        x_BTD = constrain_between_blocks(dropout(x_BTD, rate, keys[0]))
        for index, name in enumerate(self.group_names):
            group_key = None if keys[1] is None else jax.random.fold_in(keys[1], index)
            x_BTD = self._run(getattr(self, name), x_BTD, args, group_key)
        return dropout(self.final_norm(x_BTD), rate, keys[2])

    def _run(
        self, blocks: Block, x_BTD: Array, args: dict[str, Any], key: jax.Array | None
    ) -> Array:
        graphdef, state = nnx.split(blocks)
        number = jax.tree.leaves(state)[0].shape[0]
        keys_L = None if key is None else jax.random.split(key, number)

        def body(x: Array, layer: tuple[Any, Any], args: dict[str, Any]) -> Array:
            layer_state, layer_key = layer
            y, _ = nnx.merge(graphdef, layer_state)(x, key=layer_key, **args)
            return constrain_between_blocks(y)

        if self.model_cfg.remat != "none":
            body = jax.checkpoint(
                body, policy=REMAT_POLICIES[self.model_cfg.remat], prevent_cse=False
            )
        if self.model_cfg.scan_layers:
            x_BTD, _ = jax.lax.scan(
                lambda x, layer: (body(x, layer, args), None), x_BTD, (state, keys_L)
            )
            return x_BTD
        for layer in _unstack((state, keys_L), number):
            x_BTD = body(x_BTD, layer, args)
        return x_BTD

    def _check_length(self, length: int) -> None:
        limit = self.cfg.max_positions
        if limit is not None and length > limit:
            raise ValueError(
                f"a sequence of {length:,} tokens does not fit the {limit:,} positions of the "
                "network (StackConfig.max_positions)"
            )

    def _bias(self, rows: int, length: int) -> Array | None:
        if self.cfg.position != "relative":
            return None
        return relative_bias(
            self.relative_bias[...],
            length,
            length,
            bidirectional=not self.cfg.causal,
            max_distance=self.cfg.relative_max_distance,
            parts=batch_parts(rows),
        )

    def init_cache(
        self,
        encoded_BSD: Float[Array, "B S De"] | None,
        encoder_segments_BS: Int[Array, "B S"] | None,
        batch: int,
        max_length: int,
    ) -> dict[str, Any]:
        """An empty cache of `max_length` positions, with the keys and values of the encoder.

        Without `encoded_BSD`, cross-attention is bypassed.
        """
        self._check_length(max_length)
        G = self.cfg.num_kv_heads or self.cfg.num_heads
        cache: dict[str, Any] = {"index": jnp.zeros((), jnp.int32)}
        if encoded_BSD is not None:
            cache["encoder_segments"] = encoder_segments_BS
        for name in self.group_names:
            graphdef, state = nnx.split(getattr(self, name))
            number = jax.tree.leaves(state)[0].shape[0]
            shape = (number, batch, max_length, G, self.cfg.head_dim)
            group = {k: jnp.zeros(shape, self.model_cfg.dtype) for k in ("k", "v")}
            if getattr(self, name).cross and encoded_BSD is not None:
                project = lambda s, g=graphdef: nnx.merge(g, s).cross_keys_values(encoded_BSD)  # noqa: E731
                group["cross_k"], group["cross_v"] = jax.lax.map(project, state)
            cache[name] = group
        return cache

    def step(
        self, x_B1D: Float[Array, "B 1 D"], cache: dict[str, Any]
    ) -> tuple[Float[Array, "B 1 D"], dict[str, Any]]:
        """States of the next position, and the cache with that position in it."""
        cfg, index = self.cfg, cache["index"]
        max_length = cache[self.group_names[0]]["k"].shape[2]
        bias = None
        if cfg.position == "relative":
            bias = relative_bias_row(
                self.relative_bias[...],
                index,
                max_length,
                bidirectional=not cfg.causal,
                max_distance=cfg.relative_max_distance,
            )
        if cfg.position == "learned":
            x_B1D += self.positions[...][index].astype(x_B1D.dtype)
        encoder_segments = cache.get("encoder_segments")
        seen = jnp.arange(max_length) <= index
        if cfg.attention_window is not None:
            seen &= jnp.arange(max_length) > index - cfg.attention_window
        args = {
            "mask_B1TS": as_mask(seen[None, None, None]),
            "bias_PHTS": bias,
            "positions_T": index[None],
            "encoded_BSD": None,
            "cross_mask_B1TS": None
            if encoder_segments is None
            else as_mask((encoder_segments == 1)[:, None, None]),
        }
        new_cache = {**cache, "index": index + 1}
        for name in self.group_names:
            graphdef, state = nnx.split(getattr(self, name))

            def body(x: Array, layer: Any, graphdef: Any = graphdef) -> tuple[Array, Any]:
                layer_state, layer_cache = layer
                block = nnx.merge(graphdef, layer_state)
                return block(x, cache=layer_cache, cache_index=index, **args)

            x_B1D, new_cache[name] = jax.lax.scan(body, x_B1D, (state, cache[name]))
        return self.final_norm(x_B1D), new_cache


def _unstack(tree: Any, number: int) -> list[Any]:
    """Per-layer trees. `lax.split` transposes to one concatenation; indexing to `number` pads."""
    leaves, treedef = jax.tree.flatten(tree)
    split = [
        [jnp.squeeze(part, 0) for part in jnp.split(leaf, number)]
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else [leaf[i] for i in range(number)]
        for leaf in leaves
    ]
    return [treedef.unflatten([parts[i] for parts in split]) for i in range(number)]
