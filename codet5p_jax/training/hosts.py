"""The processes of a run hold each other's line: who is missing, who ended, and why.

Every process is connected to process 0 from the roll call to the end of the run. What JAX has for
the same ends aborts a process with a stack trace, names nobody, and notices a death after minutes.
The kernel closes the connections of a process however it ends, and probes those to machines that
fell silent; process 0 passes on what it learns. A message is a JSON object on a line.
"""

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

import jax

from codet5p_jax.training.cluster import Cluster
from codet5p_jax.training.roll_call import Line, roll_call

_SLOWEST = 300  # seconds from the first process that JAX is to connect to the last
_PATIENCE = 2.0  # seconds for news of another process's end, which an error here may come of
_FAREWELL = 10.0  # seconds that others have to end, before process 0 takes JAX's service with it

_party: "Party | None" = None


@contextmanager
def joined(
    cluster: Cluster | None, timeout: int = 300, on_end: Callable[[], None] = lambda: None
) -> Iterator["Party"]:
    """What happens inside is one run of all processes, which ends for all if it ends for one.

    Nothing may touch a device before `Party.connect`. An error inside is told to the others, which
    print it and exit with 1; so does this process when another one ended.

    Args:
      cluster: the processes; None, or one of one: this process is alone.
      timeout: seconds to wait for the others.
      on_end: called before this process exits because of another.

    Raises:
      OSError: some processes did not come within `timeout`, named; or the port is taken.
      ValueError: two processes have the same number, or they were told different ones.
    """
    global _party
    if cluster is None or cluster.num_processes == 1:
        yield Party(0, ["this process"], {}, on_end)
        return
    lines, names = roll_call(cluster, timeout)
    party = _party = Party(cluster.process_id, names, lines, on_end, cluster)
    try:
        yield party
        party.leave()
    except BaseException as error:
        party.fail(error)
        raise
    finally:
        _party = None


def end(why: str) -> NoReturn:
    """Ends this process and all others of the run with a line, whatever hangs in this one."""
    if _party is None:
        print(f"codet5p: {why}", file=sys.stderr, flush=True)
        _exit(1)
    _party.end(f"{_party.name}: {why}")


def end_if_joined(why: str) -> None:
    """`end`, where there are other processes, and after news of their end had time to come: what
    went wrong here may come of that."""
    if _party is not None:
        time.sleep(_PATIENCE)
        end(why)


class Party:
    """The processes of a run, as one of them sees them.

    Args:
      process: this one's number.
      names: of all, `process 1 (its host)`.
      lines: to process 0, or of process 0 to all others, by number; empty: there are no others.
      on_end, cluster: see `joined`.
    """

    def __init__(
        self,
        process: int,
        names: list[str],
        lines: Mapping[int, Line],
        on_end: Callable[[], None],
        cluster: Cluster | None = None,
    ):
        self.name, self._names = names[process], names
        self._process, self._lines, self._on_end = process, lines, on_end
        self._cluster = cluster
        self._first_is_done, self._others_left = threading.Event(), threading.Event()
        self._ending = threading.Lock()  # held by the thread that ends this process
        if lines:
            threading.Thread(target=self._watch, name="hosts", daemon=True).start()

    def first(self, do: Callable[[], None], waiting: str | None) -> None:
        """Calls `do` in process 0; the others wait until it has returned. Once in a run.

        Args:
          do: what one process does for all.
          waiting: what the others say meanwhile; None: nothing.
        """
        if self._process == 0:
            do()
            for line in self._lines.values():
                line.send(done=True)
        else:
            if waiting:
                print(f"{self.name}: {waiting}", file=sys.stderr, flush=True)
            self._first_is_done.wait()

    def connect(self) -> None:
        """Makes the devices of all processes JAX's. From here on SIGTERM is JAX's as well, so that
        what handles it itself has to come before."""
        if self._cluster is not None:
            jax.distributed.initialize(
                self._cluster.coordinator,
                self._cluster.num_processes,
                self._cluster.process_id,
                self._cluster.local_device_ids,
                initialization_timeout=_SLOWEST,
            )

    def leave(self) -> None:
        """Returns when every process has come here."""
        if self._process:
            self._lines[0].send(bye=True)
        if self._lines:
            self._others_left.wait()
        if not self._process:
            for line in self._lines.values():
                line.send(bye=True)

    def fail(self, error: BaseException) -> None:
        """Tells the others why this process is about to end with an exception.

        Its exit then waits for nobody: JAX would, at the end, for processes that are gone.
        """
        if not self._lines:
            return
        time.sleep(_PATIENCE)
        self._ending.acquire()  # for good; if the watch has it, it ends this process
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
            why = f"ended with exit code {code}"
        elif isinstance(error, KeyboardInterrupt):
            why = "was interrupted"
        self._tell(f"{self.name}: {why}")
        atexit.register(_exit, code)  # runs before JAX's own
        threading.Thread(target=_exit, args=(code, _FAREWELL / 2), daemon=True).start()

    def end(self, why: str) -> NoReturn:
        """Ends all processes, this one included, with a line."""
        self._ending.acquire()
        print(f"codet5p: {why}", file=sys.stderr, flush=True)
        self._on_end()
        self._tell(why)
        _exit(1)

    def _tell(self, why: str) -> None:
        """Sends why the run ends; process 0 waits until the others are gone, as they would abort
        when its JAX service vanishes."""
        for line in self._lines.values():
            line.send(ended=why)
        deadline = time.monotonic() + _FAREWELL
        for line in self._lines.values() if self._process == 0 else ():
            line.drain(deadline)

    def _watch(self) -> None:
        left: set[int] = set()

        def take(number: int, messages: Sequence[Mapping[str, Any]]) -> None:
            for message in messages:
                if "ended" in message:
                    self.end(str(message["ended"]))
                if "done" in message:
                    self._first_is_done.set()
                if "bye" in message:
                    left.add(number)

        open_lines: dict[Any, int] = {line.socket: number for number, line in self._lines.items()}
        for number, line in self._lines.items():
            take(number, line.early)
        while len(left) < len(self._lines):
            for ready in wait(list(open_lines)):
                number = open_lines[ready]
                messages = self._lines[number].receive()
                if messages is None and number not in left:
                    self.end(f"{self._names[number]} was killed, or its machine is out of reach")
                take(number, messages or ())
                if number in left:
                    del open_lines[ready]
        self._others_left.set()


class Deadline:
    """Ends the run when something takes too long, even if it never returns.

    Args:
      seconds: how long it may take; None: as long as it likes.
    """

    def __init__(self, seconds: float | None):
        self._seconds, self._closed = seconds, threading.Event()
        self._due: tuple[float, str] | None = None
        if seconds is not None:
            threading.Thread(target=self._look, name="deadline", daemon=True).start()

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """What happens inside; `what` is the line that it ends with."""
        if self._seconds is not None:
            self._due = (time.monotonic() + self._seconds, what)
        try:
            yield
        finally:
            self._due = None

    def close(self) -> None:
        """Ends the thread that looks at the clock."""
        self._closed.set()

    def _look(self) -> None:
        assert self._seconds is not None
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            due = self._due
            if due is not None and time.monotonic() > due[0]:
                end(due[1])


def same(mine: Mapping[str, str]) -> None:
    """Checks that all processes have the same texts. All have to call it.

    Raises:
      ValueError: they do not; names which, and the processes that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    import zlib

    import numpy as np
    from jax.experimental import multihost_utils

    digests = np.array([zlib.crc32(text.encode()) for text in mine.values()], np.uint32)
    found = multihost_utils.process_allgather(digests)
    for column, what in enumerate(mine):
        others = np.flatnonzero(found[:, column] != found[0, column]).tolist()
        if others:
            raise ValueError(
                f"{what}: expected the same in all processes, found another in "
                f"{', '.join(map(str, others))} than in process 0; start all of them with the same "
                "command and files"
            )


def check_joined() -> None:
    """Fails where this process's accelerator belongs to several hosts that do not know each other.

    Raises:
      RuntimeError: it does.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise RuntimeError(
            f"the devices belong to {jax.process_count()} hosts, which have to be connected: start "
            "codet5p train --coordinator=auto on each of them"
        )


def check_shared(path: Path, patience: float = 60.0) -> None:
    """Waits until process 0 is here, and for a file that it has written. All have to call it.

    Args:
      path: of the file.
      patience: seconds that a network file system may take to show it.

    Raises:
      OSError: it does not appear.
    """
    agreed(True)
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise OSError(
                f"{path}, which process 0 has written, is not on {socket.gethostname()}; set "
                "MODEL_DIR to a folder of a file system that all hosts share"
            )
        time.sleep(0.2)


def agreed(mine: bool) -> bool:
    """Whether it is so in all processes. All have to call it."""
    if jax.process_count() == 1:
        return mine
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(mine)).all())


def _exit(code: int, after: float = 0.0) -> NoReturn:
    time.sleep(after)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
