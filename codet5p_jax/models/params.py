"""Parameters declared once; initial values, abstract trees, shardings and tables derive from that.

An NNX module declares its parameters as `nnx.Param(ParamSpec(...))`. Nothing is allocated until
`init_params` maps the declared tree to arrays.
"""

import difflib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]  # nested dict[str, jax.Array]
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@dataclass(frozen=True)
class ParamSpec:
    """Shape, logical axes (one name per dimension), initialiser and dtype of one parameter."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")


def normal(stddev: float) -> Initializer:
    """N(0, stddev^2)."""
    return lambda key, shape, dtype: stddev * jax.random.normal(key, shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """All ones."""
    del key
    return jnp.ones(shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """All zeros."""
    del key
    return jnp.zeros(shape, dtype)


def declare(
    shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer, dtype: Any = jnp.float32
) -> nnx.Param:
    """Declares a parameter inside a module."""
    return nnx.Param(ParamSpec(shape, axes, init, dtype))


def is_spec(x: Any) -> bool:
    """Whether `x` is a ParamSpec; the `is_leaf` of every map over a declared tree."""
    return isinstance(x, ParamSpec)


def path_name(path: tuple[Any, ...]) -> str:
    """('encoder', 'layers', 'q') as `encoder/layers/q`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields (`a/b/c`, leaf) of a nested dict of specs or arrays, sorted by path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_spec):
        yield path_name(path), leaf


def nested(flat: Mapping[str, Any]) -> Params:
    """A flat dict of `a/b/c` as nested dicts."""
    out: Params = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return out


def nearest_pattern(pattern: str, names: Sequence[str]) -> str:
    """Of all names, and of all groups of names as `a/b/.*`, the one that looks most like it."""
    # `a/b/c` lies in `a/b/.*` and in `a/.*`
    groups = {f"{part}/.*" for name in names for part in PurePosixPath(name).parents[:-1]}
    return difflib.get_close_matches(pattern, [*sorted(groups), *names], n=1, cutoff=0.0)[0]


def init_params(specs: Params, key: jax.Array) -> Params:
    """Draws every parameter. Each has a key of its own, derived from its path: adding or removing
    a part leaves the values of the others as they were."""

    def draw(path: tuple[Any, ...], spec: ParamSpec) -> jax.Array:
        own = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        return spec.init(own, spec.shape, spec.dtype)

    return jax.tree_util.tree_map_with_path(draw, specs, is_leaf=is_spec)


def abstract_params(specs: Params) -> Params:
    """The same tree with `jax.ShapeDtypeStruct` leaves."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), specs, is_leaf=is_spec)


def logical_axes(specs: Params) -> Params:
    """The same tree with tuples of logical axis names as leaves."""
    return jax.tree.map(lambda s: s.axes, specs, is_leaf=is_spec)


def count(specs: Params) -> int:
    """Number of parameters."""
    return sum(math.prod(spec.shape) for _, spec in flatten(specs))
