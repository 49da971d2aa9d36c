"""The token cache: tokenised examples on disk, readable by any host without TensorFlow.

    CACHE_DIR/<task>/<split>/manifest.json          what is there, and what made it
    CACHE_DIR/<task>/<split>/*.array_record         the examples
    CACHE_DIR/mixtures/<name>.json                  what a mixture consists of
    CACHE_DIR/tokenizers/<digest>/                  the tokenizer's files

`cache_writer.py` writes it: a folder appears under its final name only when it is complete. Tasks
with the same source, preprocessors and tokenizer share one set of shards: the manifests of all but
one name the task that holds them (`examples_in`).
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from codet5p_jax.data import fingerprint
from codet5p_jax.data.tokens import SpecialTokens

VERSION = 1
MIXTURES, TOKENIZERS = "mixtures", "tokenizers"
_READER_OPTIONS = "readahead_buffer_size:0"

Example = dict[str, np.ndarray]


class CacheError(ValueError):
    """The cache lacks something, is damaged, or is not what was asked for."""


@dataclass(frozen=True)
class Layout:
    """How the arrays of an example lie in a record: `(name, dtype, rank)` in order.

    A record is the dimensions of all arrays as little-endian uint32, then their elements. The
    widest dtypes come first, so that views into a record are aligned. For
    `{"tokens": int32 [2], "word_starts": bool [2]}` the record is `2 2 | t0 t1 | w0 w1`,
    8 + 8 + 2 bytes.
    """

    features: tuple[tuple[str, str, int], ...]

    @classmethod
    def of(cls, example: Mapping[str, np.ndarray]) -> "Layout":
        """The layout of examples like this one.

        Raises:
          CacheError: a feature is not numeric.
        """
        for name, value in example.items():
            if value.dtype.kind not in "biufc":
                raise CacheError(f"feature {name!r}: expected numbers, found dtype {value.dtype}")
        order = sorted(example, key=lambda name: (-example[name].dtype.itemsize, name))
        described = ((n, example[n].dtype.newbyteorder("<").str, example[n].ndim) for n in order)
        return cls(tuple(described))

    def encode(self, example: Mapping[str, np.ndarray]) -> bytes:
        """One record.

        Raises:
          CacheError: the example's features, dtypes or ranks are not those of the layout.
        """
        if len(example) != len(self.features) or any(
            name not in example
            or example[name].dtype != np.dtype(dtype)
            or example[name].ndim != rank
            for name, dtype, rank in self.features
        ):
            found = tuple((n, v.dtype.str, v.ndim) for n, v in example.items())
            raise CacheError(f"expected features {self.features} as before, found {found}")
        arrays = [np.asarray(example[name], dtype) for name, dtype, _ in self.features]
        shape = np.array([size for array in arrays for size in array.shape], "<u4")
        return b"".join([shape.tobytes(), *(array.tobytes() for array in arrays)])

    def decode(self, record: bytes) -> Example:
        """The arrays of a record: read-only views, nothing is copied."""
        ranks = sum(rank for _, _, rank in self.features)
        sizes = iter(np.frombuffer(record, "<u4", ranks).tolist())
        offset, example = 4 * ranks, {}
        for name, dtype, rank in self.features:
            shape = tuple(next(sizes) for _ in range(rank))
            array = np.ndarray(shape, dtype, record, offset)
            example[name] = array
            offset += array.nbytes
        return example


@dataclass(frozen=True)
class Shard:
    """One file: its name, number of records, and size, which tells a truncated copy."""

    file: str
    records: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a cached split holds.

    Attributes:
      fingerprint: digest of each part that made the examples (source, tokenizer, preprocessors).
      layout: arrays of a record.
      epochs: records of each epoch; one number, unless the task was materialised for several.
      lengths: feature -> total, p50, p95, max, and a histogram over powers of two (`"64"`: 33-64).
      examples_in: the task whose folder holds the shards, if not this one's.
    """

    task: str
    split: str
    fingerprint: dict[str, str]
    layout: Layout
    shards: tuple[Shard, ...]
    epochs: tuple[int, ...]
    lengths: dict[str, dict[str, Any]]
    examples_in: str | None = None
    version: int = VERSION

    @property
    def records(self) -> int:
        """All records, of every epoch."""
        return sum(self.epochs)


class CachedTask:
    """Random access to the examples of one cached task and split; picklable.

    Attributes:
      name: of the task.
      manifest: what is there.
    """

    def __init__(self, name: str, manifest: Manifest, folder: Path):
        self.name, self.manifest, self._folder = name, manifest, folder
        self._ends = np.cumsum([shard.records for shard in manifest.shards])
        self._readers: dict[int, ArrayRecordReader] = {}

    def __len__(self) -> int:
        return self.manifest.records

    def __getitem__(self, index: int) -> Example:
        """The example at a position from 0; its arrays are read-only.

        Raises:
          IndexError: there is no such position.
          CacheError: the shard is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: example {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.manifest.shards[number]
        position = index - int(self._ends[number]) + shard.records
        try:
            if number not in self._readers:  # opened when first needed, also after unpickling
                path = str(self._folder / shard.file)
                self._readers[number] = ArrayRecordReader(path, options=_READER_OPTIONS)
            return self.manifest.layout.decode(self._readers[number].read([position])[0])
        except (RuntimeError, OSError, ValueError, TypeError, IndexError) as error:
            raise CacheError(
                f"{self._folder / shard.file} is damaged at record {position} ({error}); "
                "run `codet5p prepare` with --rebuild"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}


@dataclass(frozen=True)
class MixtureTask:
    """A task in a mixture: its examples, the objective that consumes them, its rate."""

    examples: CachedTask
    objective: str
    rate: float

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.examples.name


@dataclass(frozen=True)
class CachedMixture:
    """One split of a cached mixture: all that training needs to know of its data.

    Attributes:
      tokenizer: folder of the files that the ids of every task come from; its name is the digest
        of the vocabulary.
    """

    name: str
    split: str
    tasks: tuple[MixtureTask, ...]
    special: SpecialTokens
    vocab_size: int
    tokenizer: Path

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order in which the tasks name them."""
        return tuple(dict.fromkeys(task.objective for task in self.tasks))

    def tasks_of(self, objective: str) -> tuple[MixtureTask, ...]:
        """The tasks that feed an objective."""
        return tuple(task for task in self.tasks if task.objective == objective)


def open_task(cache_dir: str | Path, task: str, split: str) -> CachedTask:
    """Opens one cached split.

    Raises:
      CacheError: it is not there, incomplete, or of another version; the message says which.
    """
    manifest = read_manifest(cache_dir, task, split)
    if manifest is None:
        there = _prepared_splits(Path(cache_dir) / task)
        found = f"prepared splits: {', '.join(there)}" if there else "nothing of it is prepared"
        raise CacheError(
            f"no cache of task {task!r}, split {split!r}, in {cache_dir} ({found}); "
            "run `codet5p prepare`"
        )
    holder = manifest.examples_in or task
    folder = Path(cache_dir) / holder / split
    if holder != task:
        held = read_manifest(cache_dir, holder, split)
        if held is None or held.fingerprint != manifest.fingerprint:
            what = "is gone" if held is None else "was rebuilt from something else"
            raise CacheError(
                f"task {task!r} uses the examples of {holder!r}, split {split!r}, in {cache_dir}, "
                f"which {what}; run `codet5p prepare` for the mixture of {task!r}"
            )
        manifest = dataclasses.replace(held, task=task, examples_in=holder)
    for shard in manifest.shards:
        path = folder / shard.file
        size = path.stat().st_size if path.exists() else None
        if size != shard.bytes:
            what = "is missing" if size is None else f"has {size:,} bytes"
            raise CacheError(
                f"{path} {what}, the manifest promises {shard.bytes:,} bytes; copy it again or "
                "run `codet5p prepare` with --rebuild"
            )
    return CachedTask(task, manifest, folder)


def open_mixture(cache_dir: str | Path, name: str, split: str) -> CachedMixture:
    """Opens one split of a cached mixture (or of a task that was prepared alone).

    Raises:
      CacheError: the mixture is not prepared, or one of its tasks cannot be opened or was prepared
        with another tokenizer.
    """
    path = Path(cache_dir) / MIXTURES / f"{name}.json"
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.json"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"prepared there: {', '.join(known) or '-'}"
        )
        raise CacheError(
            f"mixture {name!r} is not prepared in {cache_dir} ({hint}); run `codet5p prepare "
            f"{name} --cache_dir {cache_dir}`"
        )
    value = _read_json(path)
    _check_version(path, value)
    ids = value["special_tokens"].items()
    special: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in ids}
    tokenizer = Path(cache_dir) / value["tokenizer"]
    tasks = tuple(
        MixtureTask(open_task(cache_dir, t["task"], split), t["objective"], t["rate"])
        for t in value["tasks"]
    )
    for task in tasks:
        _check_tokenizer(name, tokenizer, task.examples.manifest, Path(cache_dir) / task.name)
    return CachedMixture(
        name, split, tasks, SpecialTokens(**special), value["vocab_size"], tokenizer
    )


def read_manifest(cache_dir: str | Path, task: str, split: str) -> Manifest | None:
    """The manifest of a cached split, None where there is no cache.

    Raises:
      CacheError: it cannot be read, or is of another version.
    """
    path = Path(cache_dir) / task / split / "manifest.json"
    if not path.exists():
        return None
    value = _read_json(path)
    _check_version(path, value)
    try:
        value["layout"] = Layout(tuple((n, d, r) for n, d, r in value["layout"]["features"]))
        value["shards"] = tuple(Shard(**shard) for shard in value["shards"])
        value["epochs"] = tuple(value["epochs"])
        return Manifest(**value)
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path} is damaged ({error}); prepare it again with --rebuild") from error


def _check_tokenizer(mixture: str, tokenizer: Path, manifest: Manifest, folder: Path) -> None:
    """A task may have been prepared again since, or copied here, with another tokenizer."""
    # What `prepare` records of a vocabulary; a cache written by other means may record nothing.
    expected = fingerprint.digest(tokenizer.name)
    if manifest.fingerprint.get("tokenizer", expected) != expected:
        raise CacheError(
            f"mixture {mixture!r} was prepared with the tokenizer in {tokenizer}, but the examples "
            f"in {folder / manifest.split} with another one; run `codet5p prepare {mixture} "
            "--rebuild` with the --tokenizer that is meant"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CacheError(f"{path} is damaged ({error}); prepare it again with --rebuild") from error


def _check_version(path: Path, value: Mapping[str, Any]) -> None:
    if value.get("version") != VERSION:
        raise CacheError(
            f"{path} has version {value.get('version')}, this program reads version {VERSION}; "
            "run `codet5p prepare` with --rebuild"
        )


def _prepared_splits(folder: Path) -> list[str]:
    names = (path.parent.name for path in folder.glob("*/manifest.json"))
    return sorted(name for name in names if not name.startswith("."))
