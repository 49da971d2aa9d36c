"""Which examples belong to which step: arithmetic on integers, nothing to store or restore.

An objective reads an endless stream of positions 0, 1, 2, …; step n of R rows takes positions
n·R … n·R + R - 1. `choose` says which task a position belongs to and where in that task's stream,
`permute` shuffles each epoch of a task. All of it is defined here, not by the version of a library,
since a run that is resumed has to find the same order.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

_RATE_TOTAL = 1 << 20  # rates become integers of this sum; positions up to 2**43 stay exact
_ROUNDS = 8  # with 6, orders of fewer than ten examples are visibly uneven


def divide_rows(rates: Mapping[str, int | float], rows: int) -> dict[str, int]:
    """Divides rows by rate: largest remainder, ties to whoever comes first.

    >>> divide_rows({"span_denoising": 4, "seq2seq_clm": 1, "decoder_clm": 1}, 16)
    {'span_denoising': 11, 'seq2seq_clm': 3, 'decoder_clm': 2}
    """
    exact = [Fraction(rate) for rate in rates.values()]  # so that ties are ties
    shares = [rate / sum(exact) * rows for rate in exact]
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))
    for i in by_remainder[: rows - sum(whole)]:
        whole[i] += 1
    return dict(zip(rates, whole, strict=True))


def choose(positions: np.ndarray, rates: Sequence[int | float]) -> tuple[np.ndarray, np.ndarray]:
    """Which task each position of a stream belongs to, and its index within that task's stream.

    Among the first n positions, task i has n·rateᵢ/Σrates of them, give or take one for each task
    before it. Rates are rounded to a millionth of their sum.

    >>> choose(np.arange(6), [2, 1])
    (array([1, 0, 0, 1, 0, 0]), array([0, 0, 1, 1, 2, 3]))

    Args:
      positions: int64 [n].
      rates: one positive number for each task.

    Returns:
      The number of the task, and the index in its stream: int64 [n] both.
    """
    weights = _integer_rates(tuple(rates))
    task = np.full(positions.shape, len(weights) - 1)
    index = np.array(positions, np.int64)
    undecided = np.arange(len(index))
    # One task against all later ones at a time: `before` counts its positions among the earlier.
    for i, weight in enumerate(weights[:-1]):
        total = sum(weights[i:])
        at = index[undecided]
        before = at * weight // total
        taken = (at + 1) * weight // total > before
        index[undecided] = np.where(taken, before, at - before)
        task[undecided[taken]] = i
        undecided = undecided[~taken]
    return task, index


def counts(length: int, rates: Sequence[int | float]) -> list[int]:
    """How many of the first `length` positions of a stream `choose` gives to each task.

    >>> counts(6, [2, 1])
    [4, 2]
    """
    weights, result = _integer_rates(tuple(rates)), []
    for i, weight in enumerate(weights):
        result.append((length - sum(result)) * weight // sum(weights[i:]))
    return result


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """A pseudorandom permutation of range(size), evaluated at `index`; one for each key.

    A Feistel network over the smallest even number of bits that holds `size`, applied again to
    whatever falls outside: no memory, whatever the size.

    Args:
      index: int64 [n], in range(size).
      size: below 2**62.
      key: any 64-bit number.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = _mix(np.uint64(key % 2**64) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)
    result = index.astype(np.uint64)
    outside = np.arange(len(result))
    while outside.size:
        value = result[outside]
        left, right = value >> shift, value & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        result[outside] = left << shift | right
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def key_of(*parts: int | str) -> int:
    """A 128-bit number that depends on all of its parts: the seed, a task's name, …"""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache
def _integer_rates(rates: tuple[int | float, ...]) -> list[int]:
    return list(divide_rows({str(i): rate for i, rate in enumerate(rates)}, _RATE_TOTAL).values())
