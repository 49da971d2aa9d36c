"""Phases of a run: which batch belongs to a step is arithmetic."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codet5p_jax.data.cache import CachedMixture
from codet5p_jax.objectives.base import Objective


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one mixture.

    Attributes:
      mixture: its name in the cache.
      steps: optimizer steps.
      batch_size: rows of all objectives on all hosts together.
    """

    mixture: str
    steps: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"expected steps and batch_size of 1 or more, found {self}")


def total_steps(phases: Sequence[Phase]) -> int:
    """Steps of all phases."""
    return sum(phase.steps for phase in phases)


def locate(phases: Sequence[Phase], step: int) -> tuple[int, int]:
    """(phase, step within it) of a step; the last phase goes on after its end.

    >>> locate([Phase("a", 10, 1), Phase("b", 5, 1)], 12)
    (1, 2)
    """
    for index, phase in enumerate(phases[:-1]):
        if step < phase.steps:
            return index, step
        step -= phase.steps
    return len(phases) - 1, step


def data_seed(seed: int, phase: int) -> int:
    """Seed of a phase's loader: a task in two phases is shuffled differently in each."""
    return seed + 1_000_003 * phase


def select_objectives(objectives: Sequence[Objective], names: Sequence[str]) -> list[Objective]:
    """The objectives called `names`, in that order.

    Raises:
      ValueError: one is not configured.
    """
    by_name = {o.name: o for o in objectives}
    missing = [n for n in names if n not in by_name]
    if missing:
        raise ValueError(
            f"the mixtures need the objectives {missing}; configured are {sorted(by_name)}"
        )
    return [by_name[n] for n in names]


def check_one_tokenizer(mixtures: Sequence[CachedMixture]) -> None:
    """Phases train one embedding, so an id has to mean the same token in all of them.

    Raises:
      ValueError: two mixtures were prepared with different tokenizers; names both.
    """
    first = mixtures[0]
    for other in mixtures[1:]:
        if other.tokenizer.name != first.tokenizer.name:
            raise ValueError(
                f"the phases of a run need one tokenizer, but mixture {first.name!r} was prepared "
                f"with that in {first.tokenizer} and {other.name!r} with that in "
                f"{other.tokenizer}; prepare one of them again with the other's --tokenizer and "
                "--rebuild"
            )


def check_rows(rows: Mapping[str, int], sizes: Mapping[str, int], accumulate: int) -> None:
    """Every objective's rows have to divide over the data-parallel devices and micro-batches.

    Args:
      rows: of a batch, by objective.
      sizes: of the mesh axes.
      accumulate: micro-batches.

    Raises:
      ValueError: they do not; names objective and numbers.
    """
    ways = sizes["replica"] * sizes["fsdp"]
    for name, number in rows.items():
        if number % (ways * accumulate):
            raise ValueError(
                f"{name} has {number} rows in a batch, which do not divide over {ways} "
                f"data-parallel devices times {accumulate} micro-batches; change batch_size, the "
                "mixture's rates, accumulate or the mesh"
            )


def run_identity(
    seed: int, phases: Sequence[Phase], objectives: Sequence[Objective], tokenizer: str
) -> dict[str, Any]:
    """What decides the course of a run, as JSON. The last phase may be made longer later on.

    `tokenizer` is the digest of the tokenizer that the ids of the data come from.
    """
    listed = [vars(p) for p in phases]
    listed[-1] = {k: v for k, v in listed[-1].items() if k != "steps"}
    return {
        "seed": seed,
        "tokenizer": tokenizer,
        "phases": {str(i): dict(p) for i, p in enumerate(listed)},
        "objectives": {
            o.name: {
                "class": type(o).__name__,
                **{name: _plain(getattr(o, name)) for name in _fields(o)},
            }
            for o in objectives
        },
    }


def identity_defaults(objectives: Sequence[Objective]) -> dict[str, Any]:
    """What stands, in a `run_identity` of an older version, for the fields that it lacks.

    A field that is added with a default does then not make a run another one.
    """
    return {
        "objectives": {
            o.name: {
                name: _plain(field.default)
                for name, field in _fields(o).items()
                if field.default is not dataclasses.MISSING
            }
            for o in objectives
        }
    }


def _fields(objective: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(objective)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=repr))
