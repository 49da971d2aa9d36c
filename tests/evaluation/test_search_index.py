"""The search index: saved, read back, asked in every mode."""

import dataclasses

import numpy as np
import pytest

from codet5p_jax.evaluation import bm25, faiss_index, search
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.evaluation.search import Document, SearchIndex

FUNCTIONS = {
    "parse_date": "def parse_date(text):\n    return strptime(text)\n",
    "open_file": "def open_file(path):\n    return open(path)\n",
    "add": "def add(a, b):\n    return a + b\n",
    "odd": "def odd(x):\n    return '\ud800'\n",
}


@pytest.fixture(scope="module")
def encoder(model, params, special):
    return PairEncoder(model, params, special, text_length=32, code_length=64, batch_size=2)


@pytest.fixture(scope="module")
def index(encoder, tokenize):
    codes = [tokenize(code) for code in FUNCTIONS.values()]
    return SearchIndex(
        documents=[
            Document("module", name, line, code.split("\n")[0], f"About {name}.", code)
            for line, (name, code) in enumerate(FUNCTIONS.items(), start=1)
        ],
        embeddings=encoder.embed_codes(codes),
        words=bm25.build(FUNCTIONS.values()),
        fusion_weight=0.3,
        rerank_weight=0.5,
        text_length=32,
        code_length=64,
    )


def test_an_index_comes_back_as_it_was_saved(index, tmp_path):
    index = dataclasses.replace(index, temperature_bounds=(0.02, 0.3))
    assert search.save(index, tmp_path).name == search.FILE_NAME
    assert [path.name for path in tmp_path.iterdir()] == [search.FILE_NAME]
    loaded = search.load(tmp_path)
    assert loaded.documents == index.documents
    np.testing.assert_array_equal(loaded.embeddings, index.embeddings)
    for query in ("parse date", "nothing of it", "open a b"):
        np.testing.assert_array_equal(loaded.words.scores(query), index.words.scores(query))
    assert (loaded.fusion_weight, loaded.text_length, loaded.code_length) == (0.3, 32, 64)
    assert loaded.temperature_bounds == (0.02, 0.3)


def test_bm25_needs_no_model(index):
    hits = search.search(index, "parse a date", k=2, mode="bm25")
    assert [hit.rank for hit in hits] == [1, 2]
    assert hits[0].document.name == "parse_date"
    assert hits[0].score > hits[1].score


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("mode", ["embedding", "fused", "bm25"])
def test_every_mode_ranks_what_it_can_compare(index, encoder, tokenize, mode, rerank):
    hits = search.search(
        index, "open a file", k=10, mode=mode, rerank=rerank, encoder=encoder, tokenize=tokenize
    )
    without_a_word = {"odd", "parse_date"} if mode == "bm25" else set()
    assert {hit.document.name for hit in hits} == set(FUNCTIONS) - without_a_word
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("rerank", [False, True])
def test_bm25_answers_nothing_where_no_word_is_shared(index, encoder, tokenize, rerank):
    ask = {"mode": "bm25", "rerank": rerank, "encoder": encoder, "tokenize": tokenize}
    assert search.search(index, "zebra", **ask) == []
    assert [hit.document.name for hit in search.search(index, "zebra date", **ask)] == [
        "parse_date"
    ]


@pytest.mark.parametrize("mode", ["embedding", "fused", "bm25"])
def test_a_matching_head_without_weight_changes_nothing(index, encoder, tokenize, mode):
    untrusted = dataclasses.replace(index, rerank_weight=0.0)
    ask = {"mode": mode, "encoder": encoder, "tokenize": tokenize}
    reranked = search.search(untrusted, "open a file", rerank=True, **ask)
    assert reranked == search.search(untrusted, "open a file", **ask)


def test_reranking_a_fused_list_keeps_what_the_words_say(index, encoder, tokenize):
    """All weight on the words: the matching head has no say; on the embedding: it decides."""
    ask = {"mode": "fused", "rerank": True, "encoder": encoder, "tokenize": tokenize}

    def names(weight):
        one_sided = dataclasses.replace(index, fusion_weight=weight)
        return [hit.document.name for hit in search.search(one_sided, "open a path", **ask)]

    words = search.search(index, "open a path", mode="bm25")
    by_head = search.search(index, "open a path", **{**ask, "mode": "embedding"})
    assert names(0.0)[: len(words)] == [hit.document.name for hit in words]
    assert names(1.0) == [hit.document.name for hit in by_head]


def test_fused_with_all_weight_on_one_side_is_that_side(index, encoder, tokenize):
    def names(index, mode):
        hits = search.search(index, "open a path", mode=mode, encoder=encoder, tokenize=tokenize)
        return [hit.document.name for hit in hits]

    for weight, mode in [(0.0, "bm25"), (1.0, "embedding")]:
        one_sided = dataclasses.replace(index, fusion_weight=weight)
        side = names(index, mode)
        assert names(one_sided, "fused")[: len(side)] == side


@pytest.mark.parametrize("k", [1, 2, 10])
@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("kind", ["Flat", "HNSW32"])
def test_faiss_ranks_as_the_product_does(index, encoder, tokenize, kind, rerank, k, tmp_path):
    """HNSW as well, where all functions are neighbours of each other."""
    pytest.importorskip("faiss")
    ask = {"mode": "embedding", "k": k, "rerank": rerank}
    ask |= {"encoder": encoder, "tokenize": tokenize}
    wanted = search.search(index, "open a file", **ask)
    nearest = faiss_index.open_index(index.embeddings, kind, beside=tmp_path / "search_index")
    found = search.search(index, "open a file", nearest=nearest, **ask)
    assert [hit.document for hit in found] == [hit.document for hit in wanted]
    scores = [hit.score for hit in wanted]
    np.testing.assert_allclose([hit.score for hit in found], scores, rtol=1e-5, atol=1e-6)


def test_faiss_is_for_embeddings(index, encoder, tokenize):
    ask = {"encoder": encoder, "tokenize": tokenize, "nearest": lambda vectors, k: None}
    with pytest.raises(ValueError, match="expected mode 'embedding', found 'fused'"):
        search.search(index, "open a file", **ask)


def test_an_approximate_index_that_finds_fewer(index, encoder, tokenize):
    def nearest(vectors, k):
        del vectors
        return np.array([[0.5] + [-9.0] * (k - 1)], np.float32), np.array([[2] + [-1] * (k - 1)])

    ask = {"mode": "embedding", "encoder": encoder, "tokenize": tokenize, "nearest": nearest}
    (hit,) = search.search(index, "open a file", **ask)
    assert (hit.score, hit.document.name) == (0.5, "add")


def test_mistakes_are_explained(index, tmp_path):
    with pytest.raises(FileNotFoundError, match="no search index"):
        search.load(tmp_path)
    with pytest.raises(ValueError, match="empty"):
        search.search(index, "  ")
    with pytest.raises(ValueError, match="needs the model"):
        search.search(index, "x")


def test_a_damaged_index_is_named(index, tmp_path):
    path = search.save(index, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged.*build the index again"):
        search.load(tmp_path)
