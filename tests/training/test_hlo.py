"""What is read from the text of a program, against counts made by hand."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from codet5p_jax.training import hlo
from codet5p_jax.training.hlo import Traffic, read_work

ROWS, WIDTH = 16, 24  # of one device, fp32
SIZE = ROWS * WIDTH * 4
OVER_X = PartitionSpec("x")
PERMUTATION = [(i, (i + 1) % 8) for i in range(8)]


def text_of(function, axes=("x",), sizes=(8,), out=OVER_X):
    """Compiled for all devices; `function` sees [ROWS, WIDTH] of one of them."""
    mesh = Mesh(
        np.array(jax.devices()).reshape(sizes), axes, axis_types=(AxisType.Auto,) * len(axes)
    )
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec(axes), out_specs=out, check_vma=False
    )
    x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32)
    return jax.jit(mapped).lower(x).compile().as_text()


@pytest.mark.parametrize(
    ("function", "kind", "received"),
    [
        (lambda x: jax.lax.all_gather(x, "x"), "all-gather", 7 * SIZE),
        (lambda x: jax.lax.psum(x, "x"), "all-reduce", 2 * 7 * SIZE // 8),
        (lambda x: jax.lax.psum_scatter(x, "x", tiled=True), "reduce-scatter", 7 * SIZE // 8),
        (lambda x: jax.lax.all_to_all(x, "x", 0, 1, tiled=True), "all-to-all", 7 * SIZE // 8),
        (lambda x: jax.lax.ppermute(x, "x", PERMUTATION), "collective-permute", SIZE),
    ],
)
def test_bytes_of_each_kind(function, kind, received):
    assert read_work(text_of(function)).collectives == {kind: Traffic(1, received)}


def test_collectives_in_loops_count_as_often_as_they_run():
    def step(carry, _):
        return jnp.tanh(jax.lax.psum(carry, "x")), None

    def body(x):
        inner = lambda c, _: (jax.lax.scan(step, c, None, length=5)[0] * 2, None)  # noqa: E731
        return jax.lax.scan(inner, x, None, length=3)[0]

    found = read_work(text_of(body)).collectives
    assert found == {"all-reduce": Traffic(15, 15 * 2 * 7 * SIZE // 8)}


def test_of_several_branches_the_dearest_counts():
    """Two branches are told apart by a truth value, three by a number."""
    w = jnp.ones((WIDTH, WIDTH))
    branches = [lambda x: x @ w, lambda x: x @ w @ (w + x[0, 0]), lambda x: x + 1]
    for number in (2, 3):
        step = lambda x, n=number: jax.lax.switch(x.astype(int)[0, 0] % n, branches[:n], x)  # noqa: E731
        text = jax.jit(step).lower(jnp.ones((ROWS, WIDTH))).compile().as_text()
        assert "conditional(" in text
        assert read_work(text).dot_flops == 2 * 2 * ROWS * WIDTH * WIDTH


def test_groups_are_those_of_the_axis():
    sum_over = functools.partial(text_of, axes=("a", "b"), sizes=(2, 4))
    for axis, ways in (("a", 2), ("b", 4)):
        text = sum_over(lambda x, axis=axis: jax.lax.psum(x, axis), out=PartitionSpec(("a", "b")))
        received = 2 * (ways - 1) * SIZE // ways
        assert read_work(text).collectives == {"all-reduce": Traffic(1, received)}


def test_one_device_moves_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.eye(8)).compile().as_text()
    work = read_work(text)
    assert work.dot_flops == 2 * 8**3
    assert work.collectives == {}


def test_spellings_of_groups():
    assert doctest.testmod(hlo).failed == 0


LOOP = """HloModule step, num_partitions=4
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %one = s32[]{:T(128)} constant(1)
  %half = s32[]{:T(128)} add(%n, %one)
  %next = s32[]{:T(128)} add(%half, %one)
  %w = f32[4,4]{1,0:T(8,128)} constant({...})
  %y = f32[8,4]{1,0:T(8,128)} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %t = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%next, %y)
}

%condition (q: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %q = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %m = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%m, %limit), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %first = s32[]{:T(128)} constant(3)
  %init = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%first, %a)
  %w = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8,4]{1,0:T(8,128)} get-tuple-element(%w), index=1
}
"""


def test_loops_of_a_tpu_run_as_often_as_their_condition_says():
    assert read_work(LOOP).dot_flops == 4 * 2 * 8 * 4 * 4  # 3, 5, 7, 9
    by_value = LOOP.replace("constant(10)", "parameter(1)")
    with pytest.raises(ValueError, match="loop over body has no known number of trips"):
        read_work(by_value)
    assert read_work(by_value, trips=3).dot_flops == 3 * 2 * 8 * 4 * 4
    other = LOOP.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="no known number of trips"):
        read_work(other)


# Products as a TPU writes them: batch axes and heads are spatial, and most taps fall on nothing.
BATCHED = (
    *("[16,12,512,64]", "[16,12,64,256]", "[16,12,512,256]"),
    "window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=01bf_01io->01bf",
    2 * 16 * 12 * 512 * 64 * 256,
)
TO_HEADS = (
    *("[16,1,768]", "[12,768,64]", "[16,12,64]"),
    "window={size=12 pad=11_11 rhs_reversal=1}, dim_labels=b0f_0io->b0f",
    2 * 16 * 768 * (12 * 64),
)
FROM_HEADS = (
    *("[16,12,64]", "[12,64,48]", "[16,1,48]"),
    "window={size=12}, dim_labels=b0f_0io->b0f",
    2 * 16 * (12 * 64) * 48,
)
IMAGE = (  # the first and the last position see 2 of 3 taps
    *("[2,4,3]", "[3,3,7]", "[2,4,7]"),
    "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
    2 * 2 * 3 * 7 * (2 + 3 + 3 + 2),
)


@pytest.mark.parametrize(
    ("lhs", "rhs", "out", "attributes", "flops"), [BATCHED, TO_HEADS, FROM_HEADS, IMAGE]
)
def test_taps_that_are_not_there_cost_nothing(lhs, rhs, out, attributes, flops):
    text = (
        "ENTRY %main (a: f32[1]) -> f32[1] {\n"
        f"  %a = f32{lhs}{{0}} parameter(0)\n  %b = f32{rhs}{{0}} parameter(1)\n"
        f"  ROOT %c = f32{out}{{0}} convolution(%a, %b), {attributes}\n"
        "}\n"
    )
    assert read_work(text).dot_flops == flops


MEMORY = """%fused (p: f32[10,8,4], q: f32[8,4], i: s32[]) -> f32[10,8,4] {
  %p = f32[10,8,4]{2,1,0} parameter(0)
  %q = f32[8,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %part = f32[1,8,4]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,8,4}
  %same = f32[8,4]{1,0} bitcast(%part)
  %sum = f32[8,4]{1,0} add(%same, %q)
  %back = f32[1,8,4]{2,1,0} bitcast(%sum)
  ROOT %out = f32[10,8,4]{2,1,0} dynamic-update-slice(%p, %back, %i, %zero, %zero)
}

%body (s: (s32[], f32[10,8,4])) -> (s32[], f32[10,8,4]) {
  %s = (s32[], f32[10,8,4]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = f32[10,8,4]{2,1,0} get-tuple-element(%s), index=1
  %fast = f32[8,4]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %y = f32[10,8,4]{2,1,0} fusion(%x, %fast, %n), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[10,8,4]{2,1,0}) tuple(%n, %y)
}

%condition (s: (s32[], f32[10,8,4])) -> pred[] {
  ROOT %s = pred[] parameter(0)
}

ENTRY %main (a: f32[10,8,4]) -> f32[10,8,4] {
  %a = f32[10,8,4]{2,1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[10,8,4]{2,1,0}) tuple(%zero, %a)
  %w = (s32[], f32[10,8,4]{2,1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %y = f32[10,8,4]{2,1,0} get-tuple-element(%w), index=1
  ROOT %out = f32[10,8,4]{2,1,0} negate(%y)
}
"""  # noqa: E501 - as XLA prints it


def test_bytes_of_hbm_are_those_that_are_touched():
    """A slice read and one written in each of ten rounds, an index, and all at the end; nothing of
    what lies in faster memory."""
    layer = 8 * 4 * 4
    assert read_work(MEMORY).hbm_bytes == 10 * (2 * layer + 4) + 2 * 10 * layer


STARTED = """HloModule step, num_partitions=4
%looked_up (t: f32[500,8], i: s32[4]) -> f32[4,8] {
  %t = f32[500,8]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  ROOT %g = f32[4,8]{1,0} gather(%t, %i), offset_dims={1}
}

ENTRY %main (a: bf16[64,8], t: f32[500,8], i: s32[4]) -> bf16[64,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  %t = f32[500,8]{1,0} parameter(1)
  %i = s32[4]{0} parameter(2)
  %s = (bf16[64,8]{1,0}, bf16[64,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %d = bf16[64,8]{1,0:T(8,128)S(1)} collective-permute-done(%s)
  %f = f32[4,8]{1,0} fusion(%t, %i), kind=kCustom, calls=%looked_up
  %g = f32[4,8]{1,0} gather(%t, %i), offset_dims={1}
  ROOT %out = (f32[4,8]{1,0}) tuple(%g)
}
"""  # noqa: E501 - as XLA prints it


def test_what_is_moved_or_looked_up_is_read_once():
    """A transfer gives its operand back beside the result; of a table, rows are read."""
    rows = 4 * 8 * 4
    assert read_work(STARTED).hbm_bytes == 64 * 8 * 2 + 2 * (2 * rows + 4 * 4)


def test_bytes_of_hbm_without_loops_are_those_that_xla_counts():
    def step(w, x):
        return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) @ w.T))(w)

    compiled = jax.jit(step).lower(jnp.ones((64, 64)), jnp.ones((256, 64))).compile()
    counted = compiled.cost_analysis()["bytes accessed"]
    assert read_work(compiled.as_text()).hbm_bytes == pytest.approx(counted, rel=0.05)


ASYNC = """HloModule step, num_partitions=4
%start (p: bf16[8,32]) -> bf16[32,32] {
  %p = bf16[8,32]{1,0} parameter(0)
  %g = bf16[32,32]{1,0} all-gather(%p), channel_id=1, replica_groups=mesh['a'=4] {'a'}, frontend_attributes={chain_id="0"}
  ROOT %s = bf16[32,32]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (p: bf16[8,32]) -> bf16[32,32] {
  %p = bf16[8,32]{1,0} parameter(0)
  ROOT %g = bf16[32,32]{1,0} all-gather(%p), channel_id=1, replica_groups=mesh['a'=4] {'a'}, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (p: f32[8,32]) -> f32[2,32] {
  %p = f32[8,32]{1,0} parameter(0)
  %r = f32[8,32]{1,0} all-reduce(%p), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %d = f32[2,32]{1,0} dynamic-slice(%r)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %b = f32[] parameter(1)
}

ENTRY %main (a: bf16[8,32], b: f32[8,32]) -> bf16[32,32] {
  %a = bf16[8,32]{1,0} parameter(0)
  %b = f32[8,32]{1,0} parameter(1)
  %s = bf16[32,32]{1,0} fusion(%a), kind=kCustom, calls=%start
  %f = bf16[32,32]{1,0} fusion(%a), kind=kOutput, calls=%async_collective_fusion
  ROOT %r = f32[2,32]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501 - as XLA prints it


def test_what_a_tpu_fuses_collectives_into():
    """A gather that overlaps with a fusion counts once; a reduction of which a part is kept."""
    assert read_work(ASYNC).collectives == {
        "all-gather": Traffic(1, 3 * 8 * 32 * 2),
        "reduce-scatter": Traffic(1, 8 * 32 * 4 // 2),
    }
