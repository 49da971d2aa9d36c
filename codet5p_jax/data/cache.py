"""The token cache: tokenised examples on disk, readable by any host without TensorFlow.

    CACHE_DIR/<task>/<split>/manifest.json          what is there, and what made it
    CACHE_DIR/<task>/<split>/*.array_record         the examples
    CACHE_DIR/mixtures/<name>.json                  what a mixture consists of
    CACHE_DIR/tokenizers/<digest>/                  the tokenizer's files

A folder appears under its final name only when it is complete. Tasks with the same source,
preprocessors and tokenizer share one set of shards: the manifests of all but one name the task that
holds them (`examples_in`).
"""

import contextlib
import dataclasses
import difflib
import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from codet5p_jax.data.tokens import SpecialTokens

VERSION = 1
SHARD_BYTES = 256 * 2**20  # before compression
MIXTURES, TOKENIZERS = "mixtures", "tokenizers"
# One record per chunk, so that reading a random example decompresses no other.
_WRITER_OPTIONS = "group_size:1,zstd:1"
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


class CacheWriter:
    """Writes the examples of one task and split; nothing is visible until all of it is on disk.

    Use it as a context manager: leaving it normally publishes the folder (replacing an old one),
    leaving it by an exception removes what was written. After a kill, the hidden folder that is
    left over is removed by the next writer of that task and split.

        with CacheWriter(cache_dir, "my_task", "train", fingerprint) as writer:
            for example in examples:
                writer.write(example)
        writer.manifest
    """

    def __init__(
        self,
        cache_dir: str | Path,
        task: str,
        split: str,
        fingerprint: Mapping[str, str],
        *,
        shard_bytes: int = SHARD_BYTES,
    ):
        self._final = Path(cache_dir) / task / split
        self._partial = self._final.with_name(f".{split}.partial")
        self._task, self._split, self._fingerprint = task, split, dict(fingerprint)
        self._shard_bytes = shard_bytes
        self._layout: Layout | None = None
        self._writer: ArrayRecordWriter | None = None
        self._shards: list[Shard] = []
        self._in_shard = self._bytes_in_shard = 0
        self._epochs = [0]
        self._lengths: dict[str, Counter[int]] = {}
        self.manifest: Manifest

    def __enter__(self) -> "CacheWriter":
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        return self

    def write(self, example: Mapping[str, np.ndarray]) -> None:
        """Appends one example.

        Raises:
          CacheError: it is unlike the examples before it, or the disk is full.
        """
        if self._layout is None:
            self._layout = Layout.of(example)
            self._lengths = {name: Counter() for name in example}
        record = self._layout.encode(example)
        if self._writer is not None and self._bytes_in_shard + len(record) > self._shard_bytes:
            self._close_shard()
        if self._writer is None:
            self._writer = ArrayRecordWriter(str(self._shard_path()), _WRITER_OPTIONS)
        assert self._writer is not None
        with _explain_write_errors(self._final):
            self._writer.write(record)
        self._in_shard += 1
        self._bytes_in_shard += len(record)
        self._epochs[-1] += 1
        for name, value in example.items():
            self._lengths[name][value.size] += 1

    def end_epoch(self) -> None:
        """Says that the next example belongs to the next materialised epoch."""
        self._epochs.append(0)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with _explain_write_errors(self._final):
                    self._publish()
        finally:
            if self._partial.exists():
                if self._writer is not None:
                    with contextlib.suppress(RuntimeError, OSError):
                        self._writer.close()
                shutil.rmtree(self._partial, ignore_errors=True)

    def _shard_path(self) -> Path:
        return self._partial / f"examples-{len(self._shards):05d}.array_record"

    def _close_shard(self) -> None:
        path, writer, self._writer = self._shard_path(), self._writer, None
        assert writer is not None
        with _explain_write_errors(self._final):
            writer.close()
            _fsync(path)
        self._shards.append(Shard(path.name, self._in_shard, path.stat().st_size))
        self._in_shard = self._bytes_in_shard = 0

    def _publish(self) -> None:
        if self._writer is not None:
            self._close_shard()
        if self._layout is None or not all(self._epochs):
            raise CacheError(
                f"task {self._task!r} has no examples in split {self._split!r}: look at what its "
                "source reads and its preprocessors drop, or leave the split out"
            )
        self.manifest = Manifest(
            self._task,
            self._split,
            self._fingerprint,
            self._layout,
            tuple(self._shards),
            tuple(self._epochs),
            {name: _summary(counts) for name, counts in self._lengths.items()},
        )
        write_json(self._partial / "manifest.json", dataclasses.asdict(self.manifest))
        _replace_folder(self._partial, self._final)


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
    """One split of a cached mixture: all that training needs to know of its data."""

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
      CacheError: the mixture is not prepared, or one of its tasks cannot be opened.
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
    special = {**value["special_tokens"], "sentinels": tuple(value["special_tokens"]["sentinels"])}
    return CachedMixture(
        name,
        split,
        tuple(
            MixtureTask(open_task(cache_dir, t["task"], split), t["objective"], t["rate"])
            for t in value["tasks"]
        ),
        SpecialTokens(**special),
        value["vocab_size"],
        Path(cache_dir) / value["tokenizer"],
    )


def write_mixture(
    cache_dir: str | Path,
    name: str,
    tasks: Sequence[tuple[str, str, float]],
    *,
    special: SpecialTokens,
    vocab_size: int,
    tokenizer_digest: str,
    save_tokenizer: Callable[[Path], None],
) -> None:
    """Records a mixture of cached tasks, `(task, objective, rate)` each.

    `save_tokenizer` writes the tokenizer's files into a folder of the cache, unless one with the
    same digest is there already.
    """
    kept = Path(TOKENIZERS) / tokenizer_digest
    if not (Path(cache_dir) / kept).exists():
        partial = Path(cache_dir) / TOKENIZERS / f".{tokenizer_digest}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_tokenizer(partial)
        for file in partial.iterdir():
            _fsync(file)
        _replace_folder(partial, Path(cache_dir) / kept)
    value = {
        "version": VERSION,
        "name": name,
        "tasks": [{"task": t, "objective": o, "rate": r} for t, o, r in tasks],
        "tokenizer": kept.as_posix(),
        "special_tokens": dataclasses.asdict(special),
        "vocab_size": vocab_size,
    }
    write_json(Path(cache_dir) / MIXTURES / f"{name}.json", value)


def share_examples(cache_dir: str | Path, held: Manifest, task: str) -> Manifest:
    """Publishes the split that `held` describes under another task's name, without its shards."""
    manifest = dataclasses.replace(held, task=task, examples_in=held.examples_in or held.task)
    final = Path(cache_dir) / task / held.split
    partial = final.with_name(f".{held.split}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_json(partial / "manifest.json", dataclasses.asdict(manifest))
    _replace_folder(partial, final)
    return manifest


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


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is complete wherever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _fsync(partial)
    partial.replace(path)
    _fsync(path.parent)


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


def _summary(counts: Counter[int]) -> dict[str, Any]:
    """Of a Counter of lengths: total, percentiles, and a histogram over powers of two."""
    lengths = np.array(sorted(counts))
    numbers = np.array([counts[n] for n in lengths.tolist()])
    ranks = np.cumsum(numbers)
    at = {p: int(lengths[np.searchsorted(ranks, p / 100 * ranks[-1])]) for p in (50, 95)}
    buckets: Counter[int] = Counter()
    for length, number in zip(lengths.tolist(), numbers.tolist(), strict=True):
        buckets[1 << max(length - 1, 0).bit_length()] += number
    return {
        "total": int(lengths @ numbers),
        "p50": at[50],
        "p95": at[95],
        "max": int(lengths[-1]),
        "histogram": {str(bound): n for bound, n in sorted(buckets.items())},
    }


@contextlib.contextmanager
def _explain_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError for both
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else str(error)
        raise CacheError(
            f"could not write {folder}: {what}; what was written of it is removed again. Free "
            "some space or choose another --cache_dir"
        ) from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_folder(partial: Path, final: Path) -> None:
    """Renames a complete folder to its final name; an old one is moved aside, then removed."""
    _fsync(partial)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
