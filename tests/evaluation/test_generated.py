"""Metrics of what a model generates: what they judge, when they write, and on several processes."""

import gc
import json
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.decoding.writer import Writer
from codet5p_jax.evaluation.benchmarks.text import summary_figures
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import init_params
from codet5p_jax.sharding import MeshConfig, make_mesh
from tests.evaluation import generated_process as process
from tests.training import synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "cache"
    process.write_cache(folder)
    return folder


@pytest.fixture
def scripted(cache, monkeypatch):
    """A writer that is right about all inputs but the first it is asked for; how often it was."""
    tokenizer, asked = Tokenizer.load(cache / "tokenizer"), []

    def write(self, prompts, key):
        asked.append([tokenizer.decode(prompt.encoder) for prompt in prompts])
        for place in reversed(range(len(prompts))):
            text = " ".join(reversed(asked[-1][place].split())) if place else "wrong"
            yield place, [np.array([*tokenizer.encode(text), tokenizer.special.eos])]

    monkeypatch.setattr(Writer, "write", write)
    return asked


def of(metrics, model, params):
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        return {name: metric(model, params) for name, metric in metrics.items()}


def test_texts_are_judged_in_the_order_of_their_rows(cache, scripted, one_device):
    model = CodeT5p(synthetic.tiny_config(vocab_size=400))
    params = init_params(model.specs, jax.random.key(0))
    found = of(process.metrics(cache), model, params)
    # Rows 0, 3, 7, 11, 15 of 16.
    turned = [" ".join(reversed(process.text(i).split())) for i in (0, 3, 7, 11, 15)]
    assert scripted == [turned], "written once for all three metrics"
    assert found["exact_match"] == 80.0
    assert 0 < found["bleu"] < 100
    assert found["bleu+exact_match"] == found["bleu"] + 80.0
    assert list(process.metrics(cache, figures=summary_figures)) == ["bleu"]
    of(process.metrics(cache, rows=None), model, params)
    assert len(scripted[-1]) == 16


def test_other_weights_are_written_with_anew_and_none_are_kept(cache, scripted, one_device):
    model = CodeT5p(synthetic.tiny_config(vocab_size=400))
    metrics = process.metrics(cache)
    first = init_params(model.specs, jax.random.key(0))
    of(metrics, model, first)
    changed = {**first, "embedding": first["embedding"] + 1}  # all others are the same arrays
    of(metrics, model, changed)
    of(metrics, model, changed)
    assert len(scripted) == 2
    leaf = weakref.ref(first["embedding"])
    del first
    gc.collect()
    assert leaf() is None


def test_numbers_and_data_that_do_not_do(cache, one_device):
    with pytest.raises(ValueError, match="rows, beams and batch_size of 1 or more, found 0, 1, 4"):
        process.metrics(cache, rows=0)
    model = CodeT5p(synthetic.tiny_config(vocab_size=400))
    with pytest.raises(ValueError, match="mixture 'turnd' is not prepared"):
        of(process.metrics(cache, mixture="turnd"), model, {"embedding": jax.numpy.zeros(1)})


@pytest.mark.slow
def test_two_processes_have_the_values_of_one(cache, tmp_path, one_device):
    alone = process.run(cache, tmp_path / "one")
    assert alone["bleu"] > 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.evaluation.generated_process"]
    started = [
        subprocess.Popen(
            [*command, cache, tmp_path / "two", str(i), "2", str(port)],
            cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in (0, 1)
    ]  # fmt: skip
    try:
        told = [each.communicate(timeout=300)[0] for each in started]
    finally:
        for each in started:
            each.kill()
    assert [each.returncode for each in started] == [0, 0], told
    found = [json.loads(text.rpartition("found ")[2]) for text in told]
    assert found[0] == found[1]
    assert found[0] == pytest.approx(alone, rel=1e-4)
