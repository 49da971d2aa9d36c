"""The command line: help, exit codes, errors of one line."""

import argparse
import re
import sys
import types
from pathlib import Path

import pytest

import codet5p_jax
from codet5p_jax.cli import data_options, gin_flags, main, prepare
from codet5p_jax.cli.errors import ConfigError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Makes `codet5p search` a command that does what the test says."""
    module = types.ModuleType("codet5p_jax.cli.search")
    module.__doc__ = "Does what the test says."
    module.add_arguments = gin_flags.add_arguments
    monkeypatch.setitem(sys.modules, "codet5p_jax.cli.search", module)

    def install(run) -> None:
        module.run = run

    return install


def call(capsys, *argv: str) -> tuple[int, str, str]:
    try:
        code = main.main(argv)
    except SystemExit as error:  # argparse's
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


def raising(error: BaseException):
    def run(args):
        raise error

    return run


def test_help_and_version(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in main.COMMANDS:
        assert name in out
    assert call(capsys, "--version")[:2] == (0, f"{codet5p_jax.__version__}\n")
    assert call(capsys)[0] == 2


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_of_every_command(capsys, name: str):
    code, out, _ = call(capsys, name, "--help")
    assert code == 0
    assert f"usage: codet5p {name}" in out
    assert "exit codes" in out


def test_the_documentation_has_every_exit_code():
    page = (Path(__file__).parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2]
    documented = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    assert documented == re.findall(r"\d+", main.EXIT_CODES)


def test_wrong_usage(capsys):
    code, _, err = call(capsys, "trian")
    assert code == 2
    assert "did you mean train?" in err
    assert call(capsys, "prepare", "--no_such_option")[0] == 2


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            "train --profile_steps=5:5",
            "--profile_steps: expected FIRST:END such as 10:15, got '5:5'",
        ),
        ("inspect-data m --cache_dir=c --batch_size=0", "--batch_size: expected an integer of 1"),
        ("inspect-data m --cache_dir=c --examples=-1", "--examples: expected an integer of 0"),
        ("inspect-data m --cache_dir=c --characters=-1", "--characters: expected an integer of 0"),
        ("inspect-data m --cache_dir=c --seed=-1", "--seed: expected an integer from 0"),
        ("prepare m --cache_dir=c --epochs=0", "--epochs: expected an integer of 1 or more"),
        ("prepare m --cache_dir=c --epochs=two", "--epochs: expected an integer of 1 or more"),
        ("prepare m --cache_dir=c --task_feature_lengths=inputs=0", "with lengths of 1 or more"),
        ("quickstart --output_dir=q --seed=-1", "--seed: expected an integer from 0 to 2**32 - 1"),
        ("quickstart --output_dir=q --seed=4294967296", "--seed: expected an integer from 0"),
        ("search x --k=-1", "--k: expected an integer of 1 or more, got '-1'"),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(capsys, tmp_path, monkeypatch, flags, text):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *flags.split())
    assert (code, out) == (2, "")
    assert text in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("two\n  lines"), 1, "two lines"),
        (FileNotFoundError(2, "No such file", "x.json"), 1, "No such file: 'x.json'"),
        (KeyError("x"), 1, "KeyError: 'x'"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
        (FloatingPointError("not finite"), 1, "not finite"),
        (TypeError("no dtype"), 1, "TypeError: no dtype"),
        (RuntimeError("out of memory"), 1, "RuntimeError: out of memory"),
        (ConfigError("bad"), 3, "bad"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(capsys, command, error, code: int, text: str):
    command(raising(error))
    found, _, err = call(capsys, "search")
    assert found == code
    assert err.count("\n") == 1
    assert err.startswith("codet5p search: ")
    assert text in err
    assert "Traceback" in call(capsys, "search", "--debug")[2]


def test_defects_keep_their_traceback(command):
    command(raising(AssertionError("a defect")))
    with pytest.raises(AssertionError):
        main.main(["search"])


def test_interruption(capsys, command):
    command(raising(KeyboardInterrupt()))
    assert call(capsys, "search")[::2] == (130, "interrupted\n")


def test_gin_flags_as_t5x_spells_them(command):
    seen = []
    command(seen.append)
    flags = ["--gin_file=a.gin", "--gin_file=b.gin", "--gin.MODEL_DIR='/tmp/x y'"]
    assert main.main(["search", *flags, "--gin.a/b.c=1", "--gin_bindings=D=2"]) == 0
    (args,) = seen
    assert args.gin_file == ["a.gin", "b.gin"]
    assert args.gin_bindings == ["MODEL_DIR='/tmp/x y'", "a/b.c=1", "D=2"]


PATHS = ("--gin.MODEL_DIR='m'", "--gin.CACHE_DIR='c'")
STAGE1 = ("--gin_file=runs/stage1_220m.gin", *PATHS)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "--gin_file is missing"),
        (["--gin_file=runs/stage1_220.gin", *PATHS], "did you mean runs/stage1_220m.gin?"),
        (["--gin_file=runs/stage1_220m.gin", PATHS[1]], "%MODEL_DIR, which nothing defines"),
        (
            ["--gin_file=runs/stage1_220m.gin", "--gin.TRAIN_STEP=10", *PATHS],
            "nothing refers to it; did you mean TRAIN_STEPS?",
        ),
        (
            ["--gin_file=runs/stage1_220m.gin", "--gin.PEAK_LEARNING_RATE='2e-4'", *PATHS],
            "schedules.Linear.peak (%PEAK_LEARNING_RATE) must be float, not '2e-4'",
        ),
        ([*STAGE1, "--gin.train.total_stepz=3"], "'train' is a module, not a function or a class"),
        ([*STAGE1, "--gin.train.total_stepz=3"], "did you mean train.train?"),
        ([*STAGE1, "--gin.train.train.optimizer=@optimizers.AdamX"], "train: command line: 'optim"),
        ([*STAGE1, "--gin.TRAIN_STEPS=-5"], "steps: %TRAIN_STEPS"),
        ([*STAGE1, "--gin.DROPOUT_RATE=1.5"], "(dropout: %DROPOUT_RATE)"),
        (
            [*STAGE1, "--gin.DROPOUT_RATE=1.5"],
            "dropout has to be at least 0 and below 1, found",
        ),
        ([*STAGE1, "--gin.COMPUTE_DTYPE='bfloat17'"], "dtype has to be one of float32, bfloat16"),
        ([*STAGE1, "--gin.configs.t5.num_heads=0"], "num_heads has to be 1 or more, found 0"),
    ],
)
def test_training_stops_at_a_wrong_configuration(capsys, flags: list[str], text: str):
    code, out, err = call(capsys, "train", *flags)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert text in err


def test_training_refuses_what_is_not_prepared(capsys, tmp_path):
    flags = ["--gin.MODEL_DIR='m'", f"--gin.CACHE_DIR='{tmp_path}'"]
    code, _, err = call(capsys, "train", "--gin_file=runs/stage1_220m.gin", *flags)
    assert code == 1
    assert "codet5p prepare codet5p_stage1_denoise" in err
    assert list(tmp_path.iterdir()) == []


def test_lengths_of_features():
    assert prepare.parse_lengths("inputs=512,targets=128") == {"inputs": 512, "targets": 128}
    for text in ("inputs", "inputs=", "inputs=a", "inputs=0", "inputs=²", "=3", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="NAME=LENGTH"):
            prepare.parse_lengths(text)


def test_data_options_travel_to_another_process():
    parser = argparse.ArgumentParser()
    data_options.add_arguments(parser)
    flags = ["--tokenizer=t", "--max_malformed_share=0.5", "--module=a", "--module=b"]
    assert data_options.forward(parser.parse_args(flags)) == flags
    assert parser.parse_args(data_options.forward(parser.parse_args([]))) == parser.parse_args([])
