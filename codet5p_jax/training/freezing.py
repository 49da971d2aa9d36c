"""Which parameters train. The others keep their values, in a dtype of their own, and cost neither a
gradient nor memory of the optimizer (paper §3.3: a frozen LLM as a deep decoder).

    train.trainable = freezing.Trainable(("encoder/.*", ".*/cross_attention/.*"), "bfloat16")
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import Lora, ModelConfig
from codet5p_jax.models.params import Params, ParamSpec, flatten, nearest_pattern, nested

LORA = ".*_lora_[ab]"


@dataclass(frozen=True)
class Trainable:
    """Patterns of the parameters that train.

    Attributes:
      patterns: regular expressions; a parameter trains if one of them matches its whole path
        (`encoder/layers/attention/q`).
      frozen_dtype: of all the others, on the devices and in checkpoints.
      save_frozen: whether checkpoints hold them; False: checkpoints say where they came from
        (INITIAL_CHECKPOINT_PATH), which then has to stay as it is.
      lora: low-rank additions, which train, to the projections of each tower of which nothing but
        cross-attention trains; None: none.

    Raises:
      ValueError: there is no pattern, or one is no regular expression.
    """

    patterns: tuple[str, ...]
    frozen_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    save_frozen: bool = True
    lora: Lora | None = None

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
        patterns = (*self.patterns, LORA)
        frozen = (n for n in names if not any(re.fullmatch(p, n) for p in patterns))
        return Split(frozenset(frozen))


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


def with_lora(config: ModelConfig, trainable: Trainable | None) -> ModelConfig:
    """The network with the low-rank additions that `Trainable.lora` asks for.

    Raises:
      ValueError: there is no tower to add them to.
    """
    if trainable is None or trainable.lora is None:
        return config
    specs = dict(flatten(CodeT5p(config).specs))
    frozen = trainable.split(CodeT5p(config).specs).frozen
    towers = {}
    for name in ("encoder", "decoder"):
        own = [n for n in specs if n.startswith(f"{name}/") and "/cross_attention" not in n]
        if own and frozen.issuperset(own):
            towers[name] = dataclasses.replace(getattr(config, name), lora=trainable.lora)
    if not towers:
        raise ValueError("Trainable.lora is for towers that are frozen, and none is")
    return dataclasses.replace(config, **towers)


def freeze(model: CodeT5p, trainable: Trainable | None) -> tuple[CodeT5p, Split]:
    """The unbound network with what does not train declared in its dtype, and what that is.

    Raises:
      ValueError: a pattern matches no parameter.
    """
    if trainable is None:
        return model, Split()
    split = trainable.split(model.specs)
    dtype = jnp.dtype(trainable.frozen_dtype)

    def declare(name: str, spec: ParamSpec) -> ParamSpec:
        return dataclasses.replace(spec, dtype=dtype) if name in split.frozen else spec

    declared = {name: declare(name, spec) for name, spec in flatten(model.specs)}
    return model.bind(nested(declared)), split


def merge(trainable: Params, frozen: Params) -> Params:
    """The inverse of `Split`."""
    return nested({**dict(flatten(trainable)), **dict(flatten(frozen))}) if frozen else trainable


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
