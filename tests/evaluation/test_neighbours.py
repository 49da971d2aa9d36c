"""Nearest neighbours by blocks are those of the whole matrix."""

import numpy as np
import pytest

from codet5p_jax.evaluation import retrieval
from codet5p_jax.evaluation.neighbours import nearest


@pytest.mark.parametrize("block", [(1_024, 16_384), (4, 5), (1, 1), (11, 6)])
@pytest.mark.parametrize("k", [1, 3, 17])
def test_blocks_are_the_whole(block, k):
    rng = np.random.default_rng(0)
    # Few different products, so that many are equal.
    queries, candidates = (rng.integers(-1, 2, (n, 3)).astype(np.float32) for n in (11, 17))
    done = []
    rows, products = nearest(queries, candidates, k, block=block, progress=done.append)
    whole = queries @ candidates.T
    np.testing.assert_array_equal(rows, retrieval.top(whole, k))
    np.testing.assert_array_equal(products, np.take_along_axis(whole, rows, axis=1))
    assert sum(done) == 11


def test_fewer_candidates_than_asked_for():
    rows, _ = nearest(np.eye(3, dtype=np.float32), np.eye(2, 3, dtype=np.float32), 5)
    assert rows.shape == (3, 2)
    assert rows.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_no_candidates():
    with pytest.raises(ValueError, match="found none"):
        nearest(np.eye(2, dtype=np.float32), np.zeros((0, 2), np.float32), 1)
