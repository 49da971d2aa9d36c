"""Writing the token cache, so that whatever is there under its final name is complete."""

import contextlib
import dataclasses
import errno
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from codet5p_jax.data.cache import (
    MIXTURES,
    TOKENIZERS,
    VERSION,
    CacheError,
    Layout,
    Manifest,
    Shard,
)
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.files import sync, write_text

SHARD_BYTES = 256 * 2**20  # before compression
# One record per chunk, so that reading a random example decompresses no other.
_WRITER_OPTIONS = "group_size:1,zstd:1"


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
        with _explain_write_errors(self._final):
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
        with _explain_write_errors(self._final):
            if self._writer is None:
                self._writer = ArrayRecordWriter(str(self._shard_path()), _WRITER_OPTIONS)
            assert self._writer is not None
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
            sync(path)
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

    Raises:
      CacheError: the disk is full.
    """
    kept = Path(TOKENIZERS) / tokenizer_digest
    if not (Path(cache_dir) / kept).exists():
        partial = Path(cache_dir) / TOKENIZERS / f".{tokenizer_digest}.partial"
        with _folder(partial, Path(cache_dir) / kept):
            save_tokenizer(partial)
            for file in partial.iterdir():
                sync(file)
    value = {
        "version": VERSION,
        "name": name,
        "tasks": [{"task": t, "objective": o, "rate": r} for t, o, r in tasks],
        "tokenizer": kept.as_posix(),
        "special_tokens": dataclasses.asdict(special),
        "vocab_size": vocab_size,
    }
    path = Path(cache_dir) / MIXTURES / f"{name}.json"
    with _explain_write_errors(path):
        write_json(path, value)


def share_examples(cache_dir: str | Path, held: Manifest, task: str) -> Manifest:
    """Publishes the split that `held` describes under another task's name, without its shards.

    Raises:
      CacheError: the disk is full.
    """
    manifest = dataclasses.replace(held, task=task, examples_in=held.examples_in or held.task)
    final = Path(cache_dir) / task / held.split
    partial = final.with_name(f".{held.split}.partial")
    with _folder(partial, final):
        write_json(partial / "manifest.json", dataclasses.asdict(manifest))
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is complete wherever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")


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
def _folder(partial: Path, final: Path) -> Iterator[None]:
    """Makes `partial`, to be filled inside; publishes it as `final`, or removes it on an error."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _explain_write_errors(final):
            partial.mkdir(parents=True)
            yield
            _replace_folder(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _explain_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError for both
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else str(error)
        raise CacheError(
            f"could not write {path}: {what}; what was written of it is removed again. Free "
            "some space or choose another --cache_dir"
        ) from error


def _replace_folder(partial: Path, final: Path) -> None:
    """Renames a complete folder to its final name; an old one is moved aside, then removed."""
    sync(partial)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
