"""Checkpoints on a network of one matrix, and the weights of a real one."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p, abstract_params, configs
from codet5p_jax.models.params import flatten
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training import checkpoints, failed_saves
from codet5p_jax.training.checkpoint_files import saved_steps
from codet5p_jax.training.checkpoints import (
    CheckpointPolicy,
    Checkpoints,
    SnapshotPolicy,
    check_resumable,
    restore_latest,
    snapshot_bytes,
    state_bytes,
)
from codet5p_jax.training.freezing import Trainable, freeze
from codet5p_jax.training.model_dir import ModelDir, config_to_json
from codet5p_jax.training.optimizers import AdamW, RmsScaledAdamW
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import TrainState, abstract_state, init_state
from codet5p_jax.training.stored_weights import StoredWeights, load_params, read_params
from tests.training.linear import Linear, Regression
from tests.training.synthetic import tiny_config

MODEL = Linear()
RATE = Constant(0.1).make(10)
RULE = AdamW().make(RATE, MODEL.specs)
MESH = MeshConfig(replica=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def state():
    return init_state(MODEL, [Regression()], RULE, make_mesh(MESH), seed=0)


def at(state, step):
    """The state with `step` in every leaf's values."""
    return jax.tree.map(lambda x: (x + step).astype(x.dtype), state)


@pytest.fixture
def run(tmp_path, state):
    """A model directory with checkpoints of steps 2 and 4."""
    directory = ModelDir(tmp_path / "model")
    directory.root.mkdir()
    saver = Checkpoints(directory.checkpoints, CheckpointPolicy())
    for step in (2, 4):
        saver.save(at(state, step), step, {"step": step, "text": "a = 1\n"})
    saver.close()
    return directory


def abstract(mesh=MESH, rule=RULE, **settings):
    return abstract_state(MODEL, [Regression()], rule, make_mesh(mesh), **settings)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_newest_comes_back_on_another_mesh(run, state):
    other = MeshConfig(fsdp=4, tensor=2)
    restored, meta = restore_latest(run, abstract(other), print)
    assert_equal(restored, at(state, 4))
    assert restored.params["w"].sharding.mesh.shape["fsdp"] == 4
    assert (meta["step"], meta["text"]) == (4, "a = 1\n")


def test_nothing_to_restore(tmp_path):
    assert restore_latest(ModelDir(tmp_path), abstract(), print) is None


def truncate(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_files(folder):
    shutil.rmtree(folder / "training" / "d")


def garble(folder):
    path = folder / "meta" / "data.json"
    path.write_text("{" * path.stat().st_size)


@pytest.mark.parametrize("damage", [truncate, lose_files, garble])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(run, state, damage):
    damage(run.checkpoints / "4")
    said = []
    restored, meta = restore_latest(run, abstract(), said.append)
    assert_equal(restored, at(state, 2))
    assert meta["step"] == 2
    [line] = said
    assert line.startswith("checkpoint 4 cannot be read (")
    assert "\n" not in line
    # It is out of the way of the checkpoint that will be written there again.
    assert saved_steps(run.checkpoints) == [2]
    assert (run.damaged / "4").is_dir()
    saver = Checkpoints(run.checkpoints, CheckpointPolicy())
    saver.save(at(state, 4), 4, {"step": 4})
    saver.close()
    assert_equal(restore_latest(run, abstract(), print)[0], at(state, 4))


def test_when_none_can_be_read_it_does_not_silently_start_again(run):
    for step in (2, 4):
        truncate(run.checkpoints / str(step))
    with pytest.raises(OSError, match=r"none of the checkpoints \[2, 4\] .* nothing was changed"):
        restore_latest(run, abstract(), print)
    assert saved_steps(run.checkpoints) == [2, 4]
    assert not run.damaged.exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        PermissionError(13, "Permission denied"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_want_of_memory_or_permission_is_not_damage(run, monkeypatch, error, wrapped):
    def load(*args):
        if wrapped:
            raise ValueError("could not be read") from error
        raise error

    monkeypatch.setattr(checkpoints, "load", load)
    said = []
    with pytest.raises(ValueError if wrapped else type(error)):
        restore_latest(run, abstract(), said.append)
    assert said == []
    assert saved_steps(run.checkpoints) == [2, 4]
    assert not run.damaged.exists()


def test_another_state_is_an_error_and_not_damage(run):
    with pytest.raises(ValueError, match=r"training/ema/w: nothing there, \[4, 8\] here"):
        restore_latest(run, abstract(ema=True), print)
    assert saved_steps(run.checkpoints) == [2, 4]


def test_an_unfinished_save_is_no_checkpoint_and_is_cleared_away(run):
    half = run.checkpoints / "6.orbax-checkpoint-tmp"
    shutil.copytree(run.checkpoints / "4", half)
    (half / "commit_success.txt").unlink()
    assert saved_steps(run.checkpoints) == [2, 4]
    Checkpoints(run.checkpoints, CheckpointPolicy()).close()
    assert not half.exists()


def test_the_policy_keeps_the_newest_and_every_nth(tmp_path, state):
    saver = Checkpoints(tmp_path / "c", CheckpointPolicy(keep_last=2, keep_every=4))
    for step in range(1, 8):
        saver.save(state, step, {})
    saver.close()
    assert saved_steps(tmp_path / "c") == [4, 6, 7]


def test_a_save_that_fails_says_where(run, state):
    saver = Checkpoints(run.checkpoints, CheckpointPolicy())
    shutil.rmtree(run.checkpoints)
    run.checkpoints.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"saving a checkpoint to .*checkpoints failed"):
        saver.save(state, 8, {})


FULL_DISK = """
import resource, sys
import jax
from pathlib import Path
from tests.training.test_checkpoints import Checkpoints, CheckpointPolicy
saver = Checkpoints(Path(sys.argv[1]), CheckpointPolicy())
state = {name: jax.random.normal(jax.random.key(0), (100_000,)) for name in "abcdefgh"}
saver._save(saver._checkpointer, saver._directory / "1", {"params": state}, {})
saver.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    saver._save(saver._checkpointer, saver._directory / "2", {"params": state}, {})
    saver.wait()
except OSError as error:
    print(error)
try:
    saver.close()
except OSError as error:
    print("again", error)
"""


def test_only_callbacks_of_a_closed_loop_are_not_shown():
    shown = []
    hook = failed_saves._Unraisable(shown.append)
    other = SimpleNamespace(exc_value=RuntimeError("something else"))
    for found in (SimpleNamespace(exc_value=RuntimeError("Event loop is closed")), other):
        hook(found)
    assert shown == [other]


def test_a_disk_that_fills_is_a_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "c")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = done.stdout + done.stderr
    assert f"saving a checkpoint to {tmp_path / 'c'} failed" in found
    assert "What was saved before is intact" in found
    assert "Traceback" not in found
    assert saved_steps(tmp_path / "c") == [1]


def save_model(directory, *steps, ema=False, snapshots=None):
    """A model directory of `tiny_config`, or its snapshots; returns (configuration, weights, their
    average)."""
    config = tiny_config()
    directory.tokenizer.mkdir(parents=True)
    directory.config.write_text(json.dumps(config_to_json(config)))
    params = jax.tree.map(
        lambda x: jnp.full(x.shape, 3.0, x.dtype), abstract_params(CodeT5p(config).specs)
    )
    average = jax.tree.map(lambda x: x + 1, params) if ema else None
    zero = jnp.zeros((), jnp.int32)
    saver = Checkpoints(directory.checkpoints, CheckpointPolicy(snapshots=snapshots))
    save = saver.save_snapshot if snapshots else saver.save
    for step in steps:
        save(TrainState(zero, params, (), {}, average, zero, zero), step, {"step": step})
    saver.close()
    return config, params, average


@pytest.mark.parametrize("ema", [False, True])
def test_weights_for_inference(tmp_path, ema):
    directory = ModelDir(tmp_path / "model")
    config, params, average = save_model(directory, 7, ema=ema)
    loaded, found, tokenizer = load_params(directory.root)
    assert found == config
    assert tokenizer == directory.tokenizer
    assert_equal(loaded, average if ema else params)
    assert {n for n, _ in flatten(loaded)} == {n for n, _ in flatten(CodeT5p(config).specs)}
    with pytest.raises(FileNotFoundError, match=r"of step 3 .* found steps \[7\]"):
        load_params(directory.root, step=3)


@pytest.mark.parametrize(
    ("damage", "sealed"), [(truncate, True), (lose_files, True), (garble, True), (garble, False)]
)
def test_weights_of_a_damaged_checkpoint_are_refused_in_a_line(tmp_path, damage, sealed):
    directory = ModelDir(tmp_path)
    save_model(directory, 5, 7)
    damaged = directory.checkpoints / "7"
    damage(damaged)
    if not sealed:  # killed just before
        (damaged / "sizes.json").unlink()
    with pytest.raises(OSError, match="cannot be read") as error:
        load_params(directory.root)
    text = str(error.value)
    assert text.startswith(f"checkpoint {damaged} cannot be read (")
    assert text.endswith(
        "Copy it again from where it was written, or move it away to take the newest of steps [5]"
    )
    assert "\n" not in text
    assert "handler" not in text
    assert len(text) < 600
    assert saved_steps(directory.checkpoints) == [5, 7]
    load_params(directory.root, step=5)


def test_bytes_found_and_expected_are_named(tmp_path):
    directory = ModelDir(tmp_path)
    save_model(directory, 7)
    file = next((directory.checkpoints / "7" / "params" / "d").iterdir())
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OSError, match=rf"\(params/d/\w+ has 100 of {size:,} bytes\)") as error:
        load_params(directory.root)
    assert "move it away" not in str(error.value), "there is no other"


def test_another_optimizer_is_an_error(run):
    rule = RmsScaledAdamW().make(RATE, MODEL.specs)
    with pytest.raises(ValueError, match="is of another state"):
        restore_latest(run, abstract(rule=rule), print)


def test_how_many_checkpoints_there_are_at_most():
    assert CheckpointPolicy(every=10, keep_last=2).most(200) == 3
    assert CheckpointPolicy(every=10, keep_last=2, keep_every=50).most(200) == 7
    assert CheckpointPolicy(every=10, keep_last=1, keep_every=5).most(20) == 4, "5 is not saved"


@pytest.mark.parametrize("field", ["every", "keep_last", "keep_every"])
def test_a_policy_has_positive_numbers(field):
    with pytest.raises(ValueError, match="1 or more"):
        dataclasses.replace(CheckpointPolicy(), **{field: 0})


@pytest.mark.parametrize("field", ["every", "keep_last"])
def test_a_policy_of_snapshots_has_positive_numbers(field):
    with pytest.raises(ValueError, match="1 or more"):
        dataclasses.replace(SnapshotPolicy(1), **{field: 0})


SNAPSHOTS = CheckpointPolicy(every=10, snapshots=SnapshotPolicy(1))


def test_a_snapshot_holds_weights_alone(run, state):
    thirds = jax.tree.map(lambda x: (x + 1 / 3).astype(x.dtype), state)
    saver = Checkpoints(run.checkpoints, SNAPSHOTS)
    saver.save(thirds, 6, {"step": 6})
    saver.save_snapshot(thirds, 6, {"step": 6})
    saver.close()
    path = run.snapshots / "6"
    assert {p.name for p in path.iterdir() if p.is_dir()} == {"params", "meta"}
    assert json.loads((path / "sizes.json").read_text())
    wanted = {"w": abstract().params["w"]}
    whole, small = (
        read_params(run.root / f / "6", wanted)["w"] for f in ("checkpoints", "snapshots")
    )
    assert small.sharding == whole.sharding
    np.testing.assert_array_equal(small, np.asarray(whole).astype(jnp.bfloat16))
    assert np.any(small != whole)
    assert saved_steps(run.checkpoints) == [4, 6]
    shutil.rmtree(run.checkpoints / "6")
    assert restore_latest(run, abstract(), print)[1]["step"] == 4, "never a snapshot"


def test_snapshots_stay_or_the_newest_do(tmp_path, state):
    for keep_last, kept in ((None, [1, 2, 3]), (2, [2, 3])):
        root = tmp_path / str(keep_last)
        policy = CheckpointPolicy(snapshots=SnapshotPolicy(1, keep_last, "float32"))
        saver = Checkpoints(root / "checkpoints", policy)
        for step in (1, 2, 3):
            saver.save_snapshot(state, step, {})
        saver.close()
        assert saved_steps(ModelDir(root).snapshots) == kept
        # A run that goes on from an earlier checkpoint makes them again.
        half = ModelDir(root).snapshots / "9.orbax-checkpoint-tmp"
        shutil.copytree(ModelDir(root).snapshots / "3", half)
        again = Checkpoints(root / "checkpoints", policy)
        assert not half.exists()
        again.save_snapshot(at(state, 5), 2, {})
        again.close()
        assert saved_steps(ModelDir(root).snapshots) == kept
        wanted = {"w": abstract().params["w"]}
        assert_equal(
            read_params(ModelDir(root).snapshots / "2", wanted)["w"], state.params["w"] + 5
        )


@pytest.mark.parametrize("ema", [False, True])
def test_a_snapshot_is_read_by_its_folder(tmp_path, ema):
    directory = ModelDir(tmp_path / "model")
    config, params, average = save_model(directory, 7, ema=ema, snapshots=SnapshotPolicy(1))
    loaded, found, tokenizer = load_params(directory.snapshots / "7")
    assert (found, tokenizer.resolve()) == (config, directory.tokenizer.resolve())
    assert_equal(loaded, average if ema else params)
    assert loaded["embedding"].dtype == jnp.float32
    stored = StoredWeights(directory.snapshots / "7")
    assert stored.dtype("embedding") == jnp.bfloat16
    assert set(stored.trained) == set(stored.shapes)
    with pytest.raises(FileNotFoundError, match=r"found steps \[\]; snapshots are .*snapshots/7$"):
        load_params(directory.root)
    for step in (3, 7):  # there may be a checkpoint of step 7 as well
        with pytest.raises(ValueError, match=rf"step {step} is for .*snapshots/7 is itself a"):
            StoredWeights(directory.snapshots / "7", step=step)
    truncate(directory.snapshots / "7")
    with pytest.raises(OSError, match=r"snapshots/7 cannot be read \(params/"):
        load_params(directory.snapshots / "7")


def test_what_is_left_of_a_run_may_be_weights_alone(tmp_path, state):
    directory = ModelDir(tmp_path)
    saver = Checkpoints(directory.checkpoints, SNAPSHOTS)
    saver.save_snapshot(state, 9, {})
    check_resumable(tmp_path, SNAPSHOTS)  # killed before its first checkpoint
    saver.save_snapshot(state, 12, {})
    saver.wait()
    with pytest.raises(
        ValueError, match=r"snapshots of steps \[9, 12\], which are weights alone"
    ) as e:
        check_resumable(tmp_path, SNAPSHOTS)
    assert f"set INITIAL_CHECKPOINT_PATH to {directory.snapshots / '12'} and MODEL_DIR" in str(
        e.value
    )
    saver.save(state, 10, {})
    saver.close()
    check_resumable(tmp_path, SNAPSHOTS)
    for one in (directory.snapshots / "12", directory.checkpoints / "10"):
        with pytest.raises(ValueError, match="is itself a checkpoint or snapshot"):
            check_resumable(one, SNAPSHOTS)


def test_how_many_snapshots_there_are_at_most():
    assert SnapshotPolicy(every=40).most(100) == 3
    assert SnapshotPolicy(every=40, keep_last=1).most(100) == 2
    assert SnapshotPolicy(every=40, keep_last=9).most(100) == 3


@pytest.mark.parametrize("ema", [False, True])
def test_a_snapshot_of_16b_takes_less_than_a_gigabyte(ema):
    """Reckoned from shapes: nothing is allocated."""
    model = configs.codet5p_codegen(num_decoder_layers=34, d_model=6_144, num_heads=24)
    trainable = Trainable(("encoder.*", ".*/cross_attention.*"), save_frozen=False)
    network, split = freeze(CodeT5p(model), trainable)
    rule = AdamW().make(RATE, split(network.specs)[0])
    whole = abstract_state(network, [], rule, make_mesh(MeshConfig()), split=split, ema=ema)
    saved = dataclasses.replace(whole, frozen={})
    assert snapshot_bytes(saved, SnapshotPolicy(1)) == 2 * 461_524_992 < 10**9
    assert snapshot_bytes(saved, SnapshotPolicy(1, dtype="float32")) == 4 * 461_524_992
    assert snapshot_bytes(whole, SnapshotPolicy(1)) > 32 * 10**9, "with what is frozen"
    assert state_bytes(saved) > (16 if ema else 12) * 461_524_992


@pytest.mark.slow
def test_two_processes_save_both_kinds(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "tests.training.two_processes"]
    processes = [
        subprocess.Popen(
            [*command, str(i), port, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=300)[0].strip().splitlines()[-1] for process in processes]
    assert told == [f"process {i} of 2 read what both have written" for i in range(2)]
    assert saved_steps(tmp_path / "checkpoints") == [4]
    assert saved_steps(tmp_path / "snapshots") == [3, 4]
