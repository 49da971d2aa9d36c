"""Process 1 of a program: makes its folder, runs its steps, and tells how they ended.

In namespaces made for this program, its end is the end of all that the program started.
"""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from codet5p_jax.evaluation.sandbox import child, private_root, processes
from codet5p_jax.evaluation.sandbox.linux import adopt_orphans, die_with_parent

_MOST_TOLD = 1 << 20  # bytes that Python source tells
_WORD = 16  # bytes
_WORD_WORD_REST = slice(_WORD), slice(_WORD, 2 * _WORD), slice(2 * _WORD, None)
_ALARM = 1.0  # seconds that Python source has after the exception that ends its time, as officially


def run(task: Mapping[str, Any], rules: bytes | None, report: int, folder: str | None) -> NoReturn:
    """Process 1 of a program: makes its folder, runs its steps, tells how they ended."""
    outcome: dict[str, Any] = {"status": "ended"}
    try:
        null = os.open("/dev/null", os.O_RDWR)
        for file in (0, 1, 2):
            os.dup2(null, file)
        os.dup2(report, 3)
        os.closerange(4, 1 << 16)
        die_with_parent()
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
        adopt_orphans()
        # All of a user's processes count where there is no namespace of users.
        others = processes.threads_of(os.getuid() if user is None else user)
        limits = {**limits, "processes": limits["processes"] + others}
    os.umask(0)  # what is made here is for the program, who may be another user
    for name, text in task.get("files", {}).items():
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    done = []
    for step in task["steps"]:
        for name in step.get("without", ()):
            with contextlib.suppress(FileNotFoundError):  # the step before was a program, too
                os.remove(name)
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
    program = os.fork()
    if not program:
        try:
            os.setsid()
            _program(task, step, limits, user, rules, pipes)
        except BaseException as error:
            told = json.dumps({"status": "raised", "message": f"before its start: {error}"})
            os.write(3, _word_told(3) + told.encode())
        finally:
            os._exit(127)
    reading = {}
    for name, (read, write) in pipes.items():
        if name == "stdin":
            os.close(read)
            os.set_blocking(write, False)
            with contextlib.suppress(OSError):  # more than it holds, or nobody reads
                os.write(write, step["stdin"].encode(errors="surrogatepass"))
            os.close(write)
        else:
            os.close(write)
            reading[read] = name
    try:
        most = _MOST_TOLD if python else limits["output"]
        texts, problem = _collect(program, reading, step["seconds"] + python * _ALARM, most)
    finally:
        if namespaces:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            os.kill(program, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    if namespaces:
        processes.reap()
    else:
        processes.kill_descendants()
    for file in reading:
        os.close(file)
    if not problem and code == -signal.SIGXCPU:
        problem = "timed out"
    if python:
        word, again, told = (texts["told"][cut] for cut in _WORD_WORD_REST)
        if not problem and told and word == again:
            return _known(json.loads(told))
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
    # While the program runs, the word is a value between two calls, which no variable that the
    # program could find by its frames has.
    write(3, _word_told(3) + child.run_python(task["source"], step["seconds"], task["answer"]))
    leave(0)


def _word_told(file: int) -> bytes:
    """A word for one report, told before it, so that who repeats it has been there before."""
    word = os.urandom(_WORD)
    os.write(file, word)
    return word
