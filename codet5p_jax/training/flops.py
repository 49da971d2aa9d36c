"""Floating-point work of a step, and the peak rate of devices, for MFU and the dry run."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.interpreters import partial_eval

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import abstract_params
from codet5p_jax.objectives.base import Objective
from codet5p_jax.training.chips import CHIPS
from codet5p_jax.training.freezing import Split, merge

# Dense bf16 FLOP/s of one JAX device, by a part of its `device_kind`, first match first; from the
# makers' data sheets. A TPU7x chip shows as two devices.
PEAKS: Mapping[str, float] = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops,
    "TPU v7": CHIPS["tpu7x"].flops,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
}


def peak_flops(device: Any) -> float | None:
    """Peak dense bf16 FLOP/s of a device; None where it is not in the table (CPUs)."""
    kind = device.device_kind
    return next((peak for name, peak in PEAKS.items() if name in kind), None)


def step_flops(
    model: CodeT5p,
    objectives: Sequence[Objective],
    rows: Mapping[str, int],
    split: Split = Split(),  # noqa: B008
    accumulate: int = 1,
) -> dict[str, float]:
    """FLOPs of one step by objective: of the matrix products of its loss and of the gradient.

    The usual count of MFU: where everything trains, 3 × the forward pass, padding counted,
    recomputation not. A momentum encoder and its queue have a forward pass alone, and frozen
    parameters have no gradient. Nothing is computed; the loss is traced.

    Args:
      model: the network.
      objectives: at least those of `rows`.
      rows: of each objective in a batch, a multiple of `accumulate`.
      split: which parameters train.
      accumulate: micro-batches; rows of a contrastive objective see their own.
    """
    specs = model.specs
    params, frozen = split(abstract_params(specs))
    # What is computed twice to save memory is no work that was asked for.
    model = CodeT5p(dataclasses.replace(model.config, remat="none", attention="xla")).bind(specs)
    out = {}
    for objective in objectives:
        if objective.name not in rows:
            continue
        batch = {
            name: jax.ShapeDtypeStruct((rows[objective.name] // accumulate, *x.shape), x.dtype)
            for name, x in objective.spec.items()
        }
        state = jax.eval_shape(
            functools.partial(objective.init_state, model), merge(params, frozen)
        )

        def loss(
            params: Any, frozen: Any, state: Any, batch: Any, key: Any, made: Objective = objective
        ) -> Any:
            everything = model.bind(merge(params, frozen))
            return sum(x.sum for x in made.loss(everything, batch, state, key, True)[0].values())

        traced = jax.make_jaxpr(jax.grad(loss))(params, frozen, state, batch, jax.random.key(0))
        # A product's backward pass is for both operands, and gradients of constants go nowhere.
        jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
        out[objective.name] = accumulate * count_flops(jaxpr)
    return out


def count_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products of a jaxpr: scans times their length, branches at their dearest.

    A while loop counts once: its length is not known.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape
            total += (
                2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contract)
            )
            continue
        inner = [count_flops(j) for j in _inner(eqn.params)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * eqn.params.get("length", 1)
    return total


def _inner(params: Mapping[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                found.append(jaxpr)
    return found
