"""Exact nearest neighbours of many vectors: products of blocks, of which the best stay."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

QUERIES, CANDIDATES = 1_024, 16_384  # rows of a block: 64 MiB of products


def nearest(
    queries: Float32[np.ndarray, "queries E"],
    candidates: Float32[np.ndarray, "candidates E"],
    k: int,
    *,
    block: tuple[int, int] = (QUERIES, CANDIDATES),
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[Int32[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
    """Rows and products of the k candidates with the largest product, best first; of equals the
    first row wins. Of unit vectors these are the nearest, by cosine and by Euclidean distance.

    nearest([[1, 0]], [[0, 1], [1, 0]], k=1) == ([[1]], [[1.0]])

    Args:
      queries, candidates: vectors.
      k: how many; all, where there are fewer candidates.
      block: queries and candidates that are compared at a time.
      progress: called with the number of queries just answered.

    Raises:
      ValueError: there are no candidates.
    """
    if not len(candidates):
        raise ValueError("expected candidates to search, found none")
    k = min(k, len(candidates))
    rows, columns = min(block[0], len(queries)), min(block[1], len(candidates))
    parts = [
        (start, jnp.asarray(_filled(candidates[start : start + columns], columns)))
        for start in range(0, len(candidates), columns)
    ]
    found = np.zeros((len(queries), k), np.int32)
    products = np.zeros((len(queries), k), np.float32)
    for first in range(0, len(queries), max(rows, 1)):
        some_QE = queries[first : first + rows]
        filled_QE = jnp.asarray(_filled(some_QE, rows))
        best = (jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32))
        for start, part_CE in parts:
            best = _better(best, filled_QE, part_CE, start, len(candidates))
        here = slice(first, first + len(some_QE))
        products[here], found[here] = (np.asarray(array)[: len(some_QE)] for array in best)
        progress(len(some_QE))
    return found, products


@partial(jax.jit, donate_argnums=0)
def _better(
    best: tuple[jax.Array, jax.Array],
    queries_QE: jax.Array,
    part_CE: jax.Array,
    start: jax.Array,
    candidates: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best of those so far and of a block of candidates, which begins at row `start`."""
    scores_Qk, rows_Qk = best
    products_QC = jnp.einsum("qe,ce->qc", queries_QE, part_CE, precision=jax.lax.Precision.HIGHEST)
    row_C = start + jnp.arange(part_CE.shape[0], dtype=jnp.int32)
    products_QC = jnp.where(row_C < candidates, products_QC, -jnp.inf)
    # Those so far come first, and of equals `top_k` takes the first.
    scores = jnp.concatenate([scores_Qk, products_QC], axis=1)
    rows = jnp.concatenate([rows_Qk, jnp.broadcast_to(row_C, products_QC.shape)], axis=1)
    scores_Qk, places_Qk = jax.lax.top_k(scores, scores_Qk.shape[1])
    return scores_Qk, jnp.take_along_axis(rows, places_Qk, axis=1)


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """With rows of zeros up to `count`, so that one shape is compiled."""
    return np.pad(rows, ((0, count - len(rows)), (0, 0)))
