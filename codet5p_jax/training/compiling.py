"""Steps of a run's phases, each compiled once, while something else goes on."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.objectives.base import Objective
from codet5p_jax.training.batches import abstract_batch
from codet5p_jax.training.phases import select_objectives
from codet5p_jax.training.schedules import LearningRate
from codet5p_jax.training.state import TrainState, compiler_options
from codet5p_jax.training.step import make_train_step


@dataclass(frozen=True, kw_only=True)
class RunStep:
    """What the steps of all phases of a run have in common.

    Attributes:
      state: of all phases; abstract, with shardings over `mesh`.
      objectives: of all phases.
      network, loss_weights, optimizer, learning_rate, seed, accumulate, ema_decay: as
        `make_train_step` takes them.
    """

    mesh: Mesh
    state: TrainState
    network: CodeT5p
    objectives: Sequence[Objective]
    loss_weights: Mapping[str, float]
    optimizer: optax.GradientTransformation
    learning_rate: LearningRate
    seed: int
    accumulate: int
    ema_decay: float | None

    def lower(self, rows: Mapping[str, int]) -> jax.stages.Lowered:
        """The step of a phase with so many rows of each objective in a batch."""
        step: Any = make_train_step(
            self.network,
            select_objectives(self.objectives, list(rows)),
            self.loss_weights,
            self.optimizer,
            self.learning_rate,
            seed=self.seed,
            accumulate=self.accumulate,
            ema_decay=self.ema_decay,
            state_shardings=jax.tree.map(lambda x: x.sharding, self.state),
        )
        with jax.set_mesh(self.mesh):  # a thread does not inherit it
            return step.lower(self.state, abstract_batch(self.objectives, rows, self.mesh))


class CompiledSteps:
    """The compiled steps of phases.

    Args:
      step: of the run.
      rows: of each phase, the rows of each objective in a batch.
      executor: that compiles.
    """

    def __init__(self, step: RunStep, rows: Sequence[Mapping[str, int]], executor: Executor):
        self._step, self._rows, self._executor = step, rows, executor
        self._found: dict[int, Future[Any]] = {}

    def begin(self, phase: int) -> Future[Any]:
        """That of a phase, which is compiled from now on unless it is or was already."""
        if phase not in self._found:
            self._found[phase] = self._executor.submit(self._compile, phase)
        return self._found[phase]

    def _compile(self, phase: int) -> Any:
        lowered = self._step.lower(self._rows[phase])
        with jax.set_mesh(self._step.mesh):
            return lowered.compile(compiler_options(self._step.mesh))
