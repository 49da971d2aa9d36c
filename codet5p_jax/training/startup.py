"""What the start-up of a run takes."""

import os
import time
from pathlib import Path


class Laps:
    """What the start-up spends its time on.

    Args:
      before: seconds until the first lap: imports, other processes, data that was prepared.
    """

    def __init__(self, before: float):
        self._seconds = {"before": before}
        self._mark = time.perf_counter()

    def end(self, name: str) -> None:
        """Books the time since the last lap under `name`."""
        now = time.perf_counter()
        self._seconds[name] = now - self._mark
        self._mark = now

    def line(self) -> str:
        """`start-up 7.1 s: before 1.9 s, devices 0.1 s, …`."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
        return f"start-up {sum(self._seconds.values()):.1f} s: {parts}"


def seconds_before() -> float:
    """What a process spent before its first run, imports above all; 0.0 for its other runs."""
    global _told
    before, _told = 0.0 if _told else process_age(), True
    return before


_told = False


def process_age() -> float:
    """Seconds since this process was started; 0.0 where unknown."""
    try:
        started = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(uptime - started / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError):
        return 0.0
