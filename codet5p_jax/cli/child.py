"""Runs `codet5p` in a process of its own, which does not outlive this one."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from codet5p_jax.signals import Terminated

# -P: where one stands does not hide what is installed, as the package has to be.
COMMAND = (sys.executable, "-P", "-m", "codet5p_jax.cli.main")


def codet5p(*arguments: str) -> int:
    """Runs `codet5p ARGUMENTS` on this terminal and returns its exit code.

    SIGTERM is passed on: the command is waited for, since training saves before it ends. Then this
    process ends as well, with `Terminated`.
    """
    return run([*COMMAND, *arguments])


_running: set[subprocess.Popen[bytes]] = set()


def end_all() -> None:
    """Ends the commands that run now, for a process that is about to exit without waiting."""
    for process in list(_running):
        process.terminate()


def run(command: Sequence[str]) -> int:
    """Runs a command as `codet5p` does."""
    with _terminations() as pending, subprocess.Popen(command) as process:
        pending.child = process
        _running.add(process)
        if pending.asked:  # before there was a process to tell
            process.terminate()
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C
            process.kill()
            raise
        finally:
            _running.discard(process)
    if pending.asked:
        raise Terminated
    return code


class _Pending:
    """Whether SIGTERM arrived, and the process to tell."""

    def __init__(self) -> None:
        self.asked = False
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self, *_: object) -> None:
        self.asked = True
        if self.child is not None:
            self.child.terminate()


@contextmanager
def _terminations() -> Iterator[_Pending]:
    pending = _Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending  # only the main thread may handle signals
        return
    previous = signal.signal(signal.SIGTERM, pending)
    try:
        yield pending
    finally:
        signal.signal(signal.SIGTERM, previous)
