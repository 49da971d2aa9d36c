"""BM25 against the formula written out, and its words."""

import math
import time
from collections import Counter

import numpy as np
import pytest

from codet5p_jax.evaluation import bm25

DOCUMENTS = [
    "def parse_date(text): return datetime.strptime(text, '%Y')",
    "def parseHTTPDate(rawText): return parse_date(rawText) or parse_date(rawText.strip())",
    "def add(a, b): return a + b",
    "",
    "class HTTPServer2: pass",
]


def brute_force(query: str, documents: list[str], k1: float, b: float) -> list[float]:
    bags = [Counter(bm25.words(document)) for document in documents]
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / len(lengths)
    scores = []
    for bag, length in zip(bags, lengths, strict=True):
        score = 0.0
        for word in bm25.words(query):
            n = sum(word in other for other in bags)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            tf = bag[word]
            score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parseHTTPDate2(raw_text)", ["parse", "http", "date", "2", "raw", "text"]),
        ("__init__ CamelCase XMLParser", ["init", "camel", "case", "xml", "parser"]),
        ("größe 日付", ["gr", "öß", "e", "日付"]),
        ("+-*/ \t\n", []),
    ],
)
def test_words(text, expected):
    assert bm25.words(text) == expected


@pytest.mark.parametrize("query", ["parse a date", "http http server", "return", "unheard", ""])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (2.0, 0.0)])
def test_scores_are_the_formula(query, k1, b):
    index = bm25.build(DOCUMENTS, k1=k1, b=b)
    np.testing.assert_allclose(
        index.scores(query), brute_force(query, DOCUMENTS, k1, b), rtol=1e-5, atol=1e-6
    )


def test_no_documents():
    assert bm25.build([]).scores("anything").shape == (0,)
    assert bm25.build(["", ""]).scores("anything").tolist() == [0, 0]


def test_sixteen_thousand_functions_are_indexed_in_seconds():
    rng = np.random.default_rng(0)
    names = np.array([f"name{i}_part{i % 97}" for i in range(5000)])
    texts = [" ".join(row) for row in names[rng.zipf(1.5, (16_000, 60)) % 5000]]
    start = time.process_time()
    index = bm25.build(texts)
    built = time.process_time() - start
    for _ in range(100):
        index.scores("part3 name 17 of the file")
    queried = (time.process_time() - start - built) / 100
    assert built < 6, f"{built:.1f} s"  # 2 s on an idle core
    assert queried < 0.01, f"{queried:.4f} s"
