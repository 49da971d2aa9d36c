"""Which parameters train. The others keep their values, in a dtype of their own, and cost neither a
gradient nor memory of the optimizer (paper §3.3: a frozen LLM as a deep decoder).

    train.trainable = freezing.Trainable(("encoder/.*", ".*/cross_attention/.*"), "bfloat16")
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from codet5p_jax.models.params import Params, ParamSpec, flatten


@dataclass(frozen=True)
class Trainable:
    """Patterns of the parameters that train.

    Attributes:
      patterns: regular expressions; a parameter trains if one of them matches its whole path
        (`encoder/layers/attention/q`).
      frozen_dtype: of all the others, on the devices and in checkpoints.

    Raises:
      ValueError: there is no pattern, or one is no regular expression.
    """

    patterns: tuple[str, ...]
    frozen_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ValueError("Trainable.patterns is empty: nothing would train")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"Trainable.patterns: {pattern!r} is no regular expression: {error}"
                ) from None
        if self.frozen_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                "Trainable.frozen_dtype has to be float32, bfloat16 or float16, found "
                f"{self.frozen_dtype!r}"
            )

    def split(self, specs: Params) -> "Split":
        """Which parameters of a network train.

        Raises:
          ValueError: a pattern matches no parameter; names the nearest.
        """
        names = [name for name, _ in flatten(specs)]
        for pattern in self.patterns:
            if not any(re.fullmatch(pattern, name) for name in names):
                raise ValueError(
                    f"Trainable.patterns: {pattern!r} matches no parameter; the nearest is "
                    f"{nearest_pattern(pattern, names)!r}"
                )
        frozen = (n for n in names if not any(re.fullmatch(p, n) for p in self.patterns))
        return Split(frozenset(frozen))

    def specs(self, specs: Params) -> Params:
        """The declarations of a network with the frozen ones in their dtype."""
        frozen = self.split(specs).frozen
        dtype = jnp.dtype(self.frozen_dtype)

        def declare(name: str, spec: ParamSpec) -> ParamSpec:
            return dataclasses.replace(spec, dtype=dtype) if name in frozen else spec

        return nested({name: declare(name, spec) for name, spec in flatten(specs)})


@dataclass(frozen=True)
class Split:
    """Paths of the parameters that do not train; none of them by default."""

    frozen: frozenset[str] = frozenset()

    def __call__(self, params: Params) -> tuple[Params, Params]:
        """The nested dict of parameters (or of anything by path) as (trainable, frozen) ones."""
        flat = dict(flatten(params))
        parts = (
            {name: x for name, x in flat.items() if name not in self.frozen},
            {name: x for name, x in flat.items() if name in self.frozen},
        )
        return nested(parts[0]), nested(parts[1])


def merge(trainable: Params, frozen: Params) -> Params:
    """The inverse of `Split`."""
    return nested({**dict(flatten(trainable)), **dict(flatten(frozen))}) if frozen else trainable


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


def nearest_pattern(pattern: str, names: list[str]) -> str:
    """Of all names, and of all groups of names as `a/b/.*`, the one that looks most like it."""
    # `a/b/c` lies in `a/b/.*` and in `a/.*`
    groups = {f"{part}/.*" for name in names for part in PurePosixPath(name).parents[:-1]}
    return difflib.get_close_matches(pattern, [*sorted(groups), *names], n=1, cutoff=0.0)[0]


def parts_table(specs: Params, split: Split) -> list[str]:
    """Lines of a table of the parts of a network: parameters, bytes, and whether they train.

    part                 parameters        bytes  trainable
    encoder             304,232,448      1.22 GB        yes
    decoder           2,753,141,760      5.51 GB         no
    """
    rows: dict[tuple[str, bool], list[int]] = {}
    for name, spec in flatten(specs):
        number = math.prod(spec.shape)
        row = rows.setdefault((_part(name), name not in split.frozen), [0, 0])
        row[0] += number
        row[1] += number * np.dtype(spec.dtype).itemsize
    total = sum(number for number, _ in rows.values())
    training = sum(number for (_, trains), (number, _) in rows.items() if trains)
    width = max(len("part"), *(len(part) for part, _ in rows))
    lines = [f"{'part':<{width}}  {'parameters':>15}  {'bytes':>10}  trainable"]
    for (part, trains), (number, size) in rows.items():
        told = "yes" if trains else "no"
        lines.append(f"{part:<{width}}  {number:>15,}  {size / 1e9:>7.2f} GB  {told:>9}")
    share = f"{100 * training / total:.2f} % of {total:,} parameters train"
    return [*lines, share]


def _part(name: str) -> str:
    """`decoder/layers_33/cross_attention/q` is of the part `decoder/cross_attention`."""
    first, *rest = name.split("/")
    cross = any(piece.startswith("cross_attention") for piece in rest)
    return f"{first}/cross_attention" if cross else first
