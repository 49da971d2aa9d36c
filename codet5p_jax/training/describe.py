"""What a run would be: parameters, work, memory and shardings, without allocating any of it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import Params, ParamSpec, abstract_params, count, flatten, path_name
from codet5p_jax.objectives.base import Objective
from codet5p_jax.sharding import AXES, MeshConfig, partition_spec, ways
from codet5p_jax.training.checkpoints import BEST, CheckpointPolicy, snapshot_bytes, state_bytes
from codet5p_jax.training.checks import check_configuration
from codet5p_jax.training.early_stopping import EarlyStopping
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.flops import step_flops
from codet5p_jax.training.freezing import (
    Split,
    Trainable,
    freeze,
    frozen_towers,
    merge,
    parts_table,
)
from codet5p_jax.training.model_dir import size_text
from codet5p_jax.training.optimizers import AdamW, Optimizer
from codet5p_jax.training.phases import Phase, check_rows, select_objectives, total_steps
from codet5p_jax.training.schedules import Constant, Schedule
from codet5p_jax.training.state import TrainState, new_state, param_of


def describe(
    *,
    model: ModelConfig,
    objectives: Sequence[Objective],
    phases: Sequence[Phase],
    rows: Sequence[Mapping[str, int]],
    optimizer: Optimizer = AdamW(),  # noqa: B008
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    num_devices: int | None = None,
    trainable: Trainable | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    checkpoints: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    early_stopping: EarlyStopping | None = None,
    schedule: Schedule = Constant(1.0),  # noqa: B008
    loss_weights: Mapping[str, float] | None = None,
) -> str:
    """A report on a run; needs neither its data nor its devices.

    Args:
      model, objectives, phases, optimizer, mesh, trainable, accumulate, ema_decay, checkpoints,
        evaluation, early_stopping: as `train` takes them.
      schedule, loss_weights: likewise; only checked.
      rows: of each phase, the rows of each objective in a batch (`data.position.divide_rows` of the
        mixture's rates).
      num_devices: of the machine that is meant; None: those of this one.

    Raises:
      ValueError: parameters or rows do not divide over the mesh, or a setting is one that training
        refuses.
    """
    if num_devices is None:
        num_devices = jax.device_count()
    if num_devices < 1:
        raise ValueError(f"num_devices has to be 1 or more, found {num_devices}")
    check_configuration(
        model=model,
        objectives=objectives,
        phases=phases,
        schedule=schedule,
        optimizer=optimizer,
        loss_weights=loss_weights,
        trainable=trainable,
        accumulate=accumulate,
        ema_decay=ema_decay,
        evaluation=evaluation,
        early_stopping=early_stopping,
    )
    sizes: dict[str, int] = dict(zip(AXES, mesh.shape(num_devices), strict=True))
    network, split = freeze(CodeT5p(frozen_towers(model, trainable)), trainable)
    lines = [*_parameter_table(network.specs, sizes), ""]
    if split.frozen:
        lines += [*parts_table(network.specs, split), ""]
    lines.append(
        f"mesh: {' x '.join(f'{a} {n}' for a, n in sizes.items())} = {num_devices} devices"
    )
    used = select_objectives(objectives, list(dict.fromkeys(n for r in rows for n in r)))
    rule = optimizer.make(Constant(1.0).make(1), split(network.specs)[0])
    ema = ema_decay is not None
    state = jax.eval_shape(
        lambda key: new_state(network, used, rule, key, split=split, ema=ema), jax.random.key(0)
    )
    lines += _state_memory(network, state, sizes)
    left_out = trainable is not None and not trainable.save_frozen
    saved = dataclasses.replace(state, frozen={}) if left_out else state
    best = early_stopping is not None
    lines.append(_disk(saved, checkpoints, total_steps(phases), best))
    for phase, numbers in zip(phases, rows, strict=True):
        lines += ["", *_phase(network, split, used, phase, numbers, sizes, accumulate)]
    lines.append("")
    lines.append(f"{total_steps(phases):,} steps in all")
    return "\n".join(lines)


def _parameter_table(specs: Params, sizes: Mapping[str, int]) -> list[str]:
    cells = [("parameter", "shape", "mesh axes", "number")]
    for name, spec in flatten(specs):
        axes = partition_spec(spec.axes, name=name)
        ways(name, spec.shape, spec.axes, sizes)
        placed = ", ".join("-" if a is None else str(a) for a in axes)
        cells.append((name, str(list(spec.shape)), f"[{placed}]", f"{math.prod(spec.shape):,}"))
    cells.append(("total", "", "", f"{count(specs):,}"))
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in cells
    ]


def _disk(state: TrainState, policy: CheckpointPolicy, steps: int, best: bool) -> str:
    size = state_bytes(state)
    most, parts = size * policy.most(steps), [f"a checkpoint of {size_text(size)}"]
    if best:
        small = snapshot_bytes(state, BEST)
        most += 2 * small
        parts.append(f"the best weights of {size_text(small)}")
    if policy.snapshots:
        small = snapshot_bytes(state, policy.snapshots)
        most += small * policy.snapshots.most(steps)
        parts.append(f"a snapshot of {size_text(small)}")
    return f"on disk: {', '.join(parts)}; at most {size_text(most)} in all"


def _state_memory(network: CodeT5p, state: TrainState, sizes: Mapping[str, int]) -> list[str]:
    specs = network.specs
    by_name: dict[str, ParamSpec] = dict(flatten(specs))
    whole: dict[str, float] = {}
    local: dict[str, float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, part = path_name(path), path_name(path[:1])
        size = leaf.size * leaf.dtype.itemsize
        param = param_of(name, leaf.shape, specs)
        share = 1
        if param is not None:
            share = ways(param, by_name[param].shape, by_name[param].axes, sizes)
        whole[part] = whole.get(part, 0) + size
        local[part] = local.get(part, 0) + size / share
    whole["gradients"], local["gradients"] = whole["params"], local["params"]
    lines = ["state                  all devices   one device"]
    for part in ("params", "frozen", "gradients", "opt_state", "objective_state", "ema"):
        if part in whole:
            lines.append(f"  {part:<18} {size_text(whole[part]):>13} {size_text(local[part]):>12}")
    total, one = sum(whole.values()), sum(local.values())
    return [*lines, f"  {'total':<18} {size_text(total):>13} {size_text(one):>12}"]


def _phase(
    network: CodeT5p,
    split: Split,
    used: Sequence[Objective],
    phase: Phase,
    rows: Mapping[str, int],
    sizes: Mapping[str, int],
    accumulate: int,
) -> list[str]:
    lines = [f"phase {phase.mixture}: {phase.steps:,} steps of {phase.batch_size:,} rows"]
    check_rows(rows, sizes, accumulate)
    parts = sizes["replica"] * sizes["fsdp"] * accumulate
    work = step_flops(network, used, rows, split, accumulate)
    positions = 0
    for objective in select_objectives(used, list(rows)):
        number = rows[objective.name]
        length = sum(
            math.prod(x.shape) for k, x in objective.spec.items() if k.endswith("segments")
        )
        positions += number * length
        kept = activation_bytes(network, objective, number // parts, split)
        lines.append(
            f"  {objective.name:<18} {number:>6,} rows x {length:>5,} positions, "
            f"{work[objective.name] / 1e12:>9.3f} TFLOP, activations kept on one device "
            f"{size_text(kept)}"
        )
    lines.append(
        f"  a step: {positions:,} positions, {sum(work.values()) / 1e12:.3f} TFLOP; "
        f"the phase: {positions * phase.steps / 1e9:.2f} G positions, "
        f"{sum(work.values()) * phase.steps:.3g} FLOP"
    )
    return lines


def activation_bytes(
    network: CodeT5p,
    objective: Objective,
    rows: int,
    split: Split = Split(),  # noqa: B008
) -> int:
    """Bytes that the forward pass of `rows` rows keeps for the backward pass.

    What automatic differentiation keeps under the model's remat policy; a compiler may keep less,
    and needs some working memory besides. Nothing is computed.
    """
    params, frozen = split(abstract_params(network.specs))
    batch = {k: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for k, x in objective.spec.items()}

    def residuals(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        state = objective.init_state(network, merge(params, frozen))

        def loss(params: Any) -> Any:
            bound = network.bind(merge(params, frozen))
            losses, _ = objective.loss(bound, batch, state, key, True)
            return sum(x.sum for x in losses.values())

        return jax.vjp(loss, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, params, frozen, batch, jax.random.key(0)))
    mine = {(x.shape, x.dtype) for x in jax.tree.leaves((params, frozen))}
    return sum(
        x.size * np.dtype(x.dtype).itemsize
        for x in kept
        if not jnp.issubdtype(x.dtype, jax.dtypes.extended) and (x.shape, x.dtype) not in mine
    )
