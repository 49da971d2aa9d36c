"""What can be said of the settings of a run before its data is touched."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.objectives.base import Objective
from codet5p_jax.training.checkpoints import InitFrom, saved_steps
from codet5p_jax.training.conversion import check_exportable
from codet5p_jax.training.freezing import Trainable, freeze, with_lora
from codet5p_jax.training.init_from import plan_init
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.optimizers import Optimizer
from codet5p_jax.training.phases import Phase, check_loss_weights, total_steps
from codet5p_jax.training.schedules import Schedule


def check_numbers(
    *, accumulate: int, ema_decay: float | None, max_nonfinite: int, num_workers: int
) -> None:
    """Numbers of a run that have a range.

    Raises:
      ValueError: one is outside.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate has to be 1 or more micro-batches, found {accumulate}")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay has to be at least 0 and below 1, found {ema_decay}")
    if max_nonfinite < 1:
        raise ValueError(f"max_nonfinite has to be 1 or more steps, found {max_nonfinite}")
    if num_workers < 0:
        raise ValueError(f"num_workers has to be 0 or more processes, found {num_workers}")


def check_run(
    *,
    model: ModelConfig,
    objectives: Sequence[Objective],
    phases: Sequence[Phase],
    model_dir: str | Path,
    optimizer: Optimizer,
    schedule: Schedule,
    trainable: Trainable | None,
    init_from: InitFrom | None,
    loss_weights: Mapping[str, float] | None,
    accumulate: int,
    ema_decay: float | None,
    max_nonfinite: int,
    num_workers: int,
    export_to: str | Path | None,
    export_arch: str | None,
) -> None:
    """Fails where `train`, which takes the same arguments, would fail after reading its data.

    Raises:
      ValueError: settings that are out of range or do not fit each other.
      OSError: there are no weights to start from.
    """
    check_numbers(
        accumulate=accumulate,
        ema_decay=ema_decay,
        max_nonfinite=max_nonfinite,
        num_workers=num_workers,
    )
    check_loss_weights(loss_weights or {}, objectives)
    network, split = freeze(CodeT5p(with_lora(model, trainable)), trainable)
    optimizer.make(schedule.make(total_steps(phases)), split(network.specs)[0])
    if export_to is not None:
        check_exportable(model, export_arch)
    if init_from is not None and not saved_steps(ModelDir(Path(model_dir)).checkpoints):
        plan_init(init_from, network.specs)
