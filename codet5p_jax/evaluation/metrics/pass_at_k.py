"""pass@k from counts: what executes programs is elsewhere."""

import math
from collections.abc import Sequence

from codet5p_jax.evaluation.metrics.pairs import check_pairs


def pass_at_k(samples: Sequence[int], correct: Sequence[int], k: int) -> float:
    """Chance that one of k samples of a problem is correct, unbiased, mean over problems.

    With n samples, c of them correct, it is 1 - C(n - c, k) / C(n, k) (Chen et al. 2021). With
    n = k it is whether any sample is correct.

    pass_at_k([2, 2], [1, 0], k=1) == 1/4

    Args:
      samples: n of each problem.
      correct: c of each problem.
      k: 1 to the smallest n.

    Raises:
      ValueError: numbers of problems differ, there are none, k is out of bounds, or a c is.
    """
    check_pairs(samples, correct)
    if not 1 <= k <= min(samples):
        raise ValueError(
            f"pass@{k}: expected k of 1 to {min(samples)}, the fewest samples of a problem; "
            "draw more samples, or ask for a smaller k"
        )
    total = 0.0
    for problem, (n, c) in enumerate(zip(samples, correct, strict=True)):
        if not 0 <= c <= n:
            raise ValueError(f"problem {problem}: expected 0 to {n} correct samples, found {c}")
        total += 1 - math.comb(n - c, k) / math.comb(n, k)
    return total / len(samples)
