"""Chunked cross-entropy against a computation in fp64 NumPy, and what the compiler makes of it."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from codet5p_jax.models import CodeT5p, t5
from codet5p_jax.models.cross_entropy import chunk_length, token_losses
from codet5p_jax.objectives import CodeToText, TextCodePairs, TextToCode
from codet5p_jax.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from codet5p_jax.training.batches import abstract_batch
from codet5p_jax.training.hlo import read_work
from codet5p_jax.training.optimizers import AdamW
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import abstract_state
from codet5p_jax.training.step import make_train_step


def reference(states, kernel, targets, weights, z_loss, smoothing):
    """Loss, z-loss and accuracy sums, written from the definition."""
    logits = states.astype(np.float64) @ kernel.astype(np.float64).T
    V = logits.shape[-1]
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    log_p = logits - log_z[..., None]
    one_hot = np.eye(V)[targets]
    q = one_hot * (1 - smoothing) + (1 - one_hot) * smoothing / (V - 1)
    entropy = -np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0), -1)
    z = z_loss * log_z**2
    loss = np.sum(weights * (-np.sum(q * log_p, -1) - entropy + z))
    return loss, np.sum(weights * z), np.sum(weights * (logits.argmax(-1) == targets))


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    B, T, D, V = 3, 11, 8, 29
    states = rng.normal(size=(B, T, D)).astype(np.float32)
    kernel = rng.normal(size=(V, D)).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = (rng.random((B, T)) < 0.7).astype(np.float32)
    return tuple(map(jnp.asarray, (states, kernel, targets, weights)))


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_values(arrays, chunk, z_loss, smoothing):
    got = token_losses(*arrays, chunk=chunk, z_loss=z_loss, label_smoothing=smoothing)
    expected = reference(*map(np.asarray, arrays), z_loss, smoothing)
    np.testing.assert_allclose(got[:3], expected, rtol=1e-5)
    assert float(got.weight) == arrays[3].sum()


@pytest.mark.parametrize("is_split", [False, True])
def test_devices_move_the_head_once_not_for_every_chunk(is_split):
    """Over 8 devices with 2 rows each: the gradients of one device, and the bytes of one sum, and
    of one gathering of a head that is split."""
    rng = np.random.default_rng(0)
    B, T, D, V = 16, 12, 8, 64
    states, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((B, T, D), (V, D)))
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)

    def loss(states, kernel, targets):
        weights = jnp.full(targets.shape, 1 / targets.size)
        return token_losses(states, kernel, targets, weights, chunk=2).loss

    gradients = jax.grad(loss, (0, 1))
    expected = gradients(states, kernel, targets)
    mesh = make_mesh(MeshConfig(replica=1, fsdp=8) if is_split else MeshConfig(replica=4, fsdp=2))
    rows, whole = batch_sharding(mesh), replicated(mesh)
    head = NamedSharding(mesh, PartitionSpec(None, "fsdp")) if is_split else whole
    placed = [jax.device_put(x, s) for x, s in zip(
        (states, kernel, targets), (rows, head, rows), strict=True)]  # fmt: skip
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradients).lower(*placed).compile()
        got = compiled(*placed)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6)
    received = sum(kind.num_bytes for kind in read_work(compiled.as_text()).collectives.values())
    times = 3 if is_split else 2  # an all-reduce is twice a gathering
    assert received == pytest.approx(times * 7 / 8 * 4 * V * D, rel=0.1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_gradients_equal_those_of_plain_autodiff(arrays, z_loss, smoothing, with_bias):
    states, kernel, targets, weights = arrays
    bias = jnp.linspace(-1, 1, len(kernel)) if with_bias else None

    def plain(states, kernel, bias):
        logits = jnp.einsum("BTD,VD->BTV", states, kernel)
        logits = logits if bias is None else logits + bias
        log_z = jax.nn.logsumexp(logits, axis=-1)
        V = kernel.shape[0]
        q = jnp.where(jnp.arange(V) == targets[..., None], 1 - smoothing, smoothing / (V - 1))
        nll = -jnp.sum(q * (logits - log_z[..., None]), -1)
        return jnp.sum(weights * (nll + z_loss * log_z**2))

    def ours(states, kernel, bias):
        sums = token_losses(states, kernel, targets, weights, bias, chunk=4, z_loss=z_loss,
                            label_smoothing=smoothing)  # fmt: skip
        return sums.loss

    # scaled, so that a cotangent other than one is seen to be honoured
    inputs, number = (states, kernel, bias), (0, 1, 2) if with_bias else (0, 1)
    if not smoothing:  # else less the entropy, a constant
        np.testing.assert_allclose(ours(*inputs), plain(*inputs), rtol=1e-5)
    got = jax.grad(lambda *x: 3.0 * ours(*x), argnums=number)(*inputs)
    expected = jax.grad(lambda *x: 3.0 * plain(*x), argnums=number)(*inputs)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, atol=1e-5)


def test_a_perfect_prediction_costs_nothing_under_smoothing():
    V, eps = 7, 0.1
    q = np.full(V, eps / (V - 1))
    q[2] = 1 - eps
    states = jnp.asarray(np.log(q), jnp.float32)[None, None]
    sums = token_losses(states, jnp.eye(V), jnp.array([[2]]), jnp.ones((1, 1)), chunk=1,
                        label_smoothing=eps)  # fmt: skip
    assert abs(float(sums.loss)) < 1e-6


def largest_buffer(hlo: str) -> int:
    """Elements of the largest array named in an HLO module."""
    shapes = re.findall(r"(?:f32|bf16|s32|pred|u32|f16)\[([\d,]+)\]", hlo)
    return max(math.prod(map(int, s.split(","))) for s in shapes)


@pytest.mark.parametrize(
    ("chunk", "chunks", "longest"),
    [(8, 4, 8), (16, 4, 16), (64, 4, 16), (1000, 4, 16), (1000, 1, 64), (32, 1, 32)],
)
def test_the_compiled_gradient_holds_no_more_logits_than_asked_for(chunk, chunks, longest):
    """Nor those of the whole batch where all targets would fit into a chunk, unless told to."""
    B, T, D, V = 4, 64, 16, 512
    f = jax.grad(
        lambda s, k, t, w: token_losses(s, k, t, w, chunk=chunk, chunks=chunks).loss,
        argnums=(0, 1),
    )
    args = (
        jax.ShapeDtypeStruct((B, T, D), jnp.float32),
        jax.ShapeDtypeStruct((V, D), jnp.float32),
        jax.ShapeDtypeStruct((B, T), jnp.int32),
        jax.ShapeDtypeStruct((B, T), jnp.float32),
    )
    assert largest_buffer(jax.jit(f).lower(*args).compile().as_text()) == B * longest * V


def test_chunks_are_equal_and_cover_the_targets():
    for length in range(1, 300):
        for longest in (1, 7, 128):
            for least in (1, 4):
                chunk = chunk_length(length, longest, least)
                assert chunk <= longest
                assert chunk < length or length == 1 or least == 1
                assert chunk * least < length + least
                number = -(-length // chunk)
                assert number * chunk - length < number, "less than a position a chunk is padding"


def test_a_training_step_of_stage_2_holds_no_logits_of_the_whole_batch():
    B, V, text, code = 8, 1024, 16, 24
    model = CodeT5p(
        t5(
            vocab_size=V, d_model=16, num_heads=2, head_dim=8, d_ff=32, num_encoder_layers=1,
            num_decoder_layers=1, embed_dim=8, matching_head=True, scan_layers=False,
        )
    )  # fmt: skip
    objectives = [
        TextCodePairs(text_length=text, code_length=code, queue_size=2 * B),
        TextToCode(inputs_length=text, targets_length=code),
        CodeToText(inputs_length=code, targets_length=text),
    ]
    rate = Constant(1e-4).make(10)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        rule = AdamW().make(rate, model.specs)
        step = make_train_step(model, objectives, {}, rule, rate, seed=0)
        state = abstract_state(model, objectives, rule, mesh)
        batch = abstract_batch(objectives, dict.fromkeys((o.name for o in objectives), B), mesh)
        hlo = step.lower(state, batch).compile().as_text()
    assert largest_buffer(hlo) < B * text * V
    assert largest_buffer(hlo) == B * (code // 4) * V, "a chunk of the longest targets"


def vocabulary_products(jaxpr, V: int) -> int:
    """Matrix products that read or write an array with a side of V, in all of a jaxpr."""
    number = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            number += any(V in x.aval.shape for x in (*eqn.invars, *eqn.outvars))
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                number += vocabulary_products(getattr(inner, "jaxpr", inner), V)
    return number


def is_jaxpr(x) -> bool:
    return hasattr(getattr(x, "jaxpr", x), "eqns")


@pytest.mark.parametrize(
    ("held_fixed", "products"), [("", 3), ("kernel", 2), ("states", 2), ("bias", 3)]
)
def test_what_is_held_fixed_costs_no_product(arrays, held_fixed, products):
    """Values and the other gradients stay as they are, also under `stop_gradient`."""
    states, kernel, targets, weights = arrays
    V = len(kernel)
    values = {"states": states, "kernel": kernel, "bias": jnp.linspace(-1, 1, V)}

    def loss(moving, fixed):
        x = {**moving, **jax.lax.stop_gradient(fixed)}
        arguments = (x["states"], x["kernel"], targets, weights, x["bias"])
        return token_losses(*arguments, chunk=4, z_loss=1e-2).loss

    fixed = {k: v for k, v in values.items() if k == held_fixed}
    moving = {k: v for k, v in values.items() if k != held_fixed}
    both = jax.jit(jax.value_and_grad(loss))
    assert vocabulary_products(jax.make_jaxpr(both)(moving, fixed).jaxpr, V) == products
    # Parameters that are all differentiated, one of which the loss then takes for a constant.
    stopped = jax.jit(
        jax.value_and_grad(
            lambda all_: loss({k: all_[k] for k in moving}, {k: all_[k] for k in fixed})
        )
    )
    assert vocabulary_products(jax.make_jaxpr(stopped)(values).jaxpr, V) == products

    value, gradients = both(moving, fixed)
    expected, all_gradients = both(values, {})
    np.testing.assert_array_equal(value, expected)
    for name in moving:
        np.testing.assert_array_equal(gradients[name], all_gradients[name])
    _, of_stopped = stopped(values)
    for name in values:
        wanted = all_gradients[name] if name in moving else jnp.zeros_like(values[name])
        np.testing.assert_array_equal(of_stopped[name], wanted)


def test_a_gradient_of_what_is_only_reported_is_zero(arrays):
    states, *rest = arrays
    gradient = jax.grad(lambda s: token_losses(s, *rest, chunk=4).correct)(states)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(states))
