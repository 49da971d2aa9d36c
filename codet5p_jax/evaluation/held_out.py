"""Retrieval figures and examples from held-out functions with a docstring."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from codet5p_jax.evaluation import bm25, retrieval
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.evaluation.search import RERANKED

Pair = Mapping[str, str]  # text, code, module, qualname
Tokenize = Callable[[str], Sequence[int]]


def select(pairs: Sequence[Pair], number: int) -> list[Pair]:
    """At most `number` pairs, always the same ones: those whose names have the smallest hashes."""

    def order(pair: Pair) -> bytes:
        return hashlib.sha256(f"{pair['module']}:{pair['qualname']}".encode()).digest()

    return sorted(pairs, key=order)[:number]


def retrieval_figures(
    encoder: PairEncoder, tokenize: Tokenize, test: Sequence[Pair], validation: Sequence[Pair]
) -> dict[str, Any]:
    """Text-to-code retrieval: each text of `test` is to find its code among all of `test`.

    The weight of the fusion is chosen on `validation`, where nothing is reported.

    Returns:
      `candidates`, `mrr` (embedding), `mrr_reranked`, `mrr_chance`, `mrr_bm25`, `mrr_fused`,
      `fusion_weight`, `reranked` (candidates per query that the matching head read) and
      `systems`: name -> MRR and recall at 1, 5, 10.
    """
    cosines, lexical, targets = _compare(encoder, tokenize, validation)
    weight = retrieval.fusion_weight(cosines, lexical, targets)

    cosines, lexical, targets = _compare(encoder, tokenize, test)
    best = retrieval.top(cosines, RERANKED)
    pairs = np.stack([np.repeat(targets, best.shape[1]), best.ravel()], axis=1)
    logits = encoder.match(
        [tokenize(pair["text"]) for pair in test],
        [tokenize(pair["code"]) for pair in test],
        pairs,
    ).reshape(*best.shape, 2)
    systems = {
        "embedding": cosines,
        "embedding, reranked": retrieval.rerank(cosines, best, logits, encoder.temperature),
        "embedding, reranked by logit + cosine": retrieval.rerank(cosines, best, logits, None),
        "bm25": lexical,
        "fused": retrieval.fuse(cosines, lexical, weight),
    }
    table = retrieval.table(systems, targets)
    return {
        "candidates": len(test),
        "mrr": table["embedding"]["mrr"],
        "mrr_reranked": table["embedding, reranked"]["mrr"],
        "mrr_chance": retrieval.chance_mrr(len(test)),
        "mrr_bm25": table["bm25"]["mrr"],
        "mrr_fused": table["fused"]["mrr"],
        "fusion_weight": weight,
        "reranked": best.shape[1],
        "systems": table,
    }


def _compare(
    encoder: PairEncoder, tokenize: Tokenize, pairs: Sequence[Pair]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines and BM25 scores of each text with each code, and which code is the right one."""
    texts = encoder.embed_texts([tokenize(pair["text"]) for pair in pairs])
    codes = encoder.embed_codes([tokenize(pair["code"]) for pair in pairs])
    words = bm25.build(pair["code"] for pair in pairs)
    lexical = np.stack([words.scores(pair["text"]) for pair in pairs])
    return texts @ codes.T, lexical, np.arange(len(pairs))
