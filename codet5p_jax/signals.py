"""SIGTERM and Ctrl-C, for a command that writes folders: they end it between two parameters.

An exception raised wherever a signal happens to arrive may be swallowed (a callback of the garbage
collector prints it and goes on), or leave threads of a library that still write.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked: int | None = None  # the signal that arrived
_writing = False


class Terminated(SystemExit):
    """SIGTERM arrived; the exit code is a shell's for that."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def listen() -> None:
    """From now on a first signal is postponed while a folder is being written. Any other signal
    ends the process at once, with a shell's exit code for it."""
    global _asked
    _asked = None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _arrived)


def check() -> None:
    """To be called between two pieces of work.

    Raises:
      Terminated, KeyboardInterrupt: what a signal that was postponed asked for.
    """
    if _asked is not None:
        raise Terminated if _asked == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def postponed() -> Iterator[None]:
    """Signals wait for `check` inside, and for the end of it at the latest."""
    global _writing
    _writing = True
    try:
        yield
    finally:
        _writing = False
    check()


def _arrived(number: int, _: FrameType | None) -> None:
    global _asked
    if _writing and _asked is None:
        _asked = number
        return
    os._exit(128 + number)  # an exception may be swallowed, see above
