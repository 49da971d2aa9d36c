"""What runs in the sandbox, within which limits, and how it ended."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

MOST_INPUT = 1 << 16  # what a pipe holds, so that nobody waits for a program to read
Status = Literal["finished", "raised", "timed out", "memory", "processes", "output", "ended"]


@dataclass(frozen=True)
class Limits:
    """What a program may use; for one of several steps where nothing else is said.

    Args:
      memory: bytes of all its processes together, looked at 50 times a second.
      address_space: bytes of one process, mapped or not; None: no limit, for runtimes that reserve
        much more than they use (Java, Node).
      cpu_seconds: of one process; the time of `Step` or `PythonSource` is the wall clock's.
      processes: processes and threads at a time.
      file_bytes: of one file.
      disk: bytes of all files in its own folder.
      output: bytes written to standard output, and to standard error.
      open_files: of one process.
    """

    memory: int = 1 << 30
    address_space: int | None = 1 << 30
    cpu_seconds: int = 30
    processes: int = 16
    file_bytes: int = 16 << 20
    disk: int = 64 << 20
    output: int = 1 << 16
    open_files: int = 128

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"Limits.{name}: expected a positive number, got {value}")


@dataclass(frozen=True)
class PythonSource:
    """Python source that is run as the official evaluators do: `exec(source, {})`.

    Args:
      seconds: of the wall clock, then an exception is raised in it; a second later it is killed.
      answer: a global variable whose value is brought back, as far as JSON can say it.
    """

    source: str
    seconds: float = 3.0
    answer: str | None = None
    limits: Limits = Limits()

    def task(self) -> dict[str, Any]:
        """As the zygote reads it."""
        steps = [{"seconds": self.seconds}]
        return {
            **{"source": self.source, "answer": self.answer},
            **{"steps": steps, "limits": asdict(self.limits)},
        }


@dataclass(frozen=True)
class Step:
    """A command: an absolute path and arguments, and seconds of the wall clock.

    Args:
      stdin: what it reads, `MOST_INPUT` bytes at most.
      without: files of `Commands` that are removed before.
    """

    argv: tuple[str, ...]
    seconds: float
    stdin: str = ""
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size = len(self.stdin.encode(errors="surrogatepass"))
        if size > MOST_INPUT:
            raise ValueError(f"Step.stdin: expected {MOST_INPUT} bytes at most, got {size}")
        if not self.argv or not self.argv[0].startswith("/"):
            raise ValueError(f"Step.argv: expected an absolute path first, got {self.argv}")


@dataclass(frozen=True)
class Commands:
    """Commands that run one after another in a folder with `files`, until one of them fails.

    Args:
      files: name in the folder -> text.
      environment: all there is.
    """

    files: Mapping[str, str]
    steps: tuple[Step, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/usr/bin:/bin"})
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("Commands.steps: expected one step or more")
        for name in self.files:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"Commands.files: expected names in the folder, got {name!r}")

    def task(self) -> dict[str, Any]:
        """As the zygote reads it."""
        steps = [{**asdict(step), "environment": dict(self.environment)} for step in self.steps]
        return {"files": dict(self.files), "steps": steps, "limits": asdict(self.limits)}


Program = PythonSource | Commands


@dataclass(frozen=True)
class Done:
    """How a step ended: exit code (minus the signal that killed it) and what it wrote."""

    status: Status
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Args:
      status: `finished`: Python source reached its end, or the last of the commands that ran ended
        by itself, whatever its code; `raised`: an exception left Python source; `timed out`;
        `memory`, `processes`, `output`: more than its limit; `ended`: its process did, and said
        nothing, as after `os._exit(0)`.
      message: of the exception; or how the process ended.
      value: of the variable that `PythonSource.answer` names.
      output: what Python source printed, its end.
      steps: of `Commands`, those that ran.
      seconds: of the wall clock.
    """

    status: Status
    message: str = ""
    value: Any = None
    output: str = ""
    steps: tuple[Done, ...] = ()
    seconds: float = 0.0


def outcome(told: Mapping[str, Any]) -> Outcome:
    """An outcome as the zygote tells it."""
    steps = tuple(Done(**step) for step in told.get("steps", ()))
    return Outcome(**{**told, "steps": steps})
