"""What can be wrong with a run's configuration, found before data is touched."""

import difflib
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from codet5p_jax.data.cache import CachedMixture
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.params import abstract_params, flatten
from codet5p_jax.objectives.base import Objective
from codet5p_jax.objectives.seq2seq import Seq2Seq
from codet5p_jax.sharding import AXES, MeshConfig, ways
from codet5p_jax.training.checkpoint_files import saved_steps
from codet5p_jax.training.checkpoints import CheckpointPolicy, InitFrom, check_resumable
from codet5p_jax.training.conversion import check_exportable
from codet5p_jax.training.early_stopping import EarlyStopping, check_metric, metric_names
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.freezing import Trainable, freeze, frozen_towers
from codet5p_jax.training.init_from import plan_init
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.optimizers import AdamW, Optimizer
from codet5p_jax.training.phases import Phase, total_steps
from codet5p_jax.training.schedules import Schedule


def check_configuration(
    *,
    model: ModelConfig,
    objectives: Sequence[Objective],
    phases: Sequence[Phase],
    schedule: Schedule,
    optimizer: Optimizer = AdamW(),  # noqa: B008
    loss_weights: Mapping[str, float] | None = None,
    init_from: InitFrom | None = None,
    model_dir: str | Path | None = None,
    trainable: Trainable | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    max_nonfinite: int = 20,
    checkpoints: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    early_stopping: EarlyStopping | None = None,
    num_workers: int = 0,
    export_to: str | Path | None = None,
    export_arch: str | None = None,
    profile_steps: tuple[int, int] | None = None,
    data_timeout: float | None = None,
) -> None:
    """Checks all that needs neither data nor devices. Of weights it reads names and shapes.

    Args:
      model, …, data_timeout: as `train` takes them.
      init_from: looked at unless `model_dir` has a checkpoint to resume.

    Raises:
      ValueError: a number is out of its range, a name or pattern means nothing, an objective needs
        a head that the model lacks, weights do not fit the model, or `model_dir` has weights alone
        where there should be a checkpoint.
      FileNotFoundError: there are no weights where `init_from` says.
      OSError: they are damaged.
    """
    _check_numbers(accumulate, ema_decay, max_nonfinite, num_workers)
    _check_profile(profile_steps, total_steps(phases))
    if data_timeout is not None and not data_timeout > 0:
        raise ValueError(f"data_timeout has to be more than 0 s, or None; found {data_timeout}")
    check_loss_weights(loss_weights or {}, objectives)
    for objective in objectives:
        if isinstance(objective, Seq2Seq):
            _check_prompts(objective, model)
    network, split = freeze(CodeT5p(frozen_towers(model, trainable)), trainable)
    params = abstract_params(network.specs)
    for objective in objectives:  # whether the network has the heads that it needs
        jax.eval_shape(functools.partial(objective.init_state, network), params)
    if early_stopping is not None:
        _check_early_stopping(early_stopping, evaluation, objectives, network)
    optimizer.make(schedule.make(total_steps(phases)), split(network.specs)[0])
    if export_to is not None:
        check_exportable(model, export_arch)
    if model_dir is not None:
        check_resumable(Path(model_dir), checkpoints)
    resumed = model_dir is not None and saved_steps(ModelDir(Path(model_dir)).checkpoints)
    if init_from is not None and not resumed:
        try:
            plan_init(init_from, network.specs, model=network.config)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"init_from: {error}; set InitFrom.path (INITIAL_CHECKPOINT_PATH) to a model "
                "directory, a checkpoint in it, or hf: and a Hugging Face folder"
            ) from error


def check_mesh(
    *,
    model: ModelConfig,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    trainable: Trainable | None = None,
) -> None:
    """Checks what needs the number of devices, but no data.

    Args:
      model, mesh, trainable: as `train` takes them.

    Raises:
      ValueError: the mesh does not fill the devices, or parameters do not divide over it.
    """
    network, _ = freeze(CodeT5p(frozen_towers(model, trainable)), trainable)
    sizes: dict[str, int] = dict(zip(AXES, mesh.shape(jax.device_count()), strict=True))
    for name, spec in flatten(network.specs):
        ways(name, spec.shape, spec.axes, sizes)


def check_vocabulary(
    model: ModelConfig, mixture: CachedMixture, encoder_tokenizer: Path | None
) -> None:
    """Every id of the data has to be a row of the embedding that reads it.

    Args:
      model: the network.
      mixture: of the data.
      encoder_tokenizer: folder of a tokenizer of the encoder's own; None: it has none.

    Raises:
      ValueError: there are fewer rows.
    """
    if mixture.vocab_size > model.vocab_size:
        raise ValueError(
            f"the tokenizer of {mixture.name} has {mixture.vocab_size} ids, the embedding "
            f"{model.vocab_size} rows; set vocab_size of the model to at least the former"
        )
    rows, ids = model.encoder_vocab_size, mixture.vocab_size
    if encoder_tokenizer is not None:
        from codet5p_jax.data.tokenizer import Tokenizer  # most runs need no tokenizer

        ids = Tokenizer.load(encoder_tokenizer).vocab_size
        if rows is None:
            raise ValueError(
                f"the encoder has a tokenizer of its own, {encoder_tokenizer}, but no embedding of "
                "its own; set encoder_vocab_size of the model"
            )
    if rows is not None and ids > rows:
        raise ValueError(
            f"the tokenizer of the encoder has {ids} ids, its embedding {rows} rows; set "
            "encoder_vocab_size of the model to at least the former"
        )


def _check_prompts(objective: Seq2Seq, model: ModelConfig) -> None:
    """Prompts have to go where generation will put them."""
    asked, given = model.prompt_to_decoder, objective.prompt_to_decoder
    if asked != given:
        raise ValueError(
            f"the model has prompt_to_decoder = {asked}, the objective {objective.name} {given}; "
            "set both to one value (Seq2Seq.prompt_to_decoder, ModelConfig.prompt_to_decoder)"
        )


def check_loss_weights(loss_weights: Mapping[str, float], objectives: Sequence[Objective]) -> None:
    """Every name has to be the name of a loss, every weight 0 or more.

    Raises:
      ValueError: one is not; names the nearest.
    """
    losses = [name for o in objectives for name in o.losses]
    for name, weight in loss_weights.items():
        if name not in losses:
            near = difflib.get_close_matches(name, losses, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"loss_weights: there is no loss {name!r} among {losses}{hint}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"loss_weights: {name!r} has to have 0 or more, found {weight}")


def _check_early_stopping(
    early_stopping: EarlyStopping,
    evaluation: Evaluation,
    objectives: Sequence[Objective],
    network: CodeT5p,
) -> None:
    if evaluation.every is None:
        raise ValueError(
            "early_stopping compares evaluations, and evaluation.every is None: there are none; "
            "set Evaluation.every to a number of steps, or early_stopping to None"
        )
    if early_stopping.metric not in evaluation.metrics:
        names = [*evaluation.metrics, *metric_names(objectives, network)]
        check_metric(early_stopping.metric, names)


def _check_profile(steps: tuple[int, int] | None, total: int) -> None:
    if steps is not None and not 0 <= steps[0] < min(steps[1], total):
        raise ValueError(
            f"profile_steps (--profile_steps=FIRST:END) has to be steps done before and at the end "
            f"of the trace, such as 10:15, and of a run of {total} steps begin before the last; "
            f"found {steps[0]}:{steps[1]}"
        )


def _check_numbers(
    accumulate: int, ema_decay: float | None, max_nonfinite: int, num_workers: int
) -> None:
    if accumulate < 1:
        raise ValueError(f"accumulate has to be 1 or more micro-batches, found {accumulate}")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay has to be at least 0 and below 1, found {ema_decay}")
    if max_nonfinite < 1:
        raise ValueError(
            f"max_nonfinite has to be 1 or more steps in a row, found {max_nonfinite}; 1 ends the "
            "run at the first step that is not finite"
        )
    if num_workers < 0:
        raise ValueError(
            f"num_workers has to be 0 (a thread) or more processes, found {num_workers}"
        )
