"""BM25 over words of code: the lexical baseline, and one half of fused search.

Scores are additive over query words, so everything but the query is known at indexing time: a
posting holds the finished contribution of its word to its document, and a query is a sum of a few
postings lists. That is 60 lines of NumPy and three arrays that go into the search index file as
they are, hence no dependency.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

# parseHTTPDate2 -> parse HTTP Date 2; letters outside ASCII form words of their own.
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^\W\d_A-Za-z]+")


def words(text: str) -> list[str]:
    """Lower-case words, identifiers split at underscores, digits and changes of case.

    words("parseHTTPDate(raw_text)") == ["parse", "http", "date", "raw", "text"]
    """
    return [word.lower() for word in _WORDS.findall(text)]


@dataclass(frozen=True)
class BM25:
    """An inverted index. `build` makes one from texts.

    Attributes:
      vocabulary: word -> row.
      starts: int64 [words + 1], where the postings of each word begin.
      documents: int32 [postings], ascending within a word.
      impacts: float32 [postings], what the word adds to the score of the document.
      size: number of documents.
    """

    vocabulary: dict[str, int]
    starts: Int64[np.ndarray, " words_plus_1"]
    documents: Int32[np.ndarray, " postings"]
    impacts: Float32[np.ndarray, " postings"]
    size: int

    def scores(self, query: str) -> Float32[np.ndarray, " documents"]:
        """Score of every document; a word that the query repeats counts as often."""
        total = np.zeros(self.size, np.float32)
        for word, count in Counter(words(query)).items():
            row = self.vocabulary.get(word)
            if row is not None:
                span = slice(self.starts[row], self.starts[row + 1])
                total[self.documents[span]] += count * self.impacts[span]
        return total


def build(texts: Iterable[str], *, k1: float = 1.2, b: float = 0.75) -> BM25:
    """Indexes texts (Robertson & Zaragoza 2009, with Lucene's idf, which is never negative).

    A word that occurs tf times in a document of dl words (the mean is avgdl), and in n of N
    documents, adds `ln(1 + (N - n + 0.5) / (n + 0.5)) · tf (k1 + 1) / (tf + k1 (1 - b + b dl /
    avgdl))`.

    Args:
      texts: the documents.
      k1: how slowly repetitions of a word saturate.
      b: how much long documents are held back, 0 to 1.
    """
    vocabulary: dict[str, int] = {}
    rows: list[int] = []
    counts: list[int] = []
    postings_per_document: list[int] = []
    lengths: list[int] = []
    for text in texts:
        found = Counter(words(text))
        rows.extend(vocabulary.setdefault(word, len(vocabulary)) for word in found)
        counts.extend(found.values())
        postings_per_document.append(len(found))
        lengths.append(found.total())
    size = len(lengths)
    row = np.array(rows, np.int64)
    document = np.repeat(np.arange(size), np.array(postings_per_document, np.int64))
    impact = _impacts(row, document, np.array(counts, float), np.array(lengths, float), k1, b)
    order = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[order], np.arange(len(vocabulary) + 1))
    document, impact = document[order].astype(np.int32), impact[order].astype(np.float32)
    return BM25(vocabulary, starts.astype(np.int64), document, impact, size)


def _impacts(
    row: Int64[np.ndarray, " postings"],
    document: Int64[np.ndarray, " postings"],
    tf: Float[np.ndarray, " postings"],
    lengths: Float[np.ndarray, " documents"],
    k1: float,
    b: float,
) -> Float[np.ndarray, " postings"]:
    if not row.size:
        return np.zeros(0)
    frequency = np.bincount(row)[row]
    idf = np.log1p((len(lengths) - frequency + 0.5) / (frequency + 0.5))
    relative_length = lengths[document] / lengths.mean()
    return idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * relative_length))
