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

from codet5p_jax.evaluation.sandbox import child, linux, private_root

# Loaded before programs that want them; none draws random numbers when loaded, which would be the
# same in all programs.
PRELOADED = (
    *("bisect", "collections", "collections.abc", "copy", "datetime", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "re", "string", "typing"),
)
MOST_TOLD = 1 << 20  # bytes that Python source tells
LOOK_EVERY, FIRST_LOOK = 0.02, 0.05  # seconds between looks at the memory in use
ALARM = 1.0  # seconds that Python source has after the exception that ends its time, as officially
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
        _init(task, rules, write, folder)
    os.close(write)
    seconds = sum(step["seconds"] for step in task["steps"])
    told, problem = _watch(init, read, began + seconds + GRACE, task["limits"])
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
    init: int, read: int, deadline: float, limits: Mapping[str, Any]
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
        processes = _descendants(init)
        if time.monotonic() > deadline:
            return b"", "timed out"
        if len(processes) > limits["processes"] + 1:  # where the kernel does not count
            return b"", "processes"
        if sum(map(_memory, processes)) > limits["memory"]:
            return b"", "memory"


def _end(init: int, *, namespaces: bool) -> None:
    """Kills a program whole. In namespaces, the kernel ends all with their init."""
    if namespaces:
        os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)
    else:
        _kill_descendants()


def _kill_descendants() -> None:
    """As long as there are any: orphans become children of this process, which adopts them."""
    own = os.getpid()
    while found := [process for process in _descendants(own) if process != own]:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    _reap()


def _reap() -> None:
    """Waits for all children."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _descendants(of: int) -> list[int]:
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


def _memory(process: int) -> int:
    """Bytes that a process alone holds; programs can share no memory but by files."""
    total = 0
    with contextlib.suppress(OSError), open(f"/proc/{process}/status", "rb") as file:
        for line in file:
            if line.startswith((b"RssAnon:", b"VmSwap:", b"VmPTE:")):
                total += int(line.split()[1]) * 1024
    return total


def _threads_of(user: int) -> int:
    """How many threads of a user there are now."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == user:
                total += len(os.listdir(f"/proc/{name}/task"))
    return total


def _init(
    task: Mapping[str, Any], rules: bytes | None, report: int, folder: str | None
) -> NoReturn:
    """Process 1 of a program: makes its folder, runs its steps, tells how they ended."""
    outcome: dict[str, Any] = {"status": "ended"}
    try:
        null = os.open("/dev/null", os.O_RDWR)
        for file in (0, 1, 2):
            os.dup2(null, file)
        os.dup2(report, 3)
        os.closerange(4, 1 << 16)
        linux.die_with_parent()
        outcome = _steps(task, rules, folder)
    except Exception as error:
        outcome = {"status": "ended", "message": f"the sandbox: {error}"}
    try:
        data = json.dumps(outcome).encode()
        while data:
            data = data[os.write(3, data) :]
    finally:
        os._exit(0)


def _steps(task: Mapping[str, Any], rules: bytes | None, folder: str | None) -> dict[str, Any]:
    limits = task["limits"]
    python = "source" in task
    if folder is None:
        private_root.own_folder(limits["disk"], processes=not python)
        # Where this process and programs have one user, it counts, and so does the zygote.
        user, others = (private_root.PROGRAM_ID, 0) if os.getuid() == 0 else (None, 2)
        limits = {**limits, "processes": limits["processes"] + others}
    else:
        os.mkdir(folder, 0o700)
        user = private_root.NOBODY if os.getuid() == 0 else None
        if user:
            os.chown(folder, user, user)
        os.chdir(folder)
        linux.adopt_orphans()
        # All of a user's processes count where there is no namespace of users.
        others = _threads_of(os.getuid() if user is None else user)
        limits = {**limits, "processes": limits["processes"] + others}
    os.umask(0)  # what is made here is for the program, who may be another user
    for name, text in task.get("files", {}).items():
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    done = []
    for step in task["steps"]:
        ended = _step(task, step, limits, user, rules, namespaces=folder is None)
        done.append(ended)
        if ended["status"] != "finished" or (not python and ended["code"]):
            break
    last = done[-1]
    return last if python else {"status": last["status"], "steps": done}


def _step(
    task: Mapping[str, Any],
    step: Mapping[str, Any],
    limits: Mapping[str, Any],
    user: int | None,
    rules: bytes | None,
    *,
    namespaces: bool,
) -> dict[str, Any]:
    """One process of a program and its offspring, from the first to the end of the last."""
    python = "source" in task
    pipes = {name: os.pipe() for name in (("told",) if python else ("stdin", "stdout", "stderr"))}
    token = os.urandom(16)
    program = os.fork()
    if not program:
        try:
            os.setsid()
            _program(task, step, limits, user, rules, pipes, token)
        except BaseException as error:
            told = json.dumps({"status": "raised", "message": f"before its start: {error}"})
            os.write(3, token + told.encode())
        finally:
            os._exit(127)
    reading = {}
    for name, (read, write) in pipes.items():
        if name == "stdin":
            os.close(read)
            os.set_blocking(write, False)
            with contextlib.suppress(OSError):  # more than it holds, or nobody reads
                os.write(write, task.get("stdin", "").encode(errors="surrogatepass"))
            os.close(write)
        else:
            os.close(write)
            reading[read] = name
    try:
        most = MOST_TOLD if python else limits["output"]
        texts, problem = _collect(program, reading, step["seconds"] + python * ALARM, most)
    finally:
        if namespaces:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            os.kill(program, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    if namespaces:
        _reap()
    else:
        _kill_descendants()
    for file in reading:
        os.close(file)
    if not problem and code == -signal.SIGXCPU:
        problem = "timed out"
    if python:
        told = texts["told"]
        if not problem and told.startswith(token):
            return _known(json.loads(told[len(token) :]))
        return {"status": problem or "ended", "message": _how(code)}
    shown = {name: text.decode("utf-8", "replace") for name, text in texts.items()}
    return {"status": problem or "finished", "code": code, **shown}


def _collect(
    program: int, reading: Mapping[int, str], seconds: float, most: int
) -> tuple[dict[str, bytes], str]:
    """Reads pipes until the program is gone, or its time, or as much as it may write."""
    texts = dict.fromkeys(reading.values(), b"")
    deadline = time.monotonic() + seconds
    waiting = select.poll()
    ended = os.pidfd_open(program)
    for file in (ended, *reading):
        waiting.register(file, select.POLLIN)
    ready: list[int] = []
    problem = ""
    while ended not in ready and not problem:
        left = deadline - time.monotonic()
        ready = [file for file, _ in waiting.poll(max(0.0, left) * 1000)]
        if not ready or left < 0:
            problem = "timed out"
        for file in reading.keys() & ready:
            chunk = os.read(file, 1 << 16)
            texts[reading[file]] += chunk
            if not chunk:
                waiting.unregister(file)
            elif len(texts[reading[file]]) > most:
                problem = "output"
    os.close(ended)
    for file, name in reading.items():  # what it wrote just before its end
        os.set_blocking(file, False)
        with contextlib.suppress(BlockingIOError):
            while len(texts[name]) <= most and (chunk := os.read(file, 1 << 16)):
                texts[name] += chunk
    return {name: text[:most] for name, text in texts.items()}, problem


def _known(told: Any) -> dict[str, Any]:
    """Only what `child.run_python` may tell: its process is the program's."""
    status = told["status"]
    if status not in ("finished", "raised", "timed out"):
        raise ValueError(f"status: {status!r}")
    texts = {name: str(told.get(name, "")) for name in ("message", "output")}
    return {"status": status, "value": told.get("value"), **texts}


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exited with {code}"


def _program(
    task: Mapping[str, Any],
    step: Mapping[str, Any],
    limits: Mapping[str, Any],
    user: int | None,
    rules: bytes | None,
    pipes: Mapping[str, tuple[int, int]],
    token: bytes,
) -> None:
    """The program's own process."""
    for name, file in (("stdin", 0), ("stdout", 1), ("stderr", 2), ("told", 3)):
        if name in pipes:
            os.dup2(pipes[name][name != "stdin"], file)
    os.closerange(3 + ("told" in pipes), 1 << 16)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL if "argv" in step else signal.SIG_IGN)
    child.confine(limits, user, rules)
    if "argv" in step:
        try:
            os.execve(step["argv"][0], step["argv"], step["environment"])
        except OSError as error:
            os.write(2, f"{step['argv'][0]}: {error.strerror}".encode())
            os._exit(127)
    write, leave = os.write, os._exit  # before a program can replace them
    child.run_python(
        task["source"], step["seconds"], task["answer"], lambda told: write(3, token + told)
    )
    leave(0)
