"""A benchmark from its problems to its figures, in a folder of its own."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from codet5p_jax.evaluation.benchmarks.base import (
    Benchmark,
    Data,
    Model,
    Prediction,
    Settings,
    matched,
)
from codet5p_jax.evaluation.benchmarks.files import GrowingFile
from codet5p_jax.evaluation.progress import progress_bar
from codet5p_jax.files import write_text

PREDICTIONS, SCORES, RUN = "predictions.jsonl", "scores.json", "run.json"


def check_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Fails where a folder holds another run, of another checkpoint or with other settings.

    Raises:
      ValueError: it does.
    """
    path = folder / RUN
    if not path.exists():
        return
    theirs = json.loads(path.read_text("utf-8"))
    mine = json.loads(json.dumps(identity))
    if theirs != mine:
        names = sorted({*theirs, *mine})
        differ = [name for name in names if theirs.get(name) != mine.get(name)]
        said = "; ".join(f"{n} {theirs.get(n)!r}, asked for {mine.get(n)!r}" for n in differ)
        raise ValueError(f"{folder} holds a run with {said}; set --out to another folder")


def run(
    benchmark: Benchmark,
    data: Data,
    settings: Settings,
    folder: Path,
    *,
    source: Model | Sequence[Prediction],
    limit: int | None = None,
    identity: Mapping[str, Any],
    size: str | None = None,
) -> dict[str, Any]:
    """Predicts what is not predicted yet, scores, writes `scores.json`.

    `predictions.jsonl` grows batch by batch; a run that was interrupted goes on after the last
    whole line of it.

    Args:
      benchmark: what is asked.
      data: all its problems.
      settings: of the run.
      folder: of this benchmark; is made.
      source: who predicts, or what was predicted.
      limit: problems at most, the first ones.
      identity: what the folder may hold only one of; see `check_folder`.
      size: of the model in the paper, where it is one.

    Returns:
      What `scores.json` has: `benchmark`, `problems` of `of`, `predictions`, `scores`, `size`,
      `remark`, `run`.

    Raises:
      ValueError: as `check_folder`, and where predictions do not match the problems.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder, identity)
    write_text(folder / RUN, _json(identity))
    asked = data.first(limit)
    if isinstance(source, Model):
        found = _predicted(benchmark, source, asked, settings, GrowingFile(folder / PREDICTIONS), 0)
        for role, (other, how, file) in enumerate(benchmark.also(settings), 1):
            _predicted(other, source, asked, how, GrowingFile(folder / file), role)
        predictions = matched(benchmark, asked, found, str(folder / PREDICTIONS))
        remark = benchmark.remark(settings)
    else:
        predictions, remark = matched(benchmark, asked, source, "--predictions"), ""
    scores = benchmark.score(asked, predictions, settings, folder)
    result = {
        "benchmark": benchmark.name,
        "problems": len(asked.problems),
        "of": len(data.problems),
        "predictions": len(predictions),
        "scores": scores,
        "size": size,
        "published": [asdict(row) for row in benchmark.published if size in (None, row.size)],
        "remark": remark,
        "run": dict(identity),
    }
    write_text(folder / SCORES, _json(result))
    return result


def _predicted(
    benchmark: Benchmark,
    model: Model,
    data: Data,
    settings: Settings,
    file: GrowingFile,
    role: int,
) -> list[Prediction]:
    """All predictions there are then, those of before first; each role draws its own."""
    found = file.read()
    samples = benchmark.samples(settings)
    done = Counter(prediction[benchmark.key] for prediction in found)
    todo = [
        problem for problem in data.problems for _ in range(samples - done.get(problem["key"], 0))
    ]
    if not todo:
        return found
    # What is drawn depends on the place in `todo`, which begins anew when a run goes on.
    key = jax.random.fold_in(jax.random.key(settings.seed), role)
    key = jax.random.fold_in(key, len(found))
    total = samples * len(data.problems)
    with progress_bar(f"{benchmark.name}: {file.name}", total) as advance:
        advance(total - len(todo))
        for batch in benchmark.predict(model, data, todo, settings, key):
            file.append(batch)
            found += batch
            advance(len(batch))
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
