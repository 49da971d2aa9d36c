"""The training script, in the order in which things happen."""

import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from codet5p_jax.data.cache import open_mixture
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.int8 import scales_of
from codet5p_jax.models.params import count, flatten, nested
from codet5p_jax.objectives.base import Objective
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.batches import data_identity, open_loaders, place, train_batches
from codet5p_jax.training.checkpoint_files import ELSEWHERE, saved_steps
from codet5p_jax.training.checkpoints import (
    BEST,
    CheckpointPolicy,
    Checkpoints,
    InitFrom,
    newest_meta,
    restore_latest,
    snapshot_bytes,
    state_bytes,
    without,
)
from codet5p_jax.training.checks import (
    check_configuration,
    check_loss_weights,
    check_vocabulary,
)
from codet5p_jax.training.compiling import CompiledSteps, RunStep
from codet5p_jax.training.conversion import check_one_process, export_weights
from codet5p_jax.training.early_stopping import EarlyStopping, Evaluated, evaluations_of
from codet5p_jax.training.evaluate import Evaluation, Evaluator
from codet5p_jax.training.flops import peak_flops, step_flops
from codet5p_jax.training.freezing import Trainable, freeze, frozen_towers, parts_table
from codet5p_jax.training.goodput import Goodput, latest_seconds
from codet5p_jax.training.hosts import Deadline, check_joined, check_shared, same
from codet5p_jax.training.init_from import (
    folder_of,
    frozen_as_drawn,
    left_out,
    load_init,
    plan_init,
    repointed,
    token_ids,
)
from codet5p_jax.training.memory import memory_line
from codet5p_jax.training.metrics import first_and_last, metrics_at, open_writers, read_records
from codet5p_jax.training.model_dir import (
    ModelDir,
    claim,
    config_to_json,
    encoder_tokenizer,
    locked,
    require_space,
    size_text,
)
from codet5p_jax.training.optimizers import AdamW, Optimizer
from codet5p_jax.training.phases import (
    Phase,
    check_rows,
    identity_defaults,
    locate,
    run_identity,
    select_objectives,
    total_steps,
)
from codet5p_jax.training.profiling import Profiler
from codet5p_jax.training.progress import Progress, default_progress
from codet5p_jax.training.recorder import Recorder
from codet5p_jax.training.schedules import Schedule
from codet5p_jax.training.startup import Laps, seconds_before
from codet5p_jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    require_progress,
)
from codet5p_jax.training.stored_weights import (
    describe_elsewhere,
    read_elsewhere,
)
from codet5p_jax.training.termination import heard, termination


@dataclass(frozen=True)
class Logging:
    """Where metrics go besides `metrics.jsonl`, and how often.

    Attributes:
      every: steps that a record sums up, 1 or more.
      tensorboard: whether to write MODEL_DIR/tensorboard.
      wandb_project: W&B project; None: no W&B.
    """

    every: int = 50
    tensorboard: bool = True
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every has to be 1 or more steps, found {self.every}")


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
      step: steps done.
      interrupted: whether SIGTERM ended it; started again, it goes on.
      before, after: held-out metrics by name (`span_denoising/loss`, …) of the first and the
        latest evaluation; empty without evaluation.
      best: those of the best evaluation; empty without `early_stopping`.
      best_step: where that was, and the name of its folder in MODEL_DIR/best.
      metrics: path of `metrics.jsonl`.
      terminated: whether SIGTERM came, be it after the last step.
    """

    step: int
    interrupted: bool
    before: dict[str, float]
    after: dict[str, float]
    best: dict[str, float]
    best_step: int | None
    metrics: Path
    terminated: bool = False


def train(
    *,
    model: ModelConfig,
    objectives: Sequence[Objective],
    phases: Sequence[Phase],
    cache_dir: str | Path,
    model_dir: str | Path,
    schedule: Schedule,
    optimizer: Optimizer = AdamW(),  # noqa: B008
    loss_weights: Mapping[str, float] | None = None,
    init_from: InitFrom | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    seed: int = 0,
    trainable: Trainable | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    max_nonfinite: int = 20,
    checkpoints: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    early_stopping: EarlyStopping | None = None,
    logging: Logging = Logging(),
    num_workers: int = 0,
    data_timeout: float | None = 600.0,
    export_to: str | Path | None = None,
    export_arch: str | None = None,
    profile_steps: tuple[int, int] | None = None,
    operative_config: str = "",
    progress: Progress | None = None,
) -> TrainResult:
    """Trains, or goes on training where MODEL_DIR left off.

    Killed at any moment and started again with the same arguments on the same number of devices, a
    run ends with the same bits as one that was not. SIGTERM saves and returns.

    Args:
      model: the network.
      objectives: at least those that the mixtures name.
      phases: one after the other, under one schedule.
      cache_dir: of the token cache.
      model_dir: see `model_dir.py`; made if missing.
      schedule: of the learning rate over the steps of all phases.
      optimizer: the update rule.
      loss_weights: by loss name; 1 for those not named.
      init_from: weights to start from; of no effect once there is a checkpoint to resume.
      mesh: sizes of the mesh axes.
      seed: of initial values, dropout, order and noise.
      trainable: which parameters train, and the dtype of the others; None: all train.
      accumulate: micro-batches per step.
      ema_decay: of a moving average of the weights, which is then what is evaluated and loaded.
      max_nonfinite: so many steps in a row whose loss or gradients are not finite end the run,
        1 or more; fewer are skipped.
      checkpoints: when to save and what to keep.
      evaluation: how often, on how much.
      early_stopping: which evaluation is the best, whose weights are kept and, if there is an
        `export_to`, exported; and whether the run may end for want of a better one.
      logging: how often, where to.
      num_workers: processes that make batches; 0: a thread.
      data_timeout: seconds that a step, or an evaluation, may wait for a batch before all processes
        exit with a line; None: for ever.
      export_to: a Hugging Face folder that the finished run is written to, unless it exists.
      export_arch: its architecture, as `codet5p convert export --arch`; None: with every part.
      profile_steps: (first, end): a trace of the steps after the first, up to the end, goes to
        MODEL_DIR/profile. On SIGUSR1, so does one of the next few steps.
      operative_config: text kept beside the checkpoints.
      progress: what to show; None: a live line in a terminal, plain lines otherwise.

    Raises:
      ValueError, OSError: settings that do not fit each other, the data or MODEL_DIR, before
        anything expensive happens; a checkpoint that cannot be written.
      FloatingPointError: `max_nonfinite` was reached, or no step at all was finite.
    """
    check_configuration(
        model=model,
        objectives=objectives,
        phases=phases,
        schedule=schedule,
        optimizer=optimizer,
        loss_weights=loss_weights,
        init_from=init_from,
        model_dir=model_dir,
        trainable=trainable,
        accumulate=accumulate,
        ema_decay=ema_decay,
        max_nonfinite=max_nonfinite,
        checkpoints=checkpoints,
        evaluation=evaluation,
        early_stopping=early_stopping,
        num_workers=num_workers,
        export_to=export_to,
        export_arch=export_arch,
        profile_steps=profile_steps,
        data_timeout=data_timeout,
    )
    if export_to is not None:
        check_one_process()
    model = frozen_towers(model, trainable)
    with ExitStack() as stack:
        main = jax.process_index() == 0
        progress = progress or default_progress(main)
        before = seconds_before()
        laps, goodput = Laps(before), Goodput(before)
        terminated = stack.enter_context(termination())
        profile_asked = stack.enter_context(heard(signal.SIGUSR1))

        # ------------------------------------------------------------ devices and mesh
        check_joined()
        device_mesh = make_mesh(mesh)
        stack.enter_context(jax.set_mesh(device_mesh))
        devices = jax.devices()
        progress.say(
            f"{len(devices)} x {devices[0].device_kind} in {jax.process_count()} process(es), mesh "
            + " x ".join(f"{name} {size}" for name, size in device_mesh.shape.items())
        )
        laps.end("devices")

        # ------------------------------------------------------------ data
        directory = ModelDir(Path(model_dir))
        saved = saved_steps(directory.checkpoints)
        mixture = open_mixture(cache_dir, phases[-1].mixture, "train")
        weights = folder_of(init_from) if init_from and not saved else None
        own_tokenizer = encoder_tokenizer(directory, weights, mixture.tokenizer)
        loaders = open_loaders(
            phases,
            objectives,
            cache_dir,
            "train",
            seed,
            device_mesh,
            num_workers=num_workers,
            encoder_tokenizer=own_tokenizer,
        )
        used = select_objectives(
            objectives, list(dict.fromkeys(n for x in loaders for n in x.rows))
        )
        for phase, loader in zip(phases, loaders, strict=True):
            check_rows(loader.rows, device_mesh.shape, accumulate)
            rows = ", ".join(f"{name} {number}" for name, number in loader.rows.items())
            progress.say(f"phase {phase.mixture}: {phase.steps:,} steps; rows per batch: {rows}")
        check_loss_weights(loss_weights or {}, used)
        check_vocabulary(model, mixture, own_tokenizer)
        if own_tokenizer is not None:
            progress.say(f"the encoder reads ids of its own tokenizer, {own_tokenizer}")
        laps.end("data")

        # ------------------------------------------------------------ model and optimizer
        network, split = freeze(CodeT5p(model), trainable)
        if split.frozen:
            progress.say("\n".join(parts_table(network.specs, split)))
        total = total_steps(phases)
        learning_rate = schedule.make(total)
        update_rule = optimizer.make(learning_rate, split(network.specs)[0])
        keeps_average = ema_decay is not None
        abstract = abstract_state(
            network, used, update_rule, device_mesh, split=split, ema=keeps_average
        )
        deadline = Deadline(data_timeout)
        stack.callback(deadline.close)
        late = (
            f"within {data_timeout} s (data_timeout): the files of CACHE_DIR {cache_dir} do not "
            "come"
        )
        evaluator = None
        if evaluation.every is not None:
            evaluator = Evaluator(
                evaluation,
                network,
                phases,
                objectives,
                cache_dir,
                seed,
                device_mesh,
                own_tokenizer,
                waiting=lambda: deadline.of(f"no batch of an evaluation {late}"),
            )
        plan = None
        if init_from and not saved:
            plan = plan_init(init_from, network.specs, mixture.tokenizer, model)
        if plan and (drawn := frozen_as_drawn(plan, split.frozen - scales_of(network.specs))):
            progress.say(
                f"WARNING: frozen at initial values: {', '.join(drawn)}; add them to "
                "Trainable.patterns to train them"
            )
        elsewhere: dict[str, Any] = newest_meta(directory).get(ELSEWHERE, {})
        outside = frozenset(elsewhere)
        if trainable is not None and not trainable.save_frozen and not saved:
            outside = left_out(plan, split.frozen - scales_of(network.specs))
        as_saved = functools.partial(without, names=outside)
        if outside and (inside := state_bytes(as_saved(abstract).frozen)):
            progress.say(f"checkpoints hold {size_text(inside)} of what is frozen: not all stays")
        size, snapshots = state_bytes(as_saved(abstract)), checkpoints.snapshots
        small, number, best_size = 0, 0, 0
        if early_stopping is not None:
            best_size = snapshot_bytes(as_saved(abstract), BEST)
        if snapshots is not None:
            small = snapshot_bytes(as_saved(abstract), snapshots)
            written = saved_steps(directory.snapshots)
            number = max(snapshots.most(total) - len(written), 1)
            if written and not saved:
                progress.say(f"snapshots {written} are weights alone; beginning from step 0")
        same(
            {
                f"checkpoints of MODEL_DIR {directory.root}": str(saved),
                f"data in CACHE_DIR {cache_dir}": data_identity(phases, cache_dir),
                "configuration": operative_config,
            }
        )
        if main:
            stack.enter_context(locked(directory))
            claim(
                directory,
                model,
                run_identity(seed, phases, used, mixture.tokenizer.name),
                operative_config,
                mixture.tokenizer,
                identity_defaults(used),
                own_tokenizer,
            )
            most = max(checkpoints.most(total) - len(saved), 1)
            require_space(directory, size, most, small, number, best_size)
        check_shared(directory.run)
        more = f", snapshots of {size_text(small)}" if snapshots else ""
        progress.say(f"{count(network.specs):,} parameters; state of {size_text(size)}{more}")
        laps.end("setup")

        # ------------------------------------------------------------ compile (in the background)
        run_step = RunStep(
            mesh=device_mesh,
            state=abstract,
            network=network,
            objectives=used,
            loss_weights=loss_weights or {},
            optimizer=update_rule,
            learning_rate=learning_rate,
            seed=seed,
            accumulate=accumulate,
            ema_decay=ema_decay,
        )
        background = ThreadPoolExecutor(2)
        # What went wrong is told at once, and ends several processes; one alone still compiles.
        stack.push(lambda error, *_: background.shutdown(wait=error is None, cancel_futures=True))
        compiled = CompiledSteps(run_step, [x.rows for x in loaders], background)
        newest = saved[-1] if saved else 0
        if newest < total:
            compiled.begin(locate(phases, newest)[0])

        # ------------------------------------------------------------ restore, or initialise
        restored = restore_latest(directory, abstract, progress.say)
        if restored is not None:
            state, meta = restored
            elsewhere = meta.get(ELSEWHERE, {})
            ids = meta["token_ids"]
            if elsewhere:
                if init_from:
                    elsewhere = repointed(elsewhere, init_from)
                frozen = read_elsewhere(elsewhere, dict(flatten(abstract.frozen)))
                state = replace(state, frozen=nested({**dict(flatten(state.frozen)), **frozen}))
            progress.say(f"resuming {directory.root} from step {meta['step']}")
        else:
            meta = {"step": 0, "totals": {}}
            if plan is not None:
                progress.say(f"starting from other weights: {plan}")
            ids, loaded, originals = token_ids(plan, mixture.special), {}, {}
            if plan is not None:
                loaded, originals = load_init(plan, network.specs, device_mesh, seed=seed)
            state = init_state(
                network,
                used,
                update_rule,
                device_mesh,
                seed=seed,
                split=split,
                loaded=loaded,
                ema=keeps_average,
            )
            del loaded  # it would hold a second copy of the weights to the end
            if plan is not None:
                paths = {name: plan.sources[name] for name in outside}
                frozen = dict(flatten(state.frozen))
                elsewhere = describe_elsewhere(plan.source, paths, frozen, originals)
        start = meta["step"]
        batches = train_batches(loaders, phases, start, total)
        upcoming: Future[Any] = background.submit(next, batches, None)

        def end_of_batches() -> None:
            with deadline.of(f"no batch for step {start} {late}"):
                wait([upcoming])
            batches.close()

        stack.callback(end_of_batches)
        jax.block_until_ready(state)
        laps.end("restore" if restored else "initialise")

        # ------------------------------------------------------------ metrics
        peak = peak_flops(devices[0])
        flops = [
            sum(step_flops(network, used, x.rows, split, accumulate).values()) if peak else 0.0
            for x in loaders
        ]
        goodput.go_on(meta.get("goodput", {}), latest_seconds(read_records(directory.metrics)))
        kept, services = start if restored else -1, (logging.tensorboard, logging.wandb_project)
        evaluations: list[Evaluated] = []
        if early_stopping is not None and restored:
            records = read_records(directory.metrics)
            evaluations = evaluations_of(early_stopping, records, evaluation.split, start)
        recorder = Recorder(
            open_writers(directory, model, kept, *services) if main else [],
            progress,
            goodput,
            step=start,
            totals=meta["totals"],
            peak=peak and peak * len(devices),
            max_nonfinite=max_nonfinite,
        )
        stack.callback(recorder.close)
        saver = Checkpoints(directory.checkpoints, checkpoints, best=early_stopping is not None)
        stack.callback(saver.close)

        def save(step: int, write: Callable[[TrainState, int, Any], None] = saver.save) -> None:
            totals = recorder.totals()
            with recorder.paused("checkpoint"):
                phase, within = locate(phases, step)
                position = {"phase": phase, "step": within, "seed": seed}
                meta = {
                    "step": step,
                    "position": position,
                    "totals": totals,
                    "goodput": goodput.seconds(),
                    "model": config_to_json(model),
                    "operative_config": operative_config,
                    "tokenizer": "../../tokenizer",
                    "dtypes": {name: x.dtype.name for name, x in flatten(abstract.frozen)},
                    "token_ids": ids,
                }
                if elsewhere:
                    meta[ELSEWHERE] = elsewhere
                write(as_saved(state), step, meta)

        def evaluate(step: int) -> bool:
            """Whether it is the best so far, where that matters."""
            if evaluator is None:
                return False
            jax.block_until_ready(state)
            with recorder.paused("evaluation"):
                found = evaluator(state)
                recorder.evaluation(step, evaluation.split, found)
            if early_stopping is None or step == 0:
                return False
            evaluations.append((step, early_stopping.value(found)))
            return early_stopping.best(evaluations) == evaluations[-1]

        def ended() -> bool:
            return early_stopping is not None and early_stopping.ends(evaluations)

        progress.begin(start, total)
        stack.callback(progress.end)
        if restored is None:
            evaluate(0)
            if evaluator is not None:
                laps.end("evaluate")
        elif early_stopping is not None:
            # Killed between the checkpoint and the weights of its evaluation, the best one.
            best = early_stopping.best(evaluations)
            if best and best[0] == start and start not in saved_steps(directory.best):
                save(start, saver.save_best)

        # ------------------------------------------------------------ loop
        step, last_saved = start, start if restored else -1
        profiler = Profiler(
            directory.profile, profile_steps, profile_asked, recorder.paused, progress.say
        )
        stack.callback(lambda: profiler.close(step, state))
        goodput.begin("steps")
        while step < total and not ended() and not terminated():
            profiler.at(step, state)
            with recorder.waiting(), deadline.of(f"no batch for step {step} {late}"):
                phase, batch = upcoming.result() if step == start else next(batches)
            with recorder.paused("compile"):
                train_step = compiled.begin(phase).result()
            if step == start:
                laps.end("compile")
                progress.say(memory_line(train_step, jax.local_devices()))
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, place(batch, device_mesh))
            step += 1
            recorder.add(metrics, flops=flops[phase])
            if step == start + 1:
                jax.block_until_ready(metrics)
                laps.end("first step")
                progress.say(laps.line())
            if step % logging.every == 0 or step == total:
                recorder.finish_interval(step)
            if step == total:
                require_progress(state)
            best_so_far = False
            if evaluation.every and (step % evaluation.every == 0 or step == total):
                best_so_far = evaluate(step)
            if snapshots and (step % snapshots.every == 0 or step == total):
                save(step, saver.save_snapshot)
            if step % checkpoints.every == 0 or step == total or best_so_far:
                save(step)
                last_saved = step
            if best_so_far:  # after the checkpoint: a run that goes on then knows of it
                save(step, saver.save_best)

        # ------------------------------------------------------------ final save
        profiler.close(step, state)
        if ended():
            require_progress(state)
        if step != last_saved:
            save(step)
        with recorder.paused("checkpoint"):
            saver.wait()
        recorder.finish(step)
        finished = step == total or ended()
        weights, best = Path(model_dir), None
        if early_stopping is not None and (best := early_stopping.best(evaluations)):
            weights = directory.best / str(best[0])
            progress.say(
                f"{'stopped early' if ended() else 'done'} at step {step}: {early_stopping.metric} "
                f"was best at step {best[0]}, {best[1]:.4f}; its weights are in {weights}"
            )
        if not finished:
            progress.say(f"stopped by SIGTERM; step {step} is saved, start again to resume")
        elif export_to is not None:
            if Path(export_to).exists():
                progress.say(f"{export_to} exists and is left as it is")
            else:
                export_weights(weights, export_to, arch=export_arch, say=progress.say)
        records = read_records(directory.metrics)
        return TrainResult(
            step,
            not finished,
            *first_and_last(records, evaluation.split),
            *((metrics_at(records, evaluation.split, best[0]), best[0]) if best else ({}, None)),
            directory.metrics,
            not finished or terminated(),
        )
