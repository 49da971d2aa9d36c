"""Programs through sandboxes, some at a time."""

import base64
import contextlib
import importlib.util
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import codet5p_jax
from codet5p_jax.evaluation.sandbox import system_calls, zygote
from codet5p_jax.evaluation.sandbox.program import Outcome, Program, PythonSource, outcome

LAYERS = {
    "namespaces": "processes, files, network and users of its own, and a whole end",
    "system calls": "a seccomp filter: no sockets, no ptrace, no new namespaces",
}
_SLACK = 10.0  # seconds that the zygote's answer may take longer than the program
_START = "from codet5p_jax.evaluation.sandbox import zygote; zygote.main()"


class SandboxError(RuntimeError):
    """The sandbox does not start."""


class LayerMissing(SandboxError):
    """The kernel or a library lacks a layer, and `allow_weaker` is false."""


class Sandbox:
    """A zygote and the pipes to it; takes one program at a time.

    Args:
      packages: of this Python's installed ones, those which programs may import; loaded before.
      readable: more absolute paths that programs may read.
      allow_weaker: run without the layers that are missing here, which `missing` says.

    Raises:
      LayerMissing: a layer is missing and `allow_weaker` is false.
      SandboxError: it does not start.
    """

    def __init__(
        self,
        *,
        packages: Sequence[str] = (),
        readable: Sequence[str] = (),
        allow_weaker: bool = False,
    ) -> None:
        _require_linux()
        self.missing: dict[str, str] = {}
        rules = None
        try:
            rules = base64.b64encode(system_calls.compiled()).decode()
        except (ImportError, OSError) as error:
            self.missing["system calls"] = str(error)
        folders = [folder for name in packages for folder in _folders_of(name)]
        own = str(Path(codet5p_jax.__file__).parents[1])
        self._settings = {
            "filter": rules,
            "allow_weaker": allow_weaker,
            "readable": [sys.base_prefix, *folders, *readable],
            "packages": sorted({str(Path(folder).parent) for folder in folders}),
            "preloaded": list(packages),
            "own_path": [own],
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, `close` does
        try:
            self._start(own)
            if self.missing and not allow_weaker:
                raise LayerMissing(_refusal(self.missing))
            trial = self.run(PythonSource("import random", seconds=_SLACK))
            if trial.status != "finished":
                raise SandboxError(
                    f"the sandbox runs no program here: {trial.message or trial.status}. They have "
                    f"to be able to read {sys.base_prefix}, root's as user nobody where there are "
                    "no namespaces"
                )
        except BaseException:
            self.close()
            raise

    def _start(self, own: str) -> None:
        code = f"import sys; sys.path.append({own!r}); {_START}"
        self._process = subprocess.Popen(
            # No environment of the user's, no site-packages; one order of sets for every run.
            [sys.executable, "-s", "-S", "-P", "-B", "-c", code],
            env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            cwd="/",
        )
        hello = self._ask(self._settings, _SLACK)
        if hello is None:
            raise SandboxError(f"the sandbox did not start: {self._said()}")
        self.missing |= hello["missing"]

    def _ask(self, message: Mapping[str, Any], seconds: float) -> Any:
        """The answer; None: it is gone, or too late."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        reading = self._process.stdout.fileno()
        with contextlib.suppress(OSError):
            zygote.write_message(self._process.stdin.fileno(), message)
            waiting = select.poll()
            waiting.register(reading, select.POLLIN)
            if waiting.poll(seconds * 1000):
                return zygote.read_message(reading)
        return None

    def _said(self) -> str:
        self._stop()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def run(self, program: Program) -> Outcome:
        """Runs a program; a zygote that it should have harmed is replaced by another."""
        task = program.task()
        seconds = sum(step["seconds"] for step in task["steps"])
        told = self._ask(task, seconds + _SLACK)
        if told is None:
            said = self._said()
            self._start(self._settings["own_path"][0])
            return Outcome("ended", f"the sandbox went down with it: {said}")
        return outcome(told)

    def _stop(self) -> None:
        if hasattr(self, "_process"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()

    def close(self) -> None:
        """Ends all processes of the sandbox."""
        self._stop()
        self._errors.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _require_linux() -> None:
    if sys.platform != "linux":
        raise SandboxError(f"programs run on Linux only, this is {sys.platform}")


def _refusal(missing: Mapping[str, str]) -> str:
    """Why programs do not run, and what to do."""
    return (
        f"the sandbox lacks layers here: {_said_of(missing)}. Programs that models write may do "
        "anything: see docs/sandbox.md for how to get the layers, or give --allow_weaker_sandbox "
        "to run them without"
    )


def _said_of(missing: Mapping[str, str]) -> str:
    return "; ".join(f"no {layer} ({LAYERS[layer]}): {why}" for layer, why in missing.items())


def run_programs(
    programs: Iterable[Program],
    *,
    workers: int | None = None,
    packages: Sequence[str] = (),
    readable: Sequence[str] = (),
    allow_weaker: bool = False,
    progress: Callable[[int], None] = lambda programs: None,
) -> Iterator[Outcome]:
    """Yields the outcomes of programs, in their order; takes programs as it goes.

    Args:
      workers: programs at a time; default: as many as this process may use cores.
      packages, readable, allow_weaker: see `Sandbox`.
      progress: called with the number of programs just finished.

    Raises:
      SandboxError: as `Sandbox`, before any program runs.

    Warns:
      UserWarning: a layer is missing, and allowed to be.
    """
    _require_linux()
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers: expected 1 or more, got {workers}")
    idle: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()

    def run(program: Program) -> Outcome:
        sandbox = idle.get()
        try:
            return sandbox.run(program)
        finally:
            idle.put(sandbox)

    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            sandbox = Sandbox(packages=packages, readable=readable, allow_weaker=allow_weaker)
            idle.put(stack.enter_context(sandbox))
        if sandbox.missing:
            warnings.warn(f"a weaker sandbox: {_said_of(sandbox.missing)}", stacklevel=2)
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        running: deque[Future[Outcome]] = deque()
        try:
            for program in programs:
                future = threads.submit(run, program)
                future.add_done_callback(lambda done: progress(1))
                running.append(future)
                if len(running) >= 8 * workers:  # a slow one holds up few of those after it
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _folders_of(package: str) -> list[str]:
    """What of an installed package has to be readable: its folder or file, and its libraries."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"packages: {package} is not installed: pip install {package}")
    origin = Path(found.origin)
    folder = origin.parent if origin.name == "__init__.py" else origin
    libraries = folder.with_name(f"{package}.libs")
    return [str(path) for path in (folder, libraries) if path.exists()]
