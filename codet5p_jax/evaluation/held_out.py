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

    The weights of fusing and reranking are chosen on `validation`, where nothing is reported.

    Returns:
      `candidates`, `mrr` (embedding), `mrr_reranked`, `mrr_chance`, `mrr_bm25`, `mrr_fused`,
      `fusion_weight`, `rerank_weight`, `reranked` (candidates per query that the matching head
      read) and `systems`: name -> MRR and recall at 1, 5, 10.
    """
    cosines, lexical, targets = _compare(encoder, tokenize, validation)
    fusion_weight = retrieval.fusion_weight(cosines, lexical, targets)
    best, logits = _judge(encoder, tokenize, validation, cosines)
    tau = encoder.temperature
    rerank_weight = retrieval.rerank_weight(cosines, best, logits, tau, targets)

    cosines, lexical, targets = _compare(encoder, tokenize, test)
    best, logits = _judge(encoder, tokenize, test, cosines)
    systems = {
        "embedding": cosines,
        "embedding, reranked": retrieval.rerank(cosines, best, logits, tau, rerank_weight),
        "embedding, reranked by logit + cosine": retrieval.rerank(cosines, best, logits, None),
        "bm25": lexical,
        "fused": retrieval.fuse(cosines, lexical, fusion_weight),
    }
    table = retrieval.table(systems, targets)
    return {
        "candidates": len(test),
        "mrr": table["embedding"]["mrr"],
        "mrr_reranked": table["embedding, reranked"]["mrr"],
        "mrr_chance": retrieval.chance_mrr(len(test)),
        "mrr_bm25": table["bm25"]["mrr"],
        "mrr_fused": table["fused"]["mrr"],
        "fusion_weight": fusion_weight,
        "rerank_weight": rerank_weight,
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


def _judge(
    encoder: PairEncoder, tokenize: Tokenize, pairs: Sequence[Pair], cosines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best columns of each row, and the matching logits of these."""
    best = retrieval.top(cosines, RERANKED)
    read = np.stack([np.repeat(np.arange(len(pairs)), best.shape[1]), best.ravel()], axis=1)
    texts = [tokenize(pair["text"]) for pair in pairs]
    codes = [tokenize(pair["code"]) for pair in pairs]
    return best, encoder.match(texts, codes, read).reshape(*best.shape, 2)
