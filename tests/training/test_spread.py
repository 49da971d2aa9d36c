"""Several seeds: what is written of them."""

import json
import math
from pathlib import Path

import pytest

from codet5p_jax.training.spread import mean_and_spread, table, write_summary
from codet5p_jax.training.train import TrainResult


def result(step: int, after: dict[str, float], best: dict[str, float], best_step: int | None):
    return TrainResult(step, False, {}, after, best, best_step, Path("metrics.jsonl"))


def test_the_best_evaluation_counts_where_there_is_one(tmp_path):
    results = {
        3: result(90, {"a/loss": 9.0}, {"a/loss": 1.0, "a/f1": 0.5}, 40),
        7: result(50, {"a/loss": 3.0, "a/f1": 0.9}, {}, None),
    }
    text = write_summary(tmp_path, results)
    assert json.loads((tmp_path / "seeds.json").read_text()) == {
        "seeds": {
            "3": {"step": 40, "metrics": {"a/loss": 1.0, "a/f1": 0.5}},
            "7": {"step": 50, "metrics": {"a/loss": 3.0, "a/f1": 0.9}},
        },
        "mean": {"a/loss": 2.0, "a/f1": pytest.approx(0.7)},
        "spread": {
            "a/loss": pytest.approx(math.sqrt(2)),
            "a/f1": pytest.approx(0.2 * math.sqrt(2)),
        },
    }
    rows = [line.split() for line in text.splitlines()]
    assert rows == [
        ["held-out", "metric", "seed", "3", "seed", "7", "mean", "spread"],
        ["a/loss", "1.0000", "3.0000", "2.0000", "1.4142"],
        ["a/f1", "0.5000", "0.9000", "0.7000", "0.2828"],
    ]


def test_only_what_all_have_is_compared():
    figures = {0: {"a": 1.0, "b": 2.0}, 1: {"a": 1.0}}
    assert mean_and_spread(figures) == ({"a": 1.0}, {"a": 0.0})
    assert mean_and_spread({0: {"a": 1.0}}) == ({"a": 1.0}, {"a": 0.0})
    assert mean_and_spread({0: {"a": None}, 1: {"a": 1.0}}) == ({}, {})
    assert len(table({0: {}}).splitlines()) == 1
