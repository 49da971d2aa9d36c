"""launch/translate.sh: what it runs, run here on a few methods with small networks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.model_dir import ModelDir

SCRIPT = Path(__file__).parents[2] / "launch/translate.sh"
TINY_BINDINGS = (
    *("VOCAB_SIZE=512", "TRAIN_STEPS=4", "WARMUP_STEPS=2", "BATCH_SIZE=4"),
    *("configs.t5.d_model=16", "configs.t5.num_heads=2", "configs.t5.head_dim=8"),
    *("configs.t5.d_ff=32", "configs.t5.num_encoder_layers=1", "configs.t5.num_decoder_layers=1"),
)
TINY = [f"--gin.{binding}" for binding in TINY_BINDINGS]
TINY_TASK = ["--gin.EVAL_PERIOD=2", "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 8}"]
NOTE = '#!/bin/sh\nprintf "%s\\037" {} "$@" >>{log}\nprintf "\\036" >>{log}\n'


def commands_of_the_script(folder, data):
    """(program, its arguments), each time. Programs of the environment only note theirs."""
    programs = folder / "environment/bin"
    programs.mkdir(parents=True)
    for name in ("codet5p", "python"):
        (programs / name).write_text(NOTE.format(name, log=folder / "log"))
        (programs / name).chmod(0o755)
    variables = {**os.environ, "VENV": str(programs.parent)}
    subprocess.run([SCRIPT, data, folder / "run"], env=variables, check=True, capture_output=True)
    calls = [call.split("\037")[:-1] for call in (folder / "log").read_text().split("\036")[:-1]]
    return [(program, arguments) for program, *arguments in calls if arguments[:2] != ["-m", "pip"]]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data/code_translation"
    folder.mkdir(parents=True)
    for split, number in (("train", 64), ("valid", 64), ("test", 5)):
        for end, word in (("java", "boolean"), ("cs", "bool")):
            text = "".join(f"{word} is{i}() {{return x == {i};}}\n" for i in range(number))
            (folder / f"{split}.java-cs.txt.{end}").write_text(text)
    return folder.parent


def the_best(argument):
    """What the shell finds when training has been."""
    if argument.endswith("/best/*"):
        option, _, folder = argument.partition("=")
        (path,) = Path(folder).parent.iterdir()
        return f"{option}={path}"
    return argument


@pytest.mark.slow
def test_the_whole_of_it(data, tmp_path, one_device, capsys, monkeypatch):
    for variable in ("TOKENIZER", "FINETUNE_DIR"):
        monkeypatch.setenv(f"CODET5P_{variable}", "")
    for program, arguments in commands_of_the_script(tmp_path, data):
        if program == "python":
            done = subprocess.run(
                [sys.executable, *arguments], capture_output=True, text=True, check=True
            )
            continue
        given = [*map(the_best, arguments)]
        if given[0] == "train":
            given += TINY if "stage1" in given[1] else [*TINY, *TINY_TASK]
        if "--checkpoint" in " ".join(given):
            given += ["--max_tokens=8", "--batch_size=4"]
        assert main(given) == 0, given
    capsys.readouterr()

    title, copy, scratch, pretrained = (re.split(r"  +", x) for x in done.stdout.split("\n")[1:5])
    assert title == ["Java to C#", "BLEU", "exact match"]
    assert [copy[0], scratch[0], pretrained[0]] == ["copy", "scratch", "pretrained"]
    assert copy[2] == "0.00"
    assert 30 < float(copy[1]) < 80  # all but a word is the same
    run = tmp_path / "run"
    stage1, *begun = (
        read_records(ModelDir(run / name).metrics)[0]
        for name in ("stage1", "scratch", "pretrained")
    )
    assert {"seq2seq_clm/loss", "span_denoising/loss"} < stage1.keys()
    assert begun[0]["step"] == begun[1]["step"] == 0
    assert {"bleu", "exact_match", "bleu+exact_match"} < begun[0].keys()
    assert begun[1]["seq2seq/loss"] != begun[0]["seq2seq/loss"]


def test_nothing_of_the_test_is_learned_from(data, tmp_path):
    """Preparing reads two splits, the tokenizer one, and the same budget is for both."""
    calls = [arguments for _, arguments in commands_of_the_script(tmp_path, data)]
    tokenizer, prepare, _, pretrained, scratch, *scored, table = calls
    assert 'code_translation", "train"' in tokenizer[1]
    assert "--splits=train,validation" in prepare
    assert {*pretrained} ^ {*scratch} == {
        f"--gin.MODEL_DIR='{tmp_path}/run/pretrained'",
        f"--gin.INITIAL_CHECKPOINT_PATH='{tmp_path}/run/stage1'",
        f"--gin.MODEL_DIR='{tmp_path}/run/scratch'",
        "--gin.train.train.init_from=None",
    }
    assert [call[0] for call in scored] == ["evaluate"] * 3
    assert table[0] == "-c"


@pytest.mark.parametrize("given", [[], ["nowhere"]])
def test_it_asks_for_data(given):
    done = subprocess.run([SCRIPT, *given], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pass the folder that holds code_translation/" in done.stderr
