"""CodeT5+ 2B, 6B and 16B: two towers of CodeGen, cross-attention in the last layer of the decoder.

Tensors as in the published files: `encoder.h.0.attn.qkv_proj.weight`,
`decoder.transformer.h.33.crossattention.q_attn.weight`, `enc_to_dec_proj.weight`, …
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codet5p_jax.interop import causal_lms
from codet5p_jax.interop.causal_families import CODEGEN
from codet5p_jax.interop.tables import LAYER, Entry, Piece, Table, dense
from codet5p_jax.models.configs import ModelConfig, StackConfig
from codet5p_jax.models.stack import layer_groups

TOKEN = CODEGEN.defaults["eos_token_id"]
"""The one special token of CodeGen's tokenizer; published configurations name none."""


def read(values: Mapping[str, Any], where: Path) -> ModelConfig:
    """The network that a `config.json` describes.

    Raises:
      ValueError: a part is missing, or none that the network can have; names the key.
    """
    untied = {"tie_word_embeddings": False}
    parts = {}
    for name in ("encoder", "decoder"):
        part = values.get(name)
        if not isinstance(part, dict):
            raise ValueError(f"{where}: expected an object as {name}, found {part!r}")
        parts[name] = causal_lms.read(CODEGEN, {**part, **untied}, where)
    encoder, decoder = parts["encoder"], parts["decoder"]
    said = causal_lms.Values({"prompt_to_decoder": True, **values}, where)  # published: not said
    tower = decoder.decoder
    return dataclasses.replace(
        decoder,
        encoder=dataclasses.replace(encoder.decoder, causal=False),
        decoder=dataclasses.replace(tower, cross_attention=(tower.num_layers - 1,)),
        encoder_vocab_size=encoder.vocab_size,
        project_encoder=encoder.decoder.d_model != tower.d_model,
        prompt_to_decoder=said.choice("prompt_to_decoder", (True, False)),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json` that describe a network.

    What the layout cannot say goes unnoticed: `read` what was written, and compare.
    """

    def module(tower: StackConfig, rows: int, decoder: bool) -> dict[str, Any]:
        alone = dataclasses.replace(config, decoder=tower, vocab_size=rows)
        return {
            "model_type": "codet5p_module",
            **causal_lms.write(CODEGEN, alone),
            "tie_word_embeddings": False,
            "n_ctx": tower.max_positions,
            "is_decoder": decoder,
            "add_cross_attention": decoder,
        }

    rows = config.encoder_vocab_size or config.vocab_size
    return {
        "encoder": module(config.encoder, rows, decoder=False),
        "decoder": module(config.decoder, config.vocab_size, decoder=True),
        "prompt_to_decoder": config.prompt_to_decoder,
    }


def causal_masks(config: ModelConfig) -> dict[str, int]:
    """Names of the masks that published files hold, and how many positions each has: it is uint8
    [1, 1, positions, positions] with ones on and below the diagonal.

    Nothing reads them: which positions an attention sees follows from the configuration.
    """
    towers = {"encoder": config.encoder, "decoder.transformer": config.decoder}
    masks = {
        f"{name}.h.{layer}.attn.causal_mask": tower.max_positions or 0
        for name, tower in towers.items()
        for layer in range(tower.num_layers)
    }
    last = f"decoder.transformer.h.{config.decoder.num_layers - 1}"
    return {**masks, f"{last}.crossattention.causal_mask": config.decoder.max_positions or 0}


def table(config: ModelConfig) -> Table:
    """Which tensor is which parameter."""
    encoder = dataclasses.replace(config, decoder=config.encoder, head_bias=False)
    out = [
        _moved(entry, ("decoder/", "encoder/"), ("transformer.", "encoder."))
        for entry in causal_lms.table(CODEGEN, encoder)
        if entry.ours != "lm_head"
    ]
    out = [
        dataclasses.replace(e, ours="encoder_embedding") if e.ours == "embedding" else e
        for e in out
    ]
    last = config.decoder.num_layers - 1
    groups = {name: first for name, (first, _, _) in layer_groups(config.decoder).items()}
    for entry in causal_lms.table(CODEGEN, config):
        theirs = f"decoder.{entry.theirs}"
        if not entry.layered:
            out.append(dataclasses.replace(entry, theirs=theirs, aliases=()))
            continue
        for group, first in groups.items():
            ours = entry.ours.replace("/layers/", f"/{group}/")
            moved = dataclasses.replace(entry, ours=ours, theirs=theirs, aliases=(), first=first)
            out.append(moved)
    reader = list(groups)[-1]
    out += _cross_attention(f"decoder/{reader}/cross_attention", last, config.decoder.num_heads)
    if config.project_encoder:
        out += dense("encoder_to_decoder", "enc_to_dec_proj")
    return tuple(out)


def _moved(entry: Entry, ours: tuple[str, str], theirs: tuple[str, str]) -> Entry:
    return dataclasses.replace(
        entry, ours=entry.ours.replace(*ours), theirs=entry.theirs.replace(*theirs), aliases=()
    )


def _cross_attention(ours: str, layer: int, heads: int) -> Table:
    """Values come before keys in each of the four shards, as in self-attention."""
    theirs, own = f"decoder.transformer.h.{LAYER}.crossattention", heads // 4
    pieces = {part: Piece(i * own, (i + 1) * own, 2 * own) for i, part in enumerate("vk")}
    fused = "(P N K) D -> D (P N) K"
    return (
        Entry(f"{ours}/q", f"{theirs}.q_attn.weight", "(H K) D -> D H K", first=layer),
        *(
            Entry(f"{ours}/{x}", f"{theirs}.qkv_proj.weight", fused, (), pieces[x], layer)
            for x in "kv"
        ),
        Entry(f"{ours}/o", f"{theirs}.out_proj.weight", "D (H K) -> H K D", first=layer),
    )
