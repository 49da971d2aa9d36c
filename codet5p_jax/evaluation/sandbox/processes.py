"""Processes by their numbers: what is below one, what it holds, and its end."""

import contextlib
import os
import signal

_SOCKET_BYTES = 212_992  # Linux's default; programs cannot change it


def descendants(of: int) -> list[int]:
    """Process numbers of a process and of all below it that have not ended."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    found = [of]
    for process in found:
        found += children.get(process, ())
    return found


def memory(process: int) -> int:
    """Bytes that a process alone holds; programs can share no memory but by files."""
    total = 0
    with contextlib.suppress(OSError), open(f"/proc/{process}/status", "rb") as file:
        for line in file:
            if line.startswith((b"RssAnon:", b"VmSwap:", b"VmPTE:")):
                total += int(line.split()[1]) * 1024
    return total


def socket_memory() -> int:
    """Bytes that all pairs of sockets of this network namespace may hold."""
    with open("/proc/net/protocols", encoding="ascii") as file:
        rows = [line.split() for line in file]
    return _SOCKET_BYTES * sum(int(row[2]) for row in rows if row[0].startswith("UNIX"))


def threads_of(user: int) -> int:
    """How many threads of a user there are now."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == user:
                total += len(os.listdir(f"/proc/{name}/task"))
    return total


def kill_descendants() -> None:
    """As long as there are any: orphans become children of this process, which adopts them."""
    own = os.getpid()
    while found := [process for process in descendants(own) if process != own]:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    reap()


def reap() -> None:
    """Waits for all children."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
