"""Meshes, remat, micro-batches and batch sizes compared by compiling the step with each."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training.chips import parse_topology
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.precompile import Report, precompile

Remat = Literal["none", "dots", "full"]
REMATS: tuple[Remat, ...] = ("none", "dots", "full")  # what recomputes least first
TENSOR_WAYS = (1, 2, 4)
WORTH_IT = 0.99  # of the least time a row: a batch that gains less is the last one tried


@dataclass(frozen=True)
class Trial:
    """One way to run a step.

    Attributes:
      mesh: its axes; fsdp = -1 takes the devices that are left.
      remat: as in `ModelConfig`.
      accumulate: micro-batches.
      batch: times the rows that the run asks for.
      report: None where there is nothing to compile, since sizes do not divide, or the compiler
        failed; `error` says why.
    """

    mesh: MeshConfig
    remat: Remat
    accumulate: int
    batch: int
    report: Report | None
    error: str = ""

    @property
    def fits(self) -> bool:
        """Every phase does."""
        return self.report is not None and all(phase.fits for phase in self.report.phases)

    @property
    def name(self) -> str:
        """Its settings as text."""
        axes = dataclasses.asdict(self.mesh).items()
        mesh = ", ".join(f"{axis} {size}" for axis, size in axes if size != 1)
        batch = "" if self.batch == 1 else f"; {self.batch} times the batch"
        return f"{mesh}; remat {self.remat}; accumulate {self.accumulate}{batch}"


def meshes(topology: str, num_slices: int) -> list[MeshConfig]:
    """State split over a slice, with and without a tensor axis, over all sides of it but the last,
    and a copy on every device.

    >>> [(mesh.replica, mesh.fsdp, mesh.tensor) for mesh in meshes("v5e:4x8", 1)]
    [(1, -1, 1), (1, -1, 2), (1, -1, 4), (8, -1, 1), (-1, 1, 1)]
    """
    _, sides = parse_topology(topology)
    found = [MeshConfig(replica=num_slices, tensor=ways) for ways in TENSOR_WAYS]
    if 1 < sides[-1] < math.prod(sides):
        found.append(MeshConfig(replica=num_slices * sides[-1]))
    return [*found, MeshConfig(replica=-1, fsdp=1)]


def micro_batches(rows: int, least: int) -> list[int]:
    """Into how many the rows of a device may be divided, each at least twice the one before.

    >>> [micro_batches(n, 1) for n in (16, 12, 3, 0)], micro_batches(6, 3)
    ([[1, 2, 4, 8, 16], [1, 2, 4, 12], [1, 3], [1]], [3, 6])
    """
    found = []
    for number in range(least, rows + 1):
        if rows % number == 0 and (not found or number >= 2 * found[-1]):
            found.append(number)
    return found or [least]


def search(
    *,
    model: ModelConfig,
    phases: Sequence[Phase],
    rows: Sequence[Mapping[str, int]],
    topology: str,
    num_slices: int = 1,
    compile_step: Callable[..., Report] = precompile,
    **settings: Any,
) -> Iterator[Trial]:
    """Every trial as it is made. There are more and more micro-batches until the step fits or a
    device has one row: more of them only add work, so those after the first that fits are left out.

    The batch of the run goes over all meshes and ways to rematerialise; with what is best for it,
    the batch is then doubled for as long as a row takes less time for it.

    Args:
      model, phases, rows, topology, num_slices, settings: as `precompile` takes them, but mesh and
        accumulate.
      compile_step: what compiles (tests).
    """
    chip, sides = parse_topology(topology)
    devices = chip.devices(sides, num_slices)
    divide = math.gcd(*(number for numbers in rows for number in numbers.values()))

    def until_fits(mesh: MeshConfig, remat: Remat, least: int, batch: int) -> Iterator[Trial]:
        ways = max(1, devices // (mesh.sequence * mesh.tensor))
        for accumulate in micro_batches(divide * batch // ways, least):
            report, error = None, ""
            try:
                report = compile_step(
                    model=dataclasses.replace(model, remat=remat),
                    phases=phases,
                    rows=[{name: batch * n for name, n in numbers.items()} for numbers in rows],
                    topology=topology,
                    num_slices=num_slices,
                    mesh=mesh,
                    accumulate=accumulate,
                    **settings,
                )
            except ValueError as problem:
                error = " ".join(str(problem).split())[:1_000]
            trial = Trial(mesh, remat, accumulate, batch, report, error)
            yield trial
            if trial.fits or trial.error:
                break

    trials = []
    for mesh in meshes(topology, num_slices):
        for remat in REMATS:
            for trial in until_fits(mesh, remat, 1, 1):
                trials.append(trial)
                yield trial
    best = ranked(trials, phases)[:1]
    while best:
        ((seconds, _, now),) = best
        larger = []
        for trial in until_fits(now.mesh, now.remat, now.accumulate, 2 * now.batch):
            larger.append(trial)
            yield trial
        found = ranked(larger, phases)
        best = [x for x in found if x[0] < WORTH_IT * seconds]


def ranked(trials: Sequence[Trial], phases: Sequence[Phase]) -> list[tuple[float, int, Trial]]:
    """(least seconds of all rows, highest peak of a phase, trial) of those that fit, best first.

    Rows are those of all steps with the run's batch: with twice that, half the steps have as many.
    Where the least time is the same, the smaller peak leads.
    """
    found = []
    for trial in trials:
        if not trial.fits or trial.report is None:
            continue
        seconds, peak = 0.0, 0
        for phase, compiled in zip(phases, trial.report.phases, strict=True):
            if compiled.speed is None or compiled.memory.peak is None:
                continue
            seconds += phase.steps * compiled.speed.step_seconds
            peak = max(peak, compiled.memory.peak)
        found.append((seconds / trial.batch, peak, trial))
    return sorted(found, key=lambda x: x[:2])
