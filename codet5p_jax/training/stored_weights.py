"""The parameters of a checkpoint: all of them onto a mesh, or one at a time, read or written.

A checkpoint may leave out what is frozen and say where that came from; it is read from there, and
has to be what it was: its checksums are kept.
"""

import contextlib
import ctypes
import dataclasses
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.interop.weights import (
    ForeignWeights,
    hugging_face_folder,
    open_hugging_face,
    place,
)
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.int8 import dequantize, quantize, scale_of
from codet5p_jax.models.params import Params, ParamSpec, flatten, logical_axes, nested
from codet5p_jax.sharding import MeshConfig, make_mesh, param_shardings
from codet5p_jax.training.checkpoint_files import (
    ELSEWHERE,
    checkpoint_path,
    context,
    model_dir_of,
    read,
    read_meta,
    seal,
)
from codet5p_jax.training.model_dir import load_config

_PUT_BACK = (
    "put back the weights that INITIAL_CHECKPOINT_PATH named when the run started, or a link to "
    "them. Where they have moved, a run also goes on with INITIAL_CHECKPOINT_PATH set to the new "
    "place"
)
_BUFFER = 2**26  # bytes of small arrays that are written together


def load_params(
    model_dir: str | Path, mesh: Mesh | None = None, *, step: int | None = None
) -> tuple[Params, ModelConfig, Path]:
    """What inference needs of a model directory.

    Args:
      model_dir: as training wrote it, or the folder of one checkpoint or snapshot in it.
      mesh: where the weights go; None: a mesh of one device.
      step: a checkpoint; None: the newest.

    Returns:
      (weights, configuration, folder of the tokenizer). The weights are the moving average where
      the run kept one, and in 8 bits what was so in training.

    Raises:
      FileNotFoundError: no model directory, or no checkpoint in it.
      OSError: the checkpoint is damaged, see `checkpoint_path`.
    """
    directory = model_dir_of(Path(model_dir))
    config = load_config(directory.root)
    specs = CodeT5p(config).specs
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    path = checkpoint_path(Path(model_dir), step)
    wanted = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        specs,
        param_shardings(logical_axes(specs), specs, mesh),
        is_leaf=lambda x: isinstance(x, ParamSpec),
    )
    return read_params(path, dict(flatten(wanted))), config, directory.tokenizer


def with_ends(model_dir: str | Path, special: SpecialTokens) -> SpecialTokens:
    """The tokens of a model directory's tokenizer, with all that end a text of the model: files of
    Hugging Face may name several."""
    ids = read_meta(checkpoint_path(Path(model_dir))).get("token_ids", {})
    ends = dict.fromkeys([ids.get("eos"), *ids.get("other_eos", ())])
    others = tuple(n for n in ends if n not in (None, special.eos))
    return dataclasses.replace(special, other_eos=others)


def stored_arrays(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the parameters of a checkpoint by path, those among them that it leaves
    out. An int8 kernel stands for itself and its scale.

    Raises:
      OSError: it cannot be read.
    """
    meta = read_meta(path)
    dtypes = meta.get("dtypes", {})  # training keeps those of the declaration
    found = {}
    for name, shape in meta["arrays"].items():
        part, _, name = name.partition("/")
        if part in ("params", "frozen"):
            dtype = jnp.dtype(dtypes.get(name, "float32"))
            found[name] = jax.ShapeDtypeStruct(tuple(shape), dtype)
    for name in [name for name, x in found.items() if x.dtype == jnp.int8]:
        del found[scale_of(name)]
    for name, x in meta.get(ELSEWHERE, {}).items():
        found[name] = jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.dtype(x["dtype"]))
    return found


def read_params(
    path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], *, pad: bool = False
) -> Params:
    """The nested dict of the parameters at the paths `wanted` of a checkpoint.

    They are the moving average where the run kept one. With `pad`, arrays that are smaller on disk
    end in zeros. A kernel that is int8 there is read as a float where it is not wanted as int8.

    Raises:
      OSError: the checkpoint cannot be read.
      ValueError: what it leaves out is not what it was.
    """
    meta = read_meta(path)
    arrays, elsewhere = meta["arrays"], meta.get(ELSEWHERE, {})
    scales = {scale_of(name) for name in elsewhere}
    left_out = {n: x for n, x in wanted.items() if n in elsewhere or n in scales}
    frozen = {name: x for name, x in wanted.items() if f"frozen/{name}" in arrays}
    floats = {
        name: x
        for name, x in frozen.items()
        if meta["dtypes"][name] == "int8" and x.dtype != jnp.int8
    }
    if floats:
        others = {name: x for name, x in wanted.items() if name not in floats}
        return nested(
            {
                **dict(flatten(read_params(path, others, pad=pad))),
                **{name: _read_dequantized(path, meta, name, x) for name, x in floats.items()},
            }
        )
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


def _read_dequantized(
    path: Path, meta: Mapping[str, Any], name: str, x: jax.ShapeDtypeStruct
) -> jax.Array:
    sharding = x.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())  # a scale is small
    shape = tuple(meta["arrays"][f"frozen/{scale_of(name)}"])
    pair = {
        name: jax.ShapeDtypeStruct(x.shape, jnp.int8, sharding=x.sharding),
        scale_of(name): jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding),
    }
    found = dict(flatten(read_params(path, pair)))
    widen = jax.jit(dequantize, static_argnums=2, out_shardings=x.sharding)
    return widen(found[name], found[scale_of(name)], x.dtype)


def as_int8(
    name: str, kernel: jax.Array, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """A kernel in 8 bits and its scale by path, placed as `wanted` says."""
    pair = (name, scale_of(name))
    shardings = tuple(wanted[path].sharding for path in pair)
    narrow = jax.jit(quantize, static_argnums=1, out_shardings=shardings)
    return dict(zip(pair, narrow(kernel, wanted[scale_of(name)].shape), strict=True))


def described(array: jax.Array) -> dict[str, Any]:
    """What a checkpoint keeps, as JSON, of the values of an array that it leaves out."""
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "checksum": checksum(array),
    }


def lasting(path: Path) -> dict[str, dict[str, Any] | None]:
    """Which parameters of a checkpoint stay where they are, by path: those of one that was imported
    or composed, and those that it leaves out itself, with what it keeps of them.

    A run deletes its checkpoints as it goes on, its snapshots and its best weights.
    """
    meta = read_meta(path)
    stay: dict[str, dict[str, Any] | None] = dict(meta.get(ELSEWHERE, {}))
    of_a_run = any(name.startswith("training/") for name in meta["arrays"])
    directory = model_dir_of(path)
    if not of_a_run and path.parent not in (directory.snapshots, directory.best):
        names = (name.partition("/") for name in meta["arrays"])
        stay |= {name: None for part, _, name in names if part == "params"}
    return stay


def describe_elsewhere(
    source: str,
    paths: Mapping[str, str],
    frozen: Mapping[str, jax.Array],
    originals: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint keeps, as JSON, of frozen parameters that it leaves out: where each is,
    which is never a checkpoint that leaves it out itself.

    Args:
      source: `hf:` and a Hugging Face folder, or a checkpoint; absolute.
      paths: path here -> path there, of those that are left out.
      frozen: the values of all that are frozen, by path.
      originals: `described` of those that were read and then became int8, by path.
    """
    before = {} if hugging_face_folder(source) else lasting(checkpoint_path(Path(source)))
    return {
        name: before.get(theirs)
        or {"source": source, "path": theirs, **(originals.get(name) or described(frozen[name]))}
        for name, theirs in paths.items()
    }


def read_elsewhere(
    elsewhere: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Parameters by path that a checkpoint left out, from where `describe_elsewhere` says.

    They are read one after the other: of what is int8 here, only one at a time is as wide as there.

    Raises:
      FileNotFoundError, OSError: they are not there any more.
      ValueError: they are not what they were.
    """
    opened = functools.cache(_opened)
    found: dict[str, jax.Array] = {}
    for name, kept in elsewhere.items():
        if name not in wanted:
            continue
        source, theirs, dtype = kept["source"], kept["path"], jnp.dtype(kept["dtype"])
        sharding, (origin, there) = wanted[name].sharding, opened(source)
        if there.get(theirs) != tuple(kept["shape"]):
            raise ValueError(
                f"{name} was {theirs} of shape {kept['shape']} in {source} when this run froze it, "
                f"and is {there.get(theirs, 'not there')} now; {_PUT_BACK}"
            )
        if isinstance(origin, ForeignWeights):
            array = place(origin, theirs, dtype, sharding)
        else:
            x = jax.ShapeDtypeStruct(there[theirs], dtype, sharding=sharding)
            array = dict(flatten(read_params(origin, {theirs: x})))[theirs]
        if checksum(array) != kept["checksum"]:
            raise ValueError(
                f"{name} in {source} is not what it was when this run froze it (its checksum "
                f"differs); {_PUT_BACK}"
            )
        if wanted[name].dtype == jnp.int8:
            found |= as_int8(name, array, wanted)
        else:
            found[name] = array.astype(wanted[name].dtype)
        del array
    return found


def _opened(source: str) -> tuple[ForeignWeights | Path, dict[str, tuple[int, ...]]]:
    """Where to read, and the shapes of what is there."""
    folder = hugging_face_folder(source)
    try:
        if folder:
            weights = open_hugging_face(folder)
            return weights, weights.shapes
        path = checkpoint_path(Path(source))
        return path, {name: x.shape for name, x in stored_arrays(path).items()}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"frozen parameters were left in {source}, which is not there: {error}; {_PUT_BACK}"
        ) from error


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

    Nothing is in 8 bits: a kernel that was so in training is what it was before, where the
    checkpoint says where that is, and otherwise the product with its scale.

    Args:
      model_dir: the model directory, or the folder of one checkpoint or snapshot in it.
      step: a checkpoint; None: the newest.

    Attributes:
      config: of the network.
      shapes: of the parameters, by path.
      rounded: paths of the kernels that are a product with a scale.
      trained: paths of the parameters that are not frozen.
      meta: what was saved with them.
      tokenizer, encoder_tokenizer: folders of tokenizer files; they may be missing.

    Raises:
      FileNotFoundError: no model directory, or no checkpoint in it.
    """

    def __init__(self, model_dir: Path, step: int | None = None):
        directory = model_dir_of(model_dir)
        config, self.tokenizer = load_config(directory.root), directory.tokenizer
        self.encoder_tokenizer = directory.encoder_tokenizer
        towers = {
            tower: dataclasses.replace(getattr(config, tower), int8=False)
            for tower in ("encoder", "decoder")
        }
        self.config = dataclasses.replace(config, **towers)
        self._path = checkpoint_path(model_dir, step)
        self._arrays = stored_arrays(self._path)
        self.shapes = {path: x.shape for path, x in self._arrays.items()}
        self.rounded = [path for path, x in self._arrays.items() if x.dtype == jnp.int8]
        self.meta = read_meta(self._path)
        self.trained = [path for path in self.shapes if f"params/{path}" in self.meta["arrays"]]

    def dtype(self, path: str) -> np.dtype:
        """The dtype in which a parameter is stored; bfloat16, as what else is frozen, for one in
        8 bits."""
        dtype = self._arrays[path].dtype
        return np.dtype(jnp.bfloat16) if dtype == jnp.int8 else np.dtype(dtype)

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
        pending[name] = array.view(_Unchanging)
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


class _Unchanging(np.ndarray):
    """An array that Orbax need not copy before it writes it, as nothing changes it meanwhile."""

    def __deepcopy__(self, memo: Any) -> np.ndarray:
        return self


def release_memory() -> None:
    """Gives freed memory back to the system: large buffers are kept for reuse otherwise."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
