"""HumanEval-X: programs in Python, C++, Java, JavaScript and Rust, and their verdicts.

Texts and commands are those of the official evaluator (THUDM/CodeGeeX, codegeex/benchmark). One
thing is added: a pass is only believed if the last statement of the test was reached, which tells
a number, or a name, made for this program alone. Officially, `exit(0)` in a completion passes.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from codet5p_jax.evaluation.programs import Verdict, verdict
from codet5p_jax.evaluation.sandbox.program import (
    Commands,
    Limits,
    Outcome,
    Program,
    PythonSource,
    Step,
)

# As task ids begin -> the tools.
LANGUAGES = {
    "Python": (),
    "CPP": ("g++",),
    "Java": ("javac", "java"),
    "JavaScript": ("node",),
    "Rust": ("rustc", "cc"),
    "Go": ("go",),
}
PYTHON_PACKAGES = ("numpy",)  # what the official evaluator imports before every program

# They reserve more addresses than they use, and have threads of their own.
_LIMITS = Limits(address_space=None, processes=128, memory=2 << 30, disk=256 << 20)
_COMPILE_SECONDS = 60.0

_PYTHON_IMPORTS = """\
import math
import re
import sys
import copy
import datetime
import itertools
import collections
import heapq
import statistics
import functools
import hashlib
import numpy
import numpy as np
import string
from typing import *
from collections import *
"""
_CPP_HEADERS = (
    *("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring"),
    "iostream",
)
_RUST_CRATES = ("rand", "regex", "md5")  # of the official evaluator; not looked for


def language_of(problem: Mapping[str, str]) -> str:
    """`CPP` of `CPP/0`."""
    return problem["task_id"].partition("/")[0]


def missing_tools() -> dict[str, str]:
    """Languages that cannot be run here, and why."""
    missing = {}
    for language, tools in LANGUAGES.items():
        absent = [tool for tool in tools if shutil.which(tool) is None]
        if absent:
            missing[language] = f"{' and '.join(absent)}: not found"
    missing.setdefault("Go", "its test package (testify) would have to be downloaded")
    return missing


def readable() -> list[str]:
    """What toolchains have outside the folders of the system, for `Sandbox`."""
    folders = [str(path) for path in Path("/etc").glob("java-*")]
    for tool in ("java", "node"):
        if shutil.which(tool):
            home = Path(_tool(tool)).parents[1]
            folders += [] if home.is_relative_to("/usr") else [str(home)]
    return [*folders, *([_rust_home()] if shutil.which("rustc") else [])]


def check(
    problem: Mapping[str, str], completion: str, seconds: float = 10.0
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    """A completion with its test, and what judges the outcome of running it.

    Args:
      problem: a record of HumanEval-X.
      seconds: for running; compilers have 60.

    Raises:
      ValueError: a language that cannot be run here.
    """
    language = language_of(problem)
    why = missing_tools().get(language) if language in LANGUAGES else "not a language of the tasks"
    if why:
        raise ValueError(f"{problem['task_id']}: {language} cannot be run here: {why}")
    return _CHECKS[language](problem, completion, seconds)


def _python(
    problem: Mapping[str, str], completion: str, seconds: float
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    body = []
    for line in completion.split("\n"):
        if line.strip() and line[0] not in " \t":
            break
        body.append(line)
    code = "\n".join(body)
    source = f"{_PYTHON_IMPORTS}\n{problem['prompt']}{code}\n{problem['test']}\n"
    return PythonSource(source, seconds), verdict


def _cpp(
    problem: Mapping[str, str], completion: str, seconds: float
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    headers = [f"#include<{name}>" for name in _CPP_HEADERS]
    missing = "".join(f"{header}\n" for header in headers if header not in problem["prompt"])
    number = _number()
    # The test ends with the end of `main`.
    main, brace, _ = problem["test"].rpartition("}")
    test = f"{main}return {number};\n{brace}\n"
    text = f"{missing}\n{problem['prompt']}{completion}\n{test}"
    libraries = ("-lcrypto", "-lssl") if problem["task_id"].endswith("/162") else ()
    compiler = Step((_tool("g++"), "-std=c++11", "test.cpp", *libraries), _COMPILE_SECONDS)
    program = _commands({"test.cpp": text}, compiler, Step(("/tmp/a.out",), seconds))
    return program, lambda outcome: _compiled(outcome, number)


def _java(
    problem: Mapping[str, str], completion: str, seconds: float
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    number = _number()
    files = {
        "Main.java": f"{problem['prompt']}{completion}\n{problem['test']}",
        "Reached.java": "public class Reached { public static void main(String[] a) throws "
        f"Throwable {{ Main.main(a); System.exit({number}); }} }}",
    }
    small = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m")
    compiler = (_tool("javac"), *(f"-J{o}" for o in small), "Main.java", "Reached.java")
    runner = (_tool("java"), *small, "-cp", ".", "Reached")
    program = _commands(files, Step(compiler, _COMPILE_SECONDS), Step(runner, seconds))

    def judge(outcome: Outcome) -> Verdict:
        judged = _compiled(outcome, number)
        if "AssertionError" in judged.result and outcome.steps[-1].code == 1:
            return Verdict(False, "failed: wrong answer")
        return judged

    return program, judge


def _javascript(
    problem: Mapping[str, str], completion: str, seconds: float
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    number = _number()
    text = f"{problem['prompt']}{completion}\n{problem['test']}\nprocess.exitCode = {number};\n"
    program = _commands({"test.js": text}, Step((_tool("node"), "test.js"), seconds))

    def judge(outcome: Outcome) -> Verdict:
        """Officially, by its silence: `console.assert` only writes."""
        if outcome.status != "finished":
            return verdict(outcome)
        (done,) = outcome.steps
        if written := done.stderr or done.stdout:
            return Verdict(False, f"failed: {written}")
        return _reached(done.code == number, f"exited with {done.code}")

    return program, judge


def _rust(
    problem: Mapping[str, str], completion: str, seconds: float
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    crates = tuple(f"use {crate}" for crate in _RUST_CRATES)
    declaration = "".join(
        line
        for line in problem["declaration"].splitlines(keepends=True)
        if not line.strip().startswith(crates)
    )
    name = f"zz_{secrets.token_hex(16)}"  # tests run in the order of their names
    last = f"\n#[cfg(test)] mod {name} {{ #[test] fn reached() {{}} }}\n"
    text = "\nfn main(){ \n } \n" + declaration + problem["prompt"] + completion
    options = ("--edition=2021", "--test", "-Awarnings", f"-Clinker={_tool('cc')}")
    compiler = (f"{_rust_home()}/bin/rustc", *options, "main.rs")
    program = _commands(
        {"main.rs": text + problem["test"] + last},
        Step(compiler, _COMPILE_SECONDS),
        Step(("/tmp/main", "--test-threads=1"), seconds),
    )

    def judge(outcome: Outcome) -> Verdict:
        if outcome.status != "finished":
            return verdict(outcome)
        done = outcome.steps[-1]
        if len(outcome.steps) == 1:
            return Verdict(False, "failed: compilation error")
        if done.code:
            return Verdict(False, "failed: execution error")
        return _reached(f"test {name}::reached ... ok" in done.stdout, "exited with 0")

    return program, judge


_CHECKS = {
    "Python": _python,
    "CPP": _cpp,
    "Java": _java,
    "JavaScript": _javascript,
    "Rust": _rust,
}


def _commands(files: Mapping[str, str], *steps: Step) -> Commands:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    return Commands(files, steps, environment=environment, limits=_LIMITS)


def _compiled(outcome: Outcome, number: int) -> Verdict:
    """Of a compiler's step and one of its program, which exits with `number` at its end."""
    if outcome.status != "finished":
        return verdict(outcome)
    done = outcome.steps[-1]
    if len(outcome.steps) == 1:
        return Verdict(False, f"failed: compilation error: {done.stderr or done.stdout}")
    written = done.stderr or done.stdout
    return _reached(done.code == number, written or f"exited with {done.code}")


def _reached(end: bool, why: str) -> Verdict:
    return Verdict(True, "passed") if end else Verdict(False, f"failed: {why}")


def _number() -> int:
    """An exit code that means nothing: not of a shell, a signal or a runtime."""
    return 40 + secrets.randbelow(60)


def _tool(name: str) -> str:
    """Not by a link of /etc/alternatives, which programs do not see."""
    return os.path.realpath(shutil.which(name) or name)


@cache
def _rust_home() -> str:
    command = ["rustc", "--print", "sysroot"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
