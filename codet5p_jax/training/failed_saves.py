"""What is said of a checkpoint that could not be written: one line, though many threads fail."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codet5p_jax.training.checkpoint_files import first_line
from codet5p_jax.training.hosts import end_if_joined


class Failures(logging.Filter):
    """Drops the tracebacks that Orbax's threads log of a write that failed.

    Alone, the failure is about to be raised by `wait`, and a traceback is no news. One of several
    processes would wait for the others there, and they for it, until Orbax gives up after 20
    minutes; so it ends all of those that `hosts.joined` holds together.

    Attributes:
      directory: what is being written.
      seen: whether there was one.
    """

    _THREADS = (
        "Failed to write metadata=",
        "_SignalingThread.run() raised",
        "Save Finalize thread",
        "in background save thread",
    )

    def __init__(self, directory: Path):
        super().__init__()
        self.directory, self.seen = directory, False

    def listen(self) -> None:
        """From here on nothing else is said of a failed save."""
        logging.getLogger("absl").addFilter(self)
        if not isinstance(sys.unraisablehook, _Unraisable):
            sys.unraisablehook = _Unraisable(sys.unraisablehook)

    def leave(self) -> None:
        """Lets go, unless a save failed: its threads go on logging."""
        if not self.seen:
            logging.getLogger("absl").removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is of something else."""
        if not any(words in record.getMessage() for words in self._THREADS):
            return True
        self.seen = True
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            end_if_joined(_failed(self.directory, error))
        return False


class explained:
    """Turns the many exceptions of a failed write into an OSError that names the folder."""

    def __init__(self, directory: Path):
        self.directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, Exception):
            raise OSError(_failed(self.directory, error)) from error


class _Unraisable:
    """A `sys.unraisablehook` that says nothing of TensorStore's threads: after a failed save they
    call back an event loop that is closed by then, once for each array."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)


def _failed(directory: Path, error: BaseException) -> str:
    return (
        f"saving a checkpoint to {directory} failed: {first_line(error)}. What was saved "
        "before is intact; make room or fix permissions and start again to resume"
    )
