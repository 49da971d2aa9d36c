"""The share of predictions that are the reference."""

from collections.abc import Callable, Sequence

from codet5p_jax.evaluation.metrics.pairs import check_pairs


def exact_match(
    references: Sequence[str],
    predictions: Sequence[str],
    form: Callable[[str], object] = str.strip,
) -> float:
    """Predictions that equal their reference in a given form, in percent.

    exact_match(["a = 1", "b"], [" a = 1", "c"]) == 50

    Args:
      references: one text for each prediction.
      predictions: the texts to judge.
      form: what is compared. `str.strip` for code refinement, translation and REDCODER, `str.split`
        (tokens between white space) for Concode and line completion.

    Raises:
      ValueError: numbers differ, or there are none.
    """
    check_pairs(references, predictions)
    pairs = zip(references, predictions, strict=True)
    return 100 * sum(form(wanted) == form(found) for wanted, found in pairs) / len(references)
