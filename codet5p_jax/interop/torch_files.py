"""`pytorch_model.bin`, single or in shards: a pickle, read as weights only. Nothing else here
imports torch, and it only when called."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codet5p_jax.files import check_inside
from codet5p_jax.interop.safetensors_files import (
    FLOATS,
    TensorInfo,
    check_name,
    check_shard,
    read_index,
)

SINGLE = "pytorch_model.bin"
INDEX = f"{SINGLE}.index.json"
_MAPPED = 2**24


class _Content(NamedTuple):
    """Of a file: tensors by name, and whether they are read only when they are looked at."""

    tensors: Mapping[str, Any]
    mapped: bool


class TorchFolder:
    """The tensors of `pytorch_model.bin`, or of the shards that an index names.

    Attributes:
      where: the folder.
      tensors: by name.

    Raises:
      ImportError: torch is not installed.
      FileNotFoundError, ValueError: as for safetensors; also a pickle of anything but tensors.
    """

    def __init__(self, folder: Path):
        self.where = folder
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[Path, _Content] = {}
        self._read = 0  # bytes, since files were mapped
        index = folder / INDEX
        if not index.is_file():
            self._add(folder / SINGLE)
            return
        weight_map = read_index(index)
        for shard in dict.fromkeys(weight_map.values()):
            check_shard(index, shard, self._add(folder / shard), weight_map)

    def read(self, name: str) -> np.ndarray:
        """One tensor, a view of the file where the file allows it.

        Raises:
          ValueError: it is of a dtype that weights do not have.
        """
        import torch

        info = self.tensors[name]
        dtype = info.weight_dtype(name)
        tensor = self._content(info.file)[name]
        self._read += tensor.nbytes
        if self._read > _MAPPED:  # what was read of a map stays in memory until it is closed
            self._files = {file: x for file, x in self._files.items() if not x.mapped}
            self._read = 0
        tensor = tensor.detach().resolve_neg().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(dtype)
        return tensor.numpy()

    def _content(self, file: Path) -> Mapping[str, Any]:
        if file not in self._files:
            self._files[file] = _load(file)
        return self._files[file].tensors

    def _add(self, file: Path) -> Mapping[str, Any]:
        for name, tensor in self._content(file).items():
            check_name(file, name)
            dense = str(tensor.layout) == "torch.strided" and not tensor.is_nested
            if not dense or tensor.is_meta or tensor.is_quantized:
                raise ValueError(
                    f"{file}: {name} is {_kind(tensor)}; expected a dense tensor with its values"
                )
            kind = str(tensor.dtype).removeprefix("torch.")
            self.tensors[name] = TensorInfo(FLOATS.get(kind), tuple(tensor.shape), file, kind)
        return self._content(file)


def _kind(tensor: Any) -> str:
    if tensor.is_meta:
        return "a tensor without values (of the meta device)"
    if tensor.is_nested:
        return "nested (rows of several lengths)"
    return "quantized" if tensor.is_quantized else f"of layout {tensor.layout}"


def _load(path: Path) -> _Content:
    check_inside(path)
    mapped = True
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"reading {path} needs torch: pip install 'codet5p_jax[torch]', or convert the file to "
            "safetensors where torch is installed"
        ) from None
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # The format of torch before 1.6 cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True)
            mapped = False
    except pickle.UnpicklingError:  # torch's message advises to load it all the same
        raise ValueError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors, whose "
            "loading could run code"
        ) from None
    except Exception as error:  # untrusted bytes fail in many ways
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} cannot be read as weights: it is damaged, or no file of torch.save ({told})"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in content.values()
    ):
        raise ValueError(f"{path}: expected a dict of tensors by name")
    return _Content(content, mapped)
