"""Ranks, reranking and fusion on matrices small enough to check by hand."""

import numpy as np
import pytest

from codet5p_jax.evaluation import retrieval

SCORES = np.array([[0.9, 0.5, 0.1], [0.2, 0.3, 0.8], [0.4, 0.4, 0.4]])
TARGETS = np.array([0, 1, 2])


def test_ranks_count_ties_against_the_system():
    assert retrieval.ranks(SCORES, TARGETS).tolist() == [1, 2, 3]


def test_figures():
    assert retrieval.mean_reciprocal_rank(SCORES, TARGETS) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert retrieval.recall_at(SCORES, TARGETS, 1) == pytest.approx(1 / 3)
    assert retrieval.recall_at(SCORES, TARGETS, 2) == pytest.approx(2 / 3)


def test_chance_is_what_random_scores_reach():
    assert retrieval.chance_mrr(500) == pytest.approx(0.0136, abs=5e-5)
    scores = np.random.default_rng(0).random((40_000, 7))
    reached = retrieval.mean_reciprocal_rank(scores, np.zeros(40_000, int))
    assert reached == pytest.approx(retrieval.chance_mrr(7), abs=0.005)


def test_rerank_reads_only_the_best_and_keeps_the_rest_below_in_order():
    cosines = np.array([[0.9, 0.8, 0.7, 0.6]])
    best = retrieval.top(cosines, 2)
    assert best.tolist() == [[0, 1]]
    logits = np.array([[[1.0, -3.0], [-9.0, -2.0]]])
    scores = retrieval.rerank(cosines, best, logits, None)
    np.testing.assert_allclose(scores[0, :2], [-3.0 + 0.9, -2.0 + 0.8])
    assert np.argsort(-scores[0]).tolist() == [1, 0, 2, 3]
    scores = retrieval.rerank(cosines, best, logits, 0.1)
    np.testing.assert_allclose(scores[0, :2], [-3.0 - 1.0 + 9.0, -2.0 + 9.0 + 8.0])
    assert np.argsort(-scores[0]).tolist() == [1, 0, 2, 3]


def test_rerank_recovers_the_posterior_from_an_ideal_head():
    """A head that knows log(p / q) exactly, q being the softmax of the cosines, restores p."""
    rng = np.random.default_rng(0)
    cosines, log_p = rng.uniform(-1, 1, (3, 9)), rng.normal(size=(3, 9))
    best = retrieval.top(cosines, 9)
    log_ratio = np.take_along_axis(log_p - cosines / 0.05, best, 1)
    logits = np.stack([np.zeros_like(log_ratio), log_ratio], axis=-1)
    scores = retrieval.rerank(cosines, best, logits, 0.05)
    np.testing.assert_array_equal(np.argsort(-scores), np.argsort(-log_p))


def test_rerank_by_equal_logits_changes_nothing():
    cosines = np.random.default_rng(0).uniform(-1, 1, (5, 50))
    best = retrieval.top(cosines, 8)
    scores = retrieval.rerank(cosines, best, np.full((5, 8, 2), -4.0), 0.07)
    np.testing.assert_array_equal(np.argsort(-scores), np.argsort(-cosines))


def test_rerank_weight_trusts_a_good_head_and_no_noise():
    rng = np.random.default_rng(0)
    cosines, targets = rng.uniform(-0.1, 0.1, (200, 32)), np.arange(200) % 32
    best = retrieval.top(cosines, 32)
    right = (best == targets[:, None]).astype(float)
    logits = np.stack([np.zeros_like(right), 8.0 * right], axis=-1)
    assert retrieval.rerank_weight(cosines, best, logits, 0.07, targets) > 0
    assert retrieval.rerank_weight(cosines, best, -logits, 0.07, targets) == 0


def test_rerank_weight_asks_for_more_than_luck():
    """Two queries gained and one lost of thirty: MRR rises, by less than its standard error."""
    cosines = np.tile([0.1, 0.0], (30, 1))
    targets = np.array([1, 1, 0] + [0] * 27)
    best = retrieval.top(cosines, 2)
    logits = np.zeros((30, 2, 2))
    logits[:3, 1, 1] = 8.0  # the head prefers the second candidate, thrice
    weight = retrieval.rerank_weight(cosines, best, logits, 0.07, targets)
    better = retrieval.rerank(cosines, best, logits, 0.07, 1.0)
    assert retrieval.mean_reciprocal_rank(better, targets) > (28 + 1.0) / 30
    assert weight == 0


def test_fuse_by_hand():
    cosines = np.array([[0.0, 1.0]])  # scaled from -1: 0.5, 1
    bm25 = np.array([[8.0, 2.0]])  # scaled from 0: 1, 0.25
    np.testing.assert_allclose(retrieval.fuse(cosines, bm25, 0.25), [[0.875, 0.4375]])


def test_fuse_without_a_known_word_is_the_embedding():
    cosines = np.array([[0.3, -0.2, 0.1]])
    fused = retrieval.fuse(cosines, np.zeros((1, 3)), 0.5)
    assert np.argsort(-fused[0]).tolist() == [0, 2, 1]


def test_fusion_weight_finds_the_informative_half_and_their_sum():
    rng = np.random.default_rng(0)
    targets = np.arange(200)
    one = rng.uniform(0, 0.5, (200, 200))
    two = rng.uniform(0, 5.0, (200, 200))
    one[targets, targets] += rng.uniform(0, 0.5, 200)
    noise = rng.uniform(0, 0.5, (200, 200))
    assert retrieval.fusion_weight(one, np.zeros((200, 200)), targets) > 0
    assert retrieval.fusion_weight(noise, two + 100.0 * np.eye(200), targets) == 0.0
    two[targets, targets] += rng.uniform(0, 5.0, 200)
    weight = retrieval.fusion_weight(one, two, targets)
    fused = retrieval.mean_reciprocal_rank(retrieval.fuse(one, two, weight), targets)
    alone = [retrieval.mean_reciprocal_rank(half, targets) for half in (one, two)]
    assert 0 < weight < 1
    assert fused > max(alone)


def test_table():
    table = retrieval.table({"a": SCORES}, TARGETS)
    assert table == {
        "a": {
            "mrr": pytest.approx(11 / 18),
            "recall@1": pytest.approx(1 / 3),
            "recall@5": 1.0,
            "recall@10": 1.0,
        }
    }
