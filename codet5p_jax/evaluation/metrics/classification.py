"""Accuracy, precision, recall, F1: defect and clone detection, yes-or-no search, cloze tests."""

import operator
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from codet5p_jax.evaluation.metrics.pairs import check_pairs


class PrecisionRecallF1(NamedTuple):
    """Each 0 to 1; 0 where its denominator is."""

    precision: float
    recall: float
    f1: float


def accuracy(labels: Sequence[Hashable], predictions: Sequence[Hashable]) -> float:
    """Share of predictions that are right: accuracy([0, 1], [0, 0]) == 0.5.

    Raises:
      ValueError: numbers differ, or there are none.
    """
    check_pairs(labels, predictions)
    return sum(map(operator.eq, labels, predictions)) / len(labels)


def precision_recall_f1(
    labels: Sequence[Hashable], predictions: Sequence[Hashable], positive: Hashable = 1
) -> PrecisionRecallF1:
    """Of one class, against all others.

    precision_recall_f1([1, 1, 0, 0], [1, 0, 1, 1]) == (1/3, 1/2, 2/5)

    Args:
      labels: the truth.
      predictions: one for each label.
      positive: the class that counts.

    Raises:
      ValueError: numbers differ, or there are none.
    """
    check_pairs(labels, predictions)
    wanted = [label == positive for label in labels]
    found = [prediction == positive for prediction in predictions]
    right = sum(w and f for w, f in zip(wanted, found, strict=True))
    return PrecisionRecallF1(
        precision=_ratio(right, sum(found)),
        recall=_ratio(right, sum(wanted)),
        f1=_ratio(2 * right, sum(found) + sum(wanted)),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
