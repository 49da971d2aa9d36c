"""Refinement and translation (CodeXGLUE): two text files, line n of one to become line n of the
other."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from codet5p_jax.data.corpora.finetuning.files import find_file, full, split_name
from codet5p_jax.data.corpora.lines import numbered_lines
from codet5p_jax.data.corpora.malformed import Malformed, intolerant

NAMES = {"train": "train", "validation": "valid", "test": "test"}


def refinement(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, str]]:
    """Buggy and fixed Java methods: `source`, `target`, `place`.

    Args:
      folder: `small` or `medium`, with `{train,valid,test}.buggy-fixed.{buggy,fixed}`.
      split: "train", "validation" or "test".
      malformed: counts and reports lines that are empty or not UTF-8.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if a file is missing.
      ValueError: while reading, if one file has fewer lines than the other.
    """
    stem = f"{split_name(split, NAMES)}.buggy-fixed"
    return _aligned(folder, f"{stem}.buggy", f"{stem}.fixed", malformed, setting)


def translation(
    folder: str | Path,
    split: str,
    *,
    source: str = "java",
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """Methods in Java and in C#: `source`, `target`, `place`.

    Args:
      folder: holds `{train,valid,test}.java-cs.txt.{java,cs}`.
      split: "train", "validation" or "test".
      source: what is translated, "java" or "cs"; the other is the target.
      malformed, setting: as for `refinement`, which says what is raised.
    """
    target = {"java": "cs", "cs": "java"}.get(source)
    if target is None:
        raise ValueError(f"expected source to be 'java' or 'cs', got {source!r}")
    stem = f"{split_name(split, NAMES)}.java-cs.txt"
    return _aligned(folder, f"{stem}.{source}", f"{stem}.{target}", malformed, setting)


def _aligned(
    folder: str | Path, source: str, target: str, malformed: Malformed | None, setting: str
) -> Iterator[dict[str, str]]:
    files = [find_file(folder, name, setting=setting) for name in (source, target)]
    return _pairs(files[0], files[1], malformed or intolerant())


def _pairs(source: Path, target: Path, malformed: Malformed) -> Iterator[dict[str, str]]:
    both = itertools.zip_longest(numbered_lines(source), numbered_lines(target))
    for number, (one, other) in enumerate(both, start=1):
        if one is None or other is None:
            short, long = (source, target) if one is None else (target, source)
            raise ValueError(
                f"expected as many lines in {source} as in {target}, but {long} goes on after line "
                f"{number - 1}, the last of {short}; fetch both again"
            )
        place = f"{source}:{number}"
        try:
            texts = {
                "source": one[1].decode().strip(),
                "target": other[1].decode().strip(),
            }
            full(**texts)
        except ValueError as error:
            malformed.bad(place, f"{error} (the target is line {number} of {target.name})")
            continue
        malformed.good()
        yield {**texts, "place": place}
    malformed.judge()
