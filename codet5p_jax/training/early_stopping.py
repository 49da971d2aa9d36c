"""The best evaluation of a run: its weights are kept, and a run without better ones may end."""

import difflib
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import abstract_params
from codet5p_jax.objectives.base import Objective

Evaluated = tuple[int, float]  # step, value of the metric


@dataclass(frozen=True)
class EarlyStopping:
    """Which evaluation is the best, and when to stop for want of a better one.

    The weights of the best one are in MODEL_DIR/best/<step>, in fp32. The evaluation before the
    first step does not count. Equal is not better; nor is a value that is not finite.

    Attributes:
      metric: of the held-out metrics, such as `seq2seq/loss`.
      patience: so many evaluations in a row that are not better end the run; None: none do.
      higher_is_better: of accuracies and the like; False: of losses.
    """

    metric: str
    patience: int | None = None
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(
                f"patience has to be 1 or more evaluations, or None, found {self.patience}"
            )

    def value(self, metrics: Mapping[str, Any]) -> float:
        """The metric of an evaluation; NaN where it was not finite, or had nothing to count."""
        value = metrics.get(self.metric)
        return math.nan if value is None else float(value)

    def best(self, evaluations: Sequence[Evaluated]) -> Evaluated | None:
        """The first of the best evaluations; None where none has a finite value.

        >>> EarlyStopping("loss").best([(10, 3.0), (20, 2.5), (30, 2.5)])
        (20, 2.5)
        """
        finite = [evaluated for evaluated in evaluations if math.isfinite(evaluated[1])]
        sign = -1 if self.higher_is_better else 1
        return min(finite, key=lambda evaluated: sign * evaluated[1], default=None)

    def ends(self, evaluations: Sequence[Evaluated]) -> bool:
        """Whether the last `patience` evaluations were no better than the best before them.

        >>> EarlyStopping("loss", patience=2).ends([(10, 3.0), (20, 3.5), (30, 3.1)])
        True
        """
        best = self.best(evaluations)
        since = sum(best is None or step > best[0] for step, _ in evaluations)
        return self.patience is not None and since >= self.patience


def evaluations_of(
    stopping: EarlyStopping, records: Sequence[Mapping[str, Any]], split: str, last: int
) -> list[Evaluated]:
    """The evaluations that `metrics.jsonl` has of a split, after step 0 and up to step `last`."""
    return [
        (record["step"], stopping.value(record))
        for record in records
        if record["split"] == split and 0 < record["step"] <= last
    ]


def check_metric(name: str, names: Collection[str]) -> None:
    """Raises ValueError if there is no metric called `name`; names the nearest."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(names))}"
        raise ValueError(f"early_stopping: there is no held-out metric {name!r}; {hint}")


def metric_names(objectives: Sequence[Objective], network: CodeT5p) -> list[str]:
    """Names of the held-out metrics of some objectives; their losses are traced, not computed."""
    names: list[str] = []
    for objective in objectives:
        batch = {
            name: jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for name, x in objective.spec.items()
        }
        losses = jax.eval_shape(
            functools.partial(_losses, objective, network), abstract_params(network.specs), batch
        )
        names += [f"{loss}/{metric}" for loss in losses for metric in losses[loss].metrics]
    return names


def _losses(objective: Objective, network: CodeT5p, params: Any, batch: Any) -> Any:
    state = objective.init_state(network, params)
    return objective.loss(network.bind(params), batch, state, jax.random.key(0), False)[0]
