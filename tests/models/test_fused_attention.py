"""The kernels, step by step on a CPU, against plain attention; and what is told from outside."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codet5p_jax.models import CodeT5p, attention_kernels, fused_attention, init_params, t5
from codet5p_jax.models.attention_kernels import Inputs, Kind, Place, backward, forward
from codet5p_jax.models.dropout import kept
from codet5p_jax.objectives import Seq2Seq
from codet5p_jax.sharding import MeshConfig, make_mesh, on_mesh
from codet5p_jax.training.describe import activation_bytes
from codet5p_jax.training.flops import step_flops
from codet5p_jax.training.precompile import topology_devices


def inputs(kind, B, T, S, heads, *, biased, query=0, dtype=jnp.float32):
    """Queries that are part of a longer sequence begin at `query` of it."""
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    segments = jnp.asarray(rng.integers(0, 3, (B, S)), jnp.int32)
    words = tuple(jnp.int32(n) for n in rng.integers(-(2**31), 2**31, 2))
    return Inputs(
        *(make(B, n, heads * kind.head_dim) for n in (T, S, S)),
        segments[:, query : query + T],
        segments,
        make(heads, kind.zero + S).astype(jnp.float32) if biased else None,
        Place(jnp.int32(query), jnp.int32(3), jnp.int32(5), words),
    )


@functools.partial(jax.jit, static_argnums=0)
def kernels(kind, given, d_out):
    """The result and the gradients."""
    return forward(kind, given), *backward(kind, given, d_out)


@functools.partial(jax.jit, static_argnums=0)
def plain(kind, given, d_out):
    """The same by `attention`."""

    def of(q, k, v, values):
        return fused_attention._plain(kind, given._replace(q=q, k=k, v=v, values=values))

    out, pull = jax.vjp(of, given.q, given.k, given.v, given.values)
    return out, *pull(d_out)


CASES = {
    "an encoder's": (Kind(64, zero=15), 2, 16, 16, 4, {"biased": True}),
    "a decoder's": (Kind(64, causal=True, zero=15), 3, 16, 16, 2, {"biased": True}),
    "cross-attention": (Kind(64), 2, 8, 24, 2, {"biased": False}),
    "three heads that fill no lanes": (Kind(16, zero=7), 2, 8, 8, 3, {"biased": True}),
    "80 features, a window": (
        Kind(80, causal=True, window=3), 2, 16, 16, 8, {"biased": False},
    ),
    "blocks of queries": (Kind(64, causal=True, zero=255), 2, 256, 256, 2, {"biased": True}),
    "blocks of queries that pad": (Kind(64, zero=169), 2, 170, 256, 2, {"biased": True}),
    "a part of the positions": (
        Kind(128, causal=True, window=200, zero=511), 2, 256, 512, 2,
        {"biased": True, "query": 128},
    ),
}  # fmt: skip


@pytest.mark.parametrize("dropout_rate", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_kernels_compute_attention(monkeypatch, case, dropout_rate):
    monkeypatch.setattr(attention_kernels, "_MOST_SCORES", 2**15)  # 128 queries of 256 keys
    kind, *sizes, more = CASES[case]
    scale = kind.head_dim**-0.5
    kind = dataclasses.replace(kind, scale=scale, dropout_rate=dropout_rate, interpret=True)
    given = inputs(kind, *sizes, **more)
    d_out = jnp.asarray(np.random.default_rng(1).normal(size=given.q.shape), jnp.float32)
    expected = plain(kind, given, d_out)
    found = kernels(kind, given, d_out)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 2e-5), found, expected)


def test_in_bfloat16_kernels_are_as_close_to_fp32_as_attention_is():
    kind = Kind(64, causal=True, zero=31, interpret=True)
    given = inputs(kind, 2, 32, 32, 2, biased=True, dtype=jnp.bfloat16)
    d_out = jnp.asarray(np.random.default_rng(1).normal(size=given.q.shape), jnp.bfloat16)
    exact = plain(kind, jax.tree.map(_wide, given), _wide(d_out))
    other = plain(kind, given, d_out)
    found = kernels(kind, given, d_out)
    for name, a, b, c in zip(("out", "q", "k", "v", "values"), found, other, exact, strict=True):
        assert a.dtype == b.dtype
        error, others = (float(jnp.max(jnp.abs(_wide(x) - c))) for x in (a, b))
        assert error < 1.5 * others < 0.1 * float(jnp.max(jnp.abs(c))), name


def _wide(x):
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def test_a_row_without_a_key_stays_finite():
    kind = Kind(64, interpret=True)
    given = inputs(kind, 2, 8, 8, 2, biased=False)
    given = given._replace(q_segments=given.q_segments + 7)
    found = kernels(kind, given, jnp.ones_like(given.q))[:4]
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in found)


def test_what_is_kept_is_a_function_of_the_place():
    words, row, head = (jnp.int32(-17), jnp.int32(9)), jnp.arange(6)[:, None, None], jnp.arange(5)
    keep = kept(words, row, head[:, None], jnp.arange(4096), 0.25)
    part = kept(words, row[2:4], head[1:, None], jnp.arange(100, 200), 0.25)
    np.testing.assert_array_equal(part, keep[2:4, 1:, 100:200])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_is_kept_is_random(rate):
    """Shares, and correlations of neighbours, heads, rows and words, deviate as chance does."""
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (16, 2)).astype(np.int32)
    words[8:, 0] = words[:8, 0]  # steps may share a word
    W, B, H, N = len(words), 4, 12, 2**14
    row, head = jnp.arange(B)[:, None, None], jnp.arange(H)[:, None]
    draw = jax.jit(lambda w: kept((w[0], w[1]), row, head, jnp.arange(N), rate))
    z = np.stack([draw(w) for w in words]).astype(np.float32) - (1 - rate)
    z /= (rate * (1 - rate)) ** 0.5

    def spread(found, terms):
        found = np.ravel(found) * terms**0.5
        assert np.max(np.abs(found)) < 5.5
        assert 0.9 < np.std(found) < 1.1

    spread(z.mean(axis=-1), N)
    spread(z.mean(axis=(0, 1, 2)), W * B * H)
    for n in (1, 2, 64, 512):
        spread((z[..., n:] * z[..., :-n]).mean(axis=-1), N - n)
    masks = z.reshape(W * B * H, N)
    together = masks @ masks.T / N
    spread(together[np.triu_indices(len(masks), 1)], N)


SIZES = {
    "vocab_size": 64, "d_model": 32, "num_heads": 4, "head_dim": 8, "d_ff": 32,
    "num_encoder_layers": 1, "num_decoder_layers": 1,
}  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 16)), jnp.int32)
SEGMENTS = jnp.asarray(np.repeat([[1] * 9 + [2] * 5 + [0] * 2], 8, axis=0), jnp.int32)


def gradients(config, mesh=None):
    """The loss of a network over packed rows and all its gradients."""
    model = CodeT5p(config)
    key = jax.random.key(1) if config.dropout else None

    def loss(params):
        bound = model.bind(params)
        encoded = bound.encode(TOKENS, SEGMENTS, key=key)
        states = bound.decode(TOKENS, SEGMENTS, encoded, SEGMENTS, key=key)
        return bound.token_losses(states, TOKENS, (SEGMENTS > 0).astype(jnp.float32)).loss / 100

    params = init_params(model.specs, jax.random.key(0))
    with on_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss))(params)


@functools.cache
def expected_gradients(head_dim):
    """Of a network without dropout that writes scores."""
    return gradients(t5(**{**SIZES, "head_dim": head_dim}, dropout=0.0))


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def kernels_everywhere(monkeypatch):
    """The kernels in place of plain attention, step by step."""
    made = fused_attention.Kind

    def take(*args, tpu, default):
        return tpu(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", take)
    monkeypatch.setattr(fused_attention, "Kind", lambda **kw: made(**kw, interpret=True))


MESHES = {
    "one device": None,
    "batch": MeshConfig(replica=2, fsdp=4),
    "all axes": MeshConfig(fsdp=2, sequence=2, tensor=2),
}


@pytest.mark.parametrize(
    ("by_kernels", "mesh", "remat", "head_dim"),
    [
        (False, "one device", "none", 64),
        (True, "one device", "dots", 8),
        (False, "all axes", "dots", 64),
        (True, "all axes", "none", 64),
        (True, "batch", "none", 8),
    ],
)
def test_a_network_is_the_same(monkeypatch, by_kernels, mesh, remat, head_dim):
    """Heads of 64 fill the lanes of each device, so that projections are folded."""
    expected = expected_gradients(head_dim)
    if by_kernels:
        kernels_everywhere(monkeypatch)
    sizes = MESHES[mesh]
    config = t5(**{**SIZES, "head_dim": head_dim}, dropout=0.0, attention="fused", remat=remat)
    close(gradients(config, sizes and make_mesh(sizes)), expected)


def test_dropout_is_the_same_on_any_mesh(monkeypatch):
    config = t5(**SIZES, dropout=0.2, attention="fused")
    expected = gradients(config)
    without = gradients(dataclasses.replace(config, dropout=0.0))
    assert abs(expected[0] - without[0]) > 1e-3
    close(gradients(config, make_mesh(MESHES["all axes"])), expected)
    kernels_everywhere(monkeypatch)
    close(gradients(config, make_mesh(MESHES["all axes"])), expected)


def test_query_heads_that_share_keys(monkeypatch):
    def changed(attention):
        config = t5(**SIZES, dropout=0.0, attention=attention)
        return dataclasses.replace(
            config, decoder=dataclasses.replace(config.decoder, num_kv_heads=2, position="rotary")
        )

    expected = gradients(changed("xla"))
    kernels_everywhere(monkeypatch)
    close(gradients(changed("fused")), expected)


@pytest.mark.parametrize(("lengths", "kernels"), [((1, 16), 2), ((16, 1), 4)])
def test_a_single_key_takes_no_kernel(lengths, kernels):
    """Mosaic compiles none; of a decoder alone, the encoder has one position."""
    config = t5(**SIZES, dropout=0.1, attention="fused")
    model = CodeT5p(config)
    S, T = lengths

    def loss(params, key):
        bound = model.bind(params)
        encoded = bound.encode(TOKENS[:, :S], SEGMENTS[:, :S], key=key)
        states = bound.decode(TOKENS[:, :T], SEGMENTS[:, :T], encoded, SEGMENTS[:, :S], key=key)
        return jnp.sum(states)

    params = jax.eval_shape(lambda key: init_params(model.specs, key), jax.random.key(0))
    text = str(jax.make_jaxpr(jax.grad(loss))(params, jax.random.key(0)))
    assert text.count("pallas_call[") == kernels  # of 16 keys, forwards and backwards


def test_a_frozen_table_of_biases_is_read_in_fp32():
    config = t5(**SIZES, dropout=0.0, dtype="bfloat16", attention="fused")
    model = CodeT5p(config)
    params = init_params(model.specs, jax.random.key(0))
    table = params["encoder"]["relative_bias"].astype(jnp.bfloat16)
    encode = jax.jit(lambda p: model.bind(p).encode(TOKENS, SEGMENTS))
    params["encoder"]["relative_bias"] = table.astype(jnp.float32)
    expected = encode(params)
    params["encoder"]["relative_bias"] = table
    np.testing.assert_array_equal(encode(params), expected)


def test_batches_that_do_not_divide_run_whole_on_each_device():
    config = t5(**SIZES, dropout=0.0, attention="fused")
    model = CodeT5p(config)
    params = init_params(model.specs, jax.random.key(0))
    encode = jax.jit(lambda p: model.bind(p).encode(TOKENS[:3], SEGMENTS[:3]))
    expected = encode(params)
    with on_mesh(make_mesh(MESHES["all axes"])):
        close(jax.jit(lambda p: model.bind(p).encode(TOKENS[:3], SEGMENTS[:3]))(params), expected)


def test_nothing_as_long_as_all_pairs_is_kept():
    """Activations grow with the length as those of a network without attention would."""

    def bytes_of(attention, length):
        model = CodeT5p(t5(**SIZES, dropout=0.0, attention=attention))
        objective = Seq2Seq(inputs_length=length, targets_length=length)
        return activation_bytes(model, objective, 2)

    layers_heads_rows = 3 * 4 * 2
    for n in (64, 128):
        saved = bytes_of("xla", n) - bytes_of("fused", n)
        assert saved > layers_heads_rows * n * n * 4  # a score at least
    assert bytes_of("fused", 256) < 2.2 * bytes_of("fused", 128)


@pytest.mark.parametrize(
    ("how", "head_dim", "mesh", "folded"),
    [
        ("fused", 32, "one device", True),
        ("fused", 64, "all axes", True),
        ("xla", 32, "one device", False),
        # What one device has of heads does not fill lanes.
        ("fused", 16, "one device", False),
        ("fused", 32, "all axes", False),
    ],
)
def test_projections_come_as_the_kernel_reads_them(how, head_dim, mesh, folded):
    """Made by heads, a TPU has to turn them round."""
    model = CodeT5p(t5(**{**SIZES, "head_dim": head_dim}, dropout=0.0, attention=how))

    def states(params):
        bound = model.bind(params)
        encoded = bound.encode(TOKENS, SEGMENTS)
        return bound.decode(TOKENS, SEGMENTS, encoded, SEGMENTS)

    params = jax.eval_shape(lambda key: init_params(model.specs, key), jax.random.key(0))
    sizes = MESHES[mesh]
    with on_mesh(sizes and make_mesh(sizes)):
        text = str(jax.make_jaxpr(states)(params))
    made = text.count(f"f32[8,16,4,{head_dim}] = dot_general")  # queries, keys and values
    read = text.count("dimension_numbers=(([2, 3], [0, 1]), ([], []))")  # the output's
    assert (made, read) == ((0, 0) if folded else (9, 3))  # of three attentions


def test_the_work_of_the_model_does_not_depend_on_it():
    objective = Seq2Seq(inputs_length=16, targets_length=16)
    found = [
        step_flops(CodeT5p(t5(**SIZES, dropout=0.0, attention=how)), [objective], {"seq2seq": 2})
        for how in ("xla", "fused")
    ]
    assert found[0] == found[1]
    assert found[0]["seq2seq"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_kernels_compile_for_every_chip(topology):
    """At lengths and head widths of the released sizes, and at odd ones."""
    _, devices = topology_devices(topology)
    everywhere = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), PartitionSpec())
    biased = [(512, 512, 64), (100, 100, 64), (8, 8, 32)]
    plain = [(600, 768, 64), (512, 512, 256), (1, 8, 16)]
    if not topology.startswith("v4"):  # which has an eighth of the memory of v5e on the chip
        biased += [(768, 768, 64), (1000, 1000, 64), (1024, 1024, 64)]
        plain += [(1024, 1024, 256), (2048, 2048, 80), (7, 1000, 96)]
    for T, S, head_dim in (*biased, *plain):
        kind = Kind(head_dim, causal=T == S, zero=T - 1, dropout_rate=0.1)
        given = inputs(kind, 2, T, S, 8, biased=(T, S, head_dim) in biased, dtype=jnp.bfloat16)
        compiled = jax.jit(
            functools.partial(kernels.__wrapped__, kind), in_shardings=everywhere
        ).lower(given, given.q)
        assert compiled.compile().cost_analysis()["flops"] > 14 * 2 * 8 * T * S * head_dim * 0.9
