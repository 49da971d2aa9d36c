"""Checkpoints: saved in the background, restored onto any mesh.

A checkpoint is a folder named after its step. It appears under that name only when it is complete,
and holds two trees, `params` and `training` (all the rest of the state), so that weights can be
read alone, and `meta`: JSON, the caller's and the shapes of all arrays by path. `sizes.json` is
added last: it tells a truncated copy without reading it.

A snapshot is the same without `training`, in a folder of its own: the weights to use, which no run
goes on from. So are the weights of the best evaluation.
"""

import contextlib
import math
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from codet5p_jax.models.int8 import scale_of
from codet5p_jax.models.params import flatten, nested, path_name
from codet5p_jax.training.checkpoint_files import (
    ELSEWHERE,
    check_sizes,
    context,
    first_line,
    is_no_damage,
    is_one,
    load,
    read_error,
    saved_steps,
    seal,
)
from codet5p_jax.training.failed_saves import Failures, explained
from codet5p_jax.training.hosts import agreed
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.state import TrainState

_TEMPORARY = "*.orbax-checkpoint-tmp*"


@dataclass(frozen=True)
class SnapshotPolicy:
    """When to save weights alone, and what to keep of them.

    Attributes:
      every: steps between two snapshots; the last step is saved in any case.
      keep_last: how many of the newest stay; None: all.
      dtype: of the parameters that train (of their moving average where the run keeps one).
    """

    every: int
    keep_last: int | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if any(n is not None and n < 1 for n in (self.every, self.keep_last)):
            raise ValueError(f"expected numbers of 1 or more, found {self}")

    def most(self, steps: int) -> int:
        """How many snapshots a run of `steps` has on disk at most, one being written included.

        >>> SnapshotPolicy(every=40).most(100)  # 40, 80, 100
        3
        """
        number = -(-steps // self.every)
        return number if self.keep_last is None else min(number, self.keep_last + 1)


@dataclass(frozen=True)
class CheckpointPolicy:
    """When to save and what to keep.

    Attributes:
      every: steps between two checkpoints; the last step is saved in any case.
      keep_last: how many of the newest stay.
      keep_every: checkpoints at multiples of so many steps stay for good; None: none do.
      snapshots: of weights alone, besides; None: none.
    """

    every: int = 1000
    keep_last: int = 2
    keep_every: int | None = None
    snapshots: SnapshotPolicy | None = None

    def __post_init__(self) -> None:
        if any(n is not None and n < 1 for n in (self.every, self.keep_last, self.keep_every)):
            raise ValueError(f"expected numbers of 1 or more, found {self}")

    def most(self, steps: int) -> int:
        """How many checkpoints a run of `steps` has on disk at most, one being written included.

        >>> CheckpointPolicy(every=10, keep_last=2, keep_every=50).most(200)  # 50, 100, 150, 200
        7
        """
        for_good = steps // math.lcm(self.every, self.keep_every) if self.keep_every else 0
        return self.keep_last + 1 + for_good


BEST = SnapshotPolicy(every=1, keep_last=1, dtype="float32")
"""How the weights of the best evaluation are kept; when is for `EarlyStopping` to say."""


class Checkpoints:
    """Writes the checkpoints and snapshots of one run, one after the other; every process takes
    part. Close it to be sure of them.

    Args:
      directory: of the checkpoints; snapshots are in the folder beside it.
      policy: what to keep.
      best: whether there will be weights of a best evaluation, in the folder `best`.
    """

    def __init__(self, directory: Path, policy: CheckpointPolicy, *, best: bool = False):
        policies: Any = ocp.training.preservation_policies
        kept = [policies.LatestN(policy.keep_last)]
        if policy.keep_every:
            kept.append(policies.EveryNSteps(policy.keep_every))
        self._directory, self._policy = directory, policy
        self._checkpointer = _checkpointer(directory, policies.AnyPreservationPolicy(kept))
        beside = ModelDir(directory.parent)
        self._snapshots, self._best = beside.snapshots, beside.best
        self._snapshotter, self._keeper = None, None
        if policy.snapshots:
            last = policy.snapshots.keep_last
            kept = policies.LatestN(last) if last else policies.PreserveAll()
            self._snapshotter = _checkpointer(self._snapshots, kept)
        if best:
            self._keeper = _checkpointer(self._best, policies.LatestN(1))
        self._pending: tuple[Path, Any] | None = None
        self._failures = Failures(directory)
        self._failures.listen()

    def save(self, state: TrainState, step: int, meta: Mapping[str, Any]) -> None:
        """Copies the state and writes it in the background, after the checkpoint before it.

        Raises:
          OSError: this checkpoint or what was saved before it could not be written.
        """
        self._save(self._checkpointer, self._directory / str(step), _trees(state), meta)

    def save_snapshot(self, state: TrainState, step: int, meta: Mapping[str, Any]) -> None:
        """The same with the weights alone, as `SnapshotPolicy` has them. One of that step is
        replaced.

        Raises:
          OSError: this snapshot or what was saved before it could not be written.
        """
        assert self._policy.snapshots is not None
        path = self._snapshots / str(step)
        self._save_weights(self._snapshotter, path, state, self._policy.snapshots, meta)

    def save_best(self, state: TrainState, step: int, meta: Mapping[str, Any]) -> None:
        """The same with the weights of the best evaluation, in the place of those before.

        Raises:
          OSError: they or what was saved before could not be written.
        """
        self._save_weights(self._keeper, self._best / str(step), state, BEST, meta)

    def _save_weights(
        self,
        checkpointer: Any,
        path: Path,
        state: TrainState,
        policy: SnapshotPolicy,
        meta: Mapping[str, Any],
    ) -> None:
        trees = _weights(state, policy)
        dtypes = {name: x.dtype.name for name, x in flatten(trees["params"])}
        meta = {**meta, "dtypes": {**meta.get("dtypes", {}), **dtypes}}
        self._save(checkpointer, path, trees, meta, overwrite=True)

    def _save(
        self,
        checkpointer: Any,
        path: Path,
        trees: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.wait()
        self._failures.directory = path.parent
        with explained(path.parent):
            response = checkpointer.save_checkpointables_async(
                int(path.name),
                {**trees, "meta": {**meta, "arrays": _shapes(trees)}},
                force=True,
                overwrite=overwrite,
            )
        self._pending = (path, response)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk.

        Raises:
          OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            path, response = pending
            with explained(path.parent):
                response.result()
                if jax.process_index() == 0:
                    seal(path)

    def close(self) -> None:
        """Waits and lets go."""
        try:
            self.wait()
        finally:
            all_of_them = (self._checkpointer, self._snapshotter, self._keeper)
            for checkpointer in filter(None, all_of_them):
                with contextlib.suppress(Exception):  # only ever what `wait` has raised before
                    checkpointer.close()
            self._failures.leave()


def restore_latest(
    directory: ModelDir, abstract: TrainState, say: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest checkpoint that can be read, placed as `abstract` says, and its `meta`. What it
    leaves out is missing from the frozen parameters of the state.

    One that cannot be read is reported in a line, and moved to `damaged/` once an older one has
    been read: then it is the checkpoint that is at fault, and not the machine.

    Returns:
      (state, meta), or None if there is no checkpoint.

    Raises:
      ValueError: the state is another one than the checkpoint's; names what differs.
      OSError: there are checkpoints, but none can be read; they stay where they are.
      MemoryError, PermissionError, jax.errors.JaxRuntimeError: reading failed for want of memory or
        permission.
    """
    steps = saved_steps(directory.checkpoints)
    unreadable = []
    for step in reversed(steps):
        path = (directory.checkpoints / str(step)).resolve()
        try:
            _check_everywhere(path)
            meta = load(path, {"meta": None})["meta"]
            wanted = _trees(without(abstract, meta.get(ELSEWHERE, ())))
            _check_structure(path, meta["arrays"], _shapes(wanted))
            trees = load(path, wanted)
        except _Mismatch as e:
            raise ValueError(str(e)) from None
        except Exception as e:  # Orbax and TensorStore raise whatever they stumbled on
            if is_no_damage(e):
                raise
            if jax.process_count() > 1 and not isinstance(e, _Damaged):
                # The others may have read it, and wait for this process.
                raise read_error(path, e) from e
            say(f"checkpoint {step} cannot be read ({first_line(e)}); trying the one before it")
            unreadable.append(path)
            continue
        if jax.process_index() == 0:
            for damaged in unreadable:
                _move_away(damaged, directory.damaged / damaged.name)
        rest = trees["training"]
        return TrainState(params=trees["params"], frozen=trees.get("frozen", {}), **rest), meta
    if steps:
        raise OSError(
            f"none of the checkpoints {steps} of {directory.root} can be read; nothing was "
            "changed. Start again if the cause may pass; to begin from step 0, move "
            f"{directory.checkpoints} away"
        )
    return None


def without(state: TrainState, names: Collection[str]) -> TrainState:
    """A (possibly abstract) state without some of its frozen parameters and their scales."""
    gone = {*names, *map(scale_of, names)}
    return replace(
        state, frozen=nested({name: x for name, x in flatten(state.frozen) if name not in gone})
    )


def newest_meta(directory: ModelDir) -> dict[str, Any]:
    """The `meta` of the newest checkpoint; empty where there is none, or it cannot be read."""
    for step in reversed(saved_steps(directory.checkpoints)):
        with contextlib.suppress(Exception):  # `restore_latest` tells
            path = (directory.checkpoints / str(step)).resolve()
            return dict(load(path, {"meta": None})["meta"])
    return {}


def check_resumable(model_dir: Path, policy: CheckpointPolicy) -> None:
    """Fails where what is left of a run is weights alone: it would begin again at step 0.

    A run that was killed before its first checkpoint may have snapshots, and does begin again.

    Raises:
      ValueError: `model_dir` is a checkpoint or a snapshot, or has had checkpoints and lost them.
    """
    if is_one(model_dir):
        raise ValueError(
            f"MODEL_DIR {model_dir} is itself a checkpoint or snapshot; set MODEL_DIR to another "
            "folder, and INITIAL_CHECKPOINT_PATH to this one to start from its weights"
        )
    directory = ModelDir(model_dir)
    snapshots = saved_steps(directory.snapshots)
    if snapshots and snapshots[-1] >= policy.every and not saved_steps(directory.checkpoints):
        raise ValueError(
            f"{model_dir} has snapshots of steps {snapshots}, which are weights alone, and no "
            f"checkpoint to go on from: expected {directory.checkpoints}/<step>. To start from "
            "their weights, set INITIAL_CHECKPOINT_PATH to "
            f"{directory.snapshots / str(snapshots[-1])} and MODEL_DIR to a new folder; to begin "
            f"from step 0, move {directory.snapshots} away"
        )


@dataclass(frozen=True)
class InitFrom:
    """Where a run takes its first weights from, see `init_from.py`.

    Attributes:
      path: a model directory (its newest checkpoint), the folder of one checkpoint or snapshot in
        it, or `hf:` and a Hugging Face folder.
      rename: (pattern, replacement) pairs for `re.sub`, applied in order to the names of the
        checkpoint, to get the names of this model.
      new: patterns (`re.fullmatch`) of parameters of this model that the checkpoint may lack; they
        are initialised. Stage 2 from stage 1: `("projection/.*", "log_temperature",
        "matching_head/.*")`. Rows of tokens that were added need no pattern.
      unused: patterns of (renamed) parameters of the checkpoint that may be left behind.

    Raises:
      ValueError: a pattern is no regular expression, or a replacement does not fit it.
    """

    path: str
    rename: tuple[tuple[str, str], ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rules = [("rename", pattern, replacement) for pattern, replacement in self.rename]
        rules += [("new", pattern, "") for pattern in self.new]
        rules += [("unused", pattern, "") for pattern in self.unused]
        for name, pattern, replacement in rules:
            try:
                re.sub(pattern, replacement, "")
            except re.error as error:
                raise ValueError(
                    f"InitFrom.{name}: {pattern!r} with replacement {replacement!r} is no regular "
                    f"expression that fits: {error}"
                ) from error


class _Mismatch(ValueError):
    pass


class _Damaged(OSError):
    """What all processes found, or were told, of a checkpoint."""


def _trees(state: TrainState) -> dict[str, Any]:
    parts = {f.name: getattr(state, f.name) for f in fields(state)}
    trees = {"params": parts.pop("params"), "frozen": parts.pop("frozen"), "training": parts}
    return {name: tree for name, tree in trees.items() if tree}


def _weights(state: TrainState, policy: SnapshotPolicy) -> dict[str, Any]:
    """What a snapshot holds."""
    weights = state.params if state.ema is None else state.ema
    trees = {"params": jax.tree.map(lambda x: x.astype(policy.dtype), weights)}
    return {**trees, "frozen": state.frozen} if state.frozen else trees


def _checkpointer(directory: Path, kept: Any) -> Any:
    if jax.process_index() == 0 and directory.is_dir():
        # What a killed process left half-written.
        for path in directory.glob(_TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)
    made = ocp.training.Checkpointer(
        str(directory.resolve()), context=context(), preservation_policy=kept
    )
    # It would ask JAX, with the numbers of steps, whether SIGTERM came. `termination` asks with
    # numbers of its own, and a signal that comes between two counts is lost.
    made._manager.reached_preemption = lambda step: False
    return made


def _shapes(tree: Any) -> dict[str, list[int]]:
    """Shapes by path, as JSON."""
    return {
        path_name(path): list(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_structure(path: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    differing = [
        f"{name}: {theirs.get(name, 'nothing')} there, {mine.get(name, 'nothing')} here"
        for name in sorted(theirs.keys() | mine.keys())
        if theirs.get(name) != mine.get(name)
    ]
    if differing:
        raise _Mismatch(
            f"checkpoint {path} is of another state ({len(differing)} arrays differ):\n  "
            + "\n  ".join(differing[:10])
            + "\nModel, optimizer, objectives and ema_decay have to be those it was saved with; "
            "to change them, start from its weights with INITIAL_CHECKPOINT_PATH in a new MODEL_DIR"
        )


def _check_everywhere(path: Path) -> None:
    """`check_sizes` with one outcome for all processes."""
    found = ""
    try:
        check_sizes(path)
    except (OSError, ValueError) as e:
        if is_no_damage(e):
            raise
        found = first_line(e)
    if not agreed(not found):
        raise _Damaged(found or "another process finds it damaged")


def _move_away(path: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    path.rename(target)


def state_bytes(state: Any) -> int:
    """Size of all arrays of a (possibly abstract) state."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def snapshot_bytes(state: TrainState, policy: SnapshotPolicy) -> int:
    """Size of all arrays of a snapshot of a (possibly abstract) state."""
    itemsize = jnp.dtype(policy.dtype).itemsize
    weights = state.params if state.ema is None else state.ema
    number = sum(math.prod(x.shape) for x in jax.tree.leaves(weights))
    return number * itemsize + state_bytes(state.frozen)
