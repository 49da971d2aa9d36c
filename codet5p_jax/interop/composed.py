"""Any encoder and any decoder with cross-attention between them, as `modeling_codet5p_composed.py`
reads it: the layout of CodeT5+ 2B and more, with each projection a tensor and each choice a key.

Keys are the fields of `StackConfig` and `ModelConfig`. Tensors: `encoder.h.0.attn.q_proj.weight`,
`decoder.transformer.h.5.crossattention.k_proj.weight`, `decoder.lm_head.weight`,
`enc_to_dec_proj.weight`, …
"""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from codet5p_jax.interop.causal_lms import BIASES, LINEAR, Values
from codet5p_jax.interop.tables import LAYER, Entry, Table, dense
from codet5p_jax.models.configs import ModelConfig, StackConfig
from codet5p_jax.models.stack import layer_groups

_NOT_WRITTEN = ("lora", "int8", "cross_zero_init")  # merged, widened; an initial value
_SWITCHES = (
    *("project_encoder", "tie_embeddings", "scale_tied_head", "head_bias"),
    *("scale_embedding", "prompt_to_decoder"),
)


def read(values: Mapping[str, Any], where: Path) -> ModelConfig:
    """The network that a `config.json` describes.

    Raises:
      ValueError: a value is missing, of another type, or none that the network can have; names the
        key.
    """
    # transformers leaves out what has its default.
    found = Values({**dict.fromkeys(("share_embeddings", *_SWITCHES), False), **values}, where)
    towers, rows, rates = {}, {}, {}
    for name in ("encoder", "decoder"):
        part = values.get(name)
        if not isinstance(part, dict):
            raise found.error(name, "an object", part)
        inner = Values(part, where)
        rows[name] = inner.number("vocab_size")
        rates[name] = inner.number("dropout", real=True)
        try:
            towers[name] = StackConfig(**_fields(inner))
        except ValueError as error:
            text = str(error)
            raise ValueError(
                text if text.startswith(str(where)) else f"{where}: {name}: {text}"
            ) from None
    shared = found.choice("share_embeddings", (True, False))
    if shared and rows["encoder"] != rows["decoder"]:
        raise found.error("vocab_size of encoder", f"{rows['decoder']:,}", rows["encoder"])
    stddev = towers["decoder"].init_stddev
    try:
        return ModelConfig(
            **towers,
            vocab_size=rows["decoder"],
            encoder_vocab_size=None if shared else rows["encoder"],
            **{name: found.choice(name, (True, False)) for name in _SWITCHES},
            embedding_stddev=stddev or 1.0,
            dropout=max(rates.values()),
        )
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(where)) else f"{where}: {text}") from None


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json` that describe a network."""

    def tower(cfg: StackConfig, rows: int) -> dict[str, Any]:
        fields = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in _NOT_WRITTEN}
        return {
            "model_type": "codet5p_tower",
            "vocab_size": rows,
            **fields,
            "cross_attention": [i for i in range(cfg.num_layers) if cfg.reads_encoder(i)],
            "cross_parallel": cfg.parallel_cross_attention,
            "dropout": config.dropout,
        }

    return {
        "encoder": tower(config.encoder, config.encoder_vocab_size or config.vocab_size),
        "decoder": tower(config.decoder, config.vocab_size),
        "share_embeddings": config.encoder_vocab_size is None,
        **{name: getattr(config, name) for name in _SWITCHES},
    }


def table(config: ModelConfig) -> Table:
    """Which tensor is which parameter."""
    embeddings = [("embedding", "decoder.transformer.wte.weight")]
    aliases = ("decoder.lm_head.weight",) if config.tie_embeddings else ()
    if config.encoder_vocab_size is None:
        aliases += ("encoder.wte.weight",)
    else:
        embeddings.append(("encoder_embedding", "encoder.wte.weight"))
    if not config.tie_embeddings:
        embeddings.append(("lm_head", "decoder.lm_head.weight"))
    first, *others = (Entry(ours, theirs, "V D -> V D") for ours, theirs in embeddings)
    bias = (Entry("lm_head_bias", "decoder.lm_head.bias", "V -> V"),) if config.head_bias else ()
    projection = dense("encoder_to_decoder", "enc_to_dec_proj") if config.project_encoder else ()
    return (
        dataclasses.replace(first, aliases=aliases),
        *others,
        *bias,
        *projection,
        *_tower("encoder", "encoder", config.encoder),
        *_tower("decoder", "decoder.transformer", config.decoder),
    )


def _tower(ours: str, theirs: str, cfg: StackConfig) -> Table:
    def norm(name: str, module: str, first: int = 0) -> Table:
        parts = {"scale": "weight", "bias": "bias"} if cfg.norm == "layer" else {"scale": "weight"}
        return tuple(
            Entry(f"{ours}/{name}/{mine}", f"{theirs}.{module}.{its}", "D -> D", first=first)
            for mine, its in parts.items()
        )

    def block(group: str, first: int, cross: bool) -> Table:
        def linear(part: str, module: str, biased: bool) -> Table:
            name = part.rpartition("/")[2]
            mine, its = f"{ours}/{group}/{part}", f"{theirs}.h.{LAYER}.{module}"
            kernel = Entry(mine, f"{its}.weight", LINEAR[name], first=first)
            bias = Entry(f"{mine}_bias", f"{its}.bias", BIASES[name], first=first)
            return (kernel, bias) if biased else (kernel,)

        def attention(part: str, module: str) -> Table:
            qkv = (linear(f"{part}/{x}", f"{module}.{x}_proj", cfg.qkv_bias) for x in "qkv")
            out = linear(f"{part}/o", f"{module}.out_proj", cfg.out_bias)
            return (*(entry for entries in qkv for entry in entries), *out)

        out = [
            *norm(f"{group}/attention_norm", f"h.{LAYER}.ln_1", first),
            *attention("attention", "attn"),
        ]
        if cross:
            out += attention("cross_attention", "crossattention")
        if cross and not cfg.parallel_cross_attention:
            out += norm(f"{group}/cross_attention_norm", f"h.{LAYER}.ln_cross", first)
        if not (cfg.parallel and cfg.shared_norm):
            out += norm(f"{group}/feed_forward_norm", f"h.{LAYER}.ln_2", first)
        for part, module in _FEED_FORWARD.items():
            if part != "gate" or cfg.gated:
                out += linear(f"feed_forward/{part}", f"mlp.{module}", cfg.mlp_bias)
        return tuple(out)

    positions = {
        "relative": Entry(f"{ours}/relative_bias", f"{theirs}.relative_bias.weight", "B H -> B H"),
        "learned": Entry(f"{ours}/positions", f"{theirs}.wpe.weight", "P D -> P D"),
    }
    groups = layer_groups(cfg).items()
    return (
        *(entry for kind, entry in positions.items() if kind == cfg.position),
        *(entry for name, (first, _, cross) in groups for entry in block(name, first, cross)),
        *norm("final_norm", "ln_f"),
    )


_FEED_FORWARD = {"gate": "fc_gate", "wi": "fc_in", "wo": "fc_out"}


def _fields(found: Values) -> dict[str, Any]:
    """The fields of a `StackConfig`, each of the type that it is declared with."""
    hints = typing.get_type_hints(StackConfig)
    fields = {}
    for field in dataclasses.fields(StackConfig):
        name, hint, value = field.name, hints[field.name], found.get(field.name)
        optional = type(None) in typing.get_args(hint)
        if name in _NOT_WRITTEN or (value is None and optional):
            continue
        if name == "cross_attention":
            fields[name] = _layers(found, fields["num_layers"])
        elif typing.get_origin(hint) is Literal:
            fields[name] = found.choice(name, typing.get_args(hint))
        elif hint is bool or bool in typing.get_args(hint):
            fields[name] = found.choice(name, (True, False))
        else:
            fields[name] = found.number(name, real=float in (hint, *typing.get_args(hint)))
    for name in ("norm_eps", "rotary_base", "rotary_scale"):
        if not (fields[name] > 0 or (name == "norm_eps" and fields[name] == 0)):
            raise found.error(name, "a positive number", fields[name])
    return fields


def _layers(found: Values, number: int) -> tuple[int, ...]:
    layers = found.get("cross_attention")
    sound = isinstance(layers, list) and all(type(i) is int and 0 <= i < number for i in layers)
    if not sound or layers != sorted(set(layers)):
        raise found.error("cross_attention", f"layers from 0 to {number - 1} in order", layers)
    return tuple(layers)
