"""What the time of a run goes into, over all the processes that ran it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PARTS = {
    "steps": "in steps that count",
    "data": "waiting for batches",
    "checkpoint": "saving",
    "evaluation": "on held-out data",
    "compile": "waiting for the compiler",
    "start_up": "from the start of a process to its first step, but for the above",
    "profile": "starting and writing traces",
    "lost": "in steps, and waiting for their batches, that had to be done again",
}
REDONE = ("steps", "data")  # by a run that goes on from a checkpoint: all that came after it
PREFIX = "spent/"

Seconds = dict[str, float]  # by part


class Goodput:
    """Books every second under one part, at first `start_up`.

    Args:
      before: seconds of the start-up that are over.
    """

    def __init__(self, before: float):
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._mark = "start_up", time.perf_counter() - before

    def go_on(self, saved: Mapping[str, float], known: Mapping[str, float]) -> None:
        """Adds what processes before this one spent.

        Args:
          saved: seconds at the checkpoint that the run goes on from; empty without one.
          known: the latest that they wrote down; what came after the checkpoint is lost.
        """
        for part in PARTS:
            self._seconds[part] += max(saved.get(part, 0.0), known.get(part, 0.0))
        for part in REDONE:
            lost = max(known.get(part, 0.0) - saved.get(part, 0.0), 0.0)
            self._seconds[part] -= lost
            self._seconds["lost"] += lost

    def begin(self, part: str) -> None:
        """From now on, time belongs to `part` where nothing else is said."""
        now = time.perf_counter()
        self._seconds[self._part] += now - self._mark
        self._part, self._mark = part, now

    @contextmanager
    def spend(self, part: str) -> Iterator[None]:
        """What happens inside belongs to `part`."""
        before = self._part
        self.begin(part)
        try:
            yield
        finally:
            self.begin(before)

    def seconds(self) -> Seconds:
        """By part, up to now."""
        self.begin(self._part)
        return dict(self._seconds)

    def timing(self) -> dict[str, float]:
        """For a record's `timing`: `{"goodput": 0.9, "spent/steps": 81.2, "spent/data": …}`."""
        seconds = self.seconds()
        spent = {PREFIX + part: value for part, value in seconds.items()}
        return {"goodput": share_of_steps(seconds), **spent}


def share_of_steps(seconds: Mapping[str, float]) -> float:
    """`steps` over all parts; 0 where nothing was spent.

    >>> share_of_steps({"steps": 3.0, "data": 0.5, "lost": 0.5})
    0.75
    """
    total = sum(seconds.values())
    return seconds.get("steps", 0.0) / total if total else 0.0


def latest_seconds(records: Sequence[Mapping[str, Any]]) -> Seconds:
    """By part, from the last record that has them; empty without one."""
    for record in reversed(records):
        timing = record.get("timing", {})
        if "goodput" in timing:
            return {part: timing.get(PREFIX + part, 0.0) for part in PARTS}
    return {}


def summary(seconds: Mapping[str, float]) -> str:
    """`goodput 90.1% of 738.0 s: steps 665.2 s, data 1.2 s, …`; parts without time are left out."""
    total = sum(seconds.values())
    spent = ", ".join(
        f"{part.replace('_', '-')} {value:,.1f} s" for part, value in seconds.items() if value
    )
    return f"goodput {share_of_steps(seconds):.1%} of {total:,.1f} s: {spent}"
