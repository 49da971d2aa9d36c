"""The train state: a plain pytree, born sharded."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import (
    Params,
    abstract_params,
    flatten,
    init_params,
    logical_axes,
    path_name,
)
from codet5p_jax.objectives.base import Objective
from codet5p_jax.sharding import param_shardings, replicated
from codet5p_jax.training.freezing import Split


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes.

    Attributes:
      step: int32 scalar, batches consumed; the next batch is number `step`.
      params: fp32 parameters that train.
      opt_state: the optimizer's.
      objective_state: by objective name; momentum encoders and queues.
      ema: moving average of `params`, or None.
      skipped: int32 scalar, steps not applied because they were not finite.
      skipped_in_a_row: int32 scalar, how many of them are the latest ones.
      frozen: the parameters that do not train, in a dtype of their own; empty where all train.

    Leaves are Any, for a tree of shapes, shardings or NumPy arrays is a TrainState as well.
    """

    step: Any
    params: Params
    opt_state: Any
    objective_state: Any
    ema: Any
    skipped: Any
    skipped_in_a_row: Any
    frozen: Params = field(default_factory=dict)


def new_state(
    model: CodeT5p,
    objectives: Sequence[Objective],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    split: Split = Split(),  # noqa: B008
    loaded: Mapping[str, jax.Array] | None = None,
    ema: bool = False,
) -> TrainState:
    """The state before step 0; pure and traceable.

    Args:
      model: unbound.
      split: which of its parameters are frozen.
      objectives: those of every phase.
      optimizer: the update rule.
      key: of the parameters that are drawn.
      loaded: values by path (`encoder/layers/attention/q`) instead of drawn ones.
      ema: whether to keep a moving average.
    """
    drawn = init_params(_without(model.specs, set(loaded or {})), key)
    everything = _overlay(drawn, loaded or {})
    params, frozen = split(everything)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        objective_state={o.name: o.init_state(model, everything) for o in objectives},
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=zero,
        skipped_in_a_row=zero,
    )


def abstract_state(
    model: CodeT5p,
    objectives: Sequence[Objective],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    split: Split = Split(),  # noqa: B008
    ema: bool = False,
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct` with shardings; allocates nothing."""
    key = jax.random.key(0)  # made here: a mesh of devices that are not there computes nothing
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(
            lambda key: new_state(model, objectives, optimizer, key, split=split, ema=ema), key
        )
    shardings = state_shardings(shapes, model.specs, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def state_shardings(state: TrainState, specs: Params, mesh: Mesh) -> TrainState:
    """A sharding for every leaf: those that look like a parameter are sharded like it.

    A leaf looks like a parameter if its path ends in the parameter's and the shapes agree: moments
    (`opt_state/1/mu/encoder/…/q`), averages, momentum encoders. All others are replicated.
    """
    by_path = dict(flatten(param_shardings(logical_axes(specs), abstract_params(specs), mesh)))

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        name = param_of(path_name(path), leaf.shape, specs)
        return replicated(mesh) if name is None else by_path[name]

    return jax.tree_util.tree_map_with_path(sharding, state)


def param_of(path: str, shape: tuple[int, ...], specs: Params) -> str | None:
    """Path of the parameter that an array of the state looks like."""
    shapes = {name: spec.shape for name, spec in flatten(specs)}
    parts = path.split("/")
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((name for name in suffixes if shapes.get(name) == shape), None)


def init_state(
    model: CodeT5p,
    objectives: Sequence[Objective],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    split: Split = Split(),  # noqa: B008
    loaded: Mapping[str, jax.Array] | None = None,
    ema: bool = False,
) -> TrainState:
    """`new_state`, in one compiled program that writes every shard where it belongs."""
    abstract = abstract_state(model, objectives, optimizer, mesh, split=split, ema=ema)
    make = jax.jit(
        lambda key, loaded: new_state(
            model, objectives, optimizer, key, split=split, loaded=loaded, ema=ema
        ),
        out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
        compiler_options=compiler_options(mesh),
    )
    with jax.set_mesh(mesh):
        return make(jax.random.key(seed), dict(loaded or {}))


def require_progress(state: TrainState) -> None:
    """Fails where every step of a run that ends was skipped: its weights are the initial ones."""
    if int(state.skipped) == int(state.step):
        raise FloatingPointError(
            f"loss or gradients were finite in none of the {int(state.step)} steps, so nothing was "
            "learned and the run is not saved as finished; lower the learning rate, lengthen the "
            "warm-up, or look at the data and the weights of init_from"
        )


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """Options for the programs of a run: on CPU, what starts sooner and runs faster there.

    LLVM's -O1 instead of -O3, unless XLA_FLAGS says which: the random numbers of initial values and
    dropout take LLVM most of the time that a small run needs to start (with -O1 3 times less,
    measured with jax 0.10.2), and run no faster for it: matrix products are library calls. And
    YNNPACK, that library, for products alone: its sum over a leading axis, the gradient of a norm's
    scale or of the position bias, takes 50 times as long as XLA's own (a tenth of a step of
    benchmarks/train_vs_hf.py).
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    options: dict[str, Any] = {}
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        options["xla_backend_optimization_level"] = 1
    products = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    return options | (products if _known("xla_cpu_experimental_ynn_fusion_type") else {})


@functools.cache
def _known(option: str) -> bool:
    """Whether this version of XLA has an option; the experimental ones come and go."""
    try:
        jax.jit(lambda: 0).lower().compile({option: ""})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _without(specs: Params, paths: set[str], prefix: str = "") -> Params:
    """The nested dict less the leaves at `paths`."""
    out: Params = {}
    for name, value in specs.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            out[name] = _without(value, paths, f"{path}/")
        elif path not in paths:
            out[name] = value
    return out


def _overlay(params: Params, values: Mapping[str, jax.Array]) -> Params:
    """The nested dict with `values` at their paths."""
    for path, value in values.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return params
