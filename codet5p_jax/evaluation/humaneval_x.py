"""HumanEval-X: programs in Python, C++, Java, JavaScript and Rust, and their verdicts.

Texts and commands are those of the official evaluator (THUDM/CodeGeeX, codegeex/benchmark). One
thing is added: a pass is only believed if the last statement of the test was reached, which prints
a word made for this program alone. Officially, `exit(0)` in a completion passes. No file has the
word, nor can functions read it from standard input: C++, Java and Rust read it there before `main`,
and JavaScript, which has it in its text, removes that. docs/sandbox.md says what remains.
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
# Without headers: the names in them may be taken.
_CPP_BEGIN = """\
extern "C" long NAME_read(int, void*, unsigned long) __asm__("read");
extern "C" long NAME_write(int, const void*, unsigned long) __asm__("write");
static char NAME[64];
__attribute__((constructor(101))) static void NAME_begin() { NAME_read(0, NAME, 64); }
"""
# Not by `System`, whose streams a program can replace.
_JAVA_REACHED = """\
public class Reached {
    public static void main(String[] arguments) throws Throwable {
        byte[] word = new byte[64];
        new java.io.FileInputStream(java.io.FileDescriptor.in).read(word);
        Main.main(arguments);
        new java.io.FileOutputStream(java.io.FileDescriptor.out).write(word);
        System.exit(0);
    }
}
"""
# Read before `main` begins, which runs the tests; what is printed by `print!` would be captured.
_RUST_REACHED = """
    static mut WORD: [u8; 64] = [0; 64];
    extern "C" {
        fn read(file: i32, to: *mut [u8; 64], most: usize) -> isize;
        fn write(file: i32, of: *const [u8; 64], size: usize) -> isize;
    }
    extern "C" fn begin() { unsafe { read(0, std::ptr::addr_of_mut!(WORD), 64); } }
    #[used] #[link_section = ".init_array"] static BEGIN: extern "C" fn() = begin;
    #[test] fn reached() { unsafe { write(1, std::ptr::addr_of!(WORD), 64); } }
"""
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
    word, name = _word(), f"zz_{secrets.token_hex(8)}"
    # On the empty line before the prompt.
    begin = _CPP_BEGIN.replace("NAME", name).replace("\n", " ")
    # The test ends with the end of `main`.
    main, brace, _ = problem["test"].rpartition("}")
    test = f"{main}{name}_write(1, {name}, 64);\n{brace}\n"
    text = f"{missing}{begin}\n{problem['prompt']}{completion}\n{test}"
    libraries = ("-lcrypto", "-lssl") if problem["task_id"].endswith("/162") else ()
    compiler = Step((_tool("g++"), "-std=c++11", "test.cpp", *libraries), _COMPILE_SECONDS)
    files = {"test.cpp": text}
    program = _commands(files, compiler, Step(("/tmp/a.out",), seconds, word, tuple(files)))
    return program, lambda outcome: _compiled(outcome, word)


def _java(
    problem: Mapping[str, str], completion: str, seconds: float
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    word = _word()
    files = {
        "Main.java": f"{problem['prompt']}{completion}\n{problem['test']}",
        "Reached.java": _JAVA_REACHED,
    }
    small = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m")
    compiler = (_tool("javac"), *(f"-J{o}" for o in small), "Main.java", "Reached.java")
    runner = (_tool("java"), *small, "-cp", ".", "Reached")
    run = Step(runner, seconds, word, tuple(files))
    program = _commands(files, Step(compiler, _COMPILE_SECONDS), run)

    def judge(outcome: Outcome) -> Verdict:
        judged = _compiled(outcome, word)
        if "AssertionError" in judged.result and outcome.steps[-1].code == 1:
            return Verdict(False, "failed: wrong answer")
        return judged

    return program, judge


def _javascript(
    problem: Mapping[str, str], completion: str, seconds: float
) -> tuple[Program, Callable[[Outcome], Verdict]]:
    word = _word()
    begin, end = 'require("fs").unlinkSync(__filename);', f'require("fs").writeSync(1, "{word}");'
    text = f"{begin}{problem['prompt']}{completion}\n{problem['test']}\n{end}\n"
    program = _commands({"test.js": text}, Step((_tool("node"), "test.js"), seconds))

    def judge(outcome: Outcome) -> Verdict:
        """Officially, by its silence: `console.assert` only writes."""
        if outcome.status != "finished":
            return verdict(outcome)
        (done,) = outcome.steps
        if written := done.stderr or done.stdout.replace(word, "", 1):
            return Verdict(False, f"failed: {written}")
        return _reached(word in done.stdout, f"exited with {done.code}")

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
    word = _word()
    # Tests run in the order of their names.
    name = f"zz_{secrets.token_hex(8)}"
    last = f"\n#[cfg(test)] mod {name} {{ {_RUST_REACHED} }}\n"
    text = "\nfn main(){ \n } \n" + declaration + problem["prompt"] + completion
    options = ("--edition=2021", "--test", "-Awarnings", f"-Clinker={_tool('cc')}")
    compiler = (f"{_rust_home()}/bin/rustc", *options, "main.rs")
    files = {"main.rs": text + problem["test"] + last}
    run = Step(("/tmp/main", "--test-threads=1"), seconds, word, tuple(files))
    program = _commands(files, Step(compiler, _COMPILE_SECONDS), run)

    def judge(outcome: Outcome) -> Verdict:
        if outcome.status != "finished":
            return verdict(outcome)
        done = outcome.steps[-1]
        if len(outcome.steps) == 1:
            return Verdict(False, "failed: compilation error")
        # The code is the program's to change, even after a test that failed.
        if done.code or " ... FAILED\n" in done.stdout:
            return Verdict(False, "failed: execution error")
        return _reached(word in done.stdout, "exited with 0")

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


def _compiled(outcome: Outcome, word: str) -> Verdict:
    """Of a compiler's step and one of its program, which prints `word` at its end."""
    if outcome.status != "finished":
        return verdict(outcome)
    done = outcome.steps[-1]
    if len(outcome.steps) == 1:
        return Verdict(False, f"failed: compilation error: {done.stderr or done.stdout}")
    written = done.stderr or done.stdout
    return _reached(not done.code and word in done.stdout, written or f"exited with {done.code}")


def _reached(end: bool, why: str) -> Verdict:
    return Verdict(True, "passed") if end else Verdict(False, f"failed: {why}")


def _word() -> str:
    """Of 64 characters."""
    return secrets.token_hex(32)


def _tool(name: str) -> str:
    """Not by a link of /etc/alternatives, which programs do not see."""
    return os.path.realpath(shutil.which(name) or name)


@cache
def _rust_home() -> str:
    command = ["rustc", "--print", "sysroot"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
