"""The folder of one checkpoint or snapshot: which there are, what is in it, whether it is all
there.

`sizes.json` is added last: it tells a truncated copy without reading it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint.experimental.v1 as ocp

from codet5p_jax.files import write_text
from codet5p_jax.training.model_dir import ModelDir

ELSEWHERE = "frozen_elsewhere"
"""Key of a checkpoint's `meta`: by path, where the frozen parameters are that it leaves out."""

DRAWN = "drawn"
"""Likewise, names of the parameters that were drawn when a model was composed."""

_SIZES = "sizes.json"


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps of the complete checkpoints of a folder, ascending."""
    if not checkpoints.is_dir():
        return []
    names = [p.name for p in checkpoints.iterdir() if p.name.isdigit() and p.is_dir()]
    return sorted(int(n) for n in names if _is_checkpoint(checkpoints / n))


def checkpoint_path(path: Path, step: int | None = None) -> Path:
    """The folder of one checkpoint, given a model directory or such a folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a step, and the path is already that of a checkpoint or snapshot.
      OSError: one of its files is missing or truncated. No older checkpoint is taken instead: only
        a run that goes on makes up for what lies between.
    """
    if is_one(path):
        if step is not None:
            raise ValueError(
                f"step {step} is for a model directory, and {path} is itself a checkpoint or "
                "snapshot; leave the step out"
            )
        return _complete(path.resolve())
    folder = ModelDir(path).checkpoints
    steps = saved_steps(folder)
    if not steps or (step is not None and step not in steps):
        snapshots = ModelDir(path).snapshots
        others = saved_steps(snapshots)
        hint = f"; snapshots are named by their folder: {snapshots}/{others[-1]}" if others else ""
        raise FileNotFoundError(
            f"no checkpoint{'' if step is None else f' of step {step}'} in {path}: expected "
            f"{folder}/<step>, found steps {steps}{hint}"
        )
    return _complete((folder / str(steps[-1] if step is None else step)).resolve())


def model_dir_of(path: Path) -> ModelDir:
    """The model directory of a checkpoint or snapshot, given its folder or the directory itself."""
    return ModelDir(path.resolve().parents[1] if is_one(path) else path)


def context(*, partial: bool = False, pad: bool = False) -> ocp.Context:
    """Settings of Orbax under which checkpoints are read and written."""
    settings = ocp.Context()
    # A folder that cannot be made is then an error at once, not threads that wait for it.
    settings.asynchronous.create_directories_asynchronously = False
    settings.pytree.loading.partial_load = partial
    settings.array.loading.enable_padding_and_truncation = pad
    registry = ocp.handlers.local_registry(include_global_registry=True)
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    settings.checkpointables.registry = registry
    return settings


def read(path: Path, wanted: Mapping[str, Any], **options: bool) -> dict[str, Any]:
    """As `load`, with one line for an error of Orbax's."""
    try:
        return load(path, wanted, **options)
    except Exception as e:  # Orbax and TensorStore raise whatever they stumbled on
        if is_no_damage(e):
            raise
        raise read_error(path, e) from e


def load(path: Path, wanted: Mapping[str, Any], **options: bool) -> dict[str, Any]:
    """Trees of a checkpoint by name, as abstract trees want them; None: as they were saved.

    Args:
      options: as `context` takes them.
    """
    with context(**options):
        return ocp.load_checkpointables(str(path), dict(wanted))


def read_meta(path: Path) -> dict[str, Any]:
    """What was saved with the arrays of a checkpoint.

    Raises:
      OSError: it cannot be read.
    """
    return dict(read(path, {"meta": None})["meta"])


def seal(path: Path) -> None:
    """Notes the sizes of a checkpoint's files, the last thing that is written."""
    write_text(path / _SIZES, json.dumps(_sizes(path), indent=1) + "\n")


def _complete(path: Path) -> Path:
    """A checkpoint that has all its files, with all their bytes."""
    try:
        check_sizes(path)
    except (OSError, ValueError) as e:
        if is_no_damage(e):
            raise
        raise read_error(path, e) from None
    return path


def _sizes(path: Path) -> dict[str, int]:
    files = (p for p in path.rglob("*") if p.is_file() and p.name != _SIZES)
    return {str(p.relative_to(path)): p.stat().st_size for p in files}


def fingerprint(path: Path) -> str:
    """Of a checkpoint, wherever it is copied to: of the names and sizes of its files, which Orbax
    names at random each time it writes one."""
    return hashlib.sha256(json.dumps(_sizes(path), sort_keys=True).encode()).hexdigest()[:16]


def check_sizes(path: Path) -> None:
    """Compares the files with what `seal` noted.

    Raises:
      OSError: one is missing or truncated.
      ValueError: the note itself is damaged.
    """
    # Orbax would find out as well, with dozens of lines from threads that nobody waits for.
    if not (path / _SIZES).exists():
        return  # killed before it was sealed
    found = _sizes(path)
    for name, size in json.loads((path / _SIZES).read_text(encoding="utf-8")).items():
        if found.get(name) != size:
            raise OSError(f"{name} has {found.get(name, 0):,} of {size:,} bytes")


def _is_checkpoint(path: Path) -> bool:
    return bool(ocp.is_orbax_checkpoint(str(path.resolve())))


def is_one(path: Path) -> bool:
    """Whether a path is that of one checkpoint or snapshot."""
    return path.name.isdigit() and _is_checkpoint(path)


def read_error(path: Path, error: BaseException) -> OSError:
    """What to tell of a checkpoint that cannot be read, in one line with a remedy."""
    while error.__cause__ is not None:  # Orbax wraps what went wrong into a list of its handlers
        error = error.__cause__
    others = [step for step in saved_steps(path.parent) if str(step) != path.name]
    older = f", or move it away to take the newest of steps {others}" if others else ""
    return OSError(
        f"checkpoint {path} cannot be read ({first_line(error)}); nothing was changed. Copy it "
        f"again from where it was written{older}"
    )


def first_line(error: BaseException) -> str:
    """Of a long line both ends: what was tried, and what the system said."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 240 else f"{line[:100]} … {line[-120:]}"


def is_no_damage(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the checkpoint may well be good."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError | PermissionError) or any(
            code in text for code in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED")
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
