"""Options of every command that may read a corpus: where data and tokenizer are, whose tasks."""

import argparse
import importlib
import os
from pathlib import Path

from codet5p_jax.cli.arguments import share
from codet5p_jax.cli.errors import ConfigError

_SETTINGS = {  # parameters of `tasks.settings.configure`
    "tokenizer": "folder with tokenizer.json, or vocab.json and merges.txt",
    "github_code_dir": "folder with the Parquet files of github-code (stage 1)",
    "codesearchnet_dir": "folder with LANGUAGE/final/jsonl/SPLIT/*.jsonl.gz (stage 2)",
    "excluded_repos": "text file with repositories to leave out of github-code, one a line",
    "finetune_dir": "folder with a folder for each benchmark to fine-tune on",
    "instruct_dir": "folder with *.json and *.jsonl of instructions and responses",
    "instruct_templates": "JSON file with templates of prompts (default: Code Alpaca's)",
    "instruct_held_out": "share of instructions for validation if no file is (default: 0.01)",
    "max_malformed_share": "share of malformed records above which reading stops (default: 0.01, "
    "and 0 of what is in finetune_dir)",
    "code_separator": "what [SEP] is between a text and code found for it (default: </s>)",
}
_FORMS = {  # of what is no path
    "instruct_held_out": (share, "SHARE"),
    "max_malformed_share": (share, "SHARE"),
    "code_separator": (str, "TEXT"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    group = parser.add_argument_group("data")
    for name, text in _SETTINGS.items():
        kind, metavar = _FORMS.get(name, (str, "PATH"))
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--module",
        action="append",
        default=[],
        help="Python module that registers tasks of your own (my_tasks for ./my_tasks.py); "
        "repeatable",
    )


def finetune_folder(args: argparse.Namespace, what: str) -> Path:
    """The folder of --finetune_dir, else of its environment variable.

    Raises:
      ConfigError: neither is set; says that the folder is one with `what`.
    """
    folder = args.finetune_dir or os.environ.get("CODET5P_FINETUNE_DIR")
    if not folder:
        raise ConfigError(f"--finetune_dir is missing: the folder with {what}")
    return Path(folder)


def configure(args: argparse.Namespace) -> None:
    """Applies the options and registers all tasks. Imports SeqIO, and so TensorFlow.

    Raises:
      ConfigError: a module cannot be imported.
    """
    importlib.import_module("codet5p_jax.data.seqio_tasks")  # first: it quiets TensorFlow
    settings = importlib.import_module("codet5p_jax.tasks.settings")
    settings.configure(**{name: getattr(args, name) for name in _SETTINGS})
    for name in args.module:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            hint = f"; write {name[:-3]}" if name.endswith(".py") else ""
            raise ConfigError(f"--module={name}: {error}{hint}") from error


def forward(args: argparse.Namespace) -> list[str]:
    """The options as given, for another process."""
    given = {name: getattr(args, name) for name in _SETTINGS}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*flags, *(f"--module={name}" for name in args.module)]
