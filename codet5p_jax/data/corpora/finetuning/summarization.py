"""Summarisation (CodeXGLUE's code-to-text): what a function does, in words."""

from collections.abc import Iterator
from pathlib import Path

from codet5p_jax.data.corpora.codesearchnet import SPLITS as NAMES
from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    full,
    joined,
    split_name,
)
from codet5p_jax.data.corpora.malformed import Malformed

LANGUAGES = ("ruby", "javascript", "go", "python", "java", "php")


def summaries(
    folder: str | Path,
    language: str,
    split: str,
    *,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """Functions and their summaries: `source`, `target`, `place`.

    As CodeT5 reads them: the tokens of code and docstring, joined by single spaces. Nothing is
    filtered, CodeXGLUE has done so; stage 2 reads the same files through
    `codesearchnet.codesearchnet_pairs`, which filters.

    Args:
      folder: holds `<language>/{train,valid,test}.jsonl` as CodeXGLUE's preprocessing writes them,
        with `code_tokens` (or `function_tokens`) and `docstring_tokens`.
      language: one of `LANGUAGES`.
      split: "train", "validation" or "test".
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    name = f"{language}/{split_name(split, NAMES)}.jsonl"
    return converted(find_file(folder, name, setting=setting), _summary, malformed)


def programs(
    folder: str | Path,
    language: str,
    split: str,
    *,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """The other way round, as `summaries`: `source` is the docstring, `target` the function."""
    examples = summaries(folder, language, split, malformed=malformed, setting=setting)
    return ({**e, "source": e["target"], "target": e["source"]} for e in examples)


def _summary(record: Record) -> Record:
    code = joined(record, "code_tokens", "function_tokens")
    text = joined(record, "docstring_tokens")
    full(code=code, docstring=text)
    return {"source": code, "target": text}
