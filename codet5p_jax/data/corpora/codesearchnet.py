"""CodeSearchNet: functions with their documentation in six languages."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.files import require_files, require_folder
from codet5p_jax.data.corpora.jsonl import read_jsonl
from codet5p_jax.data.corpora.malformed import Malformed
from codet5p_jax.data.corpora.pairs import PairFilter
from codet5p_jax.data.corpora.python_functions import first_paragraph, without_docstring

_TAG = re.compile(r"^\s*@\w", re.MULTILINE)
SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def codesearchnet_pairs(
    folder: str | Path,
    language: str,
    split: str,
    *,
    pair_filter: PairFilter | None = None,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """Text-code pairs of one language: `text`, `code`, `language`, `repo`, `func_name`, `url`,
    `place`.

    `text` is the first paragraph of `docstring`, up to the first tag such as `@param`, which is
    where CodeSearchNet ends its own summaries (or `docstring_tokens` joined by spaces); `code` is
    `code`, `function` or `original_string`. CodeSearchNet leaves a Python docstring inside the
    code; it is taken out, and where the code is not Python 3, `code_tokens` joined by spaces (they
    have no docstring) stand in.

    Args:
      folder: holds `<language>/final/jsonl/<split>/*.jsonl.gz` as CodeSearchNet ships it, or
        `<language>/<split>.jsonl` (`.gz` too) as CodeXGLUE unpacks it; splits are named train,
        valid, test there. Languages that CodeSearchNet lacks are read from the same layout.
      language: name of the subfolder.
      split: "train", "validation" or "test".
      pair_filter: which pairs are fit to learn from; by default `PairFilter()`.
      malformed: counts and reports.
      setting: how errors call `folder`.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    files = pair_files(folder, language, split, setting)
    malformed = malformed or Malformed()
    records = read_jsonl(files, malformed=malformed)
    return _pairs(records, language, pair_filter or PairFilter(), malformed)


def pair_files(
    folder: str | Path, language: str, split: str, setting: str = "folder"
) -> list[Path]:
    """Files of one language and split in either layout, sorted; none is an error."""
    root, name = require_folder(folder, setting), SPLITS[split]
    shipped, unpacked = f"{language}/final/jsonl/{name}/*.jsonl", f"{language}/{name}.jsonl"
    found = [
        f
        for pattern in (shipped, unpacked)
        for end in ("", ".gz")
        for f in root.glob(pattern + end)
    ]
    return require_files(found, f"{shipped}.gz or {unpacked} in {root}", setting)


def _pairs(
    records: Iterator[dict[str, Any]], language: str, pair_filter: PairFilter, malformed: Malformed
) -> Iterator[dict[str, str]]:
    for record in records:
        text, code = _text(record), _code(record, language)
        if text is None or code is None:
            malformed.reject(
                record["place"],
                "expected fields docstring and code, got "
                + ", ".join(sorted(record.keys() - {"place"})),
            )
            continue
        if pair_filter.keeps(text, code):
            kept = {name: str(record.get(name, "")) for name in ("repo", "func_name", "url")}
            yield {
                **kept,
                "text": text,
                "code": code,
                "language": language,
                "place": record["place"],
            }
    malformed.judge()


def _text(record: dict[str, Any]) -> str | None:
    docstring = record.get("docstring")
    if isinstance(docstring, str):
        return first_paragraph(_TAG.split(docstring, maxsplit=1)[0])
    return _joined(record, "docstring_tokens")


def _code(record: dict[str, Any], language: str) -> str | None:
    names = ("code", "function", "original_string")
    code = next((record[name] for name in names if isinstance(record.get(name), str)), None)
    if code is None or language != "python":
        return code
    try:
        return without_docstring(code)
    except (SyntaxError, ValueError, RecursionError):
        return _joined(record, "code_tokens") or _joined(record, "function_tokens")


def _joined(record: dict[str, Any], name: str) -> str | None:
    tokens = record.get(name)
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        return " ".join(tokens)
    return None
