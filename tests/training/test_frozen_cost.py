"""What a compiled step with a frozen decoder computes, and what it keeps."""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from codet5p_jax.models import CodeT5p, Lora, codet5p_codegen
from codet5p_jax.models.params import flatten
from codet5p_jax.objectives import DecoderCLM, Seq2SeqCLM
from codet5p_jax.training.flops import step_flops
from codet5p_jax.training.freezing import Trainable, freeze
from codet5p_jax.training.hlo import read_work
from codet5p_jax.training.state import new_state
from codet5p_jax.training.step import make_train_step

BENCHMARK = Path(__file__).parents[2] / "benchmarks/frozen_cost.py"
ROWS, LENGTH = 3, 64  # 192 positions: no width
LORA = Lora(rank=4, targets=("q", "k", "v", "o", "wi", "wo"))
CONFIG = codet5p_codegen(
    num_decoder_layers=8, d_model=256, num_heads=4, num_encoder_layers=2, encoder_d_model=32,
    encoder_num_heads=2, encoder_rotary_dim=16, rotary_dim=16, vocab_size=300, dtype="bfloat16",
)  # fmt: skip


@pytest.fixture(scope="module")
def frozen_cost():
    spec = importlib.util.spec_from_file_location("frozen_cost", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_products_are_counted_as_often_as_they_run():
    def f(x, w):
        y, _ = jax.lax.scan(lambda c, k: (jnp.tanh(c @ k), None), x, w)
        return y @ w[0]

    x, w = jnp.ones((8, 32)), jnp.ones((5, 32, 32))
    text = jax.jit(f).lower(x, w).compile().as_text()
    assert read_work(text).dot_flops == 6 * 2 * 8 * 32 * 32
    with pytest.raises(ValueError, match="no ENTRY"):
        read_work("nothing")


def test_a_loop_that_runs_as_often_as_it_likes_has_no_count():
    def f(x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c @ c, x)

    text = jax.jit(f).lower(jnp.eye(8)).compile().as_text()
    with pytest.raises(ValueError, match="no known number of trips"):
        read_work(text)


@pytest.mark.parametrize(
    ("objective", "inputs"),
    [
        (Seq2SeqCLM(inputs_length=LENGTH, targets_length=LENGTH), LENGTH),
        (DecoderCLM(targets_length=LENGTH), 1),
    ],
)
def test_the_step_costs_what_trains_and_one_forward_pass(frozen_cost, objective, inputs):
    text, state, network, split = frozen_cost.compile_step(
        CONFIG, [objective], {objective.name: ROWS}
    )
    needed = frozen_cost.needed_flops(CONFIG, split, ROWS, inputs, LENGTH)
    compiled = read_work(text).dot_flops
    assert 0.9 * needed < compiled < 1.1 * needed
    # What MFU is reckoned from.
    reckoned = step_flops(network, [objective], {objective.name: ROWS}, split)
    assert sum(reckoned.values()) == pytest.approx(compiled, rel=0.001)
    sizes = {name: math.prod(x.shape) for name, x in flatten(network.specs)}
    trainable = sum(n for name, n in sizes.items() if name not in split.frozen)
    kept, least = frozen_cost.kept_bytes(text, split, network, {ROWS * inputs, ROWS * LENGTH})
    assert least == 3 * 4 * trainable
    assert 2 / 3 * least <= kept <= 1.02 * least
    if inputs > 1:  # otherwise the encoder has no gradient
        assert kept >= 0.999 * least
    frozen = {name: x for name, x in flatten(state.frozen)}
    assert {x.dtype for x in frozen.values()} == {jnp.dtype(jnp.bfloat16)}


def test_cross_attention_further_down_costs_the_way_back(frozen_cost):
    """So that the test above can fail: gradients then pass through the frozen layers."""

    decoder = dataclasses.replace(CONFIG.decoder, cross_attention=(0, 7))
    objective = Seq2SeqCLM(inputs_length=LENGTH, targets_length=LENGTH)
    config = dataclasses.replace(CONFIG, decoder=decoder)
    text, _, _, split = frozen_cost.compile_step(config, [objective], {objective.name: ROWS})
    needed = frozen_cost.needed_flops(config, split, ROWS, LENGTH, LENGTH)
    assert read_work(text).dot_flops > 1.5 * needed


def test_gradients_of_more_than_what_trains_are_seen(frozen_cost):
    """So that the count of bytes can fail: here the whole decoder has gradients."""
    everything = Trainable((".*",))
    objective = Seq2SeqCLM(inputs_length=LENGTH, targets_length=LENGTH)
    text, _, network, _ = frozen_cost.compile_step(
        CONFIG, [objective], {objective.name: ROWS}, everything
    )
    _, split = freeze(CodeT5p(CONFIG), frozen_cost.TRAINABLE)
    kept, least = frozen_cost.kept_bytes(text, split, network, {ROWS * LENGTH})
    assert kept > 2 * least


def test_no_frozen_weight_is_widened(frozen_cost):
    """On CPU every product is widened; what the program itself asks for is in its StableHLO."""

    network, split = freeze(CodeT5p(CONFIG), frozen_cost.TRAINABLE)
    objective = Seq2SeqCLM(inputs_length=LENGTH, targets_length=LENGTH)
    rule = optax.sgd(0.1)
    state = jax.eval_shape(
        lambda key: new_state(network, [objective], rule, key, split=split), jax.random.key(0)
    )
    batch = {
        objective.name: {
            name: jax.ShapeDtypeStruct((ROWS, *x.shape), x.dtype)
            for name, x in objective.spec.items()
        }
    }
    step = make_train_step(network, [objective], {}, rule, lambda n: 0.1, seed=0)
    text = step.lower(state, batch).as_text()
    widened = re.findall(r"stablehlo.convert .*\(tensor<([\dx]+)xbf16>\) -> tensor<\1xf32>", text)
    assert widened, "norms are computed in fp32"
    parts = (state.frozen, state.params)
    # Stacks of layers and one layer of them, but for shapes that something trainable has as well,
    # whose gradient is widened.
    frozen, trainable = (
        {"x".join(map(str, shape[skip:])) for shape in shapes for skip in (0, 1)}
        for shapes in ([x.shape for x in jax.tree.leaves(part) if x.ndim > 2] for part in parts)
    )
    assert {"7x256x1024", "256x1024"} <= frozen - trainable
    assert not (frozen - trainable) & set(widened)


@pytest.mark.parametrize(
    ("lora", "scan", "remat"),
    [
        (None, False, "none"),
        (LORA, True, "full"),
        pytest.param(None, True, "none", marks=pytest.mark.slow),
        pytest.param(LORA, True, "none", marks=pytest.mark.slow),
    ],
)
def test_kernels_in_8_bits_are_widened_one_layer_at_a_time(frozen_cost, lora, scan, remat):
    """Forwards, and with low-rank additions backwards as well."""
    objective = Seq2SeqCLM(inputs_length=LENGTH, targets_length=LENGTH)
    trainable = dataclasses.replace(frozen_cost.TRAINABLE, frozen_dtype="int8", lora=lora)
    config = dataclasses.replace(CONFIG, scan_layers=scan, remat=remat)
    text, state, _, split = frozen_cost.compile_step(
        config, [objective], {objective.name: ROWS}, trainable
    )
    towers = {x.shape for x in jax.tree.leaves(state.frozen) if x.dtype == jnp.int8 and len(x) > 1}
    found = set(re.findall(r"(\w+)\[([\d,]+)\]", text))
    stacked = {",".join(map(str, shape)) for shape in towers}
    assert "7,256,1024" in stacked
    assert {dtype for dtype, shape in found if shape in stacked} == {"s8"}
    layers = {shape.partition(",")[2] for shape in stacked}
    assert "f32" in {dtype for dtype, shape in found if shape in layers}  # the text does say so
    if lora is None:
        needed = frozen_cost.needed_flops(CONFIG, split, ROWS, LENGTH, LENGTH)
        assert 0.9 * needed < read_work(text).dot_flops < 1.1 * needed
    # An int8 array of a whole tower that is made anew would be a second copy of it.
    made = re.findall(r"= s8\[([\d,]+)\]\S* (copy|dynamic-update-slice|fusion)\(", text)
    assert not stacked & {shape for shape, _ in made}
