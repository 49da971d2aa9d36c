"""Runs in which some parameters do not train."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codet5p_jax.interop.changed_weights import MergedLora
from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.weights import ArrayWeights, open_hugging_face
from codet5p_jax.models import CodeT5p, Lora, init_params
from codet5p_jax.models.params import count, flatten, nested
from codet5p_jax.objectives import SpanDenoising
from codet5p_jax.training.checkpoint_files import ELSEWHERE, read_meta, saved_steps
from codet5p_jax.training.checkpoints import CheckpointPolicy, InitFrom, SnapshotPolicy
from codet5p_jax.training.conversion import export_weights, import_weights
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.freezing import (
    Split,
    Trainable,
    freeze,
    frozen_towers,
    merge,
    parts_table,
)
from codet5p_jax.training.init_from import plan_init
from codet5p_jax.training.model_dir import config_from_json, config_to_json
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import new_state
from codet5p_jax.training.step import make_train_step
from codet5p_jax.training.stored_weights import checksum, load_params
from tests.training import synthetic
from tests.training.synthetic import tiny_config, write_cache

TRAINABLE = Trainable(("encoder/.*", ".*/cross_attention.*"), "bfloat16")
OBJECTIVE = SpanDenoising(inputs_length=16, targets_length=12)


def batch(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        OBJECTIVE.name: {
            name: rng.integers(1, 40, (rows, *x.shape)).astype(x.dtype)
            if "tokens" in name
            else np.ones((rows, *x.shape), x.dtype)
            for name, x in OBJECTIVE.spec.items()
        }
    }


def trained(trainable, steps=3, **settings):
    network, split = freeze(CodeT5p(tiny_config(dropout=0.0, **settings)), trainable)
    rule = optax.adamw(1e-2)
    make = jax.jit(lambda key: new_state(network, [OBJECTIVE], rule, key, split=split))
    state = make(jax.random.key(0))
    before = jax.tree.map(np.array, (state.params, state.frozen))
    step = make_train_step(network, [OBJECTIVE], {}, rule, Constant(1e-2).make(9), seed=0)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"][0]))
    return before, state, losses


def test_what_is_frozen_keeps_every_bit_and_costs_no_slot():
    (params, frozen), state, losses = trained(TRAINABLE)
    assert losses[-1] < losses[0]
    for name, array in flatten(frozen):
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.array(dict(flatten(state.frozen))[name]), array)
    moved = dict(flatten(state.params))
    for name, array in flatten(params):
        assert array.dtype == np.float32
        assert np.any(moved[name] != array), name
    assert set(dict(flatten(params))) == {
        name
        for name, _ in flatten(CodeT5p(tiny_config()).specs)
        if name.startswith("encoder/") or "cross_attention" in name
    }
    slots = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert slots == 2 * sum(x.size for x in jax.tree.leaves(params)) + 1  # and the count


def test_gradients_are_those_of_the_whole_network():
    """Step by step, a run that freezes in fp32 is one that trains all and is told rate 0."""
    free = dataclasses.replace(TRAINABLE, frozen_dtype="float32")
    _, state, losses = trained(free, steps=1)
    network, _ = freeze(CodeT5p(tiny_config(dropout=0.0)), None)
    split = free.split(network.specs)
    mask = merge(*(jax.tree.map(lambda _, m=m: m, part) for part, m in zip(
        split(network.specs), (True, False), strict=True)))  # fmt: skip
    rule = optax.chain(
        optax.masked(optax.adamw(1e-2), mask),
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, mask)),
    )
    whole = jax.jit(lambda key: new_state(network, [OBJECTIVE], rule, key))(jax.random.key(0))
    step = make_train_step(network, [OBJECTIVE], {}, rule, Constant(1e-2).make(9), seed=0)
    whole, metrics = step(whole, batch())
    np.testing.assert_allclose(losses[0], float(metrics["loss"][0]), rtol=1e-6)
    expected = dict(flatten(whole.params))
    for name, array in flatten(state.params):
        np.testing.assert_allclose(array, expected[name], atol=1e-6, err_msg=name)


def test_patterns_that_match_nothing_are_errors():
    specs = CodeT5p(tiny_config()).specs
    with pytest.raises(ValueError, match=r"'encodr/\.\*' matches no parameter; the .* 'encoder/\."):
        Trainable(("encodr/.*",)).split(specs)
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        Trainable(("(",))
    with pytest.raises(ValueError, match="nothing would train"):
        Trainable(())


def test_the_table_says_what_trains():
    network, split = freeze(CodeT5p(tiny_config()), TRAINABLE)
    lines = parts_table(network.specs, split)
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert cells["encoder"][-1] == cells["decoder/cross_attention"][-1] == "yes"
    assert cells["decoder"][-1] == cells["embedding"][-1] == "no"
    numbers = [int(cell[0].replace(",", "")) for cell in cells.values()]
    assert sum(numbers) == count(network.specs)
    assert lines[-1].endswith(f"% of {count(network.specs):,} parameters train")


def test_a_split_and_its_inverse():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    one, other = Split(frozenset({"a/c", "d"}))(tree)
    assert (one, other) == ({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})
    assert merge(one, other) == tree
    assert Split()(tree) == (tree, {})


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A cache, and a run whose weights others start from; the same as a folder and imported."""
    folder = tmp_path_factory.mktemp("freezing")
    write_cache(folder / "cache")
    synthetic.run(folder / "cache", folder / "first", phases=[Phase("denoise", 3, 8)])
    export_weights(folder / "first", folder / "folder", say=lambda _: None)
    import_weights(folder / "folder", folder / "imported", say=lambda _: None)
    return folder


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_run_that_is_resumed_and_exported(first, tmp_path, average):
    """The frozen part comes out of checkpoints, evaluation and export as it went in."""
    settings = {
        "trainable": dataclasses.replace(TRAINABLE, frozen_dtype="float32"),
        "init_from": InitFrom(str(first / "first")),
        "phases": [Phase("denoise", 4, 8)],
        "ema_decay": average,
    }
    whole = synthetic.run(first / "cache", tmp_path / "run", **settings)
    loss = {k: v["span_denoising/loss"] for k, v in vars(whole).items() if k in ("before", "after")}
    assert loss["after"] < loss["before"]
    start, _, _ = load_params(first / "first")
    end, _, _ = load_params(tmp_path / "run")
    split = TRAINABLE.split(start)
    ends = dict(flatten(end))
    for name, array in flatten(start):
        same = bool(np.array_equal(ends[name], array))
        assert same == (name in split.frozen), name
    shutil.rmtree(tmp_path / "run/checkpoints/4")  # as if it had been killed before
    again = synthetic.run(first / "cache", tmp_path / "run", **settings)
    assert again.after == whole.after
    resumed, _, _ = load_params(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed, end)
    export_weights(tmp_path / "run", tmp_path / "exported", say=lambda _: None)
    assert json.loads((tmp_path / "exported/config.json").read_text())["model_type"] == "t5"


def check_snapshot(path, whole, save_frozen):
    """It has the weights of a run, those that train rounded, and is loaded by its own path."""
    assert saved_steps(path.parent) == [3, 4]
    assert (path / "frozen").exists() == save_frozen
    small = dict(flatten(load_params(path)[0]))
    frozen = TRAINABLE.split(whole).frozen
    for name, array in flatten(whole):
        expected = array if name in frozen else array.astype(jnp.bfloat16).astype(array.dtype)
        np.testing.assert_array_equal(small[name], expected)
    plan = plan_init(InitFrom(str(path)), CodeT5p(tiny_config()).specs)
    assert (plan.path, plan.fresh) == (path.resolve(), ())


def test_checkpoints_can_leave_out_what_is_frozen(first, tmp_path, one_device):
    """They say where it came from; it is read from there, and has to be what it was."""
    shutil.copytree(first / "folder", tmp_path / "folder")
    for number, source in enumerate((str(first / "imported"), f"hf:{tmp_path / 'folder'}")):
        ends = []
        for save_frozen in (True, False):
            run = tmp_path / f"run{number}{save_frozen}"
            settings = {
                "trainable": dataclasses.replace(TRAINABLE, save_frozen=save_frozen),
                "init_from": InitFrom(source),
                "phases": [Phase("denoise", 4, 8)],
                "checkpoints": CheckpointPolicy(every=2, snapshots=SnapshotPolicy(3)),
            }
            synthetic.run(first / "cache", run, **settings)
            shutil.rmtree(run / "checkpoints/4")
            synthetic.run(first / "cache", run, **settings)
            ends.append(load_params(run)[0])
            check_snapshot(run / "snapshots/4", ends[-1], save_frozen)
        jax.tree.map(np.testing.assert_array_equal, *ends)
        assert not (run / "checkpoints/4/frozen").exists()
        export_weights(run / "snapshots/4", tmp_path / f"small{number}", say=lambda _: None)
        weights = open_hugging_face(tmp_path / f"small{number}")
        assert {weights.dtype(name) for name in weights.shapes} == {jnp.dtype(jnp.bfloat16)}
        export_weights(run, tmp_path / f"exported{number}", say=lambda _: None)
        exported = dict(flatten(ends[1]))
        weights = open_hugging_face(tmp_path / f"exported{number}")
        np.testing.assert_array_equal(weights.read("embedding"), exported["embedding"])
        assert weights.dtype("decoder/final_norm/scale") == jnp.bfloat16
        assert weights.dtype("encoder/final_norm/scale") == np.float32

    file = tmp_path / "folder/model.safetensors"
    data = bytearray(file.read_bytes())
    start = SafetensorsFolder(tmp_path / "folder").tensors["shared.weight"].offset
    data[start : start + 4] = np.float32(3).tobytes()
    file.write_bytes(data)
    for path in (run, run / "snapshots/4"):
        with pytest.raises(ValueError, match=r"embedding in hf:.*is not what it was when this run"):
            load_params(path)
    with pytest.raises(ValueError, match="is itself a checkpoint or snapshot"):
        synthetic.run(first / "cache", run / "snapshots/4", **settings)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=r"\[3, 4\], which are weights alone, and no checkpoint"):
        synthetic.run(first / "cache", run, **settings)


def test_nothing_frozen_can_be_left_out_that_came_from_nowhere(first, tmp_path):
    settings = {
        "trainable": dataclasses.replace(TRAINABLE, save_frozen=False),
        "phases": [Phase("denoise", 3, 8)],
    }
    with pytest.raises(ValueError, match=r"but INITIAL_CHECKPOINT_PATH .* names nothing"):
        synthetic.run(first / "cache", tmp_path / "run", **settings)
    init = InitFrom(str(first / "first"))
    with pytest.raises(ValueError, match=r"can be left in .*first/checkpoints/3: a run deletes"):
        synthetic.run(first / "cache", tmp_path / "run", init_from=init, **settings)


def test_what_does_not_stay_where_it_was_is_saved(first, tmp_path, one_device, capsys):
    """Here an embedding that the weights lack; resumed, it is what it was."""
    init = InitFrom(str(first / "imported"), (("embedding", "gone"),), ("embedding",), ("gone",))
    settings = {
        "trainable": dataclasses.replace(TRAINABLE, save_frozen=False),
        "init_from": init,
        "phases": [Phase("denoise", 4, 8)],
        "save_every": 2,
        "evaluation": Evaluation(every=None),
    }
    synthetic.run(first / "cache", tmp_path / "run", **settings)
    said = capsys.readouterr().out
    assert "checkpoints hold 0.00 MB of what is frozen: not all stays" in said
    meta = read_meta(tmp_path / "run/checkpoints/4")
    assert [name for name in meta["arrays"] if name.startswith("frozen/")] == ["frozen/embedding"]
    end, _, _ = load_params(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    synthetic.run(first / "cache", tmp_path / "run", **settings)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "run")[0], end)


def test_frozen_weights_are_followed_to_where_they_stay(first, tmp_path, one_device, capsys):
    """A run may be deleted that another one started from, and the weights of both may move. All
    tokens that end a text for these go along."""
    shutil.copytree(first / "folder", tmp_path / "folder")
    generation = json.loads((tmp_path / "folder/generation_config.json").read_text())
    generation["eos_token_id"] = [generation["eos_token_id"], 7]
    (tmp_path / "folder/generation_config.json").write_text(json.dumps(generation))
    settings = {
        "trainable": dataclasses.replace(TRAINABLE, save_frozen=False),
        "phases": [Phase("denoise", 4, 8)],
        "save_every": 2,
        "evaluation": Evaluation(every=None),
    }
    run = functools.partial(synthetic.run, first / "cache", **settings)
    run(tmp_path / "one", init_from=InitFrom(f"hf:{tmp_path / 'folder'}"))
    run(tmp_path / "two", init_from=InitFrom(str(tmp_path / "one")))
    end, _, _ = load_params(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two/checkpoints/4")
    run(tmp_path / "two", init_from=InitFrom(str(tmp_path / "one")))
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "two")[0], end)
    meta = read_meta(tmp_path / "two/checkpoints/4")
    assert meta["token_ids"]["other_eos"] == [7]
    assert {x["source"] for x in meta[ELSEWHERE].values()} == {f"hf:{tmp_path / 'folder'}"}

    (tmp_path / "folder").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"left in hf:.*folder, which is not there.*link"):
        load_params(tmp_path / "two")
    shutil.rmtree(tmp_path / "two/checkpoints/4")
    other = InitFrom(f"hf:{tmp_path / 'other'}")
    with pytest.raises(FileNotFoundError, match=r"left in hf:.*other, which is not there"):
        run(tmp_path / "two", init_from=other)
    moved = {"init_from": InitFrom(f"hf:{tmp_path / 'moved'}")}
    with_all = dataclasses.replace(settings["trainable"], save_frozen=True)  # only at the start
    run(tmp_path / "two", **moved, trainable=with_all)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "two")[0], end)


def test_a_checksum_sees_every_bit_and_every_place():
    x = jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4)
    assert checksum(x) == checksum(x + 0)
    assert checksum(x) != checksum(x.at[1, 2, 3].set(22.875))
    assert checksum(x) != checksum(x[::-1])
    assert checksum(x) != checksum(x.astype(jnp.float32))
    sharded = jax.device_put(
        jnp.arange(64.0).reshape(8, 8),
        jax.sharding.NamedSharding(jax.make_mesh((8,), ("a",)), jax.sharding.PartitionSpec("a")),
    )
    assert checksum(sharded) == checksum(jnp.arange(64.0).reshape(8, 8))


SELF = tuple(name for name in Lora.PROJECTIONS if "/" not in name)
LORA = Lora(rank=3, alpha=6.0, targets=SELF)


def test_low_rank_additions_start_at_nothing_and_train(tmp_path, one_device):
    write_cache(tmp_path / "cache")
    model = tiny_config(gated=True)
    lora = dataclasses.replace(LORA, targets=(*SELF, "cross_attention/q"))
    run = functools.partial(synthetic.run, tmp_path / "cache")
    run(tmp_path / "first", model=model, phases=[Phase("denoise", 3, 8)])
    result = run(
        tmp_path / "run",
        model=model,
        trainable=Trainable((".*/cross_attention/[kvo]",), "float32", lora=lora),
        init_from=InitFrom(str(tmp_path / "first")),
        phases=[Phase("denoise", 8, 8)],
    )
    first, _, _ = load_params(tmp_path / "first")
    params, config, _ = load_params(tmp_path / "run")
    assert (config.encoder.lora, config.decoder.lora) == (LORA, lora)
    flat = dict(flatten(params))
    names = [name.removesuffix("_lora_b") for name in flat if name.endswith("_lora_b")]
    assert len(names) == 15
    for name in names:
        np.testing.assert_array_equal(flat[name], dict(flatten(first))[name])
        assert np.any(flat[f"{name}_lora_b"]), name
    assert result.after["span_denoising/loss"] < result.before["span_denoising/loss"]

    # What is exported has them merged: another network with the same outputs.
    export_weights(tmp_path / "run", tmp_path / "exported", say=lambda _: None)
    check_merged(open_hugging_face(tmp_path / "exported"), config, params)


def check_merged(merged, config, params):
    """Weights without additions compute what the network computes with them, and not without."""
    assert (merged.config.encoder.lora, merged.config.decoder.lora) == (None, None)
    tokens, ones = jnp.arange(1, 9)[None], jnp.ones((1, 8), jnp.int32)

    def logits(config, params):
        def run(params):
            bound = CodeT5p(config).bind(params)
            return bound.logits(bound.decode(tokens, ones, bound.encode(tokens, ones), ones))

        return jax.jit(run)(params)

    expected = logits(config, params)
    whole = nested({name: jnp.asarray(merged.read(name)) for name in merged.shapes})
    np.testing.assert_allclose(logits(merged.config, whole), expected, atol=1e-5)
    plain = {name: x for name, x in flatten(params) if "_lora_" not in name}
    assert np.max(np.abs(logits(merged.config, nested(plain)) - expected)) > 1e-3


def test_low_rank_additions_are_for_what_is_frozen():
    lora = dataclasses.replace(LORA, targets=("q", "wi"))
    config = frozen_towers(tiny_config(), Trainable(("encoder/.*",), lora=lora))
    assert (config.encoder.lora, config.decoder.lora) == (None, lora)
    for wrong in (
        *({"rank": 0}, {"alpha": 0.0}, {"targets": ("query",)}, {"targets": ()}),
        *({"targets": ("cross_attention/wi",)}, {"targets": ("layer_0/q",)}),
    ):
        with pytest.raises(ValueError, match=r"expected a rank|has to name some of q, k, v"):
            dataclasses.replace(LORA, **wrong)


def additions(config):
    """Paths of the projections that have some."""
    names = dict(flatten(CodeT5p(config).specs))
    return {name.removesuffix("_lora_a") for name in names if name.endswith("_lora_a")}


@pytest.mark.parametrize("pattern", [".*norm.*", "encoder/layers/attention/q", "embedding"])
def test_what_trains_beside_a_projection_takes_no_additions_from_it(pattern):
    lora = Lora(2, targets=("q", "v", "cross_attention/k"))
    config = frozen_towers(tiny_config(), Trainable((pattern,), lora=lora))
    wanted = {f"{tower}/layers/attention/{x}" for tower in ("encoder", "decoder") for x in "qv"}
    wanted |= {"decoder/layers/cross_attention/k"}
    assert additions(config) == wanted - {pattern}
    _, split = freeze(CodeT5p(config), Trainable((pattern,), lora=lora))
    assert not any("_lora_" in name or name == pattern for name in split.frozen)
    assert wanted - {pattern} <= split.frozen


def test_additions_to_some_layers():
    """Cross-attention in the last of three layers, which are then stored in two groups."""
    config = tiny_config(num_decoder_layers=3)
    decoder = dataclasses.replace(config.decoder, cross_attention=(2,))
    config = dataclasses.replace(config, decoder=decoder)
    trainable = Trainable(("encoder/.*", "decoder/layers_2/.*"), lora=Lora(2))
    found = frozen_towers(config, trainable)
    assert found.decoder.lora == Lora(2, targets=("layers_0/q", "layers_0/v"))
    assert additions(found) == {"decoder/layers_0/attention/q", "decoder/layers_0/attention/v"}
    assert config_from_json(config_to_json(found)) == found
    params = init_params(CodeT5p(found).specs, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.01, params)  # no addition of zero
    check_merged(MergedLora(ArrayWeights(found, dict(flatten(params)))), found, params)
    one = Lora(2, targets=("layers_2/wi", "layers_2/cross_attention/q"))
    found = frozen_towers(config, Trainable((), lora=one))
    assert additions(found) == {
        "decoder/layers_2/feed_forward/wi",
        "decoder/layers_2/cross_attention/q",
    }


@pytest.mark.parametrize(
    ("patterns", "target", "found"),
    [
        ((".*/q",), "q", "decoder/layers/attention/q, encoder/layers/attention/q train;"),
        (
            (".*/cross_attention.*",),
            "cross_attention/v",
            "for projections that are frozen, but decoder/layers/cross_attention/v train;",
        ),
        (
            (),
            "gate",
            "no projection of this network: encoder has k, o, q, v, wi, wo; decoder",
        ),
        ((), "layers_1/q", "no projection of this network: encoder has k, .*; decoder has "),
    ],
)
def test_targets_without_a_frozen_projection_are_named(patterns, target, found):
    lora = Lora(2, targets=("wo", target))
    with pytest.raises(ValueError, match=f"Lora.targets: '{target}' is .*{found}"):
        frozen_towers(tiny_config(), Trainable(patterns, lora=lora))
