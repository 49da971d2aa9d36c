"""The process of a program: its limits, and its Python source run as the official evaluators do."""

import builtins
import faulthandler
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from json.encoder import c_make_encoder as make_encoder  # type: ignore[attr-defined]
from json.encoder import encode_basestring_ascii as escaped
from typing import Any

from codet5p_jax.evaluation.sandbox import linux

MOST_CHARACTERS = 10_000  # of a message, and of what a program printed


def confine(limits: Mapping[str, Any], user: int | None, rules: bytes | None) -> None:
    """Takes from this process all that a program need not have.

    Args:
      limits: the fields of `Limits`, for one step.
      user: of the program, if it is not that of this process.
      rules: a compiled seccomp filter, if there is one.
    """
    for kind, most in (
        (resource.RLIMIT_CORE, 1),  # none; 0 would still be given to a program of the host's
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["address_space"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        _, hard = resource.getrlimit(kind)
        if most is not None:
            # A second of processor time after its signal, a process is killed.
            wanted = most + 1 if kind == resource.RLIMIT_CPU else most
            hard = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (min(most, hard), hard))
    os.umask(0o022)
    linux.bound_privileges()
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    linux.drop_privileges()
    if rules is not None:
        linux.load_filter(rules)


class _TimedOut(Exception):
    pass


def _time_out(number: int, frame: Any) -> None:
    raise _TimedOut("Timed out!")


class _Printed(io.StringIO):
    """As in the official evaluators: standard output, error and input, which cannot be read."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError

    read = readline = readlines = _refuse

    def readable(self) -> bool:
        return False


_REMOVED = {  # by the official evaluators, so that programs which use them fail as there
    os: """kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename
    renames truncate replace unlink fchmod fchown chmod chown chroot fchdir lchflags lchmod lchown
    getcwd chdir""",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "exit quit help",
}
_HIDDEN = ("ipdb", "joblib", "resource", "psutil", "tkinter")


def _remove_functions() -> None:
    """No protection: see `confine` for that."""
    faulthandler.disable()
    os.environ["OMP_NUM_THREADS"] = "1"
    for module, names in _REMOVED.items():
        for name in names.split():
            setattr(module, name, None)
    for name in _HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in [n for n in sys.modules if n.partition(".")[0] == "codet5p_jax"]:
        del sys.modules[name]


def run_python(source: str, seconds: float, answer: str | None) -> bytes:
    """Runs Python source and returns as JSON how it ended: to be called in a process of its own.

    Reaching the end, or an exception, is all that is told; a process that is gone before has not
    finished. What is called afterwards is looked up before: a program can replace it.

    Args:
      source: run as `exec(source, {})`, as the official evaluators do.
      seconds: then an exception is raised in it.
      answer: the global variable whose value is told.
    """
    cut, setitimer = MOST_CHARACTERS, signal.setitimer
    # `json.dumps` ends in Python code that a program can replace.
    made = make_encoder(None, None, escaped, None, ": ", ", ", False, False, True)
    _remove_functions()
    names: dict[str, Any] = {}
    printed = _Printed()
    sys.stdin = sys.stdout = sys.stderr = printed
    signal.signal(signal.SIGALRM, _time_out)
    try:
        setitimer(signal.ITIMER_REAL, seconds)
        try:
            exec(source, names)
        finally:
            setitimer(signal.ITIMER_REAL, 0)
        told = {"status": "finished", "value": None}
        if answer is not None:
            told["value"] = _plain(names.get(answer))
    except _TimedOut:
        told = {"status": "timed out"}
    except BaseException as error:
        try:
            told = {"status": "raised", "message": str(error)[:cut]}
        except BaseException:
            told = {"status": "raised", "message": "(its message cannot be shown)"}
    try:
        told["output"] = printed.getvalue()[-cut:]
    except BaseException:
        told["output"] = ""
    return "".join(made(told, 0)).encode()


def _plain(value: Any, depth: int = 3) -> Any:
    """What JSON can say of a value: itself, or its number, or its text."""
    if value is None or isinstance(value, bool | str):
        return value[:MOST_CHARACTERS] if isinstance(value, str) else value
    if isinstance(value, dict | list | tuple) and depth:
        items = value.values() if isinstance(value, dict) else value
        return [_plain(item, depth - 1) for item in list(items)[:MOST_CHARACTERS]]
    scalar: Any = value
    try:
        return float(scalar)
    except Exception:
        return str(scalar)[:MOST_CHARACTERS]
