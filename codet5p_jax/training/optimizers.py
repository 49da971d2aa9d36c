"""Optimizers: frozen configurations whose `make` builds an `optax.GradientTransformation`.

All of them clip by the global norm first and treat a stack of layers as that many parameters
(`parameter_roles.py`). Their state advances only with steps that are applied.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from codet5p_jax.models.params import Params, ParamSpec, is_spec
from codet5p_jax.training.parameter_roles import (
    decays,
    is_hidden_matrix,
    matrix_axes,
    matrix_shape,
    within_layer,
)
from codet5p_jax.training.schedules import LearningRate


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

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""
        return optax.chain(
            _clip(self.clip_norm),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, _mask(decays, specs)),
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

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""
        second_moment = optax.scale_by_factored_rms(
            decay_rate=self.decay, min_dim_size_to_factor=self.min_size_to_factor
        )
        return optax.chain(
            _clip(self.clip_norm),
            _on_matrices(second_moment, specs),
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

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""
        return optax.chain(
            _clip(self.clip_norm),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            _scale_by_parameter_rms(self.min_scale, specs),
            optax.add_decayed_weights(self.weight_decay, _mask(decays, specs)),
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

    def make(self, schedule: LearningRate, specs: Params) -> optax.GradientTransformation:
        """The update rule for parameters declared by `specs`."""

        def dimensions(spec: ParamSpec) -> Any:
            if not is_hidden_matrix(spec):
                return optax.MaskedNode()
            return optax.contrib.MuonDimensionNumbers(*matrix_axes(spec))

        # A function, because the masked tree does not survive as a static argument of partition.
        numbers = jax.tree.map(dimensions, specs, is_leaf=is_spec)
        muon = optax.chain(
            optax.contrib.scale_by_muon(
                beta=self.momentum, weight_dimension_numbers=lambda _: numbers
            ),
            optax.contrib.scale_by_shape(lambda _: numbers, consistent_rms=self.rms),
        )
        label = lambda spec: "muon" if is_hidden_matrix(spec) else "adam"  # noqa: E731
        return optax.chain(
            _clip(self.clip_norm),
            optax.partition(
                {"muon": muon, "adam": optax.scale_by_adam(self.b1, self.b2, self.eps)},
                jax.tree.map(label, specs, is_leaf=is_spec),
            ),
            optax.add_decayed_weights(self.weight_decay, _mask(decays, specs)),
            optax.scale_by_learning_rate(schedule),
        )


def _clip(max_norm: float | None) -> optax.GradientTransformation:
    return optax.identity() if max_norm is None else optax.clip_by_global_norm(max_norm)


def _mask(predicate: Any, specs: Params) -> Any:
    return jax.tree.map(predicate, specs, is_leaf=is_spec)


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


def _on_matrices(
    inner: optax.GradientTransformation, specs: Params
) -> optax.GradientTransformation:
    """Shows `inner` projections as matrices: [L, D, H, K] as [L, D, HK]."""

    def joined(tree: Any) -> Any:
        return _map(lambda spec, x: x.reshape(matrix_shape(spec)), specs, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(joined(updates), state, joined(params))
        return _map(lambda spec, x: x.reshape(spec.shape), specs, updates), state

    return optax.GradientTransformation(lambda params: inner.init(joined(params)), update)
