"""Rows of many lengths as batches of few shapes."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, Int32


def buckets(length: int, shortest: int = 64) -> list[int]:
    """Padded lengths: powers of two from `shortest`, then `length` itself; buckets(160) is
    [64, 128, 160]."""
    sizes = []
    while shortest < length:
        sizes.append(shortest)
        shortest *= 2
    return [*sizes, length]


def bucket(length: int, shortest: int = 64) -> int:
    """The padded length of a row by itself: `shortest`, doubled until it holds the row."""
    return shortest << max(0, (max(length, 1) - 1).bit_length() - (shortest - 1).bit_length())


def batches(
    lengths: Sequence[int], longest: int, batch_size: int, shortest: int = 64
) -> Iterator[tuple[int, Int[np.ndarray, " batch"], int]]:
    """Yields (padded length, row numbers, real rows) so that rows of like length go together.

    Every batch has `batch_size` rows; the last of a bucket repeats a row to fill up.
    """
    sizes = np.asarray(buckets(longest, shortest))
    bucket_of_row = np.searchsorted(sizes, np.asarray(lengths, np.int64))
    for bucket, size in enumerate(sizes):
        rows = np.flatnonzero(bucket_of_row == bucket)
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            yield int(size), np.resize(chunk, batch_size), len(chunk)


def pad(
    rows: Sequence[Int32[np.ndarray, "_"]], length: int, fill: int
) -> tuple[Int32[np.ndarray, "batch length"], Int32[np.ndarray, "batch length"]]:
    """Right-pads rows; returns tokens and segments (1 where a token is real)."""
    tokens = np.full((len(rows), length), fill, np.int32)
    segments = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        segments[i, : len(row)] = 1
    return tokens, segments
