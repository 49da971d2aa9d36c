"""Several training runs laid over each other, as a `Report`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codet5p_jax.evaluation.charts import Chart, Number, Series
from codet5p_jax.evaluation.report import COLOURS, Report, Table

Record = Mapping[str, Any]  # a line of metrics.jsonl

DRAWN = 1000  # points of a line; more cannot be seen
SPENT = "spent/"  # what the seconds of the parts of a run are recorded under
PATHS = {"MODEL_DIR"}  # settings that differ between any two runs


@dataclass(frozen=True)
class Run:
    """What a model directory says of a run.

    Attributes:
      name: distinguishes it from the others.
      records: its `metrics.jsonl`.
      configuration: its operative configuration; may be empty.
    """

    name: str
    records: Sequence[Record]
    configuration: str


def make_report(runs: Sequence[Run]) -> Report:
    """Lays out the page.

    Raises:
      ValueError: there are more runs than colours.
    """
    if len(runs) > COLOURS:
        raise ValueError(f"expected at most {COLOURS} runs on a page, found {len(runs)}")
    charts = {
        "Losses over steps": _losses(runs, "step", lambda run, steps: steps),
        "Losses over tokens": _losses(runs, "tokens", _tokens),
        "Learning rate, speed, goodput": [
            _chart(runs, "learning rate", "train", "learning_rate"),
            _chart(runs, "tokens per second", "train", "tokens_per_second"),
            _chart(runs, "MFU", "train", "mfu"),
            _chart(runs, "goodput so far", "train", "goodput"),
        ],
    }
    drawn = {
        heading: [one for one in some if any(line.points for line in one.series)]
        for heading, some in charts.items()
    }
    return Report(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} training runs",
        lead="Losses while training and on held-out data, speed, and where the time went.",
        tables=[_overview(runs), *_spent(runs), *_differences(runs)],
        charts={heading: some for heading, some in drawn.items() if some},
        details={f"Configuration of {r.name}": r.configuration for r in runs if r.configuration},
    )


def settings(configuration: str) -> dict[str, str]:
    """The bindings of an operative configuration, each on one line.

    >>> settings("# Macros:\\nSTEPS = 10\\nx.f.long = \\\\\\n    ('a',\\n     'b')\\n")
    {'STEPS': '10', 'x.f.long': "('a', 'b')"}
    """
    found: dict[str, list[str]] = {}
    name = ""
    for line in configuration.splitlines():
        if start := re.match(r"([\w./]+) *= *(.*)", line):
            name = start[1]
            found[name] = [start[2]]
        elif name and line[:1].isspace():
            found[name].append(line.strip())
        else:
            name = ""
    return {name: " ".join(x for x in lines if x != "\\") for name, lines in found.items()}


def _losses(
    runs: Sequence[Run], x_label: str, x_of: Callable[[Run, Sequence[Number]], Sequence[Number]]
) -> list[Chart]:
    """A chart for each loss and split."""
    named = dict.fromkeys(
        (name, record["split"])
        for run in runs
        for record in run.records
        for name in record
        if name == "loss" or name.endswith("/loss")
    )
    titles = {
        (name, split): f"{name.removesuffix('/loss')}{'' if split == 'train' else f', {split}'}"
        for name, split in named
    }
    order = sorted(named, key=lambda key: (key[0] != "loss", key[0], key[1] != "train"))
    return [_chart(runs, titles[key], key[1], key[0], x_label, x_of) for key in order]


def _chart(
    runs: Sequence[Run],
    title: str,
    split: str,
    name: str,
    x_label: str = "step",
    x_of: Callable[[Run, Sequence[Number]], Sequence[Number]] = lambda run, steps: steps,
) -> Chart:
    """A line a run, without points where it has not recorded `name`, so that colours agree."""
    lines = []
    for run in runs:
        points = [
            (record["step"], value)
            for record in run.records
            if record["split"] == split and (value := _value(record, name)) is not None
        ]
        points = points[::-1][:: len(points) // DRAWN + 1][::-1]  # the last one stays
        xs = x_of(run, [step for step, _ in points])
        line = list(zip(xs, [y for _, y in points], strict=True))
        lines.append(Series(run.name, line, marked=split != "train"))
    return Chart(title, lines, x_label)


def _value(record: Record, name: str) -> Number | None:
    return record[name] if name in record else record.get("timing", {}).get(name)


def _tokens(run: Run, steps: Sequence[Number]) -> Sequence[Number]:
    """Tokens without padding that the run had read after each of `steps`."""
    known, read = [0], [0.0]
    for record in run.records:
        if record["split"] == "train":
            read.append(read[-1] + record.get("tokens", 0.0) * (record["step"] - known[-1]))
            known.append(record["step"])
    return [float(x) for x in np.interp(steps, known, read)]


def _overview(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        steps = run.records[-1]["step"] if run.records else 0
        train = [record for record in run.records if record["split"] == "train"]
        loss = _value(train[-1], "loss") if train else None
        seconds, goodput = _seconds(run), _last(run, "goodput")
        total = f"{sum(seconds.values()) / 60:,.1f}" if seconds else None
        share = None if goodput is None else f"{goodput:.1%}"
        rows.append([run.name, steps, round(_tokens(run, [steps])[0]), loss, total, share])
    header = ["run", "steps", "tokens", "last loss", "minutes", "goodput"]
    note = "Tokens without padding. Goodput is the share of time in steps that count."
    return Table("Runs", header, rows, note)


def _spent(runs: Sequence[Run]) -> list[Table]:
    seconds = {run.name: _seconds(run) for run in runs}
    parts = dict.fromkeys(part for each in seconds.values() for part in each)
    rows = [
        [part.replace("_", "-"), *(each.get(part) for each in seconds.values())] for part in parts
    ]
    note = (
        "Seconds of all processes that ran it. Lost are steps, and the wait for their batches, "
        "that had to be done again."
    )
    header = ["", *seconds]
    return [Table("Where the time went", header, rows, note, decimals=1)] if rows else []


def _seconds(run: Run) -> dict[str, float]:
    """By part, from the last record that says it."""
    for record in reversed(run.records):
        timing = record.get("timing", {})
        found = {k.removeprefix(SPENT): v for k, v in timing.items() if k.startswith(SPENT)}
        if found:
            return found
    return {}


def _last(run: Run, name: str) -> Number | None:
    values = [_value(record, name) for record in run.records]
    return next((value for value in reversed(values) if value is not None), None)


def _differences(runs: Sequence[Run]) -> list[Table]:
    if len(runs) == 1:
        return []
    each = [settings(run.configuration) for run in runs]
    names = sorted(set().union(*each) - PATHS)
    rows = [
        [name, *(one.get(name) for one in each)]
        for name in names
        if len({one.get(name) for one in each}) > 1
    ]
    note = (
        "Settings of the operative configurations; n/a where one does not have it."
        if rows
        else "Nothing but the model directory."
    )
    return [Table("How the configurations differ", ["", *(r.name for r in runs)], rows, note)]
