"""MRR, recall at k and MAP@R of ranked lists, as files of predictions hold them.

`evaluation/retrieval.py` has MRR and recall of whole score matrices, ties included.
"""

from collections.abc import Collection, Hashable, Sequence

from codet5p_jax.evaluation.metrics.pairs import check_pairs

Ranking = Sequence[Hashable]  # best first


def mean_reciprocal_rank(targets: Sequence[Hashable], rankings: Sequence[Ranking]) -> float:
    """Mean of 1 / rank of the right candidate, 0 where a list does not hold it.

    mean_reciprocal_rank(["a", "b", "c"], [["a"], ["a", "b"], ["a", "b"]]) == (1 + 1/2 + 0) / 3

    Raises:
      ValueError: numbers differ, or there are none.
    """
    check_pairs(targets, rankings)
    reciprocals = (
        1 / (1 + list(ranking).index(target)) if target in ranking else 0.0
        for target, ranking in zip(targets, rankings, strict=True)
    )
    return sum(reciprocals) / len(targets)


def recall_at(targets: Sequence[Hashable], rankings: Sequence[Ranking], k: int) -> float:
    """Share of queries whose right candidate is among the first k.

    Raises:
      ValueError: numbers differ, there are none, or k is below 1.
    """
    check_pairs(targets, rankings)
    if k < 1:
        raise ValueError(f"expected k of 1 or more, found {k}")
    pairs = zip(targets, rankings, strict=True)
    return sum(target in ranking[:k] for target, ranking in pairs) / len(targets)


def mean_average_precision_at_r(
    relevant: Sequence[Collection[Hashable]], rankings: Sequence[Ranking]
) -> float:
    """MAP@R of clone search: a query with R right answers is judged by its first R candidates.

    A right answer at rank i adds the share of right ones up to i, divided by R.

    mean_average_precision_at_r([{"a", "b"}], [["x", "b"]]) == (1/2) / 2

    Args:
      relevant: the right answers of each query.
      rankings: candidates of each query, best first; what comes after R of them is ignored.

    Raises:
      ValueError: numbers differ, there are none, a query has no right answer, or a ranking has
        fewer than R candidates or repeats one.
    """
    check_pairs(relevant, rankings)
    total = 0.0
    for query, (answers, ranking) in enumerate(zip(relevant, rankings, strict=True)):
        right, first = set(answers), ranking[: len(set(answers))]
        if not right:
            raise ValueError(f"query {query}: expected right answers, found none")
        if len(set(first)) != len(right):
            raise ValueError(
                f"query {query}: expected {len(right)} different candidates, as many as it has "
                f"right answers, found {len(set(first))}"
            )
        hits = 0
        for rank, candidate in enumerate(first, start=1):
            if candidate in right:
                hits += 1
                total += hits / rank / len(right)
    return total / len(relevant)
