"""A tower of blocks, run as one scanned body (or unrolled) over parameters stacked by layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from codet5p_jax.models.attention import (
    Terms,
    as_mask,
    laid_out,
    relative_bias_row,
    relative_values,
    segment_mask,
)
from codet5p_jax.models.configs import ModelConfig, StackConfig
from codet5p_jax.models.dropout import dropout
from codet5p_jax.models.fused_attention import SAVED, Relations
from codet5p_jax.models.layers import Block, Norm, StepContext
from codet5p_jax.models.params import ParamSpec, declare, is_spec, normal
from codet5p_jax.sharding import batch_parts, constrain, constrain_between_blocks

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
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
        return self._states(x_BTD, segments_BT, encoded_BSD, encoder_segments_BS, key=key)[0]

    def _states(
        self,
        x_BTD: Array,
        segments_BT: Array,
        encoded_BSD: Array | None,
        encoder_segments_BS: Array | None,
        positions_T: Array | None = None,
        *,
        key: jax.Array | None = None,
        keep: bool = False,
    ) -> tuple[Array, dict[str, Any]]:
        """States after the final norm and, with `keep`, what a cache keeps of each layer by group.

        Positions are those of the columns, unless they are given.
        """
        cfg, T = self.cfg, x_BTD.shape[1]
        rate = self.model_cfg.dropout
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        args = {
            "relations": self._relations(segments_BT),
            "positions_T": jnp.arange(T) if positions_T is None else positions_T,
            "encoded_BSD": encoded_BSD,
            "cross_relations": self._cross_relations(segments_BT, encoder_segments_BS),
        }
        self._check_length(T)
        if cfg.position == "learned":
            read = slice(T) if positions_T is None else positions_T
            x_BTD += self.positions[...][read].astype(x_BTD.dtype)
        x_BTD = constrain_between_blocks(dropout(x_BTD, rate, keys[0]))
        kept: dict[str, Any] = {}
        for index, name in enumerate(self.group_names):
            group_key = None if keys[1] is None else jax.random.fold_in(keys[1], index)
            x_BTD, kept[name] = self._run(getattr(self, name), x_BTD, args, group_key, keep)
        return dropout(self.final_norm(x_BTD), rate, keys[2]), kept

    def _run(
        self, blocks: Block, x_BTD: Array, args: dict[str, Any], key: jax.Array | None, keep: bool
    ) -> tuple[Array, Any]:
        graphdef, state = nnx.split(blocks)
        number = jax.tree.leaves(state)[0].shape[0]
        keys_L = None if key is None else jax.random.split(key, number)

        def body(x: Array, layer: tuple[Any, Any], args: dict[str, Any]) -> tuple[Array, Any]:
            layer_state, layer_key = layer
            y, kept = nnx.merge(graphdef, layer_state)(x, key=layer_key, **args)
            return constrain_between_blocks(y), kept if keep else None

        scanned = self.model_cfg.scan_layers and number > 1
        if self.model_cfg.remat != "none":
            # Within a loop nothing merges what is computed again with what was computed before.
            policy = REMAT_POLICIES[self.model_cfg.remat]
            body = jax.checkpoint(body, policy=policy, prevent_cse=not scanned)
        if scanned:
            return jax.lax.scan(lambda x, layer: body(x, layer, args), x_BTD, (state, keys_L))
        if self.model_cfg.scan_layers:
            # Backwards, a loop makes the gradient of what came into it, wanted or not: where the
            # last layer alone has cross-attention, of what frozen layers made. One needs no loop.
            x_BTD, kept = body(x_BTD, jax.tree.map(lambda a: a[0], (state, keys_L)), args)
            return x_BTD, jax.tree.map(lambda a: a[None], kept)
        kept = []
        for layer in _unstack((state, keys_L), number):
            x_BTD, one = body(x_BTD, layer, args)
            kept.append(one)
        return x_BTD, kept

    def _check_length(self, length: int) -> None:
        limit = self.cfg.max_positions
        if limit is not None and length > limit:
            raise ValueError(
                f"a sequence of {length:,} tokens does not fit the {limit:,} positions of the "
                "network (StackConfig.max_positions)"
            )

    def _relations(self, segments_BT: Array) -> Terms | Relations:
        """Of self-attention."""
        cfg, (rows, length) = self.cfg, segments_BT.shape
        values_PHN = None
        if cfg.position == "relative":
            values_PHN = relative_values(
                self.relative_bias[...],
                length,
                length,
                bidirectional=not cfg.causal,
                max_distance=cfg.relative_max_distance,
                parts=batch_parts(rows),
            )
        if self.model_cfg.attention == "fused":
            return Relations(segments_BT, segments_BT, values_PHN, cfg.causal, cfg.attention_window)
        return Terms(
            segment_mask(segments_BT, segments_BT, causal=cfg.causal, window=cfg.attention_window),
            None if values_PHN is None else laid_out(values_PHN, length),
        )

    def _cross_relations(
        self, segments_BT: Array, encoder_segments_BS: Array | None
    ) -> Terms | Relations | None:
        """Of cross-attention."""
        if encoder_segments_BS is None:
            return None
        if self.model_cfg.attention == "fused":
            return Relations(segments_BT, encoder_segments_BS)
        return Terms(segment_mask(segments_BT, encoder_segments_BS, causal=False))

    def layer_params(self) -> dict[str, Any]:
        """Parameters of the layers by group: stacked, or apart where `scan_layers` is off.

        Taken out of a loop of steps, they are taken apart once.
        """
        found = {}
        for name in self.group_names:
            _, state = nnx.split(getattr(self, name))
            number = jax.tree.leaves(state)[0].shape[0]
            found[name] = state if self.model_cfg.scan_layers else _unstack(state, number)
        return found

    def init_cache(
        self,
        encoded_BSD: Float[Array, "B S De"] | None,
        encoder_segments_BS: Int[Array, "B S"] | None,
        batch: int,
        max_length: int,
        *,
        rows: int = 1,
        beams: bool = False,
        prefix: tuple[Float[Array, "B P D"], Int[Array, "B P"]] | None = None,
    ) -> dict[str, Any]:
        """A cache for `max_length` positions of `rows` rows of each prompt.

        A prompt's keys and values of the encoder, and of a prefix, are there once for all its rows;
        a prefix is run through the layers here. What beams write is in reach of all beams of the
        prompt: `ancestors` says which of them wrote a beam's past, so that beams are exchanged
        without moving keys and values.

        Args:
          encoded_BSD, encoder_segments_BS: None: cross-attention is bypassed.
          batch: prompts.
          max_length: positions that are written.
          rows: that continue each prompt.
          beams: whether rows are exchanged (`reorder`).
          prefix: embedded and padded on the left, with its segments.
        """
        width = 0 if prefix is None else prefix[0].shape[1]
        self._check_length(width + max_length)
        G, K = self.cfg.num_kv_heads or self.cfg.num_heads, self.cfg.head_dim
        cache: dict[str, Any] = {"index": jnp.zeros((), jnp.int32)}
        if encoded_BSD is not None:
            cache["encoder_segments"] = encoder_segments_BS
        if beams:
            cache["ancestors"] = jnp.zeros((batch, rows, max_length), jnp.int32)
        if prefix is not None:
            x_BPD, cache["prefix_segments"] = prefix
            positions = _positions_in(cache["prefix_segments"])
            _, kept = self._states(
                x_BPD, prefix[1], encoded_BSD, encoder_segments_BS, positions, keep=True
            )
        else:
            kept = {name: self._encoder_part(name, encoded_BSD) for name in self.group_names}
        own = rows > 1 and not beams
        shape = (batch, rows, G, max_length, K) if own else (batch, G, rows * max_length, K)
        axes = ("batch", "one", "kv_heads", "keys", "head_dim")
        axes = axes if own else axes[:1] + axes[2:]
        for name, (_, number, _) in layer_groups(self.cfg).items():
            if self.model_cfg.scan_layers:
                blank, parts = (number, *shape), ("layers", *axes)
                group = {k: constrain(jnp.zeros(blank, self._dtype), *parts) for k in ("k", "v")}
                cache[name] = {**kept[name], **group}
            else:
                blank = lambda: constrain(jnp.zeros(shape, self._dtype), *axes)  # noqa: E731
                cache[name] = [{**layer, "k": blank(), "v": blank()} for layer in kept[name]]
        return cache

    @property
    def _dtype(self) -> Any:
        return self.model_cfg.dtype

    def _encoder_part(self, name: str, encoded_BSD: Array | None) -> Any:
        """What the layers of a group keep of the encoder."""
        graphdef, state = nnx.split(getattr(self, name))
        number = jax.tree.leaves(state)[0].shape[0]
        reads = getattr(self, name).cross and encoded_BSD is not None
        if not reads:
            return {} if self.model_cfg.scan_layers else [{} for _ in range(number)]
        project = lambda s: nnx.merge(graphdef, s).cross_keys_values(encoded_BSD)  # noqa: E731
        if self.model_cfg.scan_layers:
            return jax.lax.map(project, state)
        return [project(layer) for layer in _unstack(state, number)]

    def step(
        self,
        x_BND: Float[Array, "B N D"],
        cache: dict[str, Any],
        layers: dict[str, Any] | None = None,
    ) -> tuple[Float[Array, "B N D"], dict[str, Any]]:
        """States of the next position of N rows of each prompt, and the cache with it.

        Args:
          x_BND: embedded tokens.
          cache: of `init_cache`.
          layers: of `layer_params()`, for many steps.
        """
        layers = self.layer_params() if layers is None else layers
        index, N = cache["index"], x_BND.shape[1]
        if "ancestors" in cache:
            own = jnp.broadcast_to(jnp.arange(N)[:, None], (len(x_BND), N, 1))
            ancestors = jax.lax.dynamic_update_slice(cache["ancestors"], own, (0, 0, index))
            cache = {**cache, "ancestors": ancestors}
        context = self._step_context(cache, N)
        if self.cfg.position == "learned":
            x_BND += self.positions[...][context.positions].astype(x_BND.dtype)
        new_cache = {**cache, "index": index + 1}
        for name in self.group_names:
            graphdef, _ = nnx.split(getattr(self, name))

            # Written first and read then, keys and values are updated where they are.
            def body(x: Array, state: Any, kept: Any, written: Any, layer: Any, g: Any = graphdef):
                def write(k: Array, v: Array) -> tuple[Array, Array]:
                    written["k"] = _put(written["k"], k, index, layer)
                    written["v"] = _put(written["v"], v, index, layer)
                    if layer is None:
                        return written["k"], written["v"]
                    return written["k"][layer], written["v"][layer]

                return nnx.merge(g, state).step(x, kept, context, write)

            if self.model_cfg.scan_layers:
                kept, written = _apart(cache[name])

                def scanned(carry: Any, layer: Any, body: Any = body) -> tuple[Any, None]:
                    x, written = carry[0], dict(carry[1])
                    return (body(x, *layer[:2], written, layer[2]), written), None

                number = written["k"].shape[0]
                (x_BND, written), _ = jax.lax.scan(
                    scanned, (x_BND, written), (layers[name], kept, jnp.arange(number))
                )
                new_cache[name] = {**kept, **written}
            else:
                new_cache[name] = []
                for state, group in zip(layers[name], cache[name], strict=True):
                    kept, written = _apart(group)
                    x_BND = body(x_BND, state, kept, written, None)
                    new_cache[name].append({**kept, **written})
        return self.final_norm(x_BND), new_cache

    def _step_context(self, cache: dict[str, Any], N: int) -> StepContext:
        """Positions, masks and biases of the next position: columns are those of the prefix, then
        those that are written."""
        cfg, index = self.cfg, cache["index"]
        first = cache[self.group_names[0]]
        k = first["k"] if self.model_cfg.scan_layers else first[0]["k"]
        prefix_segments = cache.get("prefix_segments")
        P = 0 if prefix_segments is None else prefix_segments.shape[1]
        own = k.ndim - self.model_cfg.scan_layers == 5
        T = k.shape[-2] // (1 if own else N)
        columns = jnp.arange(P + T)
        seen = columns <= P + index
        if cfg.attention_window is not None:
            seen &= columns > P + index - cfg.attention_window
        bias = None
        if cfg.position == "relative":
            bias = relative_bias_row(
                self.relative_bias[...],
                P + index,
                P + T,
                bidirectional=not cfg.causal,
                max_distance=cfg.relative_max_distance,
            )
        written, written_bias = seen[None, None, None, P:], None if bias is None else bias[..., P:]
        if not own and N > 1:  # several rows' keys at each position
            if written_bias is not None:
                written_bias = jnp.repeat(written_bias, N, axis=-1)
            wrote = cache["ancestors"][:, None, :, :, None] == jnp.arange(N)
            written = (written[..., None] & wrote).reshape(len(wrote), 1, N, T * N)
        encoder_segments = cache.get("encoder_segments")
        positions = index[None, None]
        prefix = None
        if prefix_segments is not None:
            positions += jnp.sum(prefix_segments > 0, axis=1)[:, None]
            real = (prefix_segments > 0)[:, None, None] & seen[:P]
            prefix = as_mask(real), None if bias is None else bias[..., :P]
        return StepContext(
            positions=positions,
            written=(as_mask(written), written_bias),
            prefix=prefix,
            cross=None
            if encoder_segments is None
            else (as_mask((encoder_segments == 1)[:, None, None]), None),
        )


def reorder(cache: dict[str, Any], parents_BN: Int[Array, "B N"]) -> dict[str, Any]:
    """The cache whose row n of a prompt goes on from what row `parents[n]` has."""
    ancestors = jnp.take_along_axis(cache["ancestors"], parents_BN[..., None], axis=1)
    return {**cache, "ancestors": ancestors}


def _apart(cache: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stays as it is, and what is written."""
    written = {name: cache[name] for name in ("k", "v")}
    return {name: x for name, x in cache.items() if name not in written}, written


def _put(array: Array, row_BNGK: Array, index: Array, layer: Array | None) -> Array:
    """Keys or values of a cache with those of a step at its position (and layer)."""
    own = array.ndim - (layer is not None) == 5
    row = row_BNGK[..., None, :] if own else jnp.einsum("BNGK->BGNK", row_BNGK)
    at = [jnp.zeros((), index.dtype)] * row.ndim
    at[-2] = index * row.shape[-2]
    if layer is not None:
        row, at = row[None], [layer.astype(index.dtype), *at]
    return jax.lax.dynamic_update_slice(array, row.astype(array.dtype), at)


def _positions_in(segments_BP: Array) -> Array:
    """Positions in rows that are padded on the left; 0 for padding."""
    return jnp.maximum(jnp.cumsum(segments_BP > 0, axis=1) - 1, 0)


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
