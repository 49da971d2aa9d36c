"""Text-to-code retrieval: ranks and figures, reranking, fusion with BM25. Pure NumPy.

Every score is a matrix of queries by candidates; the whole candidate set is ranked, without a
cutoff. Ties are counted against the system: a candidate that scores as high as the right one is
ranked before it, so that a scorer that cannot tell candidates apart earns nothing by it.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

Scores = Float[np.ndarray, "queries candidates"]

# Pushes candidates outside the reranked top below it; cosines / temperature and logits lie within.
_BELOW = 1e4


def ranks(scores: Scores, targets: Int[np.ndarray, " queries"]) -> Int[np.ndarray, " queries"]:
    """Rank of the right candidate of each query, from 1; after all that score the same.

    ranks([[0.9, 0.1, 0.9]], targets=[0]) == [2]
    """
    right = scores[np.arange(len(targets)), targets]
    return (scores >= right[:, None]).sum(axis=1)


def mean_reciprocal_rank(scores: Scores, targets: Int[np.ndarray, " queries"]) -> float:
    """Mean of 1 / rank."""
    return float((1.0 / ranks(scores, targets)).mean())


def recall_at(scores: Scores, targets: Int[np.ndarray, " queries"], k: int) -> float:
    """Share of queries whose right candidate is among the first k."""
    return float((ranks(scores, targets) <= k).mean())


def chance_mrr(candidates: int) -> float:
    """Expected MRR of a random order of N candidates: (1 + 1/2 + … + 1/N) / N; 0.0136 for 500."""
    return float((1.0 / np.arange(1, candidates + 1)).sum() / candidates)


def top(scores: Scores, k: int) -> Int[np.ndarray, "queries k"]:
    """Columns of the k highest scores of each row, best first; of equals the first column wins."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def log_posterior(
    cosines: Float[np.ndarray, "*pairs"],
    match_logits: Float[np.ndarray, "*pairs 2"],
    temperature: float,
    weight: float = 1.0,
) -> Float[np.ndarray, "*pairs"]:
    """`weight` · log-odds of the matching head + cosine / τ, τ the contrastive temperature.

    The head was trained to tell the right code from codes drawn in proportion to q = exp(cosine /
    τ), so its log-odds estimate log(p / q) (noise-contrastive estimation), and adding log q gives
    log p; a weight below 1 allows for a head that has not learnt enough.
    """
    logits = match_logits.astype(np.float64)
    return weight * (logits[..., 1] - logits[..., 0]) + cosines / temperature


def rerank(
    cosines: Scores,
    best: Int[np.ndarray, "queries k"],
    match_logits: Float[np.ndarray, "queries k 2"],
    temperature: float | None,
    weight: float = 1.0,
) -> Scores:
    """Scores after the matching head has read the k best; the others keep their order below those.

    With the contrastive temperature, a score is `log_posterior`. With None, it is the raw logit of
    "match" + cosine, as in CodeT5+'s released evaluation script.
    """
    scores = cosines.astype(np.float64) - _BELOW
    rows = np.arange(len(best))[:, None]
    cosine = cosines[rows, best]
    if temperature is None:
        scores[rows, best] = match_logits[..., 1].astype(np.float64) + cosine
    else:
        scores[rows, best] = log_posterior(cosine, match_logits, temperature, weight)
    return scores


def rerank_weight(
    cosines: Scores,
    best: Int[np.ndarray, "queries k"],
    match_logits: Float[np.ndarray, "queries k 2"],
    temperature: float,
    targets: Int[np.ndarray, " queries"],
) -> float:
    """The weight of `rerank`, out of 0, 1/4, 1/2 and 1, with the best MRR on these queries.

    To be chosen on queries other than those that are reported. It is 0, the order of the embedding,
    unless the gain is more than its standard error: a head that has learnt nothing yet moves the
    MRR up or down by chance.
    """
    weights = (0.0, 0.25, 0.5, 1.0)
    reciprocal_WQ = np.stack(
        [
            1.0 / ranks(rerank(cosines, best, match_logits, temperature, weight), targets)
            for weight in weights
        ]
    )
    chosen = int(np.argmax(reciprocal_WQ.mean(axis=1)))
    gain_Q = reciprocal_WQ[chosen] - reciprocal_WQ[0]
    certain = gain_Q.mean() > gain_Q.std() / np.sqrt(len(targets))
    return weights[chosen] if certain else 0.0


def fuse(cosines: Scores, bm25: Scores, weight: float) -> Scores:
    """`weight · embedding + (1 - weight) · BM25`, each scaled to [0, 1] per query.

    A score is scaled by its least possible value (-1 for a cosine, 0 for BM25) and the largest
    value among the candidates: a convex combination with theoretical minima (Bruch, Gai and
    Ingber 2022, "An Analysis of Fusion Functions for Hybrid Retrieval", who find it better than
    reciprocal-rank fusion, and its one weight learnable from few queries). Unlike z-scores it does
    not depend on how many candidates share no word with the query.
    """

    def scaled(scores: Scores, least: float) -> Scores:
        spread = scores.max(axis=1, keepdims=True) - least
        return np.divide(scores - least, spread, out=np.zeros(scores.shape), where=spread > 0)

    return weight * scaled(cosines, -1.0) + (1.0 - weight) * scaled(bm25, 0.0)


def fusion_weight(
    cosines: Scores, bm25: Scores, targets: Int[np.ndarray, " queries"], steps: int = 20
) -> float:
    """The weight of the embedding, out of 0, 1/steps, …, 1, with the best MRR on these queries.

    To be chosen on queries other than those that are reported. The smallest of equally good ones.
    """
    weights = np.linspace(0.0, 1.0, steps + 1)
    values = [mean_reciprocal_rank(fuse(cosines, bm25, weight), targets) for weight in weights]
    return float(weights[int(np.argmax(values))])


def table(systems: dict[str, Scores], targets: Int[np.ndarray, " queries"]) -> dict[str, Any]:
    """MRR and recall at 1, 5 and 10 of several systems over the same candidates."""
    return {
        name: {
            "mrr": mean_reciprocal_rank(scores, targets),
            **{f"recall@{k}": recall_at(scores, targets, k) for k in (1, 5, 10)},
        }
        for name, scores in systems.items()
    }
