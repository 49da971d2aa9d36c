"""The standard library of the running interpreter: modules, and their documented functions."""

import os
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

from codet5p_jax.data.corpora.files import require_folder, split_of
from codet5p_jax.data.corpora.malformed import Malformed
from codet5p_jax.data.corpora.pairs import PairFilter
from codet5p_jax.data.corpora.python_functions import first_paragraph, functions

SHARES: Mapping[str, float] = {"train": 0.80, "validation": 0.08, "test": 0.12}
"""Shares of modules. CPython 3.11 has 524 / 55 / 87 modules and 5,069 / 409 / 812 pairs so."""

_EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_GENERATED = re.compile(rb"(?i)generated from|auto-?generated")


def version() -> str:
    """Interpreter whose library is read, for fingerprints: `CPython 3.11.7`."""
    return f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}"


def modules(
    split: str | None = None,
    *,
    shares: Mapping[str, float] = SHARES,
    malformed: Malformed | None = None,
) -> Iterator[dict[str, str]]:
    """Modules in order of their path: `module`, `code`, `language`, `place` (the path).

    There are no tests among them, and no generated tables (code pages, parser tables: a sixth of
    all bytes, and nothing to learn).

    Args:
      split: one of `shares`; None: all of them. A module is in one split, by a hash of its name.
      shares: split -> share of modules.
      malformed: counts files that are not text in the encoding they declare.
    """
    _check_split(split, shares)
    root = require_folder(sysconfig.get_path("stdlib"), "standard library")
    return _modules(root, split, shares, malformed or Malformed())


def documented_functions(
    split: str | None = None,
    *,
    shares: Mapping[str, float] = SHARES,
    pair_filter: PairFilter | None = None,
    malformed: Malformed | None = None,
) -> Iterator[dict[str, str]]:
    """Functions with a docstring as text-code pairs: `text` (first paragraph), `code` (without the
    docstring), `module`, `qualname`, `language`, `place` (path and line).

    A pair whose code or whose text stood in an earlier module, or earlier in its own, is left out,
    whatever the split: a query has one right answer, and no held-out text was trained on.

    Args:
      split, shares: as `modules`.
      pair_filter: which pairs are fit to learn from; by default `PairFilter()`.
      malformed: counts modules that cannot be decoded or parsed.
    """
    _check_split(split, shares)
    root = require_folder(sysconfig.get_path("stdlib"), "standard library")
    return _pairs(root, split, shares, pair_filter or PairFilter(), malformed or Malformed())


def _check_split(split: str | None, shares: Mapping[str, float]) -> None:
    if split is not None and split not in shares:
        raise ValueError(f"expected a split among {', '.join(shares)}, got {split!r}")


def _modules(
    root: Path, split: str | None, shares: Mapping[str, float], malformed: Malformed
) -> Iterator[dict[str, str]]:
    for module in _sources(root, malformed):
        if split is None or split_of(module["module"], shares) == split:
            malformed.good()
            yield module
    malformed.judge()


def _sources(root: Path, malformed: Malformed) -> Iterator[dict[str, str]]:
    """Every module that can be decoded, not yet counted as good."""
    for path in _files(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        data = path.read_bytes()
        if _GENERATED.search(data[:500]):
            continue
        try:
            encoding, _ = tokenize.detect_encoding(iter(data.splitlines(True)).__next__)
            code = data.decode(encoding)
        except (SyntaxError, UnicodeDecodeError, LookupError) as error:
            malformed.bad(str(path), error)
            continue
        yield {"module": name, "code": code, "language": "python", "place": str(path)}


def _files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _EXCLUDED)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _pairs(
    root: Path,
    split: str | None,
    shares: Mapping[str, float],
    pair_filter: PairFilter,
    malformed: Malformed,
) -> Iterator[dict[str, str]]:
    codes: set[str] = set()
    texts: set[str] = set()
    for module in _sources(root, malformed):
        try:
            found = list(functions(module["code"]))
        except (SyntaxError, ValueError, RecursionError) as error:
            malformed.bad(module["place"], error)
            continue
        malformed.good()
        wanted = split is None or split_of(module["module"], shares) == split
        for function in found:
            text = first_paragraph(function.docstring or "")
            if (
                not pair_filter.keeps(text, function.code)
                or function.code in codes
                or text in texts
            ):
                continue
            codes.add(function.code)
            texts.add(text)
            if wanted:
                yield {
                    "text": text,
                    "code": function.code,
                    "module": module["module"],
                    "qualname": function.qualname,
                    "language": "python",
                    "place": f"{module['place']}:{function.line}",
                }
    malformed.judge()
