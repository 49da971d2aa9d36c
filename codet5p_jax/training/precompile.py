"""The training step compiled for TPUs that are not there: what it takes, and at best how long.

`libtpu` compiles on any CPU for any of its chips. Compiling shows neither that the step computes
what it should nor how fast it runs.
"""

import functools
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import count
from codet5p_jax.objectives.base import Objective
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.batches import abstract_batch
from codet5p_jax.training.chips import GIB, Chip, parse_topology
from codet5p_jax.training.compiling import RunStep
from codet5p_jax.training.flops import step_flops
from codet5p_jax.training.freezing import Split, Trainable, freeze, frozen_towers
from codet5p_jax.training.hlo import Traffic, read_work
from codet5p_jax.training.memory import peak_bytes
from codet5p_jax.training.optimizers import AdamW, Optimizer
from codet5p_jax.training.phases import Phase, check_rows, select_objectives, total_steps
from codet5p_jax.training.schedules import Constant, Schedule
from codet5p_jax.training.state import abstract_state, compiler_options

INSTALL = "in a clone: pip install -e '.[precompile]'"
# libtpu asks a metadata server, which only a TPU's host has, who it is; and lets one process at a
# time use it, which is right for chips that are there.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
PARTS = ("params", "frozen", "opt_state", "objective_state", "ema")


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip while a step runs.

    Attributes:
      state: by part of the train state, as shapes and shardings say.
      batch: likewise.
      arguments: state and batch as the compiler lays them out, padding included.
      temporaries: gradients, activations, whatever else is there at the peak.
      program: the code.
      peak: all of it.
      available: what the compiler offers, where it said so; it does when a program does not fit.
    """

    state: Mapping[str, int]
    batch: int
    arguments: int | None = None
    temporaries: int | None = None
    program: int | None = None
    peak: int | None = None
    available: int | None = None


@dataclass(frozen=True)
class Speed:
    """What one chip has to do in a step, and the least time that takes.

    Attributes:
      dot_flops: FLOPs of the matrix products of the compiled program.
      model_flops: this chip's share of what the model asks for: no recomputation (`step_flops`).
      hbm_bytes: read and written by the operations of the compiled program.
      xla_bytes: accessed, as XLA's own `cost_analysis` counts: in the chip's faster memory as well,
        and by the body of a loop once.
      collectives: by kind, between the chips of a slice.
      between_slices: likewise, over the data-centre network.
      compute_seconds, hbm_seconds, ici_seconds, dcn_seconds: each alone, at the published peaks;
        None where there is none.
      step_seconds: the longest of them, as if the others were hidden behind it.
      mfu: `model_flops` in `step_seconds`, over the chip's peak: what this program has at best.
    """

    dot_flops: float
    model_flops: float
    hbm_bytes: float
    xla_bytes: float
    collectives: Mapping[str, Traffic]
    between_slices: Mapping[str, Traffic]
    compute_seconds: float
    hbm_seconds: float | None
    ici_seconds: float | None
    dcn_seconds: float | None
    step_seconds: float
    mfu: float


@dataclass(frozen=True)
class PhaseReport:
    """The step of one phase.

    Attributes:
      mixture: name of the phase's.
      rows: of each objective in a batch.
      compile_seconds: on this machine.
      fits: whether the compiler found room for it.
      memory: on one chip.
      advice: what to change where it does not fit, the most promising first.
      speed: None where it does not fit: then there is no program.
    """

    mixture: str
    rows: Mapping[str, int]
    compile_seconds: float
    fits: bool
    memory: Memory
    advice: tuple[str, ...]
    speed: Speed | None


@dataclass(frozen=True)
class Report:
    """All phases of a run on one topology, or on several slices of it.

    Attributes:
      devices: of all slices; a chip is `chip.per_chip`.
    """

    topology: str
    num_slices: int
    chip: Chip
    devices: int
    mesh: Mapping[str, int]
    libtpu: str
    parameters: int
    trainable_parameters: int
    phases: tuple[PhaseReport, ...]


def topology_devices(topology: str, num_slices: int = 1) -> tuple[Chip, list[Any]]:
    """The chip, and devices to compile for; they hold nothing and compute nothing.

    Raises:
      ValueError: there is no such topology, or num_slices is below 1.
      ImportError: libtpu is not installed.
    """
    chip, sides = parse_topology(topology)
    if num_slices < 1:
        raise ValueError(f"expected 1 slice or more, found num_slices = {num_slices}")
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(f"compiling for TPUs takes libtpu, which is not installed; {INSTALL}")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        devices = topologies.get_topology_desc(
            topology, "tpu", num_slices=num_slices, **chip.options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"libtpu has no topology {topology}, only such as {chip.example}: {error}"
        ) from error
    number = chip.devices(sides, num_slices)
    if len(devices) != number:
        raise ValueError(f"{topology}: expected {number} devices, found {len(devices)}")
    return chip, devices


def precompile(
    *,
    topology: str,
    model: ModelConfig,
    objectives: Sequence[Objective],
    phases: Sequence[Phase],
    rows: Sequence[Mapping[str, int]],
    optimizer: Optimizer = AdamW(),  # noqa: B008
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    schedule: Schedule = Constant(1.0),  # noqa: B008
    loss_weights: Mapping[str, float] | None = None,
    trainable: Trainable | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    seed: int = 0,
    num_slices: int = 1,
) -> Report:
    """Compiles the step of every phase for a topology. Allocates nothing on it.

    Args:
      topology: `v5e:4x4`; of each of `num_slices` slices, which the data-centre network joins.
      model, …, seed: as `train` takes them.
      rows: of each phase, the rows of each objective in a batch.

    Raises:
      ValueError: there is no such topology, or parameters, rows or the mesh do not divide over it.
      ImportError: libtpu is not installed.
    """
    chip, devices = topology_devices(topology, num_slices)
    device_mesh = make_mesh(mesh, devices)
    for numbers in rows:
        check_rows(numbers, device_mesh.shape, accumulate)
    network, split = freeze(CodeT5p(frozen_towers(model, trainable)), trainable)
    used = select_objectives(objectives, list(dict.fromkeys(n for r in rows for n in r)))
    learning_rate = schedule.make(total_steps(phases))
    rule = optimizer.make(learning_rate, split(network.specs)[0])
    state = abstract_state(network, used, rule, device_mesh, split=split, ema=ema_decay is not None)
    step = RunStep(
        mesh=device_mesh,
        state=state,
        network=network,
        objectives=used,
        loss_weights=loss_weights or {},
        optimizer=rule,
        learning_rate=learning_rate,
        seed=seed,
        accumulate=accumulate,
        ema_decay=ema_decay,
    )
    reports = []
    for phase, numbers in zip(phases, rows, strict=True):
        batch = abstract_batch(used, numbers, device_mesh)
        wanted = sum(step_flops(network, used, numbers, split, accumulate).values()) / len(devices)
        compiled, seconds = compile_for(functools.partial(step.lower, numbers), device_mesh)
        parts = {part: getattr(state, part) for part in PARTS}
        held = sum(_local_bytes(part) for part in parts.values())
        changes = _advice(held, chip, device_mesh.shape, num_slices, numbers, accumulate, model)
        memory, speed, advice = measure(compiled, chip, parts, batch, wanted, advice=changes)
        reports.append(
            PhaseReport(
                phase.mixture, dict(numbers), seconds, speed is not None, memory, advice, speed
            )
        )
    return report_of(topology, num_slices, chip, device_mesh, network, split, reports)


def report_of(
    topology: str,
    num_slices: int,
    chip: Chip,
    mesh: Mesh,
    network: CodeT5p,
    split: Split,
    phases: Sequence[PhaseReport],
) -> Report:
    """What was compiled of a network on a topology."""
    return Report(
        topology=topology,
        num_slices=num_slices,
        chip=chip,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        libtpu=importlib.metadata.version("libtpu"),
        parameters=count(network.specs),
        trainable_parameters=count(split(network.specs)[0]),
        phases=tuple(phases),
    )


def compile_for(lower: Callable[[], jax.stages.Lowered], mesh: Mesh) -> tuple[Any, float]:
    """The compiled program, or what the compiler says where it has no room for it; and the time.

    Raises:
      ValueError: the compiler fails for another reason.
    """
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = lower()
        try:
            compiled = lowered.compile(compiler_options(mesh))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise ValueError(f"the compiler failed: {_shortened(str(error))}") from error
            compiled = str(error)
    return compiled, time.perf_counter() - began


def measure(
    compiled: Any,
    chip: Chip,
    parts: Mapping[str, Any],
    batch: Any,
    model_flops: float,
    *,
    advice: tuple[str, ...],
    trips: int | None = None,
) -> tuple[Memory, Speed | None, tuple[str, ...]]:
    """Memory, speed and what to change of a program of `compile_for`.

    Args:
      compiled: what that returned.
      chip: that it was compiled for.
      parts: of the state, by name; arrays with shardings.
      batch: likewise.
      model_flops: of one device.
      advice: what to change where it does not fit.
      trips: of a loop that ends by what it computes.
    """
    sizes = {name: size for name, part in parts.items() if (size := _local_bytes(part))}
    memory = Memory(sizes, _local_bytes(batch))
    if isinstance(compiled, str):
        return _refused(memory, compiled), None, advice
    accessed = compiled.cost_analysis()["bytes accessed"]
    speed = _speed(chip, compiled.as_text(), model_flops, accessed, trips)
    return _laid_out(memory, compiled.memory_analysis()), speed, ()


def _local_bytes(tree: Any) -> int:
    """Bytes that one device holds of arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _laid_out(memory: Memory, found: Any) -> Memory:
    """With what a compiled program takes besides."""
    arguments, program = found.argument_size_in_bytes, found.generated_code_size_in_bytes
    peak = peak_bytes(found, "tpu")
    temporaries = peak - arguments - program
    return Memory(memory.state, memory.batch, arguments, temporaries, program, peak)


def _refused(memory: Memory, message: str) -> Memory:
    """What the compiler says of a program that it has no room for.

    Raises:
      ValueError: it says nothing of what it needs, so that this is something else.
    """
    size = r"([\d.]+)([KMGT])"
    # Its "temporaries" are with arguments: programs are refused that need as much in all.
    found = re.search(
        rf"for HLO temporaries \({size}\) exceeds available HBM \({size}\)", message
    ) or re.search(rf"Used {size} of {size} hbm", message)
    if found is None:
        kernels = "memory space vmem" in message
        hint = "; kernels of attention take that much: set ATTENTION = 'xla'" if kernels else ""
        raise ValueError(f"the compiler ran out of something: {_shortened(message)}{hint}")
    needed, available = _bytes(*found.groups()[:2]), _bytes(*found.groups()[2:])
    return Memory(memory.state, memory.batch, peak=needed, available=available)


def _shortened(message: str) -> str:
    """The start of what the compiler says, which may be pages."""
    words = " ".join(message.split())
    return words if len(words) <= 400 else f"{words[:400]} …"


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * GIB * 1024.0 ** ("KMGT".index(unit) - 2))


def _advice(
    held: int,
    chip: Chip,
    shape: Mapping[str, int],
    num_slices: int,
    rows: Mapping[str, int],
    accumulate: int,
    model: ModelConfig,
) -> tuple[str, ...]:
    """What to change so that a step fits, of whose state a chip holds `held` bytes.

    A copy of the state for each slice stays: between slices, parameters would take too long.
    """
    per_chip = max(rows.values()) // (shape["replica"] * shape["fsdp"] * accumulate)
    mesh_change = f"mesh: more chips, or tensor (meshes/fsdp_tensor.gin) above {shape['tensor']}"
    copies = max(1, shape["replica"] // num_slices) * shape["sequence"]
    if copies > 1:
        chips = "all chips of a slice" if num_slices > 1 else "all chips"
        file = "multi_slice" if num_slices > 1 else "fsdp"
        mesh_change = f"mesh: split the state over {chips} (meshes/{file}.gin), not {copies} copies"
    changes = []
    if per_chip > 1:
        changes.append(
            f"batch: accumulate (ACCUMULATE) above {accumulate}, where a contrastive row sees its "
            f"micro-batch alone, or a smaller BATCH_SIZE; a chip computes {per_chip:,} rows at a "
            "time"
        )
    if model.remat != "full":
        changes.append(f"remat: REMAT = 'full' instead of {model.remat!r}")
    changes.insert(0 if held > chip.hbm_bytes / 2 else len(changes), mesh_change)
    return tuple(changes)


def _speed(
    chip: Chip, text: str, model_flops: float, accessed: float, trips: int | None = None
) -> Speed:
    """The floors of a program's time.

    Args:
      chip: with the published peaks.
      text: of the compiled program.
      model_flops: of one chip.
      accessed: bytes that XLA counts.
      trips: of a loop that ends by what it computes.
    """
    work = read_work(text, trips)
    # A product with a single column is no product in a compiled program, but work all the same.
    compute = max(work.dot_flops, model_flops) / chip.flops
    hbm = chip.hbm_bandwidth and work.hbm_bytes / chip.hbm_bandwidth
    # What comes in is one of the two directions.
    ici = chip.ici_bandwidth and _bytes_of(work.collectives) / (chip.ici_bandwidth / 2)
    dcn = chip.dcn_bandwidth and _bytes_of(work.between_slices) / chip.dcn_bandwidth
    longest = max(x for x in (compute, hbm, ici, dcn) if x is not None)
    return Speed(
        dot_flops=work.dot_flops,
        model_flops=model_flops,
        hbm_bytes=work.hbm_bytes,
        xla_bytes=accessed,
        collectives=work.collectives,
        between_slices=work.between_slices,
        compute_seconds=compute,
        hbm_seconds=hbm,
        ici_seconds=ici,
        dcn_seconds=dcn,
        step_seconds=longest,
        mfu=model_flops / (longest * chip.flops),
    )


def _bytes_of(collectives: Mapping[str, Traffic]) -> int:
    return sum(kind.num_bytes for kind in collectives.values())
