"""CodeBLEU: BLEU, BLEU with keywords weighted, and matches of syntax and of data flow.

The package `codebleu` has the parts. Here they are put together as the benchmarks' scripts do,
which it does not: comments are taken for Java's in every language, and references without data flow
make that term 0, not 1. Where a value comes from several variables, they are put in the order in
which they first appear; scripts and package leave them in the order of a set, which changes from
process to process and moves the term in its third decimal.

The first two terms are those of the scripts. The others depend on the grammars of tree-sitter; the
scripts' own grammars are no package. `docs/evaluation.md` has the differences.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from codet5p_jax.evaluation.metrics.pairs import check_pairs

LANGUAGES = ("c_sharp", "go", "java", "javascript", "php", "python", "ruby")
_OTHER_WORDS = 0.2  # weight of a word that is no keyword
# The package has these besides the words of REDCODER's script, the only published list.
_NO_KEYWORDS = {"python": frozenset(("async", "await", "case", "match", "type"))}


class CodeBleu(NamedTuple):
    """The score, and its four terms, which it is the mean of; each 0 to 1."""

    score: float
    ngrams: float
    weighted_ngrams: float
    syntax: float
    data_flow: float


def missing(language: str) -> bool:
    """Whether a package is not there that CodeBLEU of a language takes."""
    try:
        from codebleu import utils  # pyright: ignore[reportMissingImports]

        utils.get_tree_sitter_language(language)
    except ImportError:
        return True
    return False


def codebleu(references: Sequence[str], predictions: Sequence[str], language: str) -> CodeBleu:
    """CodeBLEU of a corpus, each term with a weight of 1/4.

    codebleu(["int f(int a) { return a; }"], ["int f(int a) { return a; }"], "java").score == 1

    Args:
      references: one program for each prediction.
      predictions: the programs to judge.
      language: one of LANGUAGES.

    Raises:
      ValueError: numbers differ, there are none, or the language is another one.
      ImportError: without the package codebleu.
    """
    check_pairs(references, predictions)
    if language not in LANGUAGES:
        raise ValueError(f"expected a language out of {', '.join(LANGUAGES)}, found {language!r}")
    try:
        from codebleu import (  # pyright: ignore[reportMissingImports]
            bleu,
            syntax_match,
            utils,
            weighted_ngram_match,
        )
    except ImportError as e:
        raise ImportError("CodeBLEU needs `pip install codet5p_jax[metrics]`") from e
    wanted = [[text.strip()] for text in references]
    found = [text.strip() for text in predictions]
    words = [text.split() for text in found]
    keywords = _keywords(language)
    weighted = [
        [[tokens, {token: 1 if token in keywords else _OTHER_WORDS for token in tokens}]]
        for tokens in (text.split() for (text,) in wanted)
    ]
    grammar = utils.get_tree_sitter_language(language)
    terms = (
        bleu.corpus_bleu([[text.split()] for (text,) in wanted], words),
        weighted_ngram_match.corpus_bleu(weighted, words),
        # The language says how comments look, the grammar how code is parsed.
        syntax_match.corpus_syntax_match(wanted, found, "java", tree_sitter_language=grammar),
        _data_flow_match([text for (text,) in wanted], found, language, grammar),
    )
    return CodeBleu(sum(terms) / 4, *map(float, terms))


def _data_flow_match(
    references: list[str], predictions: list[str], language: str, grammar: Any
) -> float:
    """Share of the references' edges that the predictions have, variables numbered as they come."""
    from codebleu import dataflow_match  # pyright: ignore[reportMissingImports]
    from codebleu.parser import (  # pyright: ignore[reportMissingImports]
        remove_comments_and_docstrings,
    )
    from tree_sitter import Parser  # pyright: ignore[reportMissingImports]

    parser = Parser()
    parser.language = grammar
    extract = [parser, dataflow_match.dfg_function[language]]

    def edges(code: str) -> list[tuple[str, str, list[str]]]:
        flow = dataflow_match.get_data_flow(remove_comments_and_docstrings(code, "java"), extract)
        first = {name: at for name, at, *_ in reversed(flow)}
        return dataflow_match.normalize_dataflow(
            [
                (name, at, how, sorted(names, key=lambda n: (first.get(n, at), n)), ats)
                for name, at, how, names, ats in flow
            ]
        )

    matches = total = 0
    for reference, prediction in zip(references, predictions, strict=True):
        wanted, left = edges(reference), edges(prediction)
        total += len(wanted)
        for edge in wanted:
            if edge in left:
                matches += 1
                left.remove(edge)
    return matches / total if total else 0.0


@cache
def _keywords(language: str) -> frozenset[str]:
    """The package's list, a word a line, without what scripts do not have."""
    file = resources.files("codebleu") / "keywords" / f"{language}.txt"
    words = frozenset(map(str.strip, file.read_text("utf-8").splitlines()))
    return words - _NO_KEYWORDS.get(language, frozenset())
