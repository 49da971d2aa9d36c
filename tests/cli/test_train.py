"""`codet5p train` as a user types it: own tasks, prepared on the way, trained, described."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from codet5p_jax.cli import gin_config, main
from codet5p_jax.cli import train as command
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.training.train import TrainResult, train
from tests.data.tiny import make_mixture

MY_TASKS = """
from codet5p_jax.data.seqio_tasks import examples_source
from codet5p_jax.tasks.stages import add_stage1_tasks

CODE = [f"def f{i}(x):\\n    return x + {i}\\n" * 4 for i in range(40)]
source = examples_source(
    lambda split: ({"code": code} for code in CODE), ["train", "validation"], {"code": str}, CODE
)
names = ["span_denoising", "seq2seq_clm", "decoder_clm"]
add_stage1_tasks("mine", source, dict.fromkeys(names, 32))
"""
TINY = """
from __gin__ import dynamic_registration
from codet5p_jax.models import configs
from codet5p_jax.training import phases
from codet5p_jax.training import train

include 'runs/quickstart_stage1.gin'

MIXTURE_OR_TASK_NAME = 'mine_span_denoising'
TRAIN_STEPS = 2
BATCH_SIZE = 4
WARMUP_STEPS = 1
VOCAB_SIZE = 512
configs.t5:
  d_model = 16
  num_heads = 2
  head_dim = 8
  d_ff = 32
  num_encoder_layers = 1
  num_decoder_layers = 1
train.train.phases = (@joint/phases.Phase(),)
train.Evaluation.every = None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a module with tasks, a tokenizer, a gin file."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_tasks.py").write_text(MY_TASKS)
    (folder / "tiny.gin").write_text(TINY)
    train_tokenizer(["def f1(x):\n    return x + 23456789\n"] * 9, 512, folder / "tokenizer")
    return folder


def codet5p(folder: Path, *argv: str, after: str = "pass") -> subprocess.CompletedProcess[str]:
    """Runs `codet5p ARGV` there, then the statements `after` in the same process."""
    code = f"import sys; from codet5p_jax.cli.main import main; code = main({argv!r}); {after}"
    return subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(code)"],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": ""},  # one device
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def flags(cache: str, *more: str) -> list[str]:
    return [
        *("--gin_file=tiny.gin", "--module=my_tasks", "--tokenizer=tokenizer"),
        *("--gin.MODEL_DIR='run'", f"--gin.CACHE_DIR='{cache}'", *more),
    ]


def test_prepares_elsewhere_and_trains(folder: Path):
    loaded = "print('LOADED', {'tensorflow', 'seqio', 'torch'} & sys.modules.keys())"
    done = codet5p(folder, "train", *flags("cache", "--profile_steps=1:9"), after=loaded)
    assert done.returncode == 0, done.stderr
    assert "LOADED set()" in done.stdout
    assert "not used by this run: denoise/phases.Phase.mixture" in done.stderr
    assert "mixture 'mine_span_denoising' is not prepared in cache" in done.stderr
    records = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["step"] == 2
    assert "trace of steps 1 to 2 in run/profile" in done.stdout
    assert list((folder / "run/profile").rglob("*.xplane.pb"))
    kept = gin_config.load(train, [str(folder / "run" / "operative_config.gin")])
    assert kept.arguments["model"].encoder.d_model == 16
    assert kept.arguments["model_dir"] == "run"

    of = ("mine_span_denoising", "--cache_dir=cache", "--batch_size=6")
    again = codet5p(folder, "inspect-data", *of)
    assert again.returncode == 0, again.stderr
    assert "== span_denoising: 6 rows of each batch" in again.stdout
    assert "<extra_id_0>" in again.stdout


def test_sigterm_is_a_failure_for_those_who_ask(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """It comes before the first step; the run that goes on is whole, and exits with 0."""
    monkeypatch.chdir(folder)
    of_8 = flags("cache", "--gin.BATCH_SIZE=8")  # a row for each device of this process
    given = [flag.replace("'run'", "'stopped'") for flag in of_8]
    with monkeypatch.context() as patch:
        at_once = contextlib.nullcontext(lambda: True)
        patch.setattr("codet5p_jax.training.train.termination", lambda: at_once)
        assert main.main(["train", *given]) == 0
        assert main.main(["train", *given, "--fail_on_sigterm"]) == 143
    assert main.main(["train", *given, "--fail_on_sigterm"]) == 0
    assert json.loads((folder / "stopped/metrics.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_several_seeds(folder: Path):
    more = ("--seeds=3,5", "--gin.train.Evaluation.every=1", "--gin.train.Evaluation.batches=1")
    given = [flag.replace("'run'", "'seeds'") for flag in flags("cache", *more)]
    done = codet5p(folder, "train", *given)
    assert done.returncode == 0, done.stderr
    runs = {seed: folder / f"seeds/seed_{seed}" for seed in (3, 5)}
    summary = json.loads((folder / "seeds/seeds.json").read_text())
    for seed, run in runs.items():
        kept = gin_config.load(train, [str(run / "operative_config.gin")])
        assert kept.arguments["seed"] == json.loads((run / "run.json").read_text())["seed"] == seed
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        [last] = [r for r in records if (r["split"], r["step"]) == ("validation", 2)]
        found = summary["seeds"][str(seed)]
        assert found["step"] == 2
        assert found["metrics"]["span_denoising/loss"] == last["span_denoising/loss"]
    assert summary["spread"]["span_denoising/loss"] > 0
    table = done.stdout.splitlines()[-4:]
    assert table[0].startswith("held-out metric")
    assert any(line.startswith("span_denoising/loss ") for line in table)


def test_a_signal_after_the_last_step_of_a_seed_ends_the_others(tmp_path, monkeypatch, capsys):
    """After the last seed, nothing is left to end."""
    result = TrainResult(2, False, {}, {"loss": 1.5}, {}, None, tmp_path, terminated=True)
    monkeypatch.setattr("codet5p_jax.training.train.train", lambda **_: result)
    runs = {seed: SimpleNamespace(arguments={"model_dir": "m"}, text="") for seed in (3, 5)}
    assert not command._train_seeds(str(tmp_path), runs)
    assert "stopped by SIGTERM before seed 5; start again to go on" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert command._train_seeds(str(tmp_path), {3: runs[3]})
    assert (tmp_path / "seeds.json").exists()


@pytest.mark.parametrize(
    ("flag", "message", "code"),
    [
        ("--seeds=1,1", "expected different seeds such as 0,1,2, got '1,1'", 2),
        ("--seeds=x", "expected an integer from 0 to 2**32 - 1, got 'x'", 2),
    ],
)
def test_seeds_that_are_none(flag, message, code, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["train", flag])
    assert stopped.value.code == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_one_of_two_processes_prepares_and_both_train(folder: Path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    common = [*flags("shared", f"--coordinator={coordinator}", "--num_processes=2")]
    common = [flag.replace("'run'", "'shared_run'") for flag in common]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(codet5p, folder, "train", *common, f"--process_id={i}") for i in (1, 0)]
        second, first = (done.result() for done in both)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "in 2 process(es)" in first.stdout
    assert "is not prepared in shared: preparing it" in first.stderr
    assert "waiting for process 0 to prepare mine_span_denoising in shared" in second.stderr
    assert "preparing it" not in second.stderr
    assert (folder / "shared_run" / "checkpoints" / "2").is_dir()


def test_dry_run_needs_no_data(folder: Path):
    done = codet5p(folder, "train", "--dry_run", "--num_devices=4", *flags("nowhere"))
    assert done.returncode == 0, done.stderr
    assert "fsdp 4" in done.stdout
    assert "phase mine_span_denoising: 2 steps of 4 rows" in done.stdout
    assert "configs.t5.d_model = 16" in done.stdout
    assert not (folder / "nowhere").exists()
    wrong = codet5p(folder, "train", "--dry_run", "--num_devices=3", *flags("nowhere"))
    assert wrong.returncode == 3
    assert "does not divide over 3 devices" in wrong.stderr


def test_dry_run_checks_the_tokenizer_given(folder: Path):
    size = Tokenizer.load(folder / "tokenizer").vocab_size
    done = codet5p(folder, "train", "--dry_run", *flags("nowhere", "--gin.VOCAB_SIZE=300"))
    assert done.returncode == 3, done.stderr
    expected = f"{folder / 'tokenizer'} has {size} ids, the model 300 rows; set vocab_size"
    assert expected in done.stderr.splitlines()[-1]
    assert not (folder / "nowhere").exists()


def test_dry_run_checks_the_tokenizer_of_the_cache(
    folder: Path, tmp_path: Path, monkeypatch, capsys
):
    task = "mine_span_denoising"
    make_mixture(tmp_path, {task: ("span_denoising", 1.0, 8)}, task)  # of 100 ids
    monkeypatch.chdir(folder)
    words = ["train", "--dry_run", "--num_devices=1", "--gin_file=tiny.gin"]
    words.append(f"--gin.CACHE_DIR='{tmp_path}'")
    assert main.main([*words, "--gin.VOCAB_SIZE=99"]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'tokenizers' / 'none'} has 100 ids, the model 99 rows" in message
    assert main.main([*words, "--gin.VOCAB_SIZE=100"]) == 0


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("train.train.ema_decay=2.0", "ema_decay has to be at least 0 and below 1, found 2.0"),
        ("train.train.max_nonfinite=0", "max_nonfinite has to be 1 or more"),
        ("train.train.num_workers=-1", "num_workers has to be 0"),
        ("train.train.loss_weights={'matchin': 1.0}", "there is no loss 'matchin'"),
        ("WARMUP_STEPS=1000", "warm-up takes 1000 of "),
        ("PEAK_LEARNING_RATE=-1.0", "peak learning rate must be positive"),
        ("optimizers.WithRates.rates=(('encodr/.*', 0.1),)", "'encodr/.*' matches no parameter"),
        ("train.Logging.every=0", "every has to be 1 or more"),
        ("train.train.profile_steps=(9000, 9001)", "begin before the last; found 9000:9001"),
        ("train.train.export_arch='t5_decoder'", "export_arch has to be one of t5, "),
    ],
)
def test_mistakes_of_the_configuration_are_found_before_data_is_prepared(
    stage, binding, message, monkeypatch, capsys, tmp_path
):
    def prepared(*args, **kwargs):
        raise AssertionError("data was touched")

    monkeypatch.setattr(command, "ensure_prepared", prepared)
    paths = [f"--gin.{name}='{tmp_path / name}'" for name in ("MODEL_DIR", "CACHE_DIR")]
    paths.append("--gin.train.train.export_to='exported'")
    if stage == "stage2":
        paths.append("--gin.train.train.init_from=None")
    flags = [f"--gin_file=runs/quickstart_{stage}.gin", *paths, f"--gin.{binding}"]
    assert main.main(["train", *flags]) == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("codet5p train: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("sharding.MeshConfig.fsdp=3", "fsdp=3, sequence=1, tensor=2 does not fill 8 devices"),
        ("configs.t5.num_heads=7", "axis 'kv_heads' of size 7 does not divide over 2 devices"),
    ],
)
def test_what_does_not_divide_over_the_mesh_is_found_before_data_is_prepared(
    binding, message, monkeypatch, capsys
):
    monkeypatch.setattr(command, "ensure_prepared", lambda *args, **kwargs: pytest.fail("data"))
    files = [f"--gin_file={f}.gin" for f in ("runs/quickstart_stage1", "meshes/fsdp_tensor")]
    paths = [f"--gin.{name}='nowhere'" for name in ("MODEL_DIR", "CACHE_DIR")]
    assert main.main(["train", *files, *paths, f"--gin.{binding}"]) == 3
    assert message in capsys.readouterr().err


def test_weights_to_start_from_are_looked_for_before_data_is_prepared(monkeypatch, capsys):
    monkeypatch.setattr(command, "ensure_prepared", lambda *args, **kwargs: pytest.fail("data"))
    paths = ("MODEL_DIR", "CACHE_DIR", "INITIAL_CHECKPOINT_PATH")
    flags = ["--gin_file=runs/quickstart_stage2.gin", *(f"--gin.{n}='nowhere'" for n in paths)]
    assert main.main(["train", *flags]) == 3
    error = capsys.readouterr().err
    assert "no checkpoint in nowhere" in error
    assert "set InitFrom.path (INITIAL_CHECKPOINT_PATH)" in error
