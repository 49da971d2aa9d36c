"""Tensors of theirs as our parameters, and our parameters as a folder of theirs.

Both ways stream: at one time there is one parameter (all layers of one kernel), or the slice of it
that a device wants; of a fused projection that is written, all parameters that it holds.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from codet5p_jax.files import new_folder
from codet5p_jax.interop import (
    causal_lms,
    codet5p_large,
    hf_config,
    safetensors_files,
    sentence_transformers,
    tokenizer_files,
    torch_files,
)
from codet5p_jax.interop.causal_families import FAMILIES
from codet5p_jax.interop.hf_config import COMPOSED, MODELING
from codet5p_jax.interop.safetensors_files import (
    FLOATS,
    SafetensorsFolder,
    SafetensorsWriter,
    Source,
    natural_key,
)
from codet5p_jax.interop.tables import IGNORED, LAYER, Entry, Table, hugging_face
from codet5p_jax.interop.token_ids import GENERATION, TokenIds
from codet5p_jax.models.codet5p import INITIAL_TEMPERATURE, CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import ParamSpec, flatten

LOG_TEMPERATURE = hf_config.LOG_TEMPERATURE
Index = tuple[slice, ...]


@runtime_checkable
class Weights(Protocol):
    """The parameters of a network, read when asked for.

    Attributes:
      config: of the network.
      shapes: of the parameters, by path.
    """

    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]

    def dtype(self, path: str) -> np.dtype:
        """The dtype in which a parameter is stored."""
        ...

    def read(
        self, path: str, dtype: np.dtype | None = None, index: Index | None = None
    ) -> np.ndarray:
        """A parameter, or the slice of it at `index`, in `dtype` (None: as stored)."""
        ...


class ArrayWeights:
    """Parameters in memory, for example `dict(flatten(params))`."""

    def __init__(self, config: ModelConfig, arrays: Mapping[str, Any]):
        self.config = config
        self._arrays = {path: np.asarray(array) for path, array in arrays.items()}
        self.shapes = {path: array.shape for path, array in self._arrays.items()}

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`."""
        return self._arrays[path].dtype

    def read(
        self, path: str, dtype: np.dtype | None = None, index: Index | None = None
    ) -> np.ndarray:
        """See `Weights`."""
        array = np.asarray(self._arrays[path][index or ()])
        return array if dtype is None else array.astype(dtype)


def place(weights: Weights, path: str, dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A parameter on the mesh; each device is given its slice, and nothing else is read."""
    return jax.make_array_from_callback(
        weights.shapes[path], sharding, lambda index: weights.read(path, np.dtype(dtype), index)
    )


class ForeignWeights:
    """The tensors of a source, read as our parameters.

    Attributes:
      config: of the network.
      shapes: of the parameters, by path.
      where: the folder.

    Args:
      source: their tensors.
      config: of the network.
      table: which of their tensors is which parameter.
      constants: parameters that no tensor holds.

    Raises:
      ValueError: a tensor is missing, unexpected, of a wrong shape, or differs from another that
        has to be the same; names tensors and files.
    """

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        table: Table,
        constants: Mapping[str, np.ndarray] | None = None,
    ):
        self.config, self.where = config, source.where
        self._source, self._constants = source, dict(constants or {})
        specs: dict[str, ParamSpec] = dict(flatten(CodeT5p(config).specs))
        self.shapes = {path: spec.shape for path, spec in specs.items()}
        self._entries = {entry.ours: _chosen(entry, source) for entry in table}
        assert self._entries.keys() | self._constants.keys() == self.shapes.keys()
        self._check(table)

    def dtype(self, path: str) -> np.dtype:
        """The dtype of a parameter in the source; float32 where that of its layers differs."""
        found = self.dtypes(path)
        return found[0] if len(found) == 1 else np.dtype(np.float32)

    def dtypes(self, path: str) -> list[np.dtype]:
        """The dtypes that the layers of a parameter have in the source, by name."""
        if path in self._constants:
            return [self._constants[path].dtype]
        tensors = self._source.tensors
        found = {tensors[name].weight_dtype(name) for name in self._names(path)}
        return sorted(found, key=lambda dtype: dtype.name)

    def read(
        self, path: str, dtype: np.dtype | None = None, index: Index | None = None
    ) -> np.ndarray:
        """A parameter, or the slice of it at `index`, in `dtype` (None: that of the source).

        Raises:
          ValueError: a finite value has no finite value in `dtype`.
        """
        shape = self.shapes[path]
        dtype = dtype or self.dtype(path)
        index = index or (slice(None),) * len(shape)
        if path in self._constants:
            return np.asarray(self._constants[path].astype(dtype)[index])
        entry, names = self._entries[path], self._names(path)
        if not entry.layered:
            view = entry.to_ours(self._source.read(names[0]), shape)[index]
            return cast(view, dtype, names[0], self._file(names[0]))
        chosen = names[index[0]]
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
        out = np.empty(sizes, dtype)
        for i, name in enumerate(chosen):
            view = entry.to_ours(self._source.read(name), shape)[index[1:]]
            out[i] = cast(view, dtype, name, self._file(name))
        return out

    def _names(self, path: str) -> list[str]:
        return self._entries[path].names(self.shapes[path])

    def _file(self, name: str) -> Path:
        return self._source.tensors[name].file

    def _check(self, table: Table) -> None:
        tensors, problems = self._source.tensors, []
        files = {info.file.name for info in tensors.values()}
        searched = files.pop() if len(files) == 1 else f"all {len(files)} files"
        used = {name for name in tensors if IGNORED.fullmatch(name)}
        for path, entry in self._entries.items():
            expected = entry.their_shape(self.shapes[path])
            for name in self._names(path):
                used.add(name)
                if name not in tensors:
                    problems.append(f"{name} is missing from {searched}")
                elif tensors[name].shape != expected:
                    problems.append(
                        f"{name} has shape {tensors[name].shape} in {tensors[name].file.name}, "
                        f"expected {expected}"
                    )
        problems = list(dict.fromkeys(problems))  # of a fused tensor, each part finds the same
        used.update(name for entry in table for name in (entry.theirs, *entry.aliases))
        problems += [
            f"{name} in {tensors[name].file.name} is unexpected"
            for name in sorted(tensors.keys() - used, key=natural_key)
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(
                f"{self.where}: the tensors are not those that its configuration describes: "
                f"{'; '.join(problems[:5])}{more}"
            )
        for entry in table:
            self._check_aliases(entry)

    def _check_aliases(self, entry: Entry) -> None:
        """Tensors that are one parameter have to be one tensor."""
        tensors = self._source.tensors
        first, *others = [n for n in (entry.theirs, *entry.aliases) if n in tensors] or [""]
        for name in others:
            kinds = [tensors[n].weight_dtype(n).name for n in (name, first)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"{self.where}: {name} in {tensors[name].file.name} is {kinds[0]}, {first} is "
                    f"{kinds[1]}, and they have to be one tensor; save both in one dtype, or leave "
                    f"{name} out"
                )
            if not _same(self._source.read(first), self._source.read(name)):
                raise ValueError(
                    f"{self.where}: {name} in {tensors[name].file.name} differs from {first}, and "
                    "they have to be one tensor; an output projection of its own needs "
                    '"tie_word_embeddings": false in config.json'
                )


def open_hugging_face(
    folder: Path, arch: str | None = None, *, allow_pickle: bool = False
) -> ForeignWeights:
    """The weights of a Hugging Face folder. No code of the folder is executed.

    Args:
      folder: with `config.json` and safetensors files.
      arch: one of `ARCHITECTURES`; None: what `config.json` says.
      allow_pickle: whether `pytorch_model.bin` is read where there are no safetensors files; that
        needs torch, which is then asked to unpickle weights only.

    Raises:
      FileNotFoundError: a file is absent.
      ValueError: files, configuration and tensors do not fit each other.
    """
    values = hf_config.load_config(folder)
    where = folder / "config.json"
    arch = arch or hf_config.recognise(values, where)
    config = hf_config.to_model_config(values, arch, where)
    source = _source(folder, allow_pickle)
    layers = max(config.encoder.num_layers, config.decoder.num_layers)
    if layers > len(source.tensors):  # before names are made of a number that a file claims
        raise ValueError(
            f"{folder}: its configuration has {layers:,} layers, but there are "
            f"{len(source.tensors):,} tensors"
        )
    if (
        not config.scale_tied_head
        and arch in hf_config.T5_ARCHITECTURES
        and "lm_head.weight" in source.tensors
    ):
        # As transformers v5 saves T5 v1.1, whose projection is one of its own.
        config = dataclasses.replace(config, tie_embeddings=False, scale_tied_head=True)
    constants = {}
    if config.embed_dim is not None:
        value = hf_config.log_temperature(values, where)
        value = math.log(INITIAL_TEMPERATURE) if value is None else value
        constants[LOG_TEMPERATURE] = np.asarray(value, np.float32)
    return ForeignWeights(source, config, table_of(config, arch), constants)


def export_hugging_face(
    folder: Path,
    weights: Weights,
    *,
    arch: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    tokenizer: Path | None = None,
    encoder_tokenizer: Path | None = None,
    tokens: TokenIds | None = None,
    causal_masks: bool = False,
) -> list[str]:
    """Writes a folder that PyTorch loads.

    Args:
      folder: made; appears when it is complete.
      weights: the network.
      arch: one of `ARCHITECTURES`, or that of `sentence_transformers.py`; None: the one with every
        part of the network.
      dtype: name of the dtype of all tensors; None: each keeps its own.
      max_shard_bytes: of one file.
      tokenizer: folder of tokenizer files to add.
      encoder_tokenizer: the same, of an encoder that has an embedding of its own; into a folder in
        the folder.
      tokens: special ids; None: those of the tokenizer, or CodeT5's.
      causal_masks: whether to add the masks that published files of `codet5p` hold and nothing
        reads.

    Returns:
      Paths of the parameters that the architecture has no place for.

    Raises:
      ValueError: the network is no such architecture, or a value has none in `dtype`.
      FileExistsError: `folder` exists.
    """
    config = weights.config
    arch = arch or hf_config.default_architecture(config)
    modules = {}
    if arch == sentence_transformers.ARCHITECTURE:
        modules, arch = sentence_transformers.files(config), "t5_encoder"
    network = hf_config.exported(config, arch)
    tokens = tokens or tokenizer_files.token_ids(tokenizer) or TokenIds()
    if arch in FAMILIES:
        tokens = dataclasses.replace(tokens, decoder_start=None)
    if arch in COMPOSED:
        tokens = tokens.of_seq2seq()
    if causal_masks and arch != "codet5p":
        raise ValueError(f"causal_masks are of codet5p, and the network is exported as {arch}")
    temperature = None
    if LOG_TEMPERATURE in weights.shapes and arch in hf_config.WITH_HEADS:
        temperature = float(weights.read(LOG_TEMPERATURE))
    chosen = FLOATS[dtype] if dtype else None
    table = table_of(network, arch)
    shapes = {path: spec.shape for path, spec in flatten(CodeT5p(network).specs)}
    dtypes = {p: chosen or weights.dtype(p) for p in shapes if p != LOG_TEMPERATURE}
    widest = max(dtypes.values(), key=lambda d: d.itemsize).name
    size = sum(math.prod(shapes[path]) * dtype.itemsize for path, dtype in dtypes.items())
    values = hf_config.to_hugging_face(config, arch, widest, temperature)
    values |= tokens.to_config(arch)
    masks = codet5p_large.causal_masks(network) if causal_masks else {}
    size += sum(n**2 for n in masks.values())
    with new_folder(folder, size) as partial:
        _write_json(partial / "config.json", values)
        if arch not in hf_config.ENCODERS:
            _write_json(partial / GENERATION, tokens.to_generation_config())
        if arch in MODELING:
            file = MODELING[arch].file
            shutil.copyfile(Path(__file__).with_name(file), partial / file)
        if tokenizer is not None:
            tokenizer_files.export_tokenizer(tokenizer, partial, config.vocab_size)
        if encoder_tokenizer is not None and arch in COMPOSED and config.encoder_vocab_size:
            target = partial / tokenizer_files.ENCODER
            tokenizer_files.export_tokenizer(encoder_tokenizer, target, config.encoder_vocab_size)
        _write_tensors(partial, table, weights, chosen, max_shard_bytes, folder, masks)
        if modules:
            for name, content in modules.items():
                (partial / name).parent.mkdir(exist_ok=True)
                _write_json(partial / name, content)
            dense, where = sentence_transformers.DENSE_TABLE, sentence_transformers.DENSE_FOLDER
            _write_tensors(partial / where, dense, weights, chosen, max_shard_bytes, folder)
            table += dense
    left_out = weights.shapes.keys() - {entry.ours for entry in table}
    return sorted(left_out - ({LOG_TEMPERATURE} if temperature is not None else set()))


def cast(array: np.ndarray, dtype: np.dtype, name: str, where: Path) -> np.ndarray:
    """The array in another dtype.

    Raises:
      ValueError: a finite value overflows.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if dtype.itemsize <= array.dtype.itemsize and dtype != np.float32:
        overflown = int(np.count_nonzero(~np.isfinite(out)) - np.count_nonzero(~np.isfinite(array)))
        if overflown:
            raise ValueError(
                f"{where}: {overflown} values of {name} are too large for {dtype.name}; choose "
                f"{'float32' if dtype.name == 'bfloat16' else 'bfloat16 or float32'}"
            )
    return out


def nonfinite(array: np.ndarray) -> int:
    """How many values are NaN or infinite."""
    layers = array if array.ndim > 2 else [array]  # by layer, for want of memory
    return sum(int(x.size - np.count_nonzero(np.isfinite(x))) for x in layers)


def hugging_face_folder(source: str) -> Path | None:
    """The folder of `hf:FOLDER`; None of anything else, which is a model directory.

    >>> hugging_face_folder("hf:/models/codet5p-220m").name
    'codet5p-220m'
    """
    prefix, colon, folder = source.partition(":")
    return Path(folder) if colon and prefix == "hf" else None


def only_pickled(folder: Path) -> bool:
    """Whether a folder has pickles and no safetensors files."""

    def has(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    safe = has(safetensors_files.SINGLE, safetensors_files.INDEX)
    return not safe and has(torch_files.SINGLE, torch_files.INDEX)


def table_of(config: ModelConfig, arch: str) -> Table:
    """Which tensor of an architecture is which parameter of a network."""
    if arch in FAMILIES:
        return causal_lms.table(FAMILIES[arch], config)
    if arch in COMPOSED:
        return COMPOSED[arch].table(config)
    return hugging_face(config)


def _source(folder: Path, allow_pickle: bool) -> Source:
    if not only_pickled(folder):
        return SafetensorsFolder(folder)
    if not allow_pickle:
        raise ValueError(
            f"{folder} has its weights only as {torch_files.SINGLE}, a pickle; --allow_pickle "
            "reads it (as weights only; needs torch)"
        )
    return torch_files.TorchFolder(folder)


def _chosen(entry: Entry, source: Source) -> Entry:
    """The entry under the first of its names that the source has."""
    for name in (entry.theirs, *entry.aliases):
        if name.replace(LAYER, str(entry.first)) in source.tensors:
            return dataclasses.replace(entry, theirs=name, aliases=())
    return entry


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one dtype have the same bits, read in pieces."""
    if one.shape != other.shape:
        return False
    step = max(1, 2**24 // max(1, math.prod(one.shape[1:])))
    bits = f"u{one.dtype.itemsize}"
    return all(
        np.array_equal(one[i : i + step].view(bits), other[i : i + step].view(bits))
        for i in range(0, len(one), step)
    )


def _write_tensors(
    folder: Path,
    table: Table,
    weights: Weights,
    dtype: np.dtype | None,
    max_shard_bytes: int,
    where: Path,
    masks: Mapping[str, int] | None = None,
) -> None:
    """The tensors of `table` as safetensors in `folder`, which errors call `where`, and causal
    masks of so many positions."""
    masks = masks or {}
    tensors: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        name: (np.dtype(np.uint8), (1, 1, n, n)) for name, n in masks.items()
    }
    for entry in table:
        shape, kind = weights.shapes[entry.ours], dtype or weights.dtype(entry.ours)
        theirs = entry.their_shape(shape)
        for name in entry.names(shape):
            differs = name in tensors and tensors[name][0] != kind  # of its parts, some train
            tensors[name] = np.dtype(np.float32) if differs else kind, theirs
    tensors = {name: tensors[name] for name in sorted(tensors, key=natural_key)}
    with SafetensorsWriter(folder, tensors, max_shard_bytes) as writer:
        together: dict[tuple[str, ...], list[Entry]] = {}  # entries of the same tensors
        for entry in table:
            names = tuple(entry.names(weights.shapes[entry.ours]))
            together.setdefault(names, []).append(entry)
        for names, entries in together.items():
            _write_layers(writer, tensors, names, entries, weights, where)
        for name, n in masks.items():
            writer.write(name, np.tri(n, dtype=np.uint8)[None, None])


def _write_layers(
    writer: SafetensorsWriter,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    names: Sequence[str],
    entries: Sequence[Entry],
    weights: Weights,
    where: Path,
) -> None:
    """The tensors `names`, which are the layers of `entries`; each parameter is read once."""
    arrays = [weights.read(entry.ours) for entry in entries]
    for i, name in enumerate(names):
        dtype, shape = tensors[name]
        theirs = np.empty(shape, dtype)
        for entry, array in zip(entries, arrays, strict=True):
            layer = array[i] if entry.layered else array
            entry.put(cast(layer, dtype, name, where), theirs)
        writer.write(name, theirs)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
