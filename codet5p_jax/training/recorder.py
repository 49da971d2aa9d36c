"""Turns the metrics of steps into records, with the time they took, and hands them to writers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from codet5p_jax.training.goodput import Goodput
from codet5p_jax.training.metrics import GOODPUT, Accumulator, Record, Totals, Writer
from codet5p_jax.training.progress import Progress
from codet5p_jax.training.step import Metrics


class Recorder:
    """The bookkeeping of a training loop; on hosts other than the first it has no writers.

    Args:
      writers: get every record.
      progress: is told of every step and record.
      goodput: books where the time goes.
      step: steps done before.
      totals: sums of the unfinished interval, as `totals` returned them before an interruption.
      peak: FLOP/s of all devices together; None: no MFU.
      max_nonfinite: so many steps in a row that are not finite are an error.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        progress: Progress,
        goodput: Goodput,
        *,
        step: int,
        totals: Totals,
        peak: float | None,
        max_nonfinite: int,
    ):
        self._writers, self._progress, self._goodput = writers, progress, goodput
        self._accumulator = Accumulator(totals)
        self._fetched, self._peak, self._max_nonfinite = step, peak, max_nonfinite
        self._restart_clock()

    def add(self, metrics: Metrics, *, flops: float) -> None:
        """Takes the metrics of a step that may still be running.

        Args:
          metrics: of the step function.
          flops: of the step.

        Raises:
          FloatingPointError: `max_nonfinite` steps in a row were not finite.
        """
        self._steps += 1
        self._flops += flops
        self._show(self._accumulator.add(metrics))

    def totals(self) -> Totals:
        """Sums of the unfinished interval, to be saved with a checkpoint. Waits for the device."""
        self._show(self._accumulator.drain())
        return self._accumulator.totals

    def finish_interval(self, step: int) -> None:
        """Writes the means since the last record, of `skipped` the sum. Waits for the device."""
        self._show(self._accumulator.drain())
        seconds = max(time.perf_counter() - self._started, 1e-9)
        means = self._accumulator.means()
        if "skipped" in means:  # a number of steps says more than their share
            means["skipped"] = self._accumulator.totals["skipped"][0]
        timing = {
            "seconds": seconds,
            "steps_per_second": self._steps / seconds,
            "tokens_per_second": means.get("tokens", 0.0) * self._steps / seconds,
            "data_wait_seconds": self._waited,
        }
        if self._peak:
            timing["mfu"] = self._flops / (seconds * self._peak)
        timing |= self._goodput.timing()
        self._write({"step": step, "split": "train", **means, "timing": timing})
        self._accumulator.clear()
        self._restart_clock()

    def evaluation(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes held-out metrics."""
        self._write({"step": step, "split": split, **values})

    def finish(self, step: int) -> None:
        """Writes what all the time of the run went into."""
        self._write({"step": step, "split": GOODPUT, "timing": self._goodput.timing()})

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for a batch."""
        began = time.perf_counter()
        with self._goodput.spend("data"):
            yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """What happens inside does not count as training time, but as `part` of the goodput."""
        began = time.perf_counter()
        with self._goodput.spend(part):
            yield
        self._started += time.perf_counter() - began

    def close(self) -> None:
        """Closes the writers."""
        for writer in self._writers:
            writer.close()

    def _restart_clock(self) -> None:
        self._started = time.perf_counter()
        self._steps, self._waited, self._flops = 0, 0.0, 0.0

    def _write(self, record: Record) -> None:
        for writer in self._writers:
            writer.write(record)
        self._progress.record(record)

    def _show(self, fetched: Sequence[Mapping[str, float]]) -> None:
        for values in fetched:
            self._fetched += 1
            self._progress.advance(self._fetched, values)
            if values["skipped_in_a_row"] >= self._max_nonfinite:
                raise FloatingPointError(
                    f"loss or gradients were not finite in the {self._max_nonfinite} steps up to "
                    f"{self._fetched}; lower the learning rate, lengthen the warm-up or look at "
                    "the data, then start again to resume from the last checkpoint (or raise "
                    "max_nonfinite)"
                )
