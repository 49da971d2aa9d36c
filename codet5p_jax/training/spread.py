"""The held-out metrics of one run with several seeds: each, mean and spread."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codet5p_jax.files import write_text
from codet5p_jax.training.train import TrainResult

Figures = Mapping[int, Mapping[str, float | None]]  # seed -> metric -> value, None: not finite


def folder_of(model_dir: str | Path, seed: int) -> Path:
    """The MODEL_DIR of one seed."""
    return Path(model_dir) / f"seed_{seed}"


def write_summary(model_dir: str | Path, results: Mapping[int, TrainResult]) -> str:
    """Writes MODEL_DIR/seeds.json; returns it as a table.

    A run's figures are those of its best evaluation where it knows one, else of its last.

    seeds.json: {"seeds": {"0": {"step": 100, "metrics": {…}}, …}, "mean": {…}, "spread": {…}}
    """
    found = {seed: dict(result.best or result.after) for seed, result in results.items()}
    steps = {
        seed: result.step if result.best_step is None else result.best_step
        for seed, result in results.items()
    }
    mean, spread = mean_and_spread(found)
    summary: dict[str, Any] = {
        "seeds": {str(s): {"step": steps[s], "metrics": found[s]} for s in found},
        "mean": mean,
        "spread": spread,
    }
    write_text(Path(model_dir) / "seeds.json", json.dumps(summary, indent=1) + "\n")
    return table(found)


def mean_and_spread(figures: Figures) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation (0 of one seed) of each metric that all seeds have
    as a finite number.

    >>> mean_and_spread({0: {"loss": 1.0}, 1: {"loss": 3.0}})
    ({'loss': 2.0}, {'loss': 1.4142135623730951})
    """
    first, *others = figures.values()
    names = [name for name in first if all(name in other for other in others)]
    mean, spread = {}, {}
    for name in names:
        column = [x for values in figures.values() if (x := values[name]) is not None]
        if len(column) == len(figures):
            mean[name] = statistics.fmean(column)
            spread[name] = statistics.stdev(column) if len(column) > 1 else 0.0
    return mean, spread


def table(figures: Figures) -> str:
    """A line for each metric: its value for each seed, mean and spread.

    held-out metric    seed 0    seed 1      mean    spread
    seq2seq/loss       1.2000    1.4000    1.3000    0.1414
    """
    mean, spread = mean_and_spread(figures)
    width = max(map(len, ["held-out metric", *mean]))
    heads = [*(f"seed {seed}" for seed in figures), "mean", "spread"]
    lines = [f"{'held-out metric':<{width}}" + "".join(f"{head:>12}" for head in heads)]
    for name in mean:
        row = [*(values[name] for values in figures.values()), mean[name], spread[name]]
        lines.append(f"{name:<{width}}" + "".join(f"{value:>12.4f}" for value in row))
    return "\n".join(lines)
