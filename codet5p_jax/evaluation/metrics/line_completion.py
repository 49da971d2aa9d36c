"""Line completion: exact match and edit similarity, with literals put back."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from codet5p_jax.evaluation.metrics.exact_match import exact_match
from codet5p_jax.evaluation.metrics.pairs import check_pairs

_LITERALS = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


class LineCompletion(NamedTuple):
    """Exact match in percent, and the mean edit similarity, 0 to 100."""

    exact_match: float
    edit_similarity: float


def restore_literals(code: str) -> str:
    """Code in place of the placeholders of CodeXGLUE's corpora.

    restore_literals("f ( <NUM_LIT> , <STR_LIT:a> , <STR_LIT> )") == "f ( 0 , a ,  )"
    """
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _LITERALS.sub(r"\1", code)


def edit_similarity(reference: str, prediction: str) -> int:
    """Characters in the longest common subsequence over those of both texts, in whole percent.

    What fuzzywuzzy's `fuzz.ratio` is where python-Levenshtein is installed. It is not 1 minus a
    Levenshtein distance: replacing a character costs twice as much as leaving it out.

    edit_similarity("return a", "return b") == 88  # 2 · 7 of 16 characters, 87.5

    Raises:
      ImportError: without rapidfuzz.
    """
    try:
        from rapidfuzz.distance import Indel  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ImportError("edit similarity needs `pip install codet5p_jax[metrics]`") from e
    return round(100 * Indel.normalized_similarity(reference, prediction))


def line_completion(references: Sequence[str], predictions: Sequence[str]) -> LineCompletion:
    """Both figures of the benchmark, after `restore_literals`.

    Tokens are compared for exact match, characters for similarity; white space around a prediction
    is left out, around a reference it is not.

    Raises:
      ValueError: numbers differ, or there are none.
      ImportError: without rapidfuzz.
    """
    check_pairs(references, predictions)
    wanted = [restore_literals(text) for text in references]
    found = [restore_literals(text.strip()) for text in predictions]
    similarity = sum(map(edit_similarity, wanted, found)) / len(wanted)
    return LineCompletion(exact_match(wanted, found, str.split), similarity)
