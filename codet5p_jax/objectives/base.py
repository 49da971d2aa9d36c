"""What an objective is: a host half (example -> arrays) and a device half (arrays -> loss)."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

from codet5p_jax.data.tokens import SpecialTokens

Batch = Mapping[str, Any]
Features = dict[str, np.ndarray]
State = Any  # a pytree


class Loss(NamedTuple):
    """A loss summed over its items, to be divided by `Objective.weights` of the whole batch.

    Attributes:
      sum: fp32 scalar.
      metrics: name -> (sum, weight), both fp32 scalars; reported as sum over weight.
    """

    sum: Float[Array, ""]
    metrics: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


@runtime_checkable
class Objective(Protocol):
    """One pretraining objective. Implementations are frozen dataclasses whose lengths are fields.

    Attributes:
      name: key of its sub-batch in the global batch.
      losses: names of the losses that `loss` returns.
      spec: shape and dtype of each array of one row, without the batch axis.
    """

    @property
    def name(self) -> str:
        """Key of its sub-batch."""
        ...

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of its losses."""
        ...

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One row."""
        ...

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """Host half: turns one cached example into arrays of `spec`; the same rng, the same row."""
        ...

    def init_state(self, model: Any, params: Any) -> State:
        """State carried between steps (momentum encoder, queues); `{}` when there is none."""
        ...

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Denominator of each loss over a whole batch: target tokens, or rows."""
        ...

    def loss(
        self, model: Any, batch: Batch, state: State, key: jax.Array, train: bool
    ) -> tuple[dict[str, Loss], State]:
        """Device half: losses of a (micro-)batch under a bound model, and the next state.

        With `train=False` there is no dropout and the state comes back unchanged.
        """
        ...
