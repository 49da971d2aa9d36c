"""Traces of a few steps, for the profile viewers of TensorBoard, XProf and Perfetto."""

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

ON_SIGNAL = 5  # steps that a signal traces

# A trace is an extra: a run does not end because it cannot be taken or written.
FAILURES = (OSError, RuntimeError)


class Profiler:
    """Traces steps of this process into a folder.

    Args:
      folder: gets `plugins/profile/<time>/`; of each of several processes, `process_<number>/`.
      steps: (first, end): the steps done before the trace and at its end; None: only when asked.
      asked: when set, the next `ON_SIGNAL` steps are traced.
      paused: a context in which a trace is started or written, told that it is "profile".
      say: is told where a trace of process 0 went; the others write to the standard error.
    """

    def __init__(
        self,
        folder: Path,
        steps: tuple[int, int] | None,
        asked: threading.Event,
        paused: Callable[[str], AbstractContextManager[None]],
        say: Callable[[str], None],
    ):
        number = jax.process_index()
        if jax.process_count() > 1:  # JAX names a file by its host, which others may be on
            folder = folder / f"process_{number}"
        self._folder, self._asked, self._paused = folder, asked, paused
        self._say = say
        if number:  # a run speaks through process 0, but traces are each process's own
            self._say = lambda line: print(f"process {number}: {line}", file=sys.stderr, flush=True)
        self._first, self._end = steps or (0, 0)
        self._later = (0, 0)  # steps asked for, put off by a trace on a signal
        self._from: int | None = None  # where the trace that is being taken begins

    def at(self, step: int, state: Any) -> None:
        """Starts or ends a trace, if that is due; only then it waits for the device.

        Args:
          step: steps done.
          state: what the last of them returned.
        """
        if self._from is not None and step >= self._end:
            self._stop(step, state)
        if self._from is not None:
            return
        if self._asked.is_set() and not self._first <= step < self._end:
            self._asked.clear()
            self._later = (self._first, self._end) if step < self._first else self._later
            self._first, self._end = step, step + ON_SIGNAL
        elif step >= self._end and step < self._later[1]:
            self._first, self._end = self._later
        if self._first <= step < self._end:
            self._start(step, state)

    def close(self, step: int, state: Any) -> None:
        """Writes a trace that steps did not suffice for."""
        if self._from is not None:
            self._stop(step, state)

    def _start(self, step: int, state: Any) -> None:
        try:
            jax.block_until_ready(state)
            with self._paused("profile"):
                jax.profiler.start_trace(self._folder)
            self._from = step
        except FAILURES as error:
            self._end = step  # not tried again at every step
            self._say(f"no trace of steps: {error}")

    def _stop(self, step: int, state: Any) -> None:
        steps, self._from = f"{self._from} to {step}", None
        try:
            jax.block_until_ready(state)
            with self._paused("profile"):
                jax.profiler.stop_trace()
            self._say(f"trace of steps {steps} in {self._folder}")
        except FAILURES as error:
            self._say(f"the trace of steps {steps} is lost: {error}")
