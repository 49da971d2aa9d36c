"""Where data and tokenizer are: environment variables, set by `configure` or by the shell.

Nothing is looked up before a dataset is read, so tasks can be registered without any of it.
"""

import os
from pathlib import Path

from codet5p_jax.data.corpora.github_code import read_repo_list
from codet5p_jax.data.corpora.malformed import SHARE_VARIABLE, check_share
from codet5p_jax.data.vocab import CodeVocabulary

_VARIABLES = {
    "tokenizer": "CODET5P_TOKENIZER",
    "github_code_dir": "CODET5P_GITHUB_CODE_DIR",
    "codesearchnet_dir": "CODET5P_CODESEARCHNET_DIR",
    "excluded_repos": "CODET5P_EXCLUDED_REPOS",
    "max_malformed_share": SHARE_VARIABLE,
}


def configure(
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    github_code_dir: str | os.PathLike[str] | None = None,
    codesearchnet_dir: str | os.PathLike[str] | None = None,
    excluded_repos: str | os.PathLike[str] | None = None,
    max_malformed_share: float | None = None,
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
      max_malformed_share: CODET5P_MAX_MALFORMED_SHARE, optional: share of malformed records
        above which a reader stops that was given no `Malformed` of its own; from 0 to 1.

    Raises:
      ValueError: max_malformed_share is not between 0 and 1.
    """
    paths = {
        "tokenizer": tokenizer,
        "github_code_dir": github_code_dir,
        "codesearchnet_dir": codesearchnet_dir,
        "excluded_repos": excluded_repos,
    }
    for name, path in paths.items():
        if path is not None:
            os.environ[_VARIABLES[name]] = str(Path(path).absolute())
    if max_malformed_share is not None:
        os.environ[_VARIABLES["max_malformed_share"]] = repr(check_share(max_malformed_share))


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
