"""launch/frozen_llm.sh: what it runs, run here on a small library with small networks."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from codet5p_jax.cli import evaluate, quickstart
from codet5p_jax.cli.main import main
from codet5p_jax.models.params import flatten
from codet5p_jax.training import sources
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.stored_weights import load_params

SCRIPT = Path(__file__).parents[2] / "launch/frozen_llm.sh"
TINY_BINDINGS = (
    *("VOCAB_SIZE=600", "TRAIN_STEPS=30", "WARMUP_STEPS=2", "BATCH_SIZE=4"),
    *("configs.codegen_stack.d_model=32", "configs.codegen_stack.rotary_dim=4"),
    "configs.ModelConfig.scan_layers=True",  # quick to compile
    *("train.Evaluation.batches=2", "train.Evaluation.every=30", "PEAK_LEARNING_RATE=1e-2"),
)
TINY = [f"--gin.{binding}" for binding in TINY_BINDINGS]
NOTE = '#!/bin/sh\nprintf "%s\\037" {} "$@" >>{log}\necho >>{log}\n'


def commands_of_the_script(folder):
    """The arguments of `codet5p`, each time. Programs of the environment only note theirs."""
    programs = folder / "environment/bin"
    programs.mkdir(parents=True)
    for name in ("codet5p", "python"):
        (programs / name).write_text(NOTE.format(name, log=folder / "log"))
        (programs / name).chmod(0o755)
    variables = {**os.environ, "VENV": str(programs.parent)}
    subprocess.run([SCRIPT, folder / "run"], env=variables, check=True, capture_output=True)
    lines = (line.split("\037")[:-1] for line in (folder / "log").read_text().splitlines())
    return [arguments for program, *arguments in lines if program == "codet5p"]


def table(text):
    """Losses by the name of their row."""
    rows = [re.split(r"  +", line) for line in text.splitlines()]
    assert rows[0] == ["losses, split test", "seq2seq_clm", "span_denoising"]
    return {name: losses for name, *losses in rows[1:]}


def test_the_whole_of_it(tmp_path, small_library, one_device, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "VOCAB_SIZE", 600)
    out, run = {}, tmp_path / "run"
    for command in commands_of_the_script(tmp_path):
        given = [*command, *(TINY if command[0] in ("train", "evaluate") else [])]
        assert main(given) == 0, given
        out[command[0]] = capsys.readouterr().out, given

    text, given = out["evaluate"]
    losses, named = table(text), sources.SOURCES
    assert list(losses) == list(named.values())
    assert losses[named["prompt"]][1] == "-"
    own, other, alone = (losses[named[name]] for name in ("own", "other", "none"))
    assert own != other
    assert sum(map(float, own)) < sum(map(float, alone))
    for name, objective in (("llm", "decoder_clm"), ("frozen", "span_denoising")):
        records = read_records(run / name / "metrics.jsonl")
        before, after = (r[f"{objective}/loss"] for r in records if r["split"] == "validation")
        assert after < before

    # The decoder alone is the language model: the same bits, and so the same losses.
    assert "25 of 25 parameters of the decoder" in out["compose"][0]
    before, after, start = (
        dict(flatten(load_params(run / name)[0])) for name in ("llm", "frozen", "composed")
    )
    for path, array in before.items():
        first, second = (path.replace("/layers/", f"/layers_{i}/") for i in (0, 2))
        parts = [after[first]] if first == path else [after[first], after[second]]
        np.testing.assert_array_equal(np.concatenate(parts), array)
    moved = {path for path, array in after.items() if not np.array_equal(array, start[path])}
    assert moved == {p for p in after if p.startswith("encoder") or "/cross_attention/" in p}
    model = f"--gin.MODEL_DIR={str(run / 'llm')!r}"
    assert main([*given, model, "--sources=own,prompt"]) == 0
    assert list(table(capsys.readouterr().out).values()) == [alone, losses[named["prompt"]]]


def test_comparing_takes_a_decoder(capsys):
    assert main(["compose", "--verify=x"]) == 3
    assert "--verify=MODEL_DIR takes --decoder, and nothing else" in capsys.readouterr().err


def test_sources_that_are_none(capsys):
    assert tuple(sources.SOURCES) == evaluate.SOURCES
    with pytest.raises(SystemExit):
        main(["evaluate", "--gin_file=x", "--sources=own,mine"])
    assert "expected some of own, other, none, prompt, got 'mine'" in capsys.readouterr().err
