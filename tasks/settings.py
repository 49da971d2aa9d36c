"""Where data and tokenizer are: environment variables, set by `configure` or by the shell.

Nothing is looked up before a dataset is read, so tasks can be registered without any of it.
"""

import os
from pathlib import Path

from codet5p_jax.data.vocab import CodeVocabulary

_VARIABLES = {
    "tokenizer": ("CODET5P_TOKENIZER", "a folder with tokenizer.json, or vocab.json + merges.txt"),
    "github_code_dir": ("CODET5P_GITHUB_CODE_DIR", "a folder with github-code's Parquet files"),
    "codesearchnet_dir": (
        "CODET5P_CODESEARCHNET_DIR",
        "a folder with <language>/final/jsonl/<split>/*.jsonl.gz",
    ),
    "excluded_repos": (
        "CODET5P_EXCLUDED_REPOS",
        "a text file with the repositories to leave out of github-code, one a line",
    ),
}


def configure(
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    github_code_dir: str | os.PathLike[str] | None = None,
    codesearchnet_dir: str | os.PathLike[str] | None = None,
    excluded_repos: str | os.PathLike[str] | None = None,
) -> None:
    """Says where things are; None leaves a setting as it is.

    The settings live in the environment, so processes started from this one have them too.

    Args:
      tokenizer: CODET5P_TOKENIZER, of every task.
      github_code_dir: CODET5P_GITHUB_CODE_DIR.
      codesearchnet_dir: CODET5P_CODESEARCHNET_DIR.
      excluded_repos: CODET5P_EXCLUDED_REPOS, optional: see `GithubCodeFilter`.
    """
    for name, value in list(locals().items()):
        if value is not None:
            os.environ[_VARIABLES[name][0]] = str(Path(value).absolute())


def tokenizer() -> str:
    """Path of the tokenizer."""
    return _required("tokenizer")


def github_code_dir() -> str:
    """Folder of github-code."""
    return _required("github_code_dir")


def codesearchnet_dir() -> str:
    """Folder of CodeSearchNet."""
    return _required("codesearchnet_dir")


def excluded_repos() -> str | None:
    """File with repositories to leave out of github-code, if there is one."""
    return os.environ.get(_VARIABLES["excluded_repos"][0]) or None


STAGE1_VOCABULARY = CodeVocabulary(tokenizer)
"""The configured tokenizer; of CodeT5's files, the 32,100 ids of the stage-1 models."""

STAGE2_VOCABULARY = CodeVocabulary(tokenizer, prefixes=True)
"""The same with `[ENC]`, `[TDEC]`, `[CDEC]`; of CodeT5's files, 32,103 ids."""


def _required(name: str) -> str:
    variable, wanted = _VARIABLES[name]
    value = os.environ.get(variable)
    if not value:
        raise LookupError(
            f"{name} is not set: expected {wanted}; set the environment variable {variable}, or "
            f"call codet5p_jax.tasks.settings.configure({name}=…)"
        )
    return value
