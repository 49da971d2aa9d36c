"""Functions with labels: Devign (has it a defect?) and BigCloneBench (do two do the same?)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.codesearchnet import SPLITS as NAMES
from codet5p_jax.data.corpora.files import require_folder
from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    find_optional,
    full,
    read_json_records,
    split_name,
    words,
)
from codet5p_jax.data.corpora.jsonl import check_fields
from codet5p_jax.data.corpora.lines import numbered_lines
from codet5p_jax.data.corpora.malformed import Malformed, intolerant


def defects(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, Any]]:
    """Functions in C of Devign: `code` (on one line, as CodeT5 reads it), `label` (1: it has a
    defect), `idx`, `place`.

    Args:
      folder: holds `{train,valid,test}.jsonl` of {func, target, idx} as CodeXGLUE's preprocessing
        writes them, or what that reads: `function.json`, a list, and `{train,valid,test}.txt` with
        the numbers of its functions.
      split: "train", "validation" or "test".
      malformed: counts and reports records and lines of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if a file is missing.
    """
    name = split_name(split, NAMES)
    done = find_optional(require_folder(folder, setting), f"{name}.jsonl")
    if done is not None:
        return converted(done, _defect, malformed)
    both = f"{name}.jsonl or function.json"
    functions = find_optional(Path(folder), "function.json")
    if functions is None:
        raise FileNotFoundError(f"{setting}: expected {both} (.gz too) in {folder}")
    numbers = find_file(folder, f"{name}.txt", setting=setting)
    return _numbered(functions, numbers, malformed or intolerant())


def clones(
    folder: str | Path, split: str, *, malformed: Malformed | None = None, setting: str = "folder"
) -> Iterator[dict[str, Any]]:
    """Pairs of functions in Java of BigCloneBench: `code`, `other` (each on one line), `label` (1:
    they do the same), `idx`, `other_idx`, `place`.

    Args:
      folder: holds `data.jsonl` of {func, idx} and `{train,valid,test}.txt`, whose lines are two
        idx and a label, a tab apart. All functions are held in memory.
      split: "train", "validation" or "test".
      malformed: counts and reports records and lines of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if a file is missing.
    """
    pairs = find_file(folder, f"{split_name(split, NAMES)}.txt", setting=setting)
    functions = find_file(folder, "data.jsonl", setting=setting)
    return _clones(functions, pairs, malformed or intolerant())


def _numbered(functions: Path, numbers: Path, malformed: Malformed) -> Iterator[dict[str, Any]]:
    records = list(read_json_records(functions, malformed))
    for place, line in _stripped(numbers):
        try:
            record = records[_place_in(line, len(records), functions)]
            example = _defect({"idx": int(line), **record})
        except ValueError as error:
            malformed.bad(place, error)
            continue
        malformed.good()
        yield {**example, "place": place}
    malformed.judge()


def _place_in(line: str, size: int, functions: Path) -> int:
    if not line.isdecimal() or int(line) >= size:
        raise ValueError(f"expected a number below {size}, a row of {functions}, got {line!r}")
    return int(line)


def _defect(record: Record) -> Record:
    check_fields(record, {"func": str, "target": int})
    code = words(record["func"])
    full(func=code)
    return {"code": code, "label": _label(record["target"]), "idx": record.get("idx", -1)}


def _clones(functions: Path, pairs: Path, malformed: Malformed) -> Iterator[dict[str, Any]]:
    by_idx = {r["idx"]: r["code"] for r in converted(functions, _function, malformed)}
    for place, line in _stripped(pairs):
        fields = line.split("\t")
        try:
            if len(fields) != 3:
                raise ValueError(f"expected two idx and a label, a tab apart, got {line!r}")
            for idx in fields[:2]:
                if idx not in by_idx:
                    raise ValueError(f"expected an idx of {functions}, got {idx!r}")
            label = _label(int(fields[2]) if fields[2].isdecimal() else fields[2])
        except ValueError as error:
            malformed.bad(place, error)
            continue
        malformed.good()
        yield {
            "code": by_idx[fields[0]],
            "other": by_idx[fields[1]],
            "label": label,
            "idx": fields[0],
            "other_idx": fields[1],
            "place": place,
        }
    malformed.judge()


def _function(record: Record) -> Record:
    check_fields(record, {"func": str})
    if not isinstance(record.get("idx"), str | int):
        raise ValueError("expected field 'idx' with a text or a number")
    return {"idx": str(record["idx"]), "code": full(func=words(record["func"]))["func"]}


def _label(value: Any) -> int:
    if value not in (0, 1):
        raise ValueError(f"expected a label of 0 or 1, got {value!r}")
    return int(value)


def _stripped(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of the lines that are not empty."""
    for number, line in numbered_lines(path):
        if line.strip():
            yield f"{path}:{number}", line.decode(errors="replace").strip()
