"""A benchmark from its problems to its figures, in a folder of its own."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    first_of_each,
    matched,
)
from codet5p_jax.evaluation.benchmarks.files import GrowingFile, read_json
from codet5p_jax.evaluation.progress import progress_bar
from codet5p_jax.files import lock, write_text

PREDICTIONS, SCORES, RUN = "predictions.jsonl", "scores.json", "run.json"


@contextmanager
def claimed(folder: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Makes a folder, and keeps other processes from predicting into it.

    Raises:
      ValueError: it holds another run, of other weights or with other settings.
      OSError: another process has it, or it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        lock(file, f"another process predicts into {folder}; set --out to another folder")
        _check_folder(folder, identity)
        yield


def _check_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Fails where a folder holds another run, of another checkpoint or with other settings.

    Raises:
      ValueError: it does, or what it holds is not known.
    """
    path = folder / RUN
    if not path.exists():
        if (folder / PREDICTIONS).exists():
            raise ValueError(
                f"{folder} has {PREDICTIONS}, and no {RUN} that says of what; set --out to another "
                "folder, or pass the file as --predictions"
            )
        return
    theirs = read_json(path)
    mine = json.loads(json.dumps(identity))
    # A setting that was not there when the run began is None. Weights are known by themselves,
    # wherever they are.
    names = sorted({*theirs, *mine} - ({"of"} if "weights" in mine else set()))
    differ = [name for name in names if theirs.get(name) != mine.get(name)]
    if differ:
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
      folder: of this benchmark; see `claimed`.
      source: who predicts, or what was predicted.
      limit: problems at most, the first ones.
      identity: what the folder may hold only one of; see `claimed`.
      size: of the model in the paper, where it is one.

    Returns:
      What `scores.json` has: `benchmark`, `problems` of `of`, `predictions`, `scores`, `size`,
      `published`, `remark`, `run`, `settings`.

    Raises:
      ValueError: predictions do not match the problems.
    """
    write_text(folder / RUN, _json(identity))
    asked = data.first(limit)
    if isinstance(source, Model):
        found = _predicted(benchmark, source, asked, settings, GrowingFile(folder / PREDICTIONS), 0)
        for role, (other, how, file) in enumerate(benchmark.also(settings), 1):
            _predicted(other, source, asked, how, GrowingFile(folder / file), role)
        predictions = matched(benchmark, asked, found, str(folder / PREDICTIONS))
        remarks = [benchmark.remark(settings), benchmark.left_out()]
    else:
        predictions = matched(benchmark, asked, source, "--predictions")
        remarks = [benchmark.left_out()]
    published, split = benchmark.published, identity.get("split", benchmark.split)
    if split != benchmark.split:
        published = ()
        remarks.append(f"of split {split}; the paper's figures are of {benchmark.split}")
    scores = benchmark.score(asked, predictions, settings, folder)
    result = {
        "benchmark": benchmark.name,
        "problems": len(asked.problems),
        "of": len(data.problems),
        "predictions": len(predictions),
        "scores": scores,
        "size": size,
        "published": [asdict(row) for row in published if size in (None, row.size)],
        "remark": "; ".join(filter(None, remarks)),
        "run": dict(identity),
        "settings": asdict(settings),
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
    """As many predictions of each problem as are asked for, those of before first; each role draws
    its own."""
    found, samples = file.read({benchmark.key: (str,)}), benchmark.samples(settings)
    done = Counter(prediction[benchmark.key] for prediction in found)
    todo = [
        problem for problem in data.problems for _ in range(samples - done.get(problem["key"], 0))
    ]
    if not todo:
        return first_of_each(found, benchmark.key, samples)
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
    return first_of_each(found, benchmark.key, samples)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
