"""Learning-rate schedules, each with a linear warm-up.

A schedule is a frozen dataclass; `make(total_steps)` turns it into a function of the step. Step 0
already learns (`peak / warmup_steps`, of a warm-up from 0), step `warmup_steps - 1` is at `peak`,
and the decay would reach `final` at step `total_steps`, one past the last.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LearningRate = Callable[[Any], Any]  # int32 scalar -> fp32 scalar, as optax has it


@runtime_checkable
class Schedule(Protocol):
    """What `train` takes as its schedule."""

    def make(self, total_steps: int) -> LearningRate:
        """The learning rate as a function of the step, 0 <= step < total_steps."""
        ...


@dataclass(frozen=True)
class Constant:
    """`peak` after the warm-up."""

    peak: float
    warmup_steps: int = 0

    def make(self, total_steps: int) -> LearningRate:
        """The learning rate as a function of the step."""
        return _with_warmup(self.peak, self.warmup_steps, total_steps, lambda t: jnp.ones_like(t))


@dataclass(frozen=True)
class Linear:
    """A straight line from `peak` to `final` (paper: peak 2e-4 and 1e-4; warm-up not stated), after
    one from `initial` to `peak`."""

    peak: float
    warmup_steps: int = 0
    final: float = 0.0
    initial: float = 0.0

    def make(self, total_steps: int) -> LearningRate:
        """The learning rate as a function of the step."""
        _check_ends(self.peak, self.final)
        decay = total_steps - self.warmup_steps
        end = self.final / self.peak
        return _with_warmup(
            self.peak,
            self.warmup_steps,
            total_steps,
            lambda t: 1.0 + (end - 1.0) * (t - self.warmup_steps) / decay,
            self.initial,
        )


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `peak` to `final`."""

    peak: float
    warmup_steps: int = 0
    final: float = 0.0

    def make(self, total_steps: int) -> LearningRate:
        """The learning rate as a function of the step."""
        _check_ends(self.peak, self.final)
        decay = total_steps - self.warmup_steps
        end = self.final / self.peak

        def shape(t: jax.Array) -> jax.Array:
            turn = jnp.pi * (t - self.warmup_steps) / decay
            return end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(turn))

        return _with_warmup(self.peak, self.warmup_steps, total_steps, shape)


@dataclass(frozen=True)
class InverseSquareRoot:
    """`peak · sqrt(warmup_steps / step)`: T5's schedule is peak 0.01 with 10,000 warm-up steps.

    T5 itself stays at `peak` during those steps where this one rises linearly, as T5X does.
    """

    peak: float
    warmup_steps: int = 10_000

    def make(self, total_steps: int) -> LearningRate:
        """The learning rate as a function of the step."""
        start = max(self.warmup_steps, 1)
        # It never ends, so a run may be shorter than its warm-up.
        return _with_warmup(
            self.peak,
            self.warmup_steps,
            max(total_steps, self.warmup_steps + 1),
            lambda t: jnp.sqrt(start / jnp.maximum(t + 1.0, start)),
        )


def _check_ends(peak: float, final: float = 0.0) -> None:
    if not 0 < peak < math.inf:
        raise ValueError(f"peak learning rate must be positive and finite, found {peak}")
    if not 0 <= final < math.inf:
        raise ValueError(f"final learning rate must be 0 or more and finite, found {final}")


def _with_warmup(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    shape: Callable[[jax.Array], jax.Array],
    initial: float = 0.0,
) -> LearningRate:
    _check_ends(peak)
    if not 0 <= initial <= peak:
        raise ValueError(f"initial learning rate must be 0 to peak={peak}, found {initial}")
    start = initial / peak
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warm-up takes {warmup_steps} of {total_steps} steps; it must be shorter than the "
            "run: lower warmup_steps or train for longer"
        )

    def learning_rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        t = jnp.asarray(step, jnp.float32)
        warm = start + (1.0 - start) * (t + 1.0) / max(warmup_steps, 1)
        return peak * jnp.where(t < warmup_steps, warm, shape(t))

    return learning_rate
