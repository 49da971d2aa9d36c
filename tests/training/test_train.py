"""Whole runs: killed, terminated, resumed, started from other weights, refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p
from codet5p_jax.objectives import SpanDenoising
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoint_files import saved_steps
from codet5p_jax.training.checkpoints import InitFrom, restore_latest
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.goodput import latest_seconds
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.optimizers import AdamW
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.recorder import Recorder
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import abstract_state
from codet5p_jax.training.stored_weights import load_params
from codet5p_jax.training.train import Logging
from tests.training import synthetic
from tests.training.synthetic import Interrupting, objectives, run, tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a cache of examples."""
    folder = tmp_path_factory.mktemp("runs")
    synthetic.write_cache(folder / "cache")
    return folder


def start(workplace, name, *, kill_at=0, save=0, terminate_at=0, workers=0):
    """A process group with a run on one device; programs are compiled once for all processes."""
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(workplace / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "tests.training.synthetic", str(workplace / "cache")]
    numbers = [str(n) for n in (kill_at, save, terminate_at, workers)]
    return subprocess.run(
        [*command, str(workplace / name), *numbers],
        cwd=ROOT, env=env, start_new_session=True, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def records(directory):
    """All of metrics.jsonl but the timings, as text: every digit counts."""
    found = read_records(ModelDir(directory).metrics)
    return [json.dumps({k: v for k, v in r.items() if k != "timing"}) for r in found]


def final_state(directory):
    """Every array of the newest checkpoint."""
    model = CodeT5p(tiny_config())
    rule = AdamW().make(Constant(0.1).make(10), model.specs)
    abstract = abstract_state(model, objectives()[:2], rule, make_mesh(MeshConfig(tensor=2)))
    state, _ = restore_latest(ModelDir(directory), abstract, print)
    assert int(state.step) == 12
    return jax.tree.leaves(state)


def assert_same_run(one, other):
    assert records(one) == records(other)
    for x, y in zip(final_state(one), final_state(other), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(workplace):
    """The run that nothing interrupts."""
    done = start(workplace, "whole")
    assert done.returncode == 0, done.stderr
    return workplace / "whole", done.stdout


def test_a_run_prints_and_leaves_what_it_should(whole):
    directory, output = whole
    lines = output.splitlines()
    [start_up] = [i for i, line in enumerate(lines) if line.startswith("start-up ")]
    assert start_up < 60
    for lap in ("before", "data", "initialise", "compile", "first step"):
        assert f" {lap} " in lines[start_up]
    [memory] = [i for i, line in enumerate(lines) if line.startswith("memory per device: the step")]
    assert memory < start_up, "before the first step"
    assert lines[-2].startswith("goodput ")
    assert lines[-1].startswith("finished at step 12")

    found = read_records(ModelDir(directory).metrics)
    assert [(r["step"], r["split"]) for r in found] == [
        (0, "validation"), (5, "train"), (6, "validation"), (10, "train"), (12, "train"),
        (12, "validation"), (12, "goodput"),
    ]  # fmt: skip
    assert found[-2]["span_denoising/loss"] < found[0]["span_denoising/loss"]
    assert {"decoder_clm/loss", "decoder_clm/accuracy"} < found[0].keys()
    expected = {"loss", "learning_rate", "grad_norm", "param_norm", "tokens", "padding", "skipped"}
    assert expected < found[1].keys()
    timing = found[1]["timing"]
    assert {"tokens_per_second", "steps_per_second", "data_wait_seconds"} < timing.keys()
    spent = latest_seconds(found)
    assert all(spent[part] > 0 for part in ("start_up", "steps", "checkpoint", "evaluation"))
    assert spent["lost"] == 0
    assert saved_steps(ModelDir(directory).checkpoints) == [9, 12]
    config = json.loads(ModelDir(directory).config.read_text())
    assert config["vocab_size"] == synthetic.VOCAB
    assert (ModelDir(directory).tokenizer / "tokenizer.json").exists()


def test_killed_at_several_moments_it_ends_in_the_same_bits(workplace, whole):
    directory = workplace / "killed"
    checkpoints = ModelDir(directory).checkpoints
    # Before anything was saved: it starts again from nothing.
    assert start(workplace, "killed", kill_at=2).returncode == -signal.SIGKILL
    assert saved_steps(checkpoints) == []
    # While the second checkpoint, of step 6, is being written.
    assert start(workplace, "killed", save=2).returncode == -signal.SIGKILL
    assert saved_steps(checkpoints) in ([3], [3, 6])
    # After the record of step 10, of which the newest checkpoint knows only a part.
    assert start(workplace, "killed", kill_at=11).returncode == -signal.SIGKILL
    assert saved_steps(checkpoints)[-1] in (6, 9)
    before = read_records(ModelDir(directory).metrics)
    assert before[-1]["step"] == 10

    done = start(workplace, "killed")
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stdout
    assert_same_run(directory, whole[0])
    then, now = latest_seconds(before), latest_seconds(read_records(ModelDir(directory).metrics))
    assert all(now[part] > then[part] for part in ("start_up", "checkpoint", "evaluation"))
    assert now["lost"] > then["lost"], "steps after the checkpoint were done again"


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_and_exits_with_0(workplace, whole, workers):
    name = f"terminated{workers}"
    done = start(workplace, name, terminate_at=5, workers=workers)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stopped by SIGTERM" in done.stdout
    assert "interrupted" in done.stdout
    newest = saved_steps(ModelDir(workplace / name).checkpoints)[-1]
    assert 5 <= newest < 12
    assert start(workplace, name, workers=workers).returncode == 0
    assert_same_run(workplace / name, whole[0])


def test_a_truncated_newest_checkpoint_costs_the_steps_since_the_one_before(workplace, whole):
    directory = workplace / "truncated"
    shutil.copytree(whole[0], directory)
    for path in (ModelDir(directory).checkpoints / "12").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-10])
    done = start(workplace, "truncated")
    assert done.returncode == 0, done.stderr
    assert "checkpoint 12 cannot be read" in done.stdout
    assert f"resuming {directory} from step 9" in done.stdout
    assert done.stderr == ""
    assert_same_run(directory, whole[0])


def test_a_finished_run_has_nothing_to_do(workplace, whole):
    before = records(whole[0])
    done = start(workplace, "whole")
    assert done.returncode == 0, done.stderr
    assert records(whole[0]) == before


@pytest.fixture(scope="module")
def several_devices():
    return {"mesh": MeshConfig(fsdp=4, tensor=2), "logging": Logging(every=2, tensorboard=False)}


def test_stage_2_starts_from_the_weights_of_stage_1_on_any_mesh(
    workplace, whole, several_devices, capsys, monkeypatch
):
    """Eight devices, stateful objective, moving average, micro-batches; in this process.

    SIGTERM, after the last step, changes nothing, and is told.
    """
    settings = {
        "model": tiny_config(vocab_size=66, embed_dim=8, matching_head=True, dropout=0.0),
        "phases": [Phase("pairs", 3, 8)],
        "evaluation": dataclasses.replace(synthetic.EVALUATION, every=3),
        "ema_decay": 0.5,
        "accumulate": 2,
        **several_devices,
    }
    init = InitFrom(str(whole[0]))
    with pytest.raises(ValueError, match=r"projection/kernel: not in the checkpoint"):
        run(workplace / "cache", workplace / "stage2", init_from=init, **settings)
    assert not (workplace / "stage2").exists(), "refused before anything was written"

    new = ("projection/.*", "log_temperature", "matching_head/.*")
    init = dataclasses.replace(init, new=new)
    finish = Recorder.finish

    def terminated(self, step):
        signal.raise_signal(signal.SIGTERM)
        finish(self, step)

    monkeypatch.setattr(Recorder, "finish", terminated)
    result = run(
        workplace / "cache", workplace / "stage2", init_from=init, profile_steps=(1, 2),
        progress=Interrupting(1, signal.SIGUSR1), **settings,
    )  # fmt: skip
    assert (result.step, result.interrupted, result.terminated) == (3, False, True)
    lines = capsys.readouterr().out.splitlines()
    folder = ModelDir(workplace / "stage2").profile
    traces = [f"trace of steps {steps} in {folder}" for steps in ("1 to 2", "2 to 3")]
    assert [x for x in lines if x.startswith("trace")] == traces, "as asked, and by the signal"
    assert len(list(folder.rglob("*.xplane.pb"))) == len(traces)
    [line] = [x for x in lines if "fresh: " in x]
    assert "fresh: rows 64 to 65 of embedding, log_temperature, matching_head/bias, " in line
    assert {"contrastive/loss", "matching/loss"} < result.before.keys() == result.after.keys()
    params, config, _ = load_params(workplace / "stage2")
    assert config.embed_dim == 8
    stage1, _, _ = load_params(whole[0])
    moved = np.abs(np.asarray(params["embedding"])[:64] - np.asarray(stage1["embedding"]))
    assert 0 < moved.max() < 0.1, "near the weights it came from"


class NotFinite(SpanDenoising):
    """Span denoising whose loss is NaN."""

    def loss(self, model, batch, state, key, train):
        losses, state = super().loss(model, batch, state, key, train)
        return {n: loss._replace(sum=loss.sum * jnp.nan) for n, loss in losses.items()}, state


def test_a_run_without_a_finite_step_fails(workplace, several_devices, capsys):
    directory = workplace / "not_finite"
    settings = {
        "objectives": [NotFinite(inputs_length=16, targets_length=12)],
        "phases": [Phase("denoise", 4, 8)],
        "evaluation": Evaluation(),
        **several_devices,
    }
    with pytest.raises(FloatingPointError, match="finite in none of the 4 steps, so nothing was"):
        run(workplace / "cache", directory, **settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("step ")] == ["2 skipped"] * 2
    assert [r["skipped"] for r in read_records(ModelDir(directory).metrics)] == [2, 2]
    assert 4 not in saved_steps(ModelDir(directory).checkpoints), "it can be started again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny_config(d_ff=48)}, r"config.json differs in encoder.d_ff: 32, now 48"),
        ({"seed": 1}, r"run.json differs in seed: 0, now 1"),
        ({"accumulate": 0}, r"accumulate has to be 1 or more micro-batches, found 0"),
        ({"ema_decay": 2.0}, r"ema_decay has to be at least 0 and below 1, found 2.0"),
        ({"loss_weights": {"span": 1.0}}, r"no loss 'span'"),
        ({"objectives": objectives()[:1]}, r"need the objectives \['decoder_clm'\]"),
        ({"model": tiny_config(vocab_size=50)}, r"has 64 ids, the embedding 50 rows"),
        ({"phases": [Phase("denoise", 4, 6)]}, r"6 rows.* do not divide over 4"),
        ({"phases": [Phase("denoised", 4, 8)]}, r"did you mean 'denoise'"),
    ],
)
def test_mistakes_are_found_before_anything_happens(
    workplace, whole, several_devices, changes, message
):
    before = sorted(whole[0].rglob("*"))
    with pytest.raises(ValueError, match=message):
        run(workplace / "cache", whole[0], **{**several_devices, **changes})
    assert sorted(whole[0].rglob("*")) == before
