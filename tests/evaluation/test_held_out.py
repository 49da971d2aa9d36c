"""Retrieval figures of held-out pairs: complete, and each from the scores that it names."""

import numpy as np
import pytest

from codet5p_jax.evaluation import held_out, retrieval
from codet5p_jax.evaluation.encoder import PairEncoder


def pairs(number, seed):
    rng = np.random.default_rng(seed)
    words = [f"word{i}" for i in range(50)]
    made = []
    for i in range(number):
        text = " ".join(rng.choice(words, 4))
        made.append(
            {"text": text, "code": f"def f{i}(): {text}", "module": "m", "qualname": f"{i}"}
        )
    return made


def test_select_is_fixed_whatever_the_order():
    some = pairs(20, 0)
    chosen = held_out.select(some, 5)
    assert chosen == held_out.select(some[::-1], 5)
    assert chosen == held_out.select(some, 20)[:5]
    assert len(held_out.select(some, 100)) == 20


def test_figures(model, params, special, tokenize):
    encoder = PairEncoder(model, params, special, text_length=32, code_length=64, batch_size=16)
    figures = held_out.retrieval_figures(encoder, tokenize, pairs(40, 0), pairs(30, 1))
    assert figures["candidates"] == 40
    assert figures["reranked"] == 32
    assert figures["mrr_chance"] == pytest.approx(retrieval.chance_mrr(40))
    # Untrained: words alone find it, the embedding hardly, and fusion has learnt whom to trust.
    assert figures["mrr_bm25"] > 0.9
    assert figures["mrr"] < 0.5
    assert figures["mrr_fused"] > 0.9
    systems = figures["systems"]
    names = {"mrr": "embedding", "mrr_reranked": "embedding, reranked", "mrr_bm25": "bm25",
             "mrr_fused": "fused"}  # fmt: skip
    assert all(systems[system]["mrr"] == figures[name] for name, system in names.items())
    # Reranking orders the best 32 anew, so who is among them stays.
    raw = systems["embedding, reranked by logit + cosine"]
    assert raw["mrr"] != systems["embedding"]["mrr"]
