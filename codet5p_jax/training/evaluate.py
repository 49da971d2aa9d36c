"""Losses on a held-out split during training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import Params
from codet5p_jax.objectives.base import Objective
from codet5p_jax.training.batches import open_loaders, place
from codet5p_jax.training.freezing import merge
from codet5p_jax.training.metrics import Accumulator
from codet5p_jax.training.phases import Phase, check_rows
from codet5p_jax.training.state import TrainState, compiler_options
from codet5p_jax.training.step import make_eval_step

HeldOutMetric = Callable[[CodeT5p, Params], float]
"""(the unbound network, its weights on the devices) -> a figure, the same on every process. It is
called under the run's mesh, at every evaluation."""

Rows = Mapping[str, np.ndarray]  # array name -> [rows, ...], of one objective


@dataclass(frozen=True)
class Evaluation:
    """Losses on held-out examples: at the first step, the last, and every so many between.

    Attributes:
      every: steps between two evaluations; None: none at all.
      batches: at most so many of the split, the same ones every time; None: all.
      batch_size: rows of each; None: those of the phase.
      split: of the phases' mixtures.
      metrics: more held-out metrics by name, such as those of what the model generates.
    """

    every: int | None = None
    batches: int | None = 16
    batch_size: int | None = None
    split: str = "validation"
    metrics: Mapping[str, HeldOutMetric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(n is not None and n < 1 for n in (self.every, self.batches, self.batch_size)):
            raise ValueError(f"expected numbers of 1 or more, found {self}")


class Evaluator:
    """Evaluates every objective of a run, each on the last phase that has it.

    Args:
      settings: how much.
      model: unbound.
      phases, objectives, cache_dir, seed: of the run.
      mesh: the run's.
      encoder_tokenizer: as `open_loaders` takes it.
      change: of the rows of an objective, before they are judged.
      waiting: entered for as long as a batch is waited for.

    Raises:
      ValueError: the split is not cached, or does not fill a batch.
    """

    def __init__(
        self,
        settings: Evaluation,
        model: CodeT5p,
        phases: Sequence[Phase],
        objectives: Sequence[Objective],
        cache_dir: str | Path,
        seed: int,
        mesh: Mesh,
        encoder_tokenizer: Path | None = None,
        change: Callable[[Rows], Rows] = lambda rows: rows,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._settings, self._mesh, self._change = settings, mesh, change
        self._waiting = waiting
        self._model = model
        sized = [replace(p, batch_size=settings.batch_size or p.batch_size) for p in phases]
        covered: set[str] = set()
        self._parts = []
        for phase in reversed(list(dict.fromkeys(sized))):
            [loader] = open_loaders(
                [phase],
                objectives,
                cache_dir,
                settings.split,
                seed,
                mesh,
                encoder_tokenizer=encoder_tokenizer,
            )
            names = set(loader.rows) - covered
            if names:
                check_rows(loader.rows, mesh.shape, 1)
                self._parts.append((loader, names))
                covered |= names
        self._step = make_eval_step(model, objectives, compiler_options(mesh))

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Means over the split and the other metrics, by name; of the averaged weights where there
        are such."""
        params = merge(state.params if state.ema is None else state.ema, state.frozen)
        found = self.means(params, state.objective_state)
        with jax.set_mesh(self._mesh):
            return found | {
                name: float(metric(self._model, params))
                for name, metric in self._settings.metrics.items()
            }

    def means(self, params: Params, objective_state: Mapping[str, Any]) -> dict[str, float]:
        """Means over the split, by name."""
        accumulator = Accumulator()
        with jax.set_mesh(self._mesh):
            for loader, names in self._parts:
                batches = loader.eval_batches(self._settings.batches)
                while (batch := self._next(batches)) is not None:
                    rows = {name: self._change(batch[name]) for name in batch if name in names}
                    placed = place(rows, self._mesh)
                    accumulator.add(self._step(params, objective_state, placed))
        accumulator.drain()
        return accumulator.means()

    def _next(self, batches: Iterator[Any]) -> Any:
        with self._waiting():
            return next(batches, None)
