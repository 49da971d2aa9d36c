"""Attention as one kernel for TPU, forwards and one backwards: no T × S array reaches memory.

Each block of heads goes over the rows of the batch, and in each over blocks of queries, which see
all keys at once: a softmax needs one pass. The backward pass makes scores again from queries and
keys. Heads stay beside each other as projections write them (two of 64 features fill the 128
lanes), so nothing is turned round. A bias is read as one value per distance and laid out along the
diagonals on the chip, once for each block of heads; its gradient is summed over rows and folded
back there.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from codet5p_jax.models.attention import as_mask
from codet5p_jax.models.dense import LANES
from codet5p_jax.models.dropout import kept

_MOST_SCORES = 2**17  # of a block of queries and all keys: 512 KiB in fp32, a dozen alive at once
_LEAST_MEMORY = 16 * 2**20  # what a kernel is given anyway

Refs = Mapping[str, Any]


class Place(NamedTuple):
    """Where in the whole arrays those given begin, and what dropout goes by; int32 scalars.

    Attributes:
      query, row, head: the first of each.
      words: of `kept`.
    """

    query: Int[Array, ""]
    row: Int[Array, ""]
    head: Int[Array, ""]
    words: tuple[Int[Array, ""], Int[Array, ""]]


@dataclass(frozen=True)
class Kind:
    """What a kernel is compiled for.

    Attributes:
      head_dim: K.
      causal, window, scale: as in `attention`.
      zero: which of the values of a bias is that of distance 0.
      dropout_rate: of the weights.
      interpret: run step by step, on any device (tests).
    """

    head_dim: int
    causal: bool = False
    window: int | None = None
    scale: float = 1.0
    zero: int = 0
    dropout_rate: float = 0.0
    interpret: bool = False


class Inputs(NamedTuple):
    """What attention reads.

    Attributes:
      q, k, v: [B, T, F] and twice [B, S, F], F = H · K: heads beside each other.
      q_segments, kv_segments: int32 [B, T] and [B, S].
      values: the bias by distance (key - query), fp32 [H, N]; None: there is none.
      place: of the queries and rows.
    """

    q: Array
    k: Array
    v: Array
    q_segments: Array
    kv_segments: Array
    values: Array | None
    place: Place


def forward(kind: Kind, inputs: Inputs) -> Float[Array, "B T F"]:
    """softmax(scale · q kᵀ + bias + mask) v, in fp32 between the products."""
    return _run(_forward, kind, inputs)["out"]


def backward(
    kind: Kind, inputs: Inputs, d_out: Float[Array, "B T F"]
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of q, k, v and the values from that of the result."""
    d = _run(_backward, kind, inputs, d_out)
    if inputs.values is None:
        return d["d_q"], d["d_k"], d["d_v"], None
    return d["d_q"], d["d_k"], d["d_v"], d["d_values"][:, 0, : inputs.values.shape[1]]


def _run(kernel: Any, kind: Kind, inputs: Inputs, d_out: Array | None = None) -> dict[str, Array]:
    (B, queries, F), S = inputs.q.shape, inputs.k.shape[1]
    heads = _heads_together(F // kind.head_dim, kind.head_dim)
    width, (T, block) = heads * kind.head_dim, _queries_together(queries, S)
    # Of queries that pad, nothing is read, and their gradient is 0.
    more = ((0, 0), (0, T - queries))
    q, q_segments = jnp.pad(inputs.q, (*more, (0, 0))), jnp.pad(inputs.q_segments, more)

    of_queries = pl.BlockSpec((1, block, width), lambda h, b, i: (b, i, h))
    of_keys = pl.BlockSpec((1, S, width), lambda h, b, i: (b, 0, h))
    place = jnp.stack(jax.tree.leaves(inputs.place))
    read = {
        "place": (place, pl.BlockSpec(memory_space=pltpu.SMEM)),
        "q": (q, of_queries),
        "k": (inputs.k, of_keys),
        "v": (inputs.v, of_keys),
        "q_segments": (
            q_segments[:, None],
            pl.BlockSpec((1, 1, block), lambda h, b, i: (b, 0, i)),
        ),
        "kv_segments": (
            inputs.kv_segments[:, None],
            pl.BlockSpec((1, 1, S), lambda h, b, i: (b, 0, 0)),
        ),
    }
    written: dict[str, tuple[Any, pl.BlockSpec]] = {}
    scratch = {}
    if inputs.values is not None:
        N = inputs.values.shape[1]
        values = jnp.pad(inputs.values, ((0, 0), (0, -N % LANES)))[:, None]
        of_heads = pl.BlockSpec((heads, *values.shape[1:]), lambda h, b, i: (h, 0, 0))
        read["values"] = values, of_heads
        scratch["bias"] = pltpu.VMEM((heads, T, S), jnp.float32)
    if d_out is None:
        products = 2
        written["out"] = q, of_queries
    else:
        products = 5
        read["d_out"] = jnp.pad(d_out, (*more, (0, 0))), of_queries
        written |= {"d_q": read["q"], "d_k": read["k"], "d_v": read["v"]}
        scratch |= {name: pltpu.VMEM((S, width), jnp.float32) for name in ("k_sum", "v_sum")}
        if "values" in read:
            written["d_values"] = read["values"]
            scratch["bias_sum"] = scratch["bias"]
    names = [*read, *written, *scratch]
    windows = width * (block + S) * q.dtype.itemsize * (2 if d_out is None else 4)
    arrays = [array for array, _ in read.values()]
    results = [jax.ShapeDtypeStruct(like.shape, like.dtype) for like, _ in written.values()]
    moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *results))
    out = pl.pallas_call(
        lambda *refs: kernel(kind, dict(zip(names, refs, strict=True))),
        grid=(F // width, B, T // block),
        in_specs=[spec for _, spec in read.values()],
        out_specs=[spec for _, spec in written.values()],
        out_shape=results,
        scratch_shapes=[*scratch.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_memory(windows, [*scratch.values()], block * S),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * B * T * S * F,
            transcendentals=B * T * S * F // kind.head_dim,
            bytes_accessed=moved,
        ),
        interpret=kind.interpret,
    )(*arrays)
    found = dict(zip(written, out, strict=True))
    return found | {name: found[name][:, :queries] for name in ("out", "d_q") if name in found}


def _heads_together(number: int, head_dim: int) -> int:
    """Heads of a block: so many that their features fill whole lanes, or all."""
    heads = LANES // math.gcd(LANES, head_dim)
    return number if number % heads else heads


def _queries_together(T: int, S: int) -> tuple[int, int]:
    """How many queries there are with padding, and those of a block.

    Blocks fill whole lanes, as their segments have to, unless one block is all.
    """
    if T * S <= _MOST_SCORES:
        return T, T
    padded = T + -T % LANES
    parts = range(LANES, padded + 1, LANES)
    few = [part for part in parts if padded % part == 0 and part * S <= _MOST_SCORES]
    return padded, max(few, default=LANES)


def _memory(windows: int, scratch: Sequence[Any], scores: int) -> int:
    """Bytes on the chip that a kernel may take: what it takes, XLA cannot use meanwhile.

    Args:
      windows: bytes of the blocks, of which there are two each: one comes while one is worked on.
      scratch: arrays that stay, fp32.
      scores: of a head; of arrays as large, a dozen are alive at once.
    """
    kept_bytes = sum(4 * math.prod(x.shape) for x in scratch)
    return max(_LEAST_MEMORY, 2 * windows + kept_bytes + 12 * 4 * scores)


class _Tile:
    """A step of a kernel: a block of heads, a row of the batch, a block of queries, all keys.

    Attributes:
      heads: of the block.
      T, S: queries of the block, keys.
      row, block: number of the row of the batch, and of the block of queries.
      last_row, last_block: whether it is the last.
      first: position of the first of the queries among the keys.
      rows: of the queries, in what holds all of them.
    """

    def __init__(self, kind: Kind, refs: Refs):
        self.kind, self.refs = kind, refs
        _, self.T, width = refs["q"].shape
        self.S = refs["k"].shape[1]
        self.heads = width // kind.head_dim
        self.head = refs["place"][2] + pl.program_id(0) * self.heads
        self.row, self.block = pl.program_id(1), pl.program_id(2)
        self.last_row = self.row == pl.num_programs(1) - 1
        self.last_block = self.block == pl.num_programs(2) - 1
        # Of a single block it has to be seen that it begins at a multiple of 8.
        before = self.block * self.T if pl.num_programs(2) > 1 else 0
        self.rows = pl.ds(before, self.T)
        self.first = refs["place"][0] + before

    def features(self, head: int) -> slice:
        """Of a head of the block."""
        return slice(head * self.kind.head_dim, (head + 1) * self.kind.head_dim)

    @functools.cached_property
    def q_at(self) -> Array:
        """Positions of queries, [T, S]."""
        return self.first + jax.lax.broadcasted_iota(jnp.int32, (self.T, self.S), 0)

    @functools.cached_property
    def k_at(self) -> Array:
        """Positions of keys, [T, S]."""
        return jax.lax.broadcasted_iota(jnp.int32, (self.T, self.S), 1)

    @functools.cached_property
    def mask(self) -> Array:
        """As of `segment_mask`, [T, S]."""
        allowed = self.refs["q_segments"][0].reshape(self.T, 1) == self.refs["kv_segments"][0]
        if self.kind.causal:
            allowed &= self.k_at <= self.q_at
            if self.kind.window is not None:
                allowed &= self.k_at > self.q_at - self.kind.window
        return as_mask(allowed)

    def weights(self, head: int, q: Array, k: Array) -> tuple[Array, Array]:
        """Of a head, before they are divided by their sums: [T, S] and [T, 1], fp32."""
        scores = _product(q, k, 1, 1) * self.kind.scale
        if "bias" in self.refs:
            scores += self.refs["bias"][head, self.rows]
        scores += self.mask
        weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        return weights, jnp.sum(weights, axis=1, keepdims=True)

    def dropped(self, x: Array, head: int) -> Array:
        """With dropout of the weights of a head, or of their gradients."""
        rate = self.kind.dropout_rate
        if not rate:
            return x
        place, pair = self.refs["place"], self.q_at * self.S + self.k_at
        words = place[3], place[4]
        keep = kept(words, place[1] + self.row, self.head + head, pair, rate)
        return jnp.where(keep, x / (1 - rate), 0.0)

    def lay_out(self) -> None:
        """The bias of the block, for all rows of the batch."""
        if "bias" not in self.refs:
            return

        @pl.when(self.row == 0)
        def _() -> None:
            for head in range(self.heads):
                values = self.refs["values"][head]
                N = values.shape[1]
                shift = jax.lax.rem(self.first - self.kind.zero + N, N)
                wide = pltpu.roll(jnp.broadcast_to(values, (self.T, N)), shift, 1)
                self.refs["bias"][head, self.rows] = _sheared(wide, 1)[:, : self.S]

    def add_to_bias(self, head: int, d_scores: Array) -> None:
        """Adds to the gradient of the bias of all rows so far."""
        if "bias" not in self.refs:
            return
        total = self.refs["bias_sum"]
        before = jnp.where(self.row == 0, 0.0, total[head, self.rows])
        total[head, self.rows] = before + d_scores

    def fold(self) -> None:
        """The gradient of the values of the bias, after the last row."""
        if "bias" not in self.refs:
            return
        d_values = self.refs["d_values"]

        @pl.when(self.last_row & (self.block == 0))
        def _() -> None:
            d_values[...] = jnp.zeros(d_values.shape, jnp.float32)

        @pl.when(self.last_row)
        def _() -> None:
            N = d_values.shape[2]
            shift = jax.lax.rem(self.kind.zero - self.first + N, N)
            for head in range(self.heads):
                d_bias = self.refs["bias_sum"][head, self.rows]
                wide = jnp.concatenate([d_bias, jnp.zeros((self.T, N - self.S), jnp.float32)], 1)
                summed = jnp.sum(_sheared(wide, -1), axis=0, keepdims=True)
                rolled = pltpu.roll(jnp.broadcast_to(summed, (8, N)), shift, 1)
                d_values[head] += rolled[:1]


def _product(x: Array, y: Array, of_x: int, of_y: int) -> Array:
    """Over an axis of each; fp32."""
    contract = (((of_x,), (of_y,)), ((), ()))
    return jax.lax.dot_general(x, y, contract, preferred_element_type=jnp.float32)


def _sheared(x_TN: Array, sign: int) -> Array:
    """Row i moved by i columns to the right, or to the left, and round: by powers of two."""
    rows, N = x_TN.shape
    i = jax.lax.broadcasted_iota(jnp.int32, (rows, N), 0)
    step = 1
    while step < rows:
        x_TN = jnp.where(i & step > 0, pltpu.roll(x_TN, sign * step % N, 1), x_TN)
        step *= 2
    return x_TN


def _forward(kind: Kind, refs: Refs) -> None:
    tile = _Tile(kind, refs)
    tile.lay_out()
    for head in range(tile.heads):
        own = tile.features(head)
        q, k, v = (refs[name][0, :, own] for name in ("q", "k", "v"))
        weights, total = tile.weights(head, q, k)
        out = _product(tile.dropped(weights, head).astype(v.dtype), v, 1, 0) / total
        refs["out"][0, :, own] = out.astype(refs["out"].dtype)


def _backward(kind: Kind, refs: Refs) -> None:
    tile = _Tile(kind, refs)
    tile.lay_out()

    @pl.when(tile.block == 0)
    def _() -> None:
        for name in ("k_sum", "v_sum"):
            refs[name][...] = jnp.zeros(refs[name].shape, jnp.float32)

    for head in range(tile.heads):
        own = tile.features(head)
        q, k, v, d_out = (refs[name][0, :, own] for name in ("q", "k", "v", "d_out"))
        weights, total = tile.weights(head, q, k)
        weights /= total
        read = tile.dropped(weights, head).astype(v.dtype)
        refs["v_sum"][:, own] += _product(read, d_out, 0, 0)
        d_weights = tile.dropped(_product(d_out, v, 1, 1), head)
        d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=1, keepdims=True))
        tile.add_to_bias(head, d_scores)
        d_scores = (d_scores * kind.scale).astype(q.dtype)
        refs["d_q"][0, :, own] = _product(d_scores, k, 1, 0).astype(q.dtype)
        refs["k_sum"][:, own] += _product(d_scores, q, 0, 0)

    @pl.when(tile.last_block)
    def _() -> None:
        for name in ("k", "v"):
            d = refs[f"d_{name}"]
            d[0] = refs[f"{name}_sum"][...].astype(d.dtype)

    tile.fold()
