"""Where data and tokenizer are: environment variables, set by `configure` or by the shell.

Nothing is looked up before a dataset is read, so tasks can be registered without any of it.
"""

import os
from pathlib import Path

from codet5p_jax.data.corpora.finetuning.retrieved import SEPARATOR_VARIABLE
from codet5p_jax.data.corpora.github_code import read_repo_list
from codet5p_jax.data.corpora.instructions import Templates
from codet5p_jax.data.corpora.malformed import SHARE_VARIABLE, check_share, share_of
from codet5p_jax.data.vocab import CodeVocabulary

_VARIABLES = {
    "tokenizer": "CODET5P_TOKENIZER",
    "github_code_dir": "CODET5P_GITHUB_CODE_DIR",
    "codesearchnet_dir": "CODET5P_CODESEARCHNET_DIR",
    "excluded_repos": "CODET5P_EXCLUDED_REPOS",
    "finetune_dir": "CODET5P_FINETUNE_DIR",
    "instruct_dir": "CODET5P_INSTRUCT_DIR",
    "instruct_templates": "CODET5P_INSTRUCT_TEMPLATES",
    "instruct_held_out": "CODET5P_INSTRUCT_HELD_OUT",
    "max_malformed_share": SHARE_VARIABLE,
    "code_separator": SEPARATOR_VARIABLE,
}


def configure(
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    github_code_dir: str | os.PathLike[str] | None = None,
    codesearchnet_dir: str | os.PathLike[str] | None = None,
    excluded_repos: str | os.PathLike[str] | None = None,
    finetune_dir: str | os.PathLike[str] | None = None,
    instruct_dir: str | os.PathLike[str] | None = None,
    instruct_templates: str | os.PathLike[str] | None = None,
    instruct_held_out: float | None = None,
    max_malformed_share: float | None = None,
    code_separator: str | None = None,
) -> None:
    """Says where things are; None leaves a setting as it is.

    The settings live in the environment, so processes started from this one have them too.

    Args:
      tokenizer: CODET5P_TOKENIZER, of every task: a folder with `tokenizer.json`, or `vocab.json`
        and `merges.txt`.
      github_code_dir: CODET5P_GITHUB_CODE_DIR: a folder with Parquet files.
      codesearchnet_dir: CODET5P_CODESEARCHNET_DIR: a folder with
        `<language>/final/jsonl/<split>/*.jsonl.gz`.
      excluded_repos: CODET5P_EXCLUDED_REPOS, optional: a text file with the repositories to leave
        out of github-code, one `owner/name` a line. The paper leaves out those of CodeSearchNet and
        of every downstream task.
      finetune_dir: CODET5P_FINETUNE_DIR: a folder with a folder for each benchmark to fine-tune on,
        see docs/finetuning.md.
      instruct_dir: CODET5P_INSTRUCT_DIR: a folder with instructions and responses; `*.json`,
        `*.jsonl`.
      instruct_templates: CODET5P_INSTRUCT_TEMPLATES, optional: a JSON file with fields of
        `corpora.instructions.Templates`; by default Code Alpaca's templates.
      instruct_held_out: CODET5P_INSTRUCT_HELD_OUT, optional: share of the instructions that is the
        validation split where no file is; from 0 to 1, by default 0.01.
      max_malformed_share: CODET5P_MAX_MALFORMED_SHARE, optional: share of malformed records
        above which a reader stops that was given no `Malformed` of its own; from 0 to 1.
      code_separator: CODET5P_CODE_SEPARATOR, optional: what [SEP] is between a text and code found
        for it; by default `</s>`, else a text.

    Raises:
      ValueError: a share is not between 0 and 1.
    """
    paths = {
        "tokenizer": tokenizer,
        "github_code_dir": github_code_dir,
        "codesearchnet_dir": codesearchnet_dir,
        "excluded_repos": excluded_repos,
        "finetune_dir": finetune_dir,
        "instruct_dir": instruct_dir,
        "instruct_templates": instruct_templates,
    }
    shares = {"max_malformed_share": max_malformed_share, "instruct_held_out": instruct_held_out}
    for name, path in paths.items():
        if path is not None:
            os.environ[_VARIABLES[name]] = str(Path(path).absolute())
    for name, share in shares.items():
        if share is not None:
            os.environ[_VARIABLES[name]] = repr(check_share(share, name))
    if code_separator is not None:
        os.environ[SEPARATOR_VARIABLE] = code_separator


def tokenizer() -> str:
    """Path of the tokenizer."""
    return _required("tokenizer")


def github_code_dir() -> str:
    """Folder of github-code."""
    return _required("github_code_dir")


def codesearchnet_dir() -> str:
    """Folder of CodeSearchNet."""
    return _required("codesearchnet_dir")


def excluded_repos() -> frozenset[str]:
    """Repositories to leave out of github-code."""
    path = os.environ.get(_VARIABLES["excluded_repos"])
    return read_repo_list(path) if path else frozenset()


def finetune_dir() -> str:
    """Folder of the benchmarks to fine-tune on."""
    return _required("finetune_dir")


def instruct_dir() -> str:
    """Folder of instructions."""
    return _required("instruct_dir")


def instruct_templates() -> Templates:
    """Templates of prompts."""
    path = os.environ.get(_VARIABLES["instruct_templates"])
    return Templates.from_file(path) if path else Templates()


def instruct_held_out() -> float:
    """Share of the instructions that is held out where no file is for validation."""
    return share_of(_VARIABLES["instruct_held_out"], 0.01)


STAGE1_VOCABULARY = CodeVocabulary(tokenizer)
"""The configured tokenizer; of CodeT5's files, the 32,100 ids of the stage-1 models."""

STAGE2_VOCABULARY = CodeVocabulary(tokenizer, prefixes=True)
"""The same with `[ENC]`, `[TDEC]`, `[CDEC]`; of CodeT5's files, 32,103 ids."""


def _required(name: str) -> str:
    value = os.environ.get(_VARIABLES[name])
    if not value:
        raise ValueError(
            f"{name} is not set: pass --{name}=PATH to codet5p, set the environment variable "
            f"{_VARIABLES[name]}, or call codet5p_jax.tasks.settings.configure({name}=…)"
        )
    return value
