"""Which parameters train. The others keep their values, in a dtype of their own, and cost neither a
gradient nor memory of the optimizer (paper §3.3: a frozen LLM as a deep decoder).

    train.trainable = freezing.Trainable(("encoder/.*", ".*/cross_attention.*"), "bfloat16")
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
from codet5p_jax.models.int8 import scales_of
from codet5p_jax.models.params import Params, ParamSpec, flatten, nearest_pattern, nested
from codet5p_jax.training.model_dir import size_text

LORA = ".*_lora_[ab]"
_KERNEL = r"(?:encoder|decoder)/layers(?:_\d+)?/(?:attention/[qkvo]|feed_forward/(?:wi|gate|wo))"
_SCALE = f"{_KERNEL}_scale"
_TOWERS = ("encoder", "decoder")
_PROJECTION = re.compile(  # tower, layers, name among `Lora.PROJECTIONS`
    r"(encoder|decoder)/(layers(?:_\d+)?)/(?:attention/|feed_forward/)?"
    rf"({'|'.join(Lora.PROJECTIONS)})"
)


@dataclass(frozen=True)
class Trainable:
    """Patterns of the parameters that train.

    Attributes:
      patterns: regular expressions; a parameter trains if one of them matches its whole path
        (`encoder/layers/attention/q`). Empty with `lora`: its additions train alone.
      frozen_dtype: of all the others, on the devices and in checkpoints. "int8" is for the kernels
        of self-attention and the feed-forward network of frozen towers, which have an fp32 scale
        for each output; what else is frozen is then bfloat16.
      save_frozen: whether checkpoints hold them; False: checkpoints say where they came from
        (INITIAL_CHECKPOINT_PATH), which then has to stay as it is, and hold what does not stay, see
        `init_from.left_out`. A run that goes on saves as it began.
      lora: low-rank additions, which train, to every projection among its targets that does not;
        None: none.

    Raises:
      ValueError: nothing would train, or a pattern is no regular expression.
    """

    patterns: tuple[str, ...]
    frozen_dtype: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16"
    save_frozen: bool = True
    lora: Lora | None = None

    def __post_init__(self) -> None:
        if not self.patterns and self.lora is None:
            raise ValueError("Trainable.patterns is empty and lora is None: nothing would train")
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
        scales = (n for n in names if re.fullmatch(_SCALE, n))
        return Split(frozenset((*frozen, *scales)))


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


def frozen_towers(config: ModelConfig, trainable: Trainable | None) -> ModelConfig:
    """The network whose frozen parts are as `Trainable` has them: projections with the low-rank
    additions that it asks for, and towers with kernels in 8 bits.

    Raises:
      ValueError: a target of additions has no frozen projection, or for 8 bits, no tower is frozen,
        or some kernels of one are and others are not.
    """
    if trainable is None:
        return config
    if trainable.lora is not None:
        config = _with_lora(config, trainable.lora, trainable)
    return _with_int8(config, trainable) if trainable.frozen_dtype == "int8" else config


def _with_lora(config: ModelConfig, lora: Lora, trainable: Trainable) -> ModelConfig:
    specs = CodeT5p(config).specs
    frozen = trainable.split(specs).frozen
    projections = [m for name, _ in flatten(specs) if (m := _PROJECTION.fullmatch(name))]
    targets: dict[str, list[str]] = {tower: [] for tower in _TOWERS}
    for target in lora.targets:
        own = [m for m in projections if target in (m[3], f"{m[2]}/{m[3]}")]
        if not any(m[0] in frozen for m in own):
            raise ValueError(f"Lora.targets: {target!r} {_not_frozen(own, projections)}")
        for tower, chosen in targets.items():
            there = [m for m in own if m[1] == tower]
            kept = [m for m in there if m[0] in frozen]
            if kept == there:
                chosen += [target] if kept else []
            else:  # in some layers only
                chosen += [f"{m[2]}/{m[3]}" for m in kept]
    towers = {
        tower: dataclasses.replace(
            getattr(config, tower), lora=dataclasses.replace(lora, targets=tuple(chosen))
        )
        for tower, chosen in targets.items()
        if chosen
    }
    return dataclasses.replace(config, **towers)


def _not_frozen(own: list[re.Match[str]], projections: list[re.Match[str]]) -> str:
    if own:
        paths = ", ".join(m[0] for m in own)
        return (
            f"is for projections that are frozen, but {paths} train; take it out of the targets, "
            "or change Trainable.patterns"
        )
    names = {tower: dict.fromkeys(m[3] for m in projections if m[1] == tower) for tower in _TOWERS}
    has = "; ".join(f"{tower} has {', '.join(found)}" for tower, found in names.items() if found)
    return f"is no projection of this network: {has}"


def _with_int8(config: ModelConfig, trainable: Trainable) -> ModelConfig:
    specs = CodeT5p(config).specs
    kernels = [name for name, _ in flatten(specs) if re.fullmatch(_KERNEL, name)]
    frozen = trainable.split(specs).frozen
    towers = {}
    for tower in _TOWERS:
        own = [name for name in kernels if name.startswith(f"{tower}/")]
        kept = [name for name in own if name in frozen]
        training = [name for name in own if name not in frozen]
        if kept and training:
            raise ValueError(
                "Trainable.frozen_dtype = 'int8' is for all kernels of a tower or none, but "
                f"{training[0]} trains and {kept[0]} does not; change the patterns, or set "
                "frozen_dtype = 'bfloat16'"
            )
        if kept:
            towers[tower] = dataclasses.replace(getattr(config, tower), int8=True)
    if not towers:
        raise ValueError(
            "Trainable.frozen_dtype = 'int8' is for the kernels of towers that are frozen, and "
            "none is; set frozen_dtype = 'bfloat16'"
        )
    return dataclasses.replace(config, **towers)


def freeze(model: CodeT5p, trainable: Trainable | None) -> tuple[CodeT5p, Split]:
    """The unbound network with what does not train declared in its dtype, and what that is.

    Raises:
      ValueError: a pattern matches no parameter, or one in 8 bits would train.
    """
    split = Split() if trainable is None else trainable.split(model.specs)
    for name, spec in flatten(model.specs):
        if spec.dtype == jnp.int8 and name not in split.frozen:
            raise ValueError(
                f"{name} is int8 and cannot train; leave StackConfig.int8 to "
                "Trainable(frozen_dtype='int8'), with patterns that do not match it"
            )
    if trainable is None:
        return model, split
    dtype = jnp.dtype("bfloat16" if trainable.frozen_dtype == "int8" else trainable.frozen_dtype)
    scales = scales_of(model.specs)

    def declare(name: str, spec: ParamSpec) -> ParamSpec:
        as_it_is = name not in split.frozen or name in scales or spec.dtype == jnp.int8
        return spec if as_it_is else dataclasses.replace(spec, dtype=dtype)

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
        lines.append(f"{part:<{width}}  {number:>15,}  {size_text(size):>10}  {told:>9}")
    share = f"{100 * training / total:.2f} % of {total:,} parameters train"
    return [*lines, share]


def _part(name: str) -> str:
    """`decoder/layers_33/cross_attention/q` is of the part `decoder/cross_attention`."""
    first, *rest = name.split("/")
    cross = any(piece.startswith("cross_attention") for piece in rest)
    part = f"{first}/cross_attention" if cross else first
    return f"{part}, low-rank" if re.fullmatch(LORA, name) else part
