"""The best evaluation: which it is, what is kept of it, when a run ends for want of a better."""

import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.training.checkpoint_files import saved_steps
from codet5p_jax.training.early_stopping import EarlyStopping, evaluations_of
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.stored_weights import load_params
from tests.training import synthetic
from tests.training.synthetic import objectives


@pytest.mark.parametrize(
    ("values", "best", "ends"),
    [
        ([], None, False),
        ([3.0], 10, False),
        ([3.0, 2.0, 2.0], 20, False),
        ([3.0, 2.0, 2.0, 2.5], 20, True),
        ([3.0, math.nan, 2.0, math.inf], 30, False),
        ([3.0, math.nan, math.nan], 10, True),
        ([math.nan, math.nan], None, True),
    ],
)
def test_best_and_end(values, best, ends):
    evaluations = [(10 * (i + 1), value) for i, value in enumerate(values)]
    stopping = EarlyStopping("loss", patience=2)
    found = stopping.best(evaluations)
    assert (found and found[0], stopping.ends(evaluations)) == (best, ends)
    assert not EarlyStopping("loss").ends(evaluations)
    negated = [(step, -value) for step, value in evaluations]
    other = EarlyStopping("loss", patience=2, higher_is_better=True)
    assert other.best(negated) == (found and (found[0], -found[1]))
    assert other.ends(negated) == ends


@given(st.lists(st.floats(0, 5)), st.integers(1, 4))
def test_a_run_that_ended_had_no_better_one(values, patience):
    stopping = EarlyStopping("loss", patience=patience)
    evaluations = list(enumerate(values, start=1))
    if stopping.ends(evaluations):
        before, after = values[:-patience], values[-patience:]
        assert not before or min(after) >= min(before)
    elif len(values) >= patience:
        assert min(values[-patience:]) < min([*values[:-patience], math.inf])


def test_patience_is_a_number():
    with pytest.raises(ValueError, match="patience has to be 1 or more evaluations"):
        EarlyStopping("loss", patience=0)


def test_evaluations_come_out_of_records():
    records = [
        {"step": 0, "split": "validation", "a/loss": 1.0},
        {"step": 2, "split": "train", "a/loss": 1.0},
        {"step": 2, "split": "validation", "a/loss": 2.0},
        {"step": 4, "split": "validation", "a/loss": None},
        {"step": 6, "split": "validation", "a/loss": 2.0},
    ]
    found = evaluations_of(EarlyStopping("a/loss"), records, "validation", 4)
    assert found[0] == (2, 2.0)
    assert found[1][0] == 4
    assert math.isnan(found[1][1])
    assert len(found) == 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping") / "cache"
    synthetic.write_cache(folder)
    return folder


class Scripted:
    """A held-out metric whose values are known, and the weights it was called with."""

    def __init__(self, *values):
        self.values, self.weights = list(values), []

    def __call__(self, model, params):
        self.weights.append(np.asarray(params["embedding"]))
        return self.values[len(self.weights) - 1]


def run(cache, model_dir, metric, steps=20, **changes):
    settings = {
        "objectives": objectives()[:1],
        "phases": [Phase("denoise", steps, 8)],
        "evaluation": Evaluation(every=2, batches=1, metrics={"score": metric}),
        "early_stopping": EarlyStopping("score", patience=2, higher_is_better=True),
        "save_every": 100,
    }
    return synthetic.run(cache, model_dir, **{**settings, **changes})


def test_a_run_keeps_the_best_weights_goes_on_and_ends_early(cache, tmp_path, one_device, capsys):
    """Also where it was killed after the checkpoint of the best, before that one's weights."""
    metric = Scripted(9.0, 5.0, 4.0, 6.0)  # at steps 0, 2, 4, 6; the first does not count
    first = run(cache, tmp_path / "run", metric, steps=6)
    assert (first.step, first.best_step, first.interrupted) == (6, 6, False)
    assert first.best == first.after
    assert first.best["score"] == 6.0
    assert "span_denoising/loss" in first.best
    directory = ModelDir(tmp_path / "run")
    assert saved_steps(directory.checkpoints) == [2, 6]
    assert saved_steps(directory.best) == [6]
    shutil.rmtree(directory.best)

    second = run(cache, tmp_path / "run", Scripted(1.0, 6.0), steps=20)
    assert (second.step, second.best_step, second.interrupted) == (10, 6, False)
    assert second.best == first.best
    said = "stopped early at step 10: score was best at step 6, 6.0000; its weights are in"
    assert said in capsys.readouterr().out
    assert saved_steps(directory.best) == [6]
    params, _, _ = load_params(directory.best / "6")
    np.testing.assert_array_equal(params["embedding"], metric.weights[3])
    assert params["embedding"].dtype == np.float32
    latest, _, _ = load_params(directory.root)
    assert not np.array_equal(latest["embedding"], metric.weights[3])
    steps = [r["step"] for r in read_records(directory.metrics) if r["split"] == "validation"]
    assert steps == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": Evaluation(every=None)}, r"evaluation\.every is None"),
        ({"early_stopping": EarlyStopping("span_denoising/los")}, "mean 'span_denoising/loss'"),
        ({"early_stopping": EarlyStopping("bleu")}, "there are score, span_denoising/accuracy, "),
    ],
)
def test_mistakes_are_found_before_anything_starts(cache, tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"early_stopping.*{message}"):
        run(cache, tmp_path / "run", Scripted(), **changes)
    assert not (tmp_path / "run").exists()
