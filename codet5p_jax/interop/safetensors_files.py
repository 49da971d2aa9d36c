"""Safetensors folders: read by memory map one tensor at a time, written as shards with an index.

A file is an 8-byte length, that many bytes of JSON, and the bytes of all tensors without a gap.
Files are untrusted: everything the JSON claims is checked against the file before it is used.
"""

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from codet5p_jax.files import check_inside

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
FLOATS = {dtype.name: dtype for dtype in DTYPES.values()}
"""dtypes of weights by name."""
NAMES = {**{dtype: name for name, dtype in DTYPES.items()}, np.dtype(np.uint8): "U8"}
"""Of what is written: weights, and masks of uint8."""
SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
MAX_HEADER = 100_000_000  # as in the safetensors library
MAX_NAME = 500


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor.

    Attributes:
      dtype, shape: of the tensor; dtype None where it is none of `DTYPES`.
      file: that holds it, for errors.
      kind: the file's own name of the dtype.
      offset: of its first byte in the file.
    """

    dtype: np.dtype | None
    shape: tuple[int, ...]
    file: Path
    kind: str = ""
    offset: int = 0

    def weight_dtype(self, name: str) -> np.dtype:
        """The dtype of the tensor of this name.

        Raises:
          ValueError: it is of one that weights do not have.
        """
        if self.dtype is None:
            kinds = DTYPES if self.kind.isupper() else FLOATS  # as the file calls them
            raise ValueError(
                f"{self.file}: {name} is of dtype {self.kind}; expected one of {', '.join(kinds)}"
            )
        return self.dtype


@runtime_checkable
class Source(Protocol):
    """Tensors by name, read when asked for."""

    where: Path
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """One tensor; it may be a view of a file."""
        ...


class SafetensorsFolder:
    """The tensors of `model.safetensors`, or of the shards that an index names.

    Attributes:
      where: the folder.
      tensors: by name.

    Raises:
      FileNotFoundError: no such file, or an index names a shard that is absent.
      ValueError: a file is truncated or not what it claims; names the file and the tensor.
    """

    def __init__(self, folder: Path):
        self.where = folder
        self.tensors: dict[str, TensorInfo] = {}
        index = folder / INDEX
        if (folder / SINGLE).is_file():  # of both, transformers reads this one too
            self.tensors = _read_header(folder / SINGLE)
            return
        if not index.is_file():
            raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}")
        weight_map = read_index(index)
        for shard in dict.fromkeys(weight_map.values()):
            found = _read_header(folder / shard)
            check_shard(index, shard, found, weight_map)
            self.tensors |= found

    def read(self, name: str) -> np.ndarray:
        """A memory map of one tensor, closed with the last view of it.

        Raises:
          ValueError: it is of a dtype that weights do not have.
        """
        info = self.tensors[name]
        dtype = info.weight_dtype(name)
        if not math.prod(info.shape):
            return np.zeros(info.shape, dtype)
        return np.memmap(info.file, dtype, "r", info.offset, info.shape)


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> name of a file in the same folder, from an index file.

    Raises:
      ValueError: it is no index, or names files elsewhere.
      FileNotFoundError: it names a file that is absent.
    """
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: expected an object with a `weight_map`, tensor name to file")
    for name, shard in weight_map.items():
        check_name(path, name)
        if not isinstance(shard, str) or shard != os.path.basename(shard) or shard in ("", ".."):
            raise ValueError(
                f"{path}: {name} is said to be in {ascii(shard)[:MAX_NAME]}; expected the name of "
                "a file in the same folder"
            )
        check_name(path, shard)
        if not (path.parent / shard).is_file():
            raise FileNotFoundError(f"{path}: {name} is said to be in {shard}, which is absent")
        check_inside(path.parent / shard)
    return weight_map


def check_shard(
    index: Path, shard: str, found: Iterable[str], weight_map: Mapping[str, str]
) -> None:
    """Fails unless a shard has the tensors that the index says it has.

    Raises:
      ValueError: with the names of some that differ.
    """
    claimed = {name for name, file in weight_map.items() if file == shard}
    if claimed != set(found):
        absent, extra = sorted(claimed - set(found)), sorted(set(found) - claimed)
        told = [f"lacks {', '.join(absent[:3])}"] if absent else []
        told += [f"has {', '.join(extra[:3])}, of which the index says nothing"] if extra else []
        raise ValueError(
            f"{index.parent / shard} does not fit {index.name}: it {'; it '.join(told)}"
        )


def check_name(path: Path, name: Any) -> None:
    """Fails unless a tensor's name can be shown to people: errors and reports print it.

    Raises:
      ValueError: it has characters that steer a terminal, is very long, or is no text.
    """
    if not (isinstance(name, str) and name.isprintable() and len(name) <= MAX_NAME):
        raise ValueError(
            f"{path}: expected names of tensors in at most {MAX_NAME} printable characters, found "
            f"{ascii(name)[:60]}"
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: it is not JSON, or a link out of its folder; names the file.
    """
    check_inside(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from None


def _read_header(path: Path) -> dict[str, TensorInfo]:
    check_inside(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(
                f"{path} is truncated or no safetensors file: it has {size:,} bytes, its header "
                f"claims {length:,}"
            )
        try:
            header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
        except (ValueError, AttributeError, RecursionError) as error:
            told = (
                error if isinstance(error, _RepeatedNameError) else "its header is no JSON object"
            )
            raise ValueError(f"{path}: {told}") from None
    start, tensors = 8 + length, {}
    for name, fields in entries.items():
        check_name(path, name)
        tensors[name] = _tensor_info(path, name, fields, start)
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        first, last = header[name]["data_offsets"]
        if start + first != end:
            raise ValueError(f"{path}: the bytes of {name} leave a gap or overlap others")
        end = start + last
        if info.dtype and last - first != math.prod(info.shape) * info.dtype.itemsize:
            raise ValueError(
                f"{path}: {name} of shape {info.shape} and dtype {info.kind} is said to have "
                f"{last - first:,} bytes"
            )
    if end != size:
        raise ValueError(f"{path} is truncated or too long: {size:,} bytes, expected {end:,}")
    return tensors


class _RepeatedNameError(ValueError):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in out if names.count(name) > 1)
        raise _RepeatedNameError(f"its header has {ascii(repeated)[:MAX_NAME]} twice")
    return out


def _tensor_info(path: Path, name: str, fields: Any, start: int) -> TensorInfo:
    try:
        kind, shape, (first, last) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = [*shape, first, last]
        sound = isinstance(kind, str) and all(type(n) is int and n >= 0 for n in numbers)
        if not sound or last < first:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: {name} lacks a sound dtype, shape or data_offsets: {str(fields)[:100]}"
        ) from None
    return TensorInfo(DTYPES.get(kind), tuple(shape), path, str(kind), start + first)


# ------------------------------------------------------------------------------------- writing


class SafetensorsWriter:
    """Writes tensors in any order to shards laid out beforehand. Use `with`; leaving it checks that
    every tensor was written. `new_folder` makes the files durable.

    Args:
      folder: where; it exists.
      tensors: (dtype, shape) by name, in the order in which they lie in the files.
      max_shard_bytes: of tensors, in one file; a larger tensor is a file of its own.
      single: name of the file where there is one.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
        max_shard_bytes: int,
        single: str = SINGLE,
    ):
        self._tensors = dict(tensors)
        self._missing = set(tensors)
        self._stack = ExitStack()
        self._place: dict[str, tuple[Any, int]] = {}
        self.total_bytes = sum(_bytes(t) for t in self._tensors.values())
        shards = _split(self._tensors, max_shard_bytes)
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = single if len(shards) == 1 else file
            self._begin(folder / file, names)
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / INDEX).write_text(text, encoding="utf-8")

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor, which is of the dtype and shape announced."""
        file, offset = self._place[name]
        dtype, shape = self._tensors[name]
        assert (array.dtype, array.shape) == (dtype, shape), (name, array.dtype, array.shape)
        file.seek(offset)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._missing.remove(name)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        with self._stack:
            if error is None:
                assert not self._missing, f"never written: {sorted(self._missing)[:5]}"

    def _begin(self, path: Path, names: Sequence[str]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            dtype, shape = self._tensors[name]
            end = offset + _bytes((dtype, shape))
            header[name] = {
                "dtype": NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that tensors are aligned
        file = self._stack.enter_context(path.open("wb"))
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
        for name in names:
            first = header[name]["data_offsets"][0]
            self._place[name] = (file, 8 + len(text) + first)


def natural_key(name: str) -> list[Any]:
    """Sorts `block.2` before `block.10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def parse_size(text: str) -> int:
    """Bytes of `500MB`, `5GB` (powers of 1000, as in `transformers`) or of a plain number.

    >>> parse_size("5GB")
    5000000000
    """
    match = re.fullmatch(r"(\d+)\s*(|KB|MB|GB)", text.strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise ValueError(f"expected a size such as 500MB or 5GB, found {text!r}")
    return int(match[1]) * {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2].upper()]


def _bytes(tensor: tuple[np.dtype, tuple[int, ...]]) -> int:
    return math.prod(tensor[1]) * tensor[0].itemsize


def _split(
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _bytes(tensor) > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(tensor)
    return shards
