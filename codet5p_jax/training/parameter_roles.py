"""What a parameter is to an optimizer, read off its logical axes.

Layers are stored stacked and heads apart: `[L, D, H, K]` holds L matrices of D × HK. An optimizer
that looked at ranks would take a stack of norm scales for a matrix and a projection for a rank-4
tensor; the axis names say what is meant.
"""

import math
from typing import NamedTuple

from codet5p_jax.models.params import ParamSpec

_HEADS = ("heads", "kv_heads")


class MatrixAxes(NamedTuple):
    """Dimensions of an array that are the rows (inputs) and the columns (outputs) of a matrix."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def within_layer(spec: ParamSpec) -> tuple[int, ...]:
    """Dimensions of one layer's parameter: what a per-parameter mean runs over."""
    return tuple(i for i, axis in enumerate(spec.axes) if axis != "layers")


def matrix_axes(spec: ParamSpec) -> MatrixAxes | None:
    """Inputs and outputs of a (stack of) matrices; None for scales, biases, scalars.

    >>> matrix_axes(ParamSpec((12, 768, 12, 64), ("layers", "embed", "heads", "head_dim"), ones))
    MatrixAxes(inputs=(1,), outputs=(2, 3))
    """
    groups: list[tuple[int, ...]] = []
    for i in within_layer(spec):
        if spec.axes[i] == "head_dim" and i > 0 and spec.axes[i - 1] in _HEADS:
            groups[-1] = (*groups[-1], i)
        else:
            groups.append((i,))
    return MatrixAxes(*groups) if len(groups) == 2 else None


def decays(spec: ParamSpec) -> bool:
    """Whether weight decay applies: matrices, embeddings (of tokens, of positions) among them.

    Not norms, biases and the temperature (no matrices), nor the relative-position table, whose
    entries are additive biases of attention scores. Embeddings decay as they did under the
    Hugging Face trainer of the original, where only biases and norms are exempt.
    """
    return matrix_axes(spec) is not None and "buckets" not in spec.axes


def is_hidden_matrix(spec: ParamSpec) -> bool:
    """A matrix inside a stack of layers: no embedding, of tokens or learned positions, no table of
    relative positions, no head (`joint`)."""
    outer = {"vocab", "positions", "buckets", "joint"}
    return matrix_axes(spec) is not None and not outer & set(spec.axes)


def sides(spec: ParamSpec) -> MatrixAxes:
    """`matrix_axes` of what is known to be a matrix.

    Raises:
      ValueError: it is none.
    """
    axes = matrix_axes(spec)
    if axes is None:
        raise ValueError(f"{spec.axes} of shape {spec.shape} is not a matrix")
    return axes


def side_lengths(spec: ParamSpec) -> tuple[int, int]:
    """Numbers of inputs and outputs of a (stack of) matrices: 768 and 12 · 64 for [L, D, H, K]."""
    inputs, outputs = (math.prod(spec.shape[i] for i in group) for group in sides(spec))
    return inputs, outputs
