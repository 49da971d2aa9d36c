"""The training step: a pure function of (state, batch), compiled once per phase."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import Params
from codet5p_jax.objectives.base import Objective
from codet5p_jax.training.freezing import merge
from codet5p_jax.training.schedules import LearningRate
from codet5p_jax.training.state import TrainState

GlobalBatch = Mapping[str, Mapping[str, Any]]  # objective -> array name -> [rows, ...]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight), fp32 scalars
TrainStep = Callable[[TrainState, GlobalBatch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Mapping[str, Any], GlobalBatch], Metrics]


def make_train_step(
    model: CodeT5p,
    objectives: Sequence[Objective],
    loss_weights: Mapping[str, float],
    optimizer: optax.GradientTransformation,
    learning_rate: LearningRate,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float | None = None,
    skip_nonfinite: bool = True,
    state_shardings: TrainState | None = None,
) -> TrainStep:
    """The jitted step; it donates the state.

    Args:
      model: unbound.
      objectives: those whose sub-batches are in the batch, one phase's.
      loss_weights: by loss name; a loss that is not named weighs 1.
      optimizer: the update rule.
      learning_rate: the schedule inside `optimizer`, to report it.
      seed: of dropout; the key of step n is fold_in(key(seed), n).
      accumulate: micro-batches per step, computed one after the other. Losses that are sums over
        rows come out the same; a contrastive row sees the rows of its micro-batch only.
      ema_decay: of the average of parameters, which the state then has to hold.
      skip_nonfinite: leave everything but the counters as it was when loss or gradients are not
        finite.
      state_shardings: where the new state goes; None: wherever the compiler likes.

    Returns:
      A function of (state, {objective: {array: [rows, ...]}}) to (state, metrics). Metrics are
      (sum, weight) pairs: `<loss>/loss` and `<loss>/<metric>`, `loss`, `grad_norm`, `param_norm`,
      `update_norm`, `learning_rate`, `skipped`, `skipped_in_a_row`, `tokens`, `padding`.
    """

    def train_step(state: TrainState, batch: GlobalBatch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, metrics, objective_state = _gradients(
            model, objectives, loss_weights, accumulate, state, batch, key
        )
        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(metrics["loss"][0])
        applied = finite if skip_nonfinite else jnp.asarray(True)

        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        new = TrainState(
            step=state.step + 1,
            params=params,
            frozen=state.frozen,
            opt_state=opt_state,
            objective_state={**state.objective_state, **objective_state},
            ema=_average(ema_decay, state.ema, params),
            skipped=state.skipped + (1 - applied.astype(jnp.int32)),
            skipped_in_a_row=jnp.where(applied, 0, state.skipped_in_a_row + 1),
        )
        if skip_nonfinite:
            new = _keep_unless(applied, new, state)
        # A skipped step has no say in the means over an interval, only in `skipped`.
        metrics |= {
            "grad_norm": _one(grad_norm),
            "update_norm": _one(optax.tree.norm(updates)),
            "param_norm": _one(optax.tree.norm(new.params)),
            "learning_rate": _one(learning_rate(state.step - state.skipped)),
        }
        if skip_nonfinite:
            metrics = {
                k: (jnp.where(applied, s, 0.0), jnp.where(applied, w, 0.0))
                for k, (s, w) in metrics.items()
            }
        metrics |= _token_counts(batch) | {
            "skipped": _one(1 - applied),
            "skipped_in_a_row": _one(new.skipped_in_a_row),
        }
        return new, metrics

    # Scalars can only be replicated, so metrics need no sharding.
    shardings = None if state_shardings is None else (state_shardings, None)
    return jax.jit(train_step, donate_argnums=0, out_shardings=shardings)


def make_eval_step(
    model: CodeT5p,
    objectives: Sequence[Objective],
    compiler_options: dict[str, Any] | None = None,
) -> EvalStep:
    """The jitted evaluation of one batch: no dropout, no change of state.

    Returns:
      A function of (params, objective_state, batch) to the metrics of the objectives; it works for
      a batch that holds some of them.
    """

    def eval_step(
        params: Params, objective_state: Mapping[str, Any], batch: GlobalBatch
    ) -> Metrics:
        present = [o for o in objectives if o.name in batch]
        weights = {o.name: o.weights(batch[o.name]) for o in present}
        _, (metrics, _) = _loss(
            model, present, {}, weights, 1, params, objective_state, batch, jax.random.key(0), False
        )
        del metrics["loss"]  # the sum over whichever objectives this batch holds
        return metrics

    return jax.jit(eval_step, compiler_options=compiler_options)


def _loss(
    model: CodeT5p,
    objectives: Sequence[Objective],
    loss_weights: Mapping[str, float],
    weights: Mapping[str, Mapping[str, jax.Array]],
    parts: int,
    params: Params,
    objective_state: Mapping[str, Any],
    batch: GlobalBatch,
    key: jax.Array,
    train: bool,
) -> tuple[jax.Array, tuple[Metrics, dict[str, Any]]]:
    """What is optimised: the sum over losses of loss weight · sum / weight of the whole batch, of
    which `batch` is one of `parts`."""
    bound = model.bind(params)
    total = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    states = {}
    for objective in objectives:
        name = objective.name
        losses, states[name] = objective.loss(
            bound,
            batch[name],
            objective_state[name],
            jax.random.fold_in(key, zlib.crc32(name.encode())),
            train,
        )
        for loss_name, loss in losses.items():
            weight = weights[name][loss_name]
            # A batch without any target has sum 0 and weight 0.
            mean = loss.sum / jnp.where(weight > 0, weight, 1.0)
            total += loss_weights.get(loss_name, 1.0) * mean
            # An objective may report another `loss` than the one optimised: without its z-loss.
            metrics[f"{loss_name}/loss"] = (loss.sum, weight / parts)
            metrics |= {f"{loss_name}/{k}": pair for k, pair in loss.metrics.items()}
    metrics["loss"] = (total, _f32(1.0 / parts))
    return total, (metrics, states)


def _gradients(
    model: CodeT5p,
    objectives: Sequence[Objective],
    loss_weights: Mapping[str, float],
    accumulate: int,
    state: TrainState,
    batch: GlobalBatch,
    key: jax.Array,
) -> tuple[Params, Metrics, dict[str, Any]]:
    """Gradients, metrics and objective states after the whole batch."""
    weights = {o.name: o.weights(batch[o.name]) for o in objectives}
    states = {o.name: state.objective_state[o.name] for o in objectives}

    def micro_gradients(states: Any, micro: GlobalBatch, key: jax.Array) -> Any:
        def loss(params: Params) -> Any:
            return _loss(
                model,
                objectives,
                loss_weights,
                weights,
                accumulate,
                merge(params, state.frozen),
                states,
                micro,
                key,
                True,
            )

        (_, (metrics, states)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return gradients, metrics, states

    if accumulate == 1:
        return micro_gradients(states, batch, key)

    def body(carry: Any, item: Any) -> Any:
        (total, sums), states = carry
        index, micro = item
        gradients, metrics, states = micro_gradients(states, micro, jax.random.fold_in(key, index))
        added = jax.tree.map(jnp.add, (total, sums), (gradients, metrics))
        return (added, states), None

    micro_batches = _split(batch, accumulate)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(micro_gradients, states, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[:2])
    ((gradients, metrics), states), _ = jax.lax.scan(
        body, (zeros, states), (jnp.arange(accumulate), micro_batches)
    )
    return gradients, metrics, states


def _split(batch: GlobalBatch, accumulate: int) -> GlobalBatch:
    """[rows, ...] as [accumulate, rows / accumulate, ...], every micro-batch taking each
    accumulate-th row, so that rows stay on the device that holds them."""

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % accumulate:
            raise ValueError(
                f"a sub-batch of {x.shape[0]} rows does not divide into accumulate={accumulate} "
                "micro-batches; change accumulate, the batch size or the mixture's rates"
            )
        return jnp.moveaxis(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)


def _average(decay: float | None, ema: Params | None, params: Params) -> Params | None:
    if decay is None:
        return ema
    if ema is None:
        raise ValueError("ema_decay is set, but the state keeps no average; make it with ema=True")
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)


def _keep_unless(applied: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """`new` if applied, else `old` with the counters of `new`."""
    names = ("params", "opt_state", "objective_state", "ema")
    kept = {
        name: jax.tree.map(
            lambda n, o: jnp.where(applied, n, o), getattr(new, name), getattr(old, name)
        )
        for name in names
    }
    return replace(new, **kept)


def _token_counts(batch: GlobalBatch) -> Metrics:
    """`tokens`: real ones; `padding`: share of positions that hold none."""
    real = slots = 0
    for arrays in batch.values():
        for name, array in arrays.items():
            if name.endswith("segments"):
                real += jnp.sum(array > 0)
                slots += array.size
    return {"tokens": _one(real), "padding": (_f32(slots - real), _f32(slots))}


def _f32(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _one(x: Any) -> tuple[jax.Array, jax.Array]:
    return _f32(x), _f32(1.0)
