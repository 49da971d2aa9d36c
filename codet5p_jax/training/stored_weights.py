"""The parameters of a checkpoint: all of them onto a mesh, or one at a time, read or written.

A checkpoint may leave out what is frozen and say where that came from; it is read from there, and
has to be what it was: its checksums are kept.
"""

import contextlib
import ctypes
import functools
import gc
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import Mesh

from codet5p_jax.interop.weights import open_hugging_face, place
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import Params, ParamSpec, flatten, logical_axes, nested
from codet5p_jax.sharding import MeshConfig, make_mesh, param_shardings
from codet5p_jax.training.checkpoints import checkpoint_path, context, read, seal
from codet5p_jax.training.model_dir import ModelDir, load_config

ELSEWHERE = "frozen_elsewhere"  # in the meta of a checkpoint
_BUFFER = 2**26  # bytes of small arrays that are written together


def load_params(
    model_dir: str | Path, mesh: Mesh | None = None, *, step: int | None = None
) -> tuple[Params, ModelConfig, Path]:
    """What inference needs of a model directory.

    Args:
      model_dir: as training wrote it.
      mesh: where the weights go; None: a mesh of one device.
      step: a checkpoint; None: the newest.

    Returns:
      (weights, configuration, folder of the tokenizer). The weights are the moving average where
      the run kept one.

    Raises:
      FileNotFoundError: no model directory, or no checkpoint in it.
      OSError: the checkpoint is damaged, see `checkpoint_path`.
    """
    directory = ModelDir(Path(model_dir))
    config = load_config(directory.root)
    specs = CodeT5p(config).specs
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    path = checkpoint_path(directory.root, step)
    wanted = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        specs,
        param_shardings(logical_axes(specs), specs, mesh),
        is_leaf=lambda x: isinstance(x, ParamSpec),
    )
    return read_params(path, dict(flatten(wanted))), config, directory.tokenizer


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a checkpoint by path, those among them that it leaves out.

    Raises:
      OSError: it cannot be read.
    """
    meta = read(path, {"meta": None})["meta"]
    parts = {name.partition("/")[::2]: tuple(shape) for name, shape in meta["arrays"].items()}
    own = {name: shape for (part, name), shape in parts.items() if part in ("params", "frozen")}
    elsewhere = meta.get(ELSEWHERE, {}).get("arrays", {})
    return {**own, **{name: tuple(array["shape"]) for name, array in elsewhere.items()}}


def read_params(
    path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], *, pad: bool = False
) -> Params:
    """The nested dict of the parameters at the paths `wanted` of a checkpoint.

    They are the moving average where the run kept one. With `pad`, arrays that are smaller on disk
    end in zeros.

    Raises:
      OSError: the checkpoint cannot be read.
      ValueError: what it leaves out is not what it was.
    """
    meta = read(path, {"meta": None})["meta"]
    arrays, elsewhere = meta["arrays"], meta.get(ELSEWHERE, {"arrays": {}})
    left_out = {name: x for name, x in wanted.items() if name in elsewhere["arrays"]}
    frozen = {name: x for name, x in wanted.items() if f"frozen/{name}" in arrays}
    tree = nested({n: x for n, x in wanted.items() if n not in frozen and n not in left_out})
    found: Params = {}
    if tree and any(name.startswith("training/ema/") for name in arrays):
        found = read(path, {"training": {"ema": tree}}, partial=True, pad=pad)["training"]["ema"]
    elif tree:
        found = read(path, {"params": tree}, partial=True, pad=pad)["params"]
    rest: Params = {}
    if frozen:
        rest = read(path, {"frozen": nested(frozen)}, partial=True, pad=pad)["frozen"]
    others = read_elsewhere(elsewhere, left_out) if left_out else {}
    return nested({**dict(flatten(found)), **dict(flatten(rest)), **others})


def describe_elsewhere(
    source: str, paths: Mapping[str, str], frozen: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """What a checkpoint keeps, as JSON, of frozen parameters that it leaves out.

    Args:
      source: `hf:` and a Hugging Face folder, or a checkpoint; absolute.
      paths: path here -> path there.
      frozen: their values by path.
    """
    sums = {name: checksum(x) for name, x in frozen.items()}
    return {
        "source": source,
        "arrays": {
            name: {
                "path": paths[name],
                "shape": list(x.shape),
                "dtype": x.dtype.name,
                "checksum": sums[name],
            }
            for name, x in frozen.items()
        },
    }


def read_elsewhere(
    elsewhere: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Parameters by path that a checkpoint left out, from where `describe_elsewhere` says.

    Raises:
      FileNotFoundError, OSError: they are not there any more.
      ValueError: they are not what they were.
    """
    source, arrays = elsewhere["source"], elsewhere["arrays"]
    as_kept = {
        name: jax.ShapeDtypeStruct(
            tuple(arrays[name]["shape"]), jnp.dtype(arrays[name]["dtype"]), sharding=x.sharding
        )
        for name, x in wanted.items()
    }
    prefix, colon, folder = source.partition(":")
    if colon and prefix == "hf":
        weights = open_hugging_face(Path(folder))
        found = {
            name: place(weights, arrays[name]["path"], x.dtype, x.sharding)
            for name, x in as_kept.items()
        }
    else:
        by_path = {arrays[name]["path"]: x for name, x in as_kept.items()}
        loaded = dict(flatten(read_params(checkpoint_path(Path(source)), by_path)))
        found = {name: loaded[arrays[name]["path"]] for name in as_kept}
    for name, array in found.items():
        if checksum(array) != arrays[name]["checksum"]:
            raise ValueError(
                f"{name} in {source} is not what it was when this run froze it (its checksum "
                "differs); put back the weights that INITIAL_CHECKPOINT_PATH named then"
            )
    return {name: array.astype(wanted[name].dtype) for name, array in found.items()}


def checksum(array: jax.Array) -> str:
    """64 bits that depend on every bit of an array and on its place, and not on its sharding.

    Not for use against an adversary.
    """
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return "".join(f"{int(half):08x}" for half in jax.device_get(_checksum(array, kind)))


@functools.partial(jax.jit, static_argnums=1)
def _checksum(array: jax.Array, kind: Any) -> tuple[jax.Array, jax.Array]:
    def mixed(x: jax.Array) -> jax.Array:  # the finaliser of MurmurHash3
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
    place, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        steps = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place += steps * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    one = jnp.sum(mixed(bits ^ mixed(place + 1)), dtype=jnp.uint32)
    other = jnp.sum(mixed(bits + mixed(place ^ jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)
    return one, other


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
