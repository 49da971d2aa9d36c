"""Decoder-only language models of `transformers`, as models of ours that are a decoder alone.

A `Family` describes one architecture for both ways: which key of its `config.json` is which field,
which of its tensors is which parameter, and what it fixes. `causal_families` lists them all.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codet5p_jax.interop.tables import Entry, Piece, Table
from codet5p_jax.models.configs import ModelConfig, StackConfig

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
_FLOATS = ("norm_eps", "init_stddev")


@dataclass(frozen=True)
class Fused:
    """Queries, keys and values in one tensor.

    Attributes:
      axes, bias_axes: of the kernel and of the bias, as in `Entry`.
      pieces: the part of axis N that is each of "q", "k" and "v".
    """

    axes: str
    bias_axes: str
    pieces: Mapping[str, Piece]


@dataclass(frozen=True)
class Rope:
    """Where `config.json` says how positions rotate. transformers 5 has all of it in
    `rope_parameters`; earlier versions have scaling in `rope_scaling`, and the rest in keys of
    their own, which are these.

    Attributes:
      theta: key of the frequency base.
      fraction: key of the part of each head that is rotated; None: all of it is.
    """

    theta: str = "rope_theta"
    fraction: str | None = None


class Values:
    """The content of a `config.json`, checked where it is read."""

    def __init__(self, values: Mapping[str, Any], where: Path):
        self._values, self._where = values, where

    def get(self, key: str) -> Any:
        """The value, or None where there is none."""
        return self._values.get(key)

    def number(self, key: str, *, real: bool = False) -> Any:
        """An integer, or a float where `real`.

        Raises:
          ValueError: it is none.
        """
        return self.as_number(key, self.get(key), real=real)

    def as_number(self, key: str, value: Any, *, real: bool = False) -> Any:
        """`number`, of a value that is inside of another."""
        kinds = (int, float) if real else int
        # The comparison fails for NaN as well.
        if isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) < 2**63:
            raise self.error(key, "a number" if real else "an integer", value)
        return float(value) if real else value

    def choice(self, key: str, choices: Iterable[Any]) -> Any:
        """One of `choices`.

        Raises:
          ValueError: it is none of them.
        """
        value, choices = self.get(key), list(choices)
        if not any(type(value) is type(c) and value == c for c in choices):
            raise self.error(key, " or ".join(map(repr, choices)), value)
        return value

    def error(self, key: str, expected: str, found: Any) -> ValueError:
        """The error that says what is there and what was expected."""
        return ValueError(f"{self._where}: expected {expected} as {key}, found {found!r}")


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
      model_type: its name in `config.json`.
      cls: the class of `transformers`; None: it has none, so that the architecture is read only.
      marks: keys and values of `config.json` that tell it from others of the same model_type.
      keys: field of `StackConfig` -> key of `config.json`.
      fixed: fields of `StackConfig` that are the same for all of the family.
      base: prefix of all tensors but the head's, which files of the model without its head lack.
      names: part -> its tensors, without `base`, and without `layer` where each layer has them.
      defaults: what holds where `config.json` lacks a key; what is not here has to be there.
      switches: key -> value -> the fields of `StackConfig` that it stands for.
      required: key -> the only values that the network can have.
      dropouts: keys of rates. Ours is one: the highest of them, written to all.
      activations: their name -> ours; of several, the one in `defaults` is written.
      fused: the layout of queries, keys and values in one tensor; None: they are three tensors.
      conv1d: kernels are [in, out] (GPT-2), else [out, in].
      rope: where rotary positions are described; None: `keys` and `fixed` say it all.
      read_window, write_window: the attention window, where it takes more than one key.
      head_bias, scale_embedding: as in `ModelConfig`.
      heads_multiple: num_heads has to be a multiple of this.
    """

    model_type: str
    cls: str | None
    keys: Mapping[str, str]
    fixed: Mapping[str, Any]
    base: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    marks: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, Mapping[Any, Mapping[str, Any]]] = field(default_factory=dict)
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dropouts: tuple[str, ...] = ()
    activations: Mapping[str, str] = field(default_factory=lambda: ACTIVATIONS)
    fused: Callable[[StackConfig], Fused] | None = None
    conv1d: bool = False
    rope: Rope | None = None
    read_window: Callable[[Values, int], int | None] | None = None
    write_window: Callable[[StackConfig], dict[str, Any]] | None = None
    head_bias: bool = False
    scale_embedding: bool = False
    heads_multiple: int = 1


def read(family: Family, values: Mapping[str, Any], where: Path) -> ModelConfig:
    """The network that a `config.json` describes.

    Raises:
      ValueError: a value is missing, of another type, or none that the network can have; names the
        key.
    """
    given = {key: value for key, value in values.items() if value is not None}
    found = Values({**family.defaults, **given}, where)
    for key, accepted in {**family.required, "quantization_config": (None,)}.items():
        found.choice(key, accepted)
    activation = found.choice(family.keys["activation"], family.activations)
    fields: dict[str, Any] = {**family.fixed, "activation": family.activations[activation]}
    for name, key in family.keys.items():
        optional = key in family.defaults and found.get(key) is None
        if name != "activation" and not optional:
            fields[name] = found.number(key, real=name in _FLOATS)
    for key, meanings in family.switches.items():
        fields |= meanings[found.choice(key, meanings)]
    fields |= _derived(family, fields, found)
    if family.rope is not None:
        fields |= _read_rope(family.rope, fields["head_dim"], found)
    if family.read_window is not None:
        fields["attention_window"] = family.read_window(found, fields["num_layers"])
    rates = [found.number(key, real=True) for key in family.dropouts]
    sizes = {"vocab_size": found.number("vocab_size"), "dropout": max(rates, default=0.0)}
    tied = found.choice("tie_word_embeddings", (True, False))
    try:
        decoder = StackConfig(**fields, causal=True)
        none = dataclasses.replace(decoder, num_layers=0, causal=False, attention_window=None)
        return ModelConfig(
            **sizes,
            encoder=none,
            decoder=decoder,
            tie_embeddings=tied,
            scale_tied_head=False,
            head_bias=family.head_bias,
            scale_embedding=family.scale_embedding,
            embedding_stddev=decoder.init_stddev or 1.0,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def write(family: Family, config: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json` that describe a network, but for those that every architecture has.

    What the family cannot say goes unnoticed: `read` what was written, and compare.
    """
    cfg = config.decoder
    values = {key: getattr(cfg, name) for name, key in family.keys.items()}
    # A key without a value: the default holds.
    values = {key: value for key, value in values.items() if value is not None}
    spelled_out = {"num_kv_heads": cfg.num_heads, "rotary_dim": cfg.head_dim}
    for name in spelled_out.keys() & family.keys.keys():
        values[family.keys[name]] = getattr(cfg, name) or spelled_out[name]
    key = family.keys["activation"]
    spellings = [*family.activations, family.defaults[key]]
    values[key] = {family.activations[name]: name for name in spellings}.get(cfg.activation)
    for key, meanings in family.switches.items():
        fits = [value for value, fields in meanings.items() if _has(cfg, fields)]
        values[key] = fits[0] if fits else next(iter(meanings))
    values |= {key: accepted[0] for key, accepted in family.required.items()}
    values |= dict.fromkeys(family.dropouts, config.dropout)
    if family.rope is not None:
        values |= _write_rope(family.rope, cfg)
    if family.write_window is not None:
        values |= family.write_window(cfg)
    return {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        **values,
    }


def table(family: Family, config: ModelConfig) -> Table:
    """Which tensor is which parameter."""
    cfg, names = config.decoder, family.names
    fused = family.fused(cfg) if family.fused else None

    def entry(ours: str, theirs: str, axes: str, *more: str, piece: Piece | None = None) -> Entry:
        return Entry(ours, family.base + theirs, axes, (theirs, *more), piece)

    def norm(ours: str, theirs: str) -> Table:
        scale = entry(f"decoder/{ours}/scale", f"{theirs}.weight", "D -> D")
        bias = entry(f"decoder/{ours}/bias", f"{theirs}.bias", "D -> D")
        return (scale, bias) if cfg.norm == "layer" else (scale,)

    def linear(module: str, part: str, biased: bool) -> Table:
        ours, name = f"decoder/layers/{module}/{part}", names.get(part)
        axes = (_CONV1D if family.conv1d else LINEAR)[part]
        bias_axes, piece = BIASES[part], None
        if fused is not None and part in fused.pieces:
            axes, bias_axes, piece = fused.axes, fused.bias_axes, fused.pieces[part]
            name = names["qkv"]
        theirs = f"{names['layer']}.{name}"
        kernel = entry(ours, f"{theirs}.weight", axes, piece=piece)
        bias = entry(f"{ours}_bias", f"{theirs}.bias", bias_axes, piece=piece)
        return (kernel, bias) if biased else (kernel,)

    head = f"{names['head']}.weight"
    tied = (head,) if config.tie_embeddings else ()
    entries = [entry("embedding", f"{names['embedding']}.weight", "V D -> V D", *tied)]
    if not config.tie_embeddings:
        entries.append(Entry("lm_head", head, "V D -> V D"))
    if config.head_bias:
        entries.append(Entry("lm_head_bias", f"{names['head']}.bias", "V -> V"))
    if cfg.position == "learned":
        entries.append(entry("decoder/positions", f"{names['positions']}.weight", "P D -> P D"))
    for part in ("attention_norm", "feed_forward_norm"):
        if part == "attention_norm" or not (cfg.parallel and cfg.shared_norm):
            entries += norm(f"layers/{part}", f"{names['layer']}.{names[part]}")
    for part in "qkv":
        entries += linear("attention", part, cfg.qkv_bias)
    entries += linear("attention", "o", cfg.out_bias)
    for part in ("gate", "wi", "wo") if cfg.gated else ("wi", "wo"):
        entries += linear("feed_forward", part, cfg.mlp_bias)
    return (*entries, *norm("final_norm", names["final_norm"]))


_HEADS_OUT, _KERNEL = "(H K) D -> D H K", "O I -> I O"
LINEAR = {
    **dict.fromkeys("qkv", _HEADS_OUT),
    "o": "D (H K) -> H K D",
    **dict.fromkeys(("gate", "wi", "wo"), _KERNEL),
}
_CONV1D = {
    **dict.fromkeys("qkv", "D (H K) -> D H K"),
    "o": "(H K) D -> H K D",
    **dict.fromkeys(("gate", "wi", "wo"), "I O -> I O"),
}
BIASES = {
    **dict.fromkeys("qkv", "(H K) -> H K"),
    "o": "D -> D",
    **dict.fromkeys(("gate", "wi", "wo"), "O -> O"),
}


def _derived(family: Family, fields: Mapping[str, Any], found: Values) -> dict[str, Any]:
    """Sizes that follow from others, where `config.json` leaves them out."""
    heads, width, key = fields["num_heads"], fields["d_model"], family.keys["num_heads"]
    if heads < 1 or heads % family.heads_multiple:
        raise found.error(key, f"a positive multiple of {family.heads_multiple}", heads)
    if not 0 <= fields["norm_eps"] < 1:
        raise found.error(family.keys["norm_eps"], "a small number", fields["norm_eps"])
    if "head_dim" not in fields and width % heads:
        raise found.error(key, f"a divisor of {family.keys['d_model']} = {width}", heads)
    more = {"head_dim": width // heads, "d_ff": 4 * width}
    return {name: value for name, value in more.items() if name not in fields}


def _has(cfg: StackConfig, fields: Mapping[str, Any]) -> bool:
    if cfg.num_kv_heads == cfg.num_heads > 1:
        cfg = dataclasses.replace(cfg, num_kv_heads=None)  # which means the same
    return all(getattr(cfg, name) == value for name, value in fields.items())


def _read_rope(rope: Rope, head_dim: int, found: Values) -> dict[str, Any]:
    """Fields of rotary positions."""
    key = "rope_scaling" if found.get("rope_scaling") else "rope_parameters"
    values = found.get(key) or {}
    if not isinstance(values, dict) or any(isinstance(v, dict | list) for v in values.values()):
        raise found.error(key, "one object for all layers, of numbers and a rope_type", values)
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in ("default", "linear"):
        raise found.error(f"rope_type of {key}", "'default' or 'linear'", kind)

    def number(inside: str, beside: str, default: float) -> float:
        value, name = values.get(inside), f"{inside} of {key}"
        if value is None:
            value, name = found.get(beside), beside
        value = found.as_number(name, default if value is None else value, real=True)
        if value <= 0:
            raise found.error(name, "a positive number", value)
        return value

    fields = {"rotary_base": number("rope_theta", rope.theta, 10_000.0)}
    if kind == "linear":
        fields["rotary_scale"] = found.as_number(
            f"factor of {key}", values.get("factor"), real=True
        )
        if fields["rotary_scale"] <= 0:
            raise found.error(f"factor of {key}", "a positive number", fields["rotary_scale"])
    name = "partial_rotary_factor"
    fraction = number(name, rope.fraction or name, 1.0)
    if rope.fraction is not None:
        return {**fields, "rotary_dim": int(head_dim * fraction)}
    if fraction != 1:
        raise found.error(name, "1.0 (all features of a head rotate)", fraction)
    return fields


def _write_rope(rope: Rope, cfg: StackConfig) -> dict[str, Any]:
    """What both transformers 5 and its predecessors read."""
    kind = "default" if cfg.rotary_scale == 1 else "linear"
    values: dict[str, Any] = {rope.theta: cfg.rotary_base}
    parameters = {"rope_type": kind, "rope_theta": cfg.rotary_base}
    if kind == "linear":
        parameters["factor"] = cfg.rotary_scale
        # Predecessors accept these two keys and no more.
        values["rope_scaling"] = {"type": kind, "factor": cfg.rotary_scale}
    if rope.fraction is not None:
        rotated = cfg.rotary_dim or cfg.head_dim
        fraction = rotated / cfg.head_dim
        if int(cfg.head_dim * fraction) < rotated:  # as it will be read
            fraction = math.nextafter(fraction, 1)
        values[rope.fraction] = parameters["partial_rotary_factor"] = fraction
    return {**values, "rope_parameters": parameters}
