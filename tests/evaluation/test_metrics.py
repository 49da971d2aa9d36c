"""Figures of the benchmarks on small examples, and what holds for any predictions."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.evaluation import retrieval
from codet5p_jax.evaluation.metrics import bleu, classification, code_bleu, ranking
from codet5p_jax.evaluation.metrics.exact_match import exact_match
from codet5p_jax.evaluation.metrics.line_completion import (
    edit_similarity,
    line_completion,
    restore_literals,
)
from codet5p_jax.evaluation.metrics.pass_at_k import pass_at_k

TEXTS = st.text("ab_ .(\n", max_size=12)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)
LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)


def percent(metric):
    return lambda references, predictions: metric(references, predictions) / 100


def corpus(references, predictions):
    return bleu.corpus_bleu([f"{text} x" for text in references], predictions).score


TEXT_METRICS = {
    "corpus_bleu": percent(corpus),
    "mean_sentence_bleu": percent(bleu.mean_sentence_bleu),
    "exact_match": percent(exact_match),
    "edit_similarity": percent(lambda r, p: line_completion(r, p).edit_similarity),
}
LABEL_METRICS = {
    "accuracy": classification.accuracy,
    "precision": lambda r, p: classification.precision_recall_f1(r, p).precision,
    "recall": lambda r, p: classification.precision_recall_f1(r, p).recall,
    "f1": lambda r, p: classification.precision_recall_f1(r, p).f1,
}


@pytest.mark.parametrize("name", [*TEXT_METRICS, *LABEL_METRICS])
@given(data=st.data())
def test_range_and_order(name, data):
    """0 to 1, whatever the predictions, and the same in any order of the examples."""
    if name == "edit_similarity":
        pytest.importorskip("rapidfuzz")
    metric = (TEXT_METRICS | LABEL_METRICS)[name]
    pairs = data.draw(PAIRS if name in TEXT_METRICS else LABELS)
    value = metric(*zip(*pairs, strict=True))
    assert 0 <= value <= 1 + 1e-12
    shuffled = data.draw(st.permutations(pairs))
    assert metric(*zip(*shuffled, strict=True)) == pytest.approx(value, abs=1e-12)


@given(st.lists(st.text("ab .", min_size=1), min_size=1))
def test_a_perfect_prediction_earns_everything(texts):
    texts = ["start of", *texts]
    assert bleu.corpus_bleu(texts, texts).score == pytest.approx(100)
    assert bleu.mean_sentence_bleu(texts, texts) == pytest.approx(100)
    assert exact_match(texts, texts) == 100


@given(st.lists(st.integers(0, 1), min_size=1))
def test_perfect_labels_earn_everything(labels):
    labels = [1, *labels]
    assert classification.accuracy(labels, labels) == 1
    assert classification.precision_recall_f1(labels, labels) == (1, 1, 1)


# BLEU


def test_corpus_bleu_by_hand():
    result = bleu.corpus_bleu(["a b c d e"], ["a b c d"], smooth=False)
    assert result.precisions == (1, 1, 1, 1)
    assert result.brevity_penalty == pytest.approx(math.exp(-1 / 4))
    assert result.length_ratio == 4 / 5
    assert result.score == pytest.approx(77.88, abs=0.005)
    # Matches are summed over the corpus before they are divided; a repeated word counts once.
    result = bleu.corpus_bleu(["a b", "c"], ["a a a", "c"])
    assert result.precisions == ((2 + 1) / (4 + 1), 1 / 3, 1 / 2, 1)
    assert result.brevity_penalty == 1
    assert result.score == pytest.approx(100 * (3 / 5 / 3 / 2) ** 0.25)


def test_corpus_bleu_of_nothing_in_common_or_nothing_at_all():
    assert bleu.corpus_bleu(["a b"], ["c d"], smooth=False).score == 0
    assert bleu.corpus_bleu(["a b"], ["c d"]).score > 0
    assert bleu.corpus_bleu(["a b"], [""]).score == 0
    assert bleu.corpus_bleu(["a b"], [""], smooth=False).precisions == (0, 0, 0, 0)


def test_sentence_bleu_by_hand():
    assert bleu.sentence_words("Reads file_name.") == ["reads", "file", "_", "name", "."]
    assert bleu.sentence_bleu("Adds two numbers.", "adds two numbers .") == pytest.approx(100)
    # Of 3, 2, 1, 0 n-grams it has 3, 1, 0, 0 in common; lengths are 4 and 3.
    by_hand = (3 / 3 * (1 + 1) / (2 + 1) * 1 / (1 + 1) * 1) ** 0.25 * math.exp(1 - 5 / 4)
    assert bleu.sentence_bleu("Adds two numbers.", "Adds numbers.") == pytest.approx(100 * by_hand)
    assert bleu.sentence_bleu("one two", "three") == pytest.approx(0, abs=1e-60)
    assert bleu.sentence_bleu("one two", "") == pytest.approx(100 * math.exp(-2))


@given(st.text() | st.text("aB9_-.,<>&; \n\t"))
def test_words_are_those_of_nist_after_a_split_at_signs(text):
    """In two steps: words and single signs, then ASCII signs but for ' , - . set apart."""
    split = re.findall(r"\w+|[^\s\w]", text.lower())
    apart = "".join(c for c in map(chr, range(33, 127)) if not c.isalnum() and c not in "',-.")
    spaced = " ".join(split).translate({ord(c): f" {c} " for c in apart})
    assert bleu.sentence_words(text) == spaced.split()


# Exact match and line completion


def test_exact_match_in_three_forms():
    wanted, found = ["a  = 1", "b", "c"], ["a = 1", "b\n", "c"]
    assert exact_match(wanted, found, str) == pytest.approx(100 / 3)
    assert exact_match(wanted, found) == pytest.approx(200 / 3)
    assert exact_match(wanted, found, str.split) == 100


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("f ( <NUM_LIT> , <STR_LIT:a> , <STR_LIT> )", "f ( 0 , a ,  )"),
        ("<CHAR_LIT:x> <NUM_LIT:1> <CHAR_LIT>", "x 1 "),
        ("<STR_LIT:two\nlines> < b > <STR_LIT:>", "two\nlines < b > "),
    ],
)
def test_restore_literals(code, expected):
    assert restore_literals(code) == expected


def longest_common_subsequence(one: str, two: str) -> int:
    row = [0] * (len(two) + 1)
    for a in one:
        above = row.copy()
        for j, b in enumerate(two):
            row[j + 1] = above[j] + 1 if a == b else max(above[j + 1], row[j])
    return row[-1]


@given(TEXTS, TEXTS)
def test_edit_similarity_is_the_longest_common_subsequence(one, two):
    pytest.importorskip("rapidfuzz")
    total = len(one) + len(two)
    exact = 200 * longest_common_subsequence(one, two) / total if total else 100
    assert abs(edit_similarity(one, two) - exact) <= 0.5 + 1e-9
    assert edit_similarity(two, one) == edit_similarity(one, two)


def test_line_completion():
    pytest.importorskip("rapidfuzz")
    assert edit_similarity("return a", "return b") == 88
    result = line_completion(["x = <NUM_LIT:1>", "ab"], [" x  = 1\n", "cd"])
    assert result == (50, (91 + 0) / 2)  # 10 of 11 characters are 91 %


# Labels and rankings


def test_precision_recall_f1():
    scores = classification.precision_recall_f1([1, 1, 0, 0], [1, 0, 1, 1])
    assert scores == (1 / 3, 1 / 2, 2 / 5)
    assert classification.precision_recall_f1([1, 0], [0, 0]) == (0, 0, 0)
    assert classification.precision_recall_f1(["b", "a"], ["b", "b"], positive="b").precision == 0.5
    assert classification.accuracy([0, 1], [0, 0]) == 0.5


def test_ranked_lists():
    targets, rankings = ["a", "b", "c"], [["a"], ["a", "b"], ["a", "b"]]
    assert ranking.mean_reciprocal_rank(targets, rankings) == (1 + 1 / 2 + 0) / 3
    assert [ranking.recall_at(targets, rankings, k) for k in (1, 2)] == [1 / 3, 2 / 3]
    with pytest.raises(ValueError, match="k of 1 or more, found 0"):
        ranking.recall_at(targets, rankings, 0)


@given(st.integers(0, 2**32 - 1))
def test_ranked_lists_agree_with_scores(seed):
    scores = np.random.default_rng(seed).permuted(np.tile(np.arange(6.0), (5, 1)), axis=1)
    targets = np.arange(5)
    rankings = retrieval.top(scores, 6).tolist()
    mrr = ranking.mean_reciprocal_rank(targets.tolist(), rankings)
    assert mrr == pytest.approx(retrieval.mean_reciprocal_rank(scores, targets))
    for k in (1, 3):
        expected = retrieval.recall_at(scores, targets, k)
        assert ranking.recall_at(targets.tolist(), rankings, k) == pytest.approx(expected)


def test_mean_average_precision_at_r():
    map_at_r = ranking.mean_average_precision_at_r
    assert map_at_r([{"a", "b"}], [["x", "b"]]) == (1 / 2) / 2
    assert map_at_r([{"a", "b"}], [["a", "x", "b"]]) == 1 / 2  # "b" comes after R
    assert map_at_r([{"a", "b"}, {"c"}], [["b", "a"], ["d"]]) == 1 / 2
    with pytest.raises(ValueError, match="query 1: expected right answers"):
        map_at_r([{"a"}, set()], [["a"], []])
    for first in (["a", "a"], ["a"]):
        with pytest.raises(ValueError, match=r"query 0: expected 2 different candidates.*found 1"):
            map_at_r([{"a", "b"}], [first])


# pass@k


def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample():
    from itertools import combinations

    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * c + [False] * (n - c), k))
                share = sum(map(any, draws)) / len(draws)
                assert pass_at_k([n], [c], k) == pytest.approx(share)


@given(st.integers(1, 200), st.data())
def test_pass_at_k_grows_with_k_and_with_correct_samples(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = pass_at_k([n], [c], k)
    assert 0 <= value <= 1
    # As human-eval multiplies it out.
    product = 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1
    assert value == pytest.approx(product, abs=1e-9)
    if k < n:
        assert value <= pass_at_k([n], [c], k + 1)
    if c < n:
        assert value <= pass_at_k([n], [c + 1], k)


def test_pass_at_k_is_a_mean_over_problems():
    assert pass_at_k([2, 2], [1, 0], k=1) == 1 / 4
    assert pass_at_k([1, 4], [1, 1], k=1) == (1 + 1 / 4) / 2


@pytest.mark.parametrize(
    ("samples", "correct", "k", "message"),
    [
        ([5, 3], [0, 0], 4, "pass@4: expected k of 1 to 3"),
        ([5], [0], 0, "pass@0: expected k of 1 to 5"),
        ([5, 5], [0, 6], 1, "problem 1: expected 0 to 5 correct samples, found 6"),
        ([5], [0, 1], 1, "each of 1 references, found 2"),
    ],
)
def test_pass_at_k_refuses(samples, correct, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(samples, correct, k)


# CodeBLEU

JAVA = "int f(int a) { int b = a; return b + 1; }"
FLOW = "void f(long time) { start = time; end = start + allowed; left = end - start - time; }"


@pytest.fixture
def needs_codebleu():
    pytest.importorskip("codebleu")


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("c_sharp", JAVA),
        ("go", "func f(a int) int { b := a\n return b + 1 }"),
        ("java", JAVA),
        ("javascript", "function f(a) { let b = a; return b + 1; }"),
        ("php", "<?php function f($a) { $b = $a; return $b + 1; }"),
        ("python", "def f(a):\n    b = a\n    return b + 1"),
        ("ruby", "def f(a)\n  b = a\n  b + 1\nend"),
    ],
)
def test_codebleu_of_the_same_program(needs_codebleu, language, code):
    assert language in code_bleu.LANGUAGES
    assert code_bleu.codebleu([code], [code], language) == pytest.approx((1, 1, 1, 1, 1))


def test_codebleu_sees_through_names(needs_codebleu):
    renamed = re.sub(r"\b(start|time|allowed)\b", lambda m: m[0][::-1], FLOW)
    result = code_bleu.codebleu([FLOW], [renamed], "java")
    assert result.syntax == result.data_flow == 1
    assert 0 < result.ngrams < 1
    assert result.ngrams != result.weighted_ngrams
    assert result.score == pytest.approx(sum(result[1:]) / 4)
    other = code_bleu.codebleu([JAVA], ["while (true) {}"], "java")
    assert max(other.syntax, other.data_flow) < 1


def test_codebleu_as_the_scripts_have_it(needs_codebleu):
    """Where the package would say otherwise."""
    assert code_bleu.codebleu(["f();"], ["f();"], "java").data_flow == 0
    # A division of whole numbers in Python is a comment in Java.
    assert code_bleu.codebleu(["a = b // c"], ["a = b // d(e)"], "python").syntax == 1


def test_codebleu_has_the_keywords_of_the_script(needs_codebleu):
    assert {"def", "lambda", "None"} < code_bleu._keywords("python")
    assert not {"match", "type", "async"} & code_bleu._keywords("python")
    assert "synchronized" in code_bleu._keywords("java")


def test_codebleu_is_the_same_in_every_process(needs_codebleu):
    other = FLOW.replace("allowed", "wanted")
    script = (
        "from codet5p_jax.evaluation.metrics.code_bleu import codebleu\n"
        f"print(codebleu([{FLOW!r}], [{other!r}], 'java'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(6)
    }
    assert len(outputs) == 1


def test_codebleu_refuses_other_languages():
    with pytest.raises(ValueError, match=r"c_sharp, go, .*found 'cobol'"):
        code_bleu.codebleu(["a"], ["a"], "cobol")


# What all ask for


@pytest.mark.parametrize(
    "metric",
    [
        bleu.corpus_bleu,
        bleu.mean_sentence_bleu,
        exact_match,
        line_completion,
        classification.accuracy,
        classification.precision_recall_f1,
        ranking.mean_reciprocal_rank,
        ranking.mean_average_precision_at_r,
        lambda r, p: code_bleu.codebleu(r, p, "java"),
    ],
)
def test_unpaired_or_no_predictions(metric):
    with pytest.raises(ValueError, match="each of 2 references, found 1"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="one reference or more, found none"):
        metric([], [])


def test_references_without_tokens():
    with pytest.raises(ValueError, match="expected tokens, found none in all 2 references"):
        bleu.corpus_bleu(["", " "], ["a", "b"])
