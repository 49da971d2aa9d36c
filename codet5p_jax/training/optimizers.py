"""Optimizers: frozen configurations whose `make` builds an `optax.GradientTransformation`.

All of them clip by the global norm first and treat a stack of layers as that many parameters
(`parameter_roles.py`). Their state advances only with steps that are applied.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from codet5p_jax.models.params import (
    Params,
    ParamSpec,
    flatten,
    is_spec,
    nearest_pattern,
    path_name,
)
from codet5p_jax.training.parameter_roles import (
    decays,
    is_hidden_matrix,
    matrix_axes,
    side_lengths,
    sides,
    within_layer,
)
from codet5p_jax.training.schedules import LearningRate


@runtime_checkable
class Optimizer(Protocol):
    """What `train` takes as its optimizer."""

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""
        ...


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019), the paper's optimizer.

    Attributes:
      weight_decay: 0.1 in the paper (§B); multiplied by the learning rate, matrices only.
      b1, b2, eps: not stated in the paper; the defaults of the trainer it used.
      clip_norm: bound of the global gradient norm, None for none; not stated, likewise.
    """

    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""
        return optax.chain(
            _clip(self.clip_norm),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, _map(decays, specs)),
            optax.scale_by_learning_rate(schedule),
        )


@dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer and Stern 2018) as T5 used it: factored, relative step, no momentum.

    The update is multiplied by the root mean square of the parameter, so learning rates are
    relative: T5's is 0.01 falling with the inverse square root.

    Attributes:
      decay: the second moment's decay at step t is 1 − t^−decay.
      clip_threshold: bound of an update's root mean square.
      min_scale: least root mean square of a parameter.
      min_size_to_factor: matrices with a smaller side keep the full second moment.
      clip_norm: bound of the global gradient norm; T5 had none.
    """

    decay: float = 0.8
    clip_threshold: float = 1.0
    min_scale: float = 1e-3
    min_size_to_factor: int = 128
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""
        return optax.chain(
            _clip(self.clip_norm),
            _scale_by_factored_rms(self.decay, self.min_size_to_factor, specs),
            _clip_rms(self.clip_threshold, specs),
            _scale_by_parameter_rms(self.min_scale, specs),
            optax.scale_by_learning_rate(schedule),
        )


@dataclass(frozen=True)
class RmsScaledAdamW:
    """AdamW with updates scaled by the parameter's root mean square (nanoT5).

    It behaves like Adafactor's relative step with Adam's moments, and takes the learning rates that
    suit T5's initial values (nanoT5: 0.02, cosine).
    """

    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    min_scale: float = 1e-3
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""
        return optax.chain(
            _clip(self.clip_norm),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            _scale_by_parameter_rms(self.min_scale, specs),
            optax.add_decayed_weights(self.weight_decay, _map(decays, specs)),
            optax.scale_by_learning_rate(schedule),
        )


@dataclass(frozen=True)
class Muon:
    """Muon (Jordan 2024) for the matrices of the layers, AdamW for everything else.

    Every layer, and queries, keys and values apart, is orthogonalised on its own. Updates of
    matrices have root mean square `rms` (Liu et al. 2025), so that learning rates and weight decay
    of AdamW carry over.
    """

    weight_decay: float = 0.1
    momentum: float = 0.95
    rms: float = 0.2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""

        def dimensions(spec: ParamSpec) -> Any:
            if not is_hidden_matrix(spec):
                return optax.MaskedNode()
            return optax.contrib.MuonDimensionNumbers(*sides(spec))

        numbers = _map(dimensions, specs)
        muon = optax.chain(
            optax.contrib.scale_by_muon(
                beta=self.momentum, weight_dimension_numbers=lambda _: numbers
            ),
            _scale_orthogonal(self.rms, specs),
        )
        label = lambda spec: "muon" if is_hidden_matrix(spec) else "adam"  # noqa: E731
        return optax.chain(
            _clip(self.clip_norm),
            optax.partition(
                {"muon": muon, "adam": optax.scale_by_adam(self.b1, self.b2, self.eps)},
                _map(label, specs),
            ),
            optax.add_decayed_weights(self.weight_decay, _map(decays, specs)),
            optax.scale_by_learning_rate(schedule),
        )


@dataclass(frozen=True)
class WithRates:
    """An optimizer with a learning rate of its own for some parameters.

    >>> WithRates(AdamW(), rates=(("embedding", 4.0), ("encoder/.*", 0.5)))

    Attributes:
      optimizer: what makes the updates.
      rates: (regular expression, factor) pairs. The updates of a parameter are multiplied by the
        factor of the first expression that matches its whole path (`encoder/layers/self_attn/q`);
        those of the others stay as they are.
    """

    optimizer: Optimizer
    rates: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if not self.rates:
            raise ValueError(
                "rates has to name at least one parameter; without, leave WithRates out"
            )
        for pattern, factor in self.rates:
            if not 0 <= factor < float("inf"):
                raise ValueError(
                    f"rates: {pattern!r} has to have a factor of 0 or more, not {factor}"
                )

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`.

        Raises:
          ValueError: an expression matches no parameter, or is none.
        """
        names = [name for name, _ in flatten(specs)]
        for pattern, _ in self.rates:
            try:
                found = any(re.fullmatch(pattern, name) for name in names)
            except re.error as error:
                raise ValueError(f"rates: {pattern!r} is no regular expression: {error}") from error
            if not found:
                raise ValueError(
                    f"rates: {pattern!r} matches no parameter; the nearest is "
                    f"{nearest_pattern(pattern, names)!r}"
                )

        def factor(path: tuple[Any, ...], spec: ParamSpec) -> float:
            del spec
            name = path_name(path)
            return next((f for pattern, f in self.rates if re.fullmatch(pattern, name)), 1.0)

        factors = jax.tree_util.tree_map_with_path(factor, specs, is_leaf=is_spec)
        scaled = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))
        return optax.chain(self.optimizer.make(schedule, specs), scaled)


def _check(optimizer: Any) -> None:
    """Ranges of the fields that several optimizers share."""
    for name in ("b1", "b2", "momentum"):
        if not 0 <= getattr(optimizer, name, 0) < 1:
            _refuse(optimizer, name, "at least 0 and below 1")
    for name in ("eps", "rms", "decay", "clip_threshold", "min_scale"):
        if not getattr(optimizer, name, 1) > 0:
            _refuse(optimizer, name, "above 0")
    if getattr(optimizer, "min_size_to_factor", 1) < 1:
        _refuse(optimizer, "min_size_to_factor", "1 or more")
    if not getattr(optimizer, "weight_decay", 0) >= 0:
        _refuse(optimizer, "weight_decay", "0 or more")
    if optimizer.clip_norm is not None and not optimizer.clip_norm > 0:
        _refuse(optimizer, "clip_norm", "above 0, or None")


def _refuse(optimizer: Any, name: str, wanted: str) -> None:
    raise ValueError(f"{name} has to be {wanted}, found {getattr(optimizer, name)}")


def _clip(max_norm: float | None) -> optax.GradientTransformation:
    return optax.identity() if max_norm is None else optax.clip_by_global_norm(max_norm)


def _map(function: Any, specs: Params, *trees: Any) -> Any:
    return jax.tree.map(
        lambda spec, *leaves: function(spec, *leaves), specs, *trees, is_leaf=is_spec
    )


def _rms(x: jax.Array, spec: ParamSpec) -> jax.Array:
    """Root mean square of each layer's part, broadcastable against `x`."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=within_layer(spec), keepdims=True))


def _clip_rms(threshold: float, specs: Params) -> optax.GradientTransformation:
    """Bounds the root mean square of the update of each parameter of each layer."""

    def clip(spec: ParamSpec, update: jax.Array) -> jax.Array:
        return update / jnp.maximum(1.0, _rms(update, spec) / threshold)

    return optax.stateless(lambda updates, params: _map(clip, specs, updates))


def _scale_by_parameter_rms(min_scale: float, specs: Params) -> optax.GradientTransformation:
    """Multiplies each update by the root mean square of its parameter, layer by layer."""

    def scale(spec: ParamSpec, update: jax.Array, param: jax.Array) -> jax.Array:
        return update * jnp.maximum(min_scale, _rms(param, spec))

    return optax.stateless(lambda updates, params: _map(scale, specs, updates, params))


def _scale_orthogonal(rms: float, specs: Params) -> optax.GradientTransformation:
    """Gives orthogonal matrices, whose entries average 1 / max(inputs, outputs) squared, `rms`."""

    def scale(spec: ParamSpec, update: Any) -> Any:
        if isinstance(update, optax.MaskedNode):
            return update
        return update * (rms * max(side_lengths(spec)) ** 0.5)

    return optax.stateless(lambda updates, params: _map(scale, specs, updates))


class _FactoredState(NamedTuple):
    count: jax.Array
    moments: Any  # for each parameter: (means of rows, means of columns) or (second moment,)


def _scale_by_factored_rms(
    decay: float, min_size: int, specs: Params
) -> optax.GradientTransformation:
    """Divides gradients by the root of a second moment of rank one (Adafactor, algorithm 4)."""

    def factored(spec: ParamSpec) -> bool:
        return matrix_axes(spec) is not None and min(side_lengths(spec)) >= min_size

    def moments(spec: ParamSpec, x: jax.Array) -> tuple[jax.Array, ...]:
        if not factored(spec):
            return (x,)
        inputs, outputs = sides(spec)
        return tuple(jnp.mean(x, axis=axes, keepdims=True) for axes in (outputs, inputs))

    def init(params: Any) -> _FactoredState:
        zeros = _map(lambda spec, p: moments(spec, jnp.zeros_like(p)), specs, params)
        return _FactoredState(jnp.zeros((), jnp.int32), zeros)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        count = state.count + 1
        beta = 1.0 - count.astype(jnp.float32) ** -decay

        def advance(spec: ParamSpec, g: jax.Array, old: Any) -> Any:
            new = moments(spec, jnp.square(g) + 1e-30)
            return tuple(beta * o + (1.0 - beta) * n for o, n in zip(old, new, strict=True))

        def scale(spec: ParamSpec, g: jax.Array, moment: Any) -> jax.Array:
            if not factored(spec):
                return g * jax.lax.rsqrt(moment[0])
            rows, columns = moment
            mean = jnp.mean(rows, axis=sides(spec).inputs, keepdims=True)
            return g * jax.lax.rsqrt(rows / mean) * jax.lax.rsqrt(columns)

        new = _map(advance, specs, updates, state.moments)
        return _map(scale, specs, updates, new), _FactoredState(count, new)

    return optax.GradientTransformation(init, update)
