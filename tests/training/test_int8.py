"""Runs in which the kernels of a frozen tower are int8."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.weights import open_hugging_face
from codet5p_jax.models import CodeT5p
from codet5p_jax.models.int8 import dequantize, quantize, scale_of
from codet5p_jax.models.params import flatten
from codet5p_jax.objectives import SpanDenoising
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.conversion import export_weights, import_weights
from codet5p_jax.training.freezing import Trainable, freeze, frozen_towers, parts_table
from codet5p_jax.training.init_from import load_init, plan_init
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import new_state
from codet5p_jax.training.step import make_train_step
from codet5p_jax.training.stored_weights import StoredWeights, load_params
from tests.training import synthetic
from tests.training.synthetic import tiny_config, write_cache

TRAINABLE = Trainable(("encoder/.*", ".*/cross_attention(_norm)?/.*"), "int8")
OBJECTIVE = SpanDenoising(inputs_length=16, targets_length=12)
KERNELS = [f"decoder/layers/attention/{x}" for x in "qkvo"]
KERNELS += [f"decoder/layers/feed_forward/{x}" for x in ("wi", "wo")]


def batch():
    rng = np.random.default_rng(0)
    return {
        OBJECTIVE.name: {
            name: rng.integers(1, 40, (4, *x.shape)).astype(x.dtype)
            if "tokens" in name
            else np.ones((4, *x.shape), x.dtype)
            for name, x in OBJECTIVE.spec.items()
        }
    }


def network_and_split(config, trainable=TRAINABLE):
    return freeze(CodeT5p(frozen_towers(config, trainable)), trainable)


def test_training_moves_the_others_alone():
    config = tiny_config(dropout=0.0, num_decoder_layers=2, scan_layers=True)
    network, split = network_and_split(config)
    rule = optax.adamw(1e-2)
    make = jax.jit(lambda key: new_state(network, [OBJECTIVE], rule, key, split=split))
    state = make(jax.random.key(0))
    frozen, params = (
        dict(flatten(jax.tree.map(np.array, x))) for x in (state.frozen, state.params)
    )
    step = make_train_step(network, [OBJECTIVE], {}, rule, Constant(1e-2).make(20), seed=0)
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"][0]))
    assert losses[-1] < 0.8 * losses[0]
    assert {n for n, x in frozen.items() if x.dtype == np.int8} == set(KERNELS)
    assert {n for n, x in frozen.items() if x.dtype == np.float32} == set(map(scale_of, KERNELS))
    for name, x in flatten(state.frozen):
        assert x.dtype == frozen[name].dtype
        np.testing.assert_array_equal(x, frozen[name], err_msg=name)
    for name, x in flatten(state.params):
        assert np.any(x != params[name]), name
    slots = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert slots == 2 * sum(x.size for x in params.values()) + 1  # and the count


def test_the_table_has_one_byte_for_each_value():
    config = tiny_config(d_model=128, num_heads=4, head_dim=32, d_ff=512, num_decoder_layers=3)
    network, split = network_and_split(config)
    kernels = 3 * (4 * 128 * 128 + 2 * 128 * 512)
    scales, rest = 3 * (4 * 128 + 512 + 128), 3 * 2 * 128 + 128 + 32 * 4  # norms, relative bias
    specs = {n: x for n, x in flatten(network.specs) if n in split.frozen and "decoder/" in n}
    size = sum(int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize for x in specs.values())
    assert size == kernels + 4 * scales + 2 * rest
    row = next(line for line in parts_table(network.specs, split) if line.startswith("decoder  "))
    assert f"{size / 1e6:.2f} MB" in row


def test_a_tower_is_in_8_bits_as_a_whole():
    with pytest.raises(
        ValueError,
        match=r"decoder/layers/feed_forward/wi trains and decoder/layers/attention/k does not",
    ):
        frozen_towers(tiny_config(), Trainable(("encoder/.*", ".*/feed_forward/wi"), "int8"))
    with pytest.raises(ValueError, match="towers that are frozen, and none is; set frozen_dtype"):
        frozen_towers(tiny_config(), Trainable((".*",), "int8"))
    only_norms = frozen_towers(tiny_config(), Trainable((".*scale",), "int8"))
    assert (only_norms.encoder.int8, only_norms.decoder.int8) == (True, True)
    _, split = network_and_split(only_norms, Trainable((".*scale",), "int8"))
    assert set(map(scale_of, KERNELS)) < split.frozen
    assert "decoder/final_norm/scale" not in split.frozen
    for trainable in (None, Trainable((".*",))):
        with pytest.raises(ValueError, match=r"decoder/.* is int8 and cannot train"):
            freeze(CodeT5p(frozen_towers(tiny_config(), TRAINABLE)), trainable)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A cache, and a run whose weights others start from, as a model directory and as a folder."""
    folder = tmp_path_factory.mktemp("int8")
    write_cache(folder / "cache")
    run = functools.partial(synthetic.run, folder / "cache")
    run(folder / "first", phases=[Phase("denoise", 3, 8)])
    export_weights(folder / "first", folder / "folder", say=lambda _: None)
    import_weights(folder / "folder", folder / "imported", say=lambda _: None)
    return folder, run


def expected(first):
    """What the kernels have to be."""
    whole = dict(flatten(load_params(first / "first")[0]))
    found = dict(whole)
    for name in KERNELS:
        layers, *inputs_and_outputs = whole[name].shape
        inputs = 2 if name.endswith("/o") else 1
        shape = (layers, *(1,) * inputs, *inputs_and_outputs[inputs:])
        found[name], found[scale_of(name)] = quantize(whole[name], shape)
    return whole, found


@pytest.mark.parametrize(
    ("origin", "save_frozen"),
    [
        ("first", True),
        ("hf:folder", False),
        pytest.param("imported", False, marks=pytest.mark.slow),
        pytest.param("hf:folder", True, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_resumed_and_exported(first, origin, save_frozen, one_device):
    folder, run = first
    source = origin.replace("hf:", f"hf:{folder}/") if ":" in origin else str(folder / origin)
    target = folder / f"run-{origin.replace(':', '-')}-{save_frozen}"
    settings = {
        "trainable": dataclasses.replace(TRAINABLE, save_frozen=save_frozen),
        "init_from": InitFrom(source),
        "phases": [Phase("denoise", 4, 8)],
        "save_every": 2,
    }
    result = run(target, **settings)
    assert result.after["span_denoising/loss"] < result.before["span_denoising/loss"]
    end, config, _ = load_params(target)
    assert (config.encoder.int8, config.decoder.int8) == (False, True)
    whole, kernels = expected(folder)
    end = dict(flatten(end))
    for name in (*KERNELS, *map(scale_of, KERNELS)):
        assert end[name].dtype == kernels[name].dtype
        np.testing.assert_array_equal(end[name], kernels[name], err_msg=name)

    shutil.rmtree(target / "checkpoints/4")  # as if it had been killed before
    assert (target / "checkpoints/2/frozen").exists() == save_frozen
    again = run(target, **settings)
    assert again.after == result.after
    for name, x in flatten(load_params(target)[0]):
        np.testing.assert_array_equal(x, end[name], err_msg=name)

    said = []
    export_weights(target, folder / f"{target.name}-exported", say=said.append)
    weights = open_hugging_face(folder / f"{target.name}-exported")
    for name in KERNELS:
        exported = weights.read(name)
        if save_frozen:
            pair = kernels[name], kernels[scale_of(name)]
            np.testing.assert_array_equal(exported, dequantize(*pair, jnp.bfloat16))
        else:
            np.testing.assert_array_equal(exported, whole[name])
    told = any("6 kernels are int8" in line for line in said)
    assert told == save_frozen


def test_what_it_starts_from_may_be_in_8_bits(first, one_device):
    folder, run = first
    settings = {"phases": [Phase("denoise", 3, 8)], "save_every": 3}
    origin = InitFrom(str(folder / "imported"))
    run(folder / "saved", trainable=TRAINABLE, init_from=origin, **settings)
    left_out = dataclasses.replace(TRAINABLE, save_frozen=False)
    run(folder / "left_out", trainable=left_out, init_from=origin, **settings)
    whole, kernels = expected(folder)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    narrow, _ = network_and_split(tiny_config())
    for path in ("saved", "left_out"):
        plan = plan_init(InitFrom(str(folder / path)), narrow.specs, model=narrow.config)
        found, originals = load_init(plan, narrow.specs, mesh, seed=0)
        for name in (*KERNELS, *map(scale_of, KERNELS)):
            np.testing.assert_array_equal(found[name], kernels[name], err_msg=name)
        assert originals.keys() == (set() if path == "saved" else set(KERNELS))
        wide = CodeT5p(tiny_config())
        plan = plan_init(InitFrom(str(folder / path)), wide.specs, model=wide.config)
        found, _ = load_init(plan, wide.specs, mesh, seed=0)
        assert found.keys() == dict(flatten(wide.specs)).keys()
        for name in KERNELS:
            pair = kernels[name], kernels[scale_of(name)]
            same = dequantize(*pair, jnp.float32) if path == "saved" else whole[name]
            np.testing.assert_array_equal(found[name], same, err_msg=name)
    with pytest.raises(ValueError, match=r"can be left in .*saved.*: a run deletes"):
        run(
            folder / "chain",
            trainable=left_out,
            init_from=InitFrom(str(folder / "saved")),
            **settings,
        )
    run(
        folder / "chain",
        trainable=left_out,
        init_from=InitFrom(str(folder / "left_out")),
        **settings,
    )
    assert StoredWeights(folder / "chain").rounded == []
    np.testing.assert_array_equal(
        StoredWeights(folder / "chain").read(KERNELS[0]), whole[KERNELS[0]]
    )


def test_weights_that_changed_or_are_not_finite_are_refused(first, one_device):
    folder, run = first
    shutil.copytree(folder / "folder", folder / "changed")
    settings = {"phases": [Phase("denoise", 3, 8)], "save_every": 3}
    trainable = dataclasses.replace(TRAINABLE, save_frozen=False)
    init = InitFrom(f"hf:{folder / 'changed'}")
    run(folder / "of_changed", trainable=trainable, init_from=init, **settings)
    file = folder / "changed/model.safetensors"
    name = "decoder.block.0.layer.0.SelfAttention.k.weight"
    start = SafetensorsFolder(folder / "changed").tensors[name].offset
    data = bytearray(file.read_bytes())
    data[start : start + 1] = bytes([data[start] ^ 1])  # far less than a step of 8 bits
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"decoder/layers/attention/k in hf:.* is not what it was"):
        load_params(folder / "of_changed")
    data[start : start + 4] = np.float32(np.inf).tobytes()
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"attention/k has 1 values that are NaN or infinite"):
        run(folder / "infinite", trainable=trainable, init_from=init, **settings)
