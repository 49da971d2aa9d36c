"""The command `codet5p`: finds the module of the command named and runs it.

A command is a module `codet5p_jax.cli.<name>` with `add_arguments(parser)` and
`run(args) -> int | None`. It imports what is heavy inside `run`, so that help comes at once.
"""

import argparse
import contextlib
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

import codet5p_jax
from codet5p_jax import signals
from codet5p_jax.cli import child, errors
from codet5p_jax.cli.compilation_cache import keep_compiled

COMMANDS = {
    "quickstart": "both pretraining stages on the Python standard library, on this machine",
    "train": "pretrain or fine-tune what gin files describe",
    "precompile": "whether and how a run fits TPUs, by compiling it for them without any",
    "prepare": "tokenise a mixture into the cache that training reads",
    "inspect-data": "print examples of a mixture as the model sees them",
    "convert": "weights from and to Hugging Face folders",
    "compose": "an encoder and a decoder that exist, joined by new cross-attention",
    "evaluate": "a model on benchmarks, or its losses on a held-out split",
    "generate": "write from a prompt",
    "complete": "continue a file after one of its lines",
    "summarize": "say in words what functions do",
    "chat": "talk with a model tuned on instructions",
    "embed": "vectors of texts or code",
    "search": "find functions by meaning with a trained model",
    "retrieve": "find code for the texts of a data set, to be read in fine-tuning",
    "report": "curves and goodput of several runs, and how they differ, on one page",
}
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 wrong usage, 3 wrong configuration, 130 interrupted, "
    "143 terminated"
)

QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # XLA's C++ logs as well
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "GRPC_VERBOSITY": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",  # else a warning at every fork
}
# A step on CPU allocates and frees gigabytes; without huge pages, a fifth of its time goes into
# page faults (4 + 4 layers of width 256: 0.75 of 3.9 s CPU, 0.1 with them). Read at start only.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
WRITES = ("generate", "complete", "summarize", "chat", "embed")
COMPUTING = ("train", "evaluate", "search", "retrieve", *WRITES)
COMPILING = {*COMPUTING, "quickstart"}  # and keep it; `precompile` is there to compile
WRITING = ("convert", "compose")  # folders which no signal may leave half-written

# What the input may cause: RuntimeError is JAX's and the data workers', ArithmeticError includes
# the end of a run whose losses are not finite.
REPORTED = (ValueError, OSError, LookupError, ImportError, ArithmeticError, TypeError, RuntimeError)
OBSCURE = (LookupError, ArithmeticError, TypeError, RuntimeError)  # without the type's name


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `codet5p` and returns its exit code; mistakes in the input are one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for name, value in QUIET.items():  # before anything imports JAX or TensorFlow
        os.environ.setdefault(name, value)
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    if not argv or argv[0] not in COMMANDS:
        return _explain(argv)
    # Modules that gin files and --module name may be here; behind what is installed.
    with contextlib.suppress(FileNotFoundError):  # the folder was removed
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
    command, *rest = argv
    if command in COMPILING:
        keep_compiled(os.environ)
    # T5X's spelling of a binding, which argparse cannot express.
    rest = [f"--gin_bindings={arg[6:]}" if arg.startswith("--gin.") else arg for arg in rest]
    module = importlib.import_module(f"codet5p_jax.cli.{command.replace('-', '_')}")
    args = _parser(command, module).parse_args(rest)
    try:
        return module.run(args) or errors.OK
    except BrokenPipeError:  # `codet5p inspect-data … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except REPORTED as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"codet5p {command}: {one_line(error)} (--debug shows where)", file=sys.stderr)
        wrong_config = isinstance(error, errors.ConfigError)
        return errors.BAD_CONFIGURATION if wrong_config else errors.FAILURE


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, with its type where the message alone is obscure.

    >>> one_line(KeyError("x"))
    "KeyError: 'x'"
    """
    text = " ".join(str(error).split())
    bare = isinstance(error, OBSCURE) or not text
    return f"{type(error).__name__}: {text}" if bare else text


def _parser(command: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"codet5p {command}",
        description=module.__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _explain(argv: list[str]) -> int:
    """Handles everything that is not a known command: help, version, misspellings."""
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:{width}}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="codet5p",
        usage="codet5p COMMAND [options]",
        description="CodeT5+ pretraining, fine-tuning and search in JAX.",
        epilog=f"commands:\n{listing}\n\n`codet5p COMMAND --help` lists its options.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=codet5p_jax.__version__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    args, _ = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help()
        return errors.USAGE
    near = difflib.get_close_matches(args.command, COMMANDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; commands: {', '.join(COMMANDS)}"
    parser.error(f"unknown command {args.command!r}{hint}")


def script() -> int:
    """The console script: `main` in a process whose environment is fit for it."""
    name, value = HUGE_PAGES
    command = "".join(sys.argv[1:2])
    if command in COMPUTING and sys.platform == "linux" and name not in os.environ:
        os.environ[name] = value
        os.execv(sys.executable, [*child.COMMAND, *sys.argv[1:]])
    if command in (*WRITING, "evaluate"):  # which has written what is done, and ends at once
        signals.listen()
    return main()


if __name__ == "__main__":
    sys.exit(script())
