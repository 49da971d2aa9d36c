"""BLEU-4, of a corpus and of sentences, as the benchmarks' own scripts compute it.

They differ from sacrebleu and NLTK in what they smooth and in their brevity penalty, hence our own.
Every prediction has one reference.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from codet5p_jax.evaluation.metrics.pairs import check_pairs

_ORDERS = 4
# Runs of letters and digits, and anything else one by one. That is `\w+|[^\s\w]` followed by
# NIST's tokenisation, of which only the split at "_" is left to do.
_WORDS = re.compile(r"[^\W_]+|\S")


class CorpusBleu(NamedTuple):
    """Attributes of a corpus.

    Attributes:
      score: BLEU-4, 0 to 100.
      precisions: of 1- to 4-grams, 0 to 1.
      brevity_penalty: what multiplies their geometric mean, 0 to 1.
      length_ratio: tokens of the predictions over tokens of the references.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    length_ratio: float


def corpus_bleu(
    references: Sequence[str], predictions: Sequence[str], *, smooth: bool = True
) -> CorpusBleu:
    """BLEU-4 over the tokens between white space, matches summed over the corpus.

    corpus_bleu(["a b c d e"], ["a b c d"]) has precisions (1, 1, 1, 1), a brevity penalty of
    exp(1 - 5/4) and a score of 77.88.

    Args:
      references: one text for each prediction.
      predictions: the texts to judge.
      smooth: adds 1 to matches and candidates of every order, 1-grams too (Lin and Och 2004), as
        the scripts for Concode, code translation, code refinement and REDCODER do.

    Raises:
      ValueError: numbers differ, there are none, or no reference holds a token.
    """
    check_pairs(references, predictions)
    matches, candidates = [0] * _ORDERS, [0] * _ORDERS
    reference_length = prediction_length = 0
    for reference, prediction in zip(references, predictions, strict=True):
        wanted, found = reference.split(), prediction.split()
        reference_length += len(wanted)
        prediction_length += len(found)
        for order, (matching, possible) in enumerate(_ngram_matches(wanted, found)):
            matches[order] += matching
            candidates[order] += possible
    if not reference_length:
        raise ValueError(f"expected tokens, found none in all {len(references)} references")
    add = 1 if smooth else 0
    precisions = tuple(
        (matching + add) / (possible + add) if possible + add else 0.0
        for matching, possible in zip(matches, candidates, strict=True)
    )
    ratio = prediction_length / reference_length
    brevity = math.exp(min(0.0, 1 - 1 / ratio)) if ratio else 0.0
    score = 100 * brevity * math.prod(precisions) ** (1 / _ORDERS)
    return CorpusBleu(score, precisions, brevity, ratio)


def sentence_words(text: str) -> list[str]:
    """Lower-case words and single signs, as `sentence_bleu` compares them.

    sentence_words("Reads file_name.") == ["reads", "file", "_", "name", "."]
    """
    return _WORDS.findall(text.lower())


def sentence_bleu(reference: str, prediction: str) -> float:
    """Smoothed BLEU-4 of one sentence, 0 to 100, as for CodeXGLUE's summaries.

    1 is added to matches and candidates of 2- to 4-grams, and to both lengths in the brevity
    penalty. A prediction without words therefore earns 100 exp(-words of the reference).

    sentence_bleu("Adds two numbers.", "adds two numbers .") == 100
    sentence_bleu("Adds two numbers.", "Adds numbers.") == 54.4…
    """
    wanted, found = sentence_words(reference), sentence_words(prediction)
    total = min(0.0, 1 - (len(wanted) + 1) / (len(found) + 1))
    for order, (matching, possible) in enumerate(_ngram_matches(wanted, found)):
        add = sys.float_info.min + (1 if order else 0)  # log 0 is out of the question
        total += (math.log(matching + add) - math.log(possible + add)) / _ORDERS
    return 100 * math.exp(total)


def mean_sentence_bleu(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean of `sentence_bleu`: the figure of one language; that of several is their plain mean.

    Raises:
      ValueError: numbers differ, or there are none.
    """
    check_pairs(references, predictions)
    scores = map(sentence_bleu, references, predictions)
    return math.fsum(scores) / len(references)


def _ngram_matches(reference: list[str], prediction: list[str]) -> list[tuple[int, int]]:
    """For each order, n-grams of the prediction that the reference has as often, and all."""
    result = []
    for order in range(1, _ORDERS + 1):
        wanted, found = _ngrams(reference, order), _ngrams(prediction, order)
        result.append(((wanted & found).total(), found.total()))
    return result


def _ngrams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))
