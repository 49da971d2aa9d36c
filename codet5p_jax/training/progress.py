"""What a person watching a run sees: a live line in a terminal, plain lines elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from codet5p_jax.training.goodput import latest_seconds, summary
from codet5p_jax.training.metrics import GOODPUT, Record


@runtime_checkable
class Progress(Protocol):
    """What `train` tells; implement it to show a run in another way."""

    def say(self, line: str) -> None:
        """A line for the log."""
        ...

    def begin(self, first_step: int, total_steps: int) -> None:
        """Steps start; `first_step` is above 0 in a resumed run."""
        ...

    def advance(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done; `values` are the metrics of the last one."""
        ...

    def record(self, record: Record) -> None:
        """A record was written to `metrics.jsonl`."""
        ...

    def end(self) -> None:
        """Steps are over, for whatever reason."""
        ...


class PlainProgress:
    """One line per record."""

    def __init__(self) -> None:
        self._total = 0

    def say(self, line: str) -> None:
        """Prints the line."""
        print(line, flush=True)

    def begin(self, first_step: int, total_steps: int) -> None:
        """Remembers the total."""
        del first_step
        self._total = total_steps

    def advance(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: records are enough."""

    def record(self, record: Record) -> None:
        """Prints the record's losses and rates."""
        self.say(format_record(record, self._total))

    def end(self) -> None:
        """Nothing to tidy up."""


class LiveProgress:
    """A bar with the loss of the last step and the number of skipped ones; lines of evaluations
    above it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._loss, self._skipped = "", 0

    def say(self, line: str) -> None:
        """Prints the line above the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)

    def begin(self, first_step: int, total_steps: int) -> None:
        """Shows the bar."""
        from rich import progress

        self._total = total_steps
        self._bar = progress.Progress(
            progress.TextColumn("step"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
        )
        self._task = self._bar.add_task("", total=total_steps, completed=first_step)
        self._bar.start()

    def advance(self, step: int, values: Mapping[str, float]) -> None:
        """Moves the bar; a step that was skipped has no loss, but is counted."""
        if "loss" in values:
            self._loss = f"loss {values['loss']:.4f}"
        self._skipped += round(values.get("skipped", 0))
        skipped = f"{self._skipped} skipped" if self._skipped else ""
        shown = " | ".join(part for part in (self._loss, skipped) if part)
        self._bar.update(self._task, completed=step, description=shown)

    def record(self, record: Record) -> None:
        """Prints evaluations; the bar itself shows the rest."""
        if record["split"] != "train":
            self.say(format_record(record, self._total))

    def end(self) -> None:
        """Leaves the last state of the bar on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class SilentProgress(PlainProgress):
    """Says nothing: hosts other than the first."""

    def say(self, line: str) -> None:
        """Drops the line."""


def default_progress(main: bool) -> Progress:
    """A live line if the standard output is a terminal, plain lines if not; silence elsewhere."""
    if not main:
        return SilentProgress()
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()


def format_record(record: Record, total_steps: int) -> str:
    """`step 20/100 train | loss 9.1702 | … | 2 skipped | 1,234 tokens/s`: losses, learning rate,
    steps skipped if there were any, speed; or, of the whole run, what its time went into."""
    if record["split"] == GOODPUT:
        return summary(latest_seconds([record]))
    parts = [f"step {record['step']}/{total_steps} {record['split']}"]
    for name, value in record.items():
        if isinstance(value, float) and (name == "loss" or name.endswith("/loss")):
            parts.append(f"{name.removesuffix('/loss')} {value:.4f}")
    if "learning_rate" in record:
        parts.append(f"lr {record['learning_rate']:.3g}")
    if record.get("skipped"):
        parts.append(f"{record['skipped']:.0f} skipped")
    timing = record.get("timing", {})
    if "tokens_per_second" in timing:
        parts.append(f"{timing['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in timing:
        parts.append(f"MFU {timing['mfu']:.1%}")
    return " | ".join(parts)
