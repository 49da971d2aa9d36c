"""The process that starts programs: alone in its namespaces, it forks for each of them.

Three processes stand between the evaluation and a program, and none of them runs its code:

  keeper   waits, so that all goes when the evaluation does
  zygote   process 1 of namespaces without network; has Python loaded, takes one program at a time
  init     process 1 of namespaces for this program alone; its end is the end of all in there
  program

It is started by `pool.py`, with nothing but the standard library and no environment. Messages are
JSON after its length in four bytes.
"""

import base64
import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from codet5p_jax.evaluation.sandbox import linux, private_root, processes
from codet5p_jax.evaluation.sandbox.init import run as run_in_init

# Loaded before programs that want them; none draws random numbers when loaded, which would be the
# same in all programs.
PRELOADED = (
    *("bisect", "collections", "collections.abc", "copy", "datetime", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "re", "string", "typing"),
)
LOOK_EVERY, FIRST_LOOK = 0.02, 0.05  # seconds between looks at the memory in use
GRACE = 2.0  # seconds after its time that a program's init has


def read_message(file: int) -> Any:
    """The next message; None at the end."""
    size = _read(file, 4)
    return json.loads(_read(file, int.from_bytes(size))) if size else None


def write_message(file: int, message: Any) -> None:
    """Sends what JSON can say."""
    data = json.dumps(message).encode()
    data = len(data).to_bytes(4) + data
    while data:
        data = data[os.write(file, data) :]


def _read(file: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(file, size - len(data))
        if not more:
            return b""
        data += more
    return data


def main() -> NoReturn:
    """Reads settings, says which layers are missing, serves programs until the input ends."""
    settings = read_message(0)
    os.umask(0o022)
    with contextlib.suppress(OSError):  # where memory runs out, programs go first
        Path("/proc/self/oom_score_adj").write_text("1000")
    missing = {}
    keep, told = os.pipe()
    mapped, go = os.pipe()
    try:
        zygote = linux.clone(private_root.NAMESPACES)
    except OSError as error:
        missing["namespaces"] = str(error)
    else:
        if not zygote:
            os.close(keep)
            os.close(go)
            _enter(settings, mapped, told)
            serve(settings, namespaces=True)
        os.close(told)
        os.close(mapped)
        why = "their process ended"
        try:
            private_root.map_users(zygote)
            os.write(go, b"+")
        except OSError as error:
            why = f"users: {error}"
        os.close(go)
        problem = os.read(keep, 4096).decode()
        if problem == "+":
            _keep(zygote)
        missing["namespaces"] = problem or why
    write_message(1, {"missing": missing})
    if not settings["allow_weaker"]:
        os._exit(1)
    serve(settings, namespaces=False)


def _keep(zygote: int) -> NoReturn:
    """Waits for the end of the zygote, or of the evaluation, which holds the other end of 0."""
    os.close(1)
    waiting = select.poll()
    waiting.register(0, 0)  # that it was closed is always told
    waiting.register(os.pidfd_open(zygote), select.POLLIN)
    waiting.poll()
    with contextlib.suppress(ProcessLookupError):
        os.kill(zygote, signal.SIGKILL)
    os.waitpid(zygote, 0)
    os._exit(0)


def _enter(settings: Mapping[str, Any], mapped: int, told: int) -> None:
    """The first steps of the zygote; what goes wrong is told to the keeper."""
    try:
        linux.die_with_parent()
        if not os.read(mapped, 1):
            os._exit(1)
        private_root.enter(settings["readable"])
        linux.hide_memory()
    except Exception as error:
        os.write(told, str(error).encode())
        os._exit(1)
    os.write(told, b"+")
    os.close(told)
    os.close(mapped)
    write_message(1, {"missing": {}})


def serve(settings: Mapping[str, Any], *, namespaces: bool) -> NoReturn:
    """Runs program after program."""
    rules = settings["filter"] and base64.b64decode(settings["filter"])
    sys.path[:] = [path for path in sys.path if path not in settings["own_path"]]
    sys.path.extend(settings["packages"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an init ignores only what it does not handle
    if not namespaces:
        linux.adopt_orphans()
    for name in (*PRELOADED, *settings["preloaded"]):
        importlib.import_module(name)
    os.environ.clear()
    gc.collect()
    gc.freeze()
    while (task := read_message(0)) is not None:
        write_message(1, _run(task, rules, namespaces=namespaces))
    os._exit(0)


def _run(task: Mapping[str, Any], rules: bytes | None, *, namespaces: bool) -> dict[str, Any]:
    """One program: its init is started, watched, and gone at the end."""
    began = time.monotonic()
    folder = None if namespaces else f"/tmp/codet5p-{os.urandom(8).hex()}"
    read, write = os.pipe()
    if namespaces:
        own = linux.NEW_MOUNTS | linux.NEW_PIDS | linux.NEW_IPC
        init = linux.clone(own)
    else:
        init = os.fork()
    if not init:
        run_in_init(task, rules, write, folder)
    os.close(write)
    seconds = sum(step["seconds"] for step in task["steps"])
    told, problem = _watch(
        init, read, began + seconds + GRACE, task["limits"], namespaces=namespaces
    )
    os.close(read)
    _end(init, namespaces=namespaces)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        outcome = {} if problem else json.loads(told)
    except ValueError:
        outcome = {}  # init was killed
    outcome = outcome or {"status": problem or "ended"}
    return {**outcome, "seconds": time.monotonic() - began}


def _watch(
    init: int, read: int, deadline: float, limits: Mapping[str, Any], *, namespaces: bool
) -> tuple[bytes, str | None]:
    """What init told, or why the program has to go."""
    told, waiting = b"", select.poll()
    waiting.register(read, select.POLLIN)
    pause = FIRST_LOOK
    while True:
        if waiting.poll(pause * 1000):
            more = os.read(read, 1 << 16)
            told += more
            if not more:
                return told, None
            continue
        pause = LOOK_EVERY
        found = processes.descendants(init)
        if time.monotonic() > deadline:
            return b"", "timed out"
        if len(found) > limits["processes"] + 1:  # where the kernel does not count
            return b"", "processes"
        held = sum(map(processes.memory, found))
        if held + (processes.socket_memory() if namespaces else 0) > limits["memory"]:
            return b"", "memory"


def _end(init: int, *, namespaces: bool) -> None:
    """Kills a program whole. In namespaces, the kernel ends all with their init."""
    if namespaces:
        os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)
    else:
        processes.kill_descendants()
