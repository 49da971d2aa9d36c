"""The parameters of a checkpoint one at a time, read or written: what conversion needs."""

import contextlib
import ctypes
import gc
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import flatten, nested
from codet5p_jax.training.checkpoints import (
    checkpoint_path,
    context,
    read,
    read_params,
    seal,
    stored_shapes,
)
from codet5p_jax.training.model_dir import ModelDir, load_config

_BUFFER = 2**26  # bytes of small arrays that are written together


class StoredWeights:
    """The parameters of a checkpoint one at a time: the moving average where the run kept one.

    Attributes:
      config: of the network.
      shapes: of the parameters, by path.
      meta: what was saved with them.
      tokenizer: folder of tokenizer files; it may be missing.

    Raises:
      FileNotFoundError: no model directory, or no checkpoint in it.
    """

    def __init__(self, model_dir: Path, step: int | None = None):
        directory = ModelDir(model_dir)
        self.config, self.tokenizer = load_config(model_dir), directory.tokenizer
        self._path = checkpoint_path(model_dir, step)
        self.shapes = stored_shapes(self._path)
        self.meta = read(self._path, {"meta": None})["meta"]
        dtypes = self.meta.get("dtypes", {})  # training keeps those of the declaration
        self._dtypes = {
            path: np.dtype(dtypes.get(path, spec.dtype))
            for path, spec in flatten(CodeT5p(self.config).specs)
        }

    def dtype(self, path: str) -> np.dtype:
        """The dtype in which a parameter is stored."""
        return self._dtypes[path]

    def read(
        self, path: str, dtype: np.dtype | None = None, index: tuple[slice, ...] | None = None
    ) -> np.ndarray:
        """A parameter, or the slice of it at `index`, in `dtype` (None: as stored)."""
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.ShapeDtypeStruct(
            self.shapes[path], dtype or self.dtype(path), sharding=sharding
        )
        loaded = dict(flatten(read_params(self._path, {path: wanted})))
        return np.asarray(np.asarray(loaded[path])[index or ()])


def write_weights(
    path: Path, arrays: Iterable[tuple[str, np.ndarray]], meta: Mapping[str, Any]
) -> None:
    """Writes a checkpoint that has parameters only, one after the other.

    Args:
      path: the folder of the checkpoint, named after its step; its parent exists.
      arrays: (path, value) of every parameter; written and dropped as soon as they are larger
        than 64 MB together.
      meta: JSON to keep with them.
    """
    shapes, dtypes = {}, {}
    staging = path.with_name(f"{path.name}.params")
    pending: dict[str, np.ndarray] = {}

    def flush() -> None:
        with context():
            ocp.partial.save(str(staging.resolve()), nested(pending))
        pending.clear()
        release_memory()

    for name, array in arrays:
        shapes[f"params/{name}"], dtypes[name] = list(array.shape), array.dtype.name
        pending[name] = array
        del array
        if sum(x.nbytes for x in pending.values()) > _BUFFER:
            flush()
    if pending:
        flush()
    meta = {**meta, "arrays": shapes, "dtypes": dtypes}
    with context():
        ocp.partial.finalize(str(staging.resolve()))
        ocp.save_checkpointables(str(path.resolve()), {"meta": meta})
    # Orbax writes only a tree of its own piece by piece; a checkpoint is a folder of its trees.
    (staging / "state").rename(path / "params")
    shutil.rmtree(staging)
    seal(path)


def release_memory() -> None:
    """Gives freed memory back to the system: large buffers are kept for reuse otherwise."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
