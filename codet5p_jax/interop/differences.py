"""Whether two configurations are the same network, however they say it."""

import dataclasses
from typing import Any

from codet5p_jax.models.configs import ModelConfig, StackConfig

# What decides how training computes or where it begins, and not what is computed.
_IRRELEVANT = (
    "dtype",
    "attention",
    "remat",
    "scan_layers",
    "loss_chunk",
    "loss_chunks",
    "embedding_stddev",
)


def differences(mine: ModelConfig, theirs: ModelConfig) -> list[tuple[str, Any, Any]]:
    """Fields that decide what is computed and differ, as (path, of `mine`, of `theirs`)."""
    same = {name: getattr(mine, name) for name in _IRRELEVANT}
    one, other = _plain(mine), _plain(dataclasses.replace(theirs, **same))
    for tower in ("encoder", "decoder"):
        if not one[tower]["num_layers"] and not other[tower]["num_layers"]:
            del one[tower], other[tower]
    return [found for found in _fields(one, other) if found[1] != found[2]]


def _plain(config: ModelConfig) -> dict[str, Any]:
    """All fields, with one value wherever several mean the same or nothing."""
    config = dataclasses.replace(
        config,
        encoder=_canonical(config.encoder),
        decoder=_canonical(config.decoder),
        scale_tied_head=config.scale_tied_head or not config.tie_embeddings,
    )
    return dataclasses.asdict(config)


def _canonical(cfg: StackConfig) -> StackConfig:
    reads_encoder = any(cfg.reads_encoder(layer) for layer in range(cfg.num_layers))
    same: dict[str, Any] = {"init_stddev": None, "cross_zero_init": False}
    same["num_kv_heads"] = cfg.num_kv_heads or cfg.num_heads
    same["cross_parallel"] = cfg.parallel_cross_attention if reads_encoder else None
    if not reads_encoder:
        same["cross_attention"] = "none"
    elif all(cfg.reads_encoder(layer) for layer in range(cfg.num_layers)):
        same["cross_attention"] = "all"
    if not cfg.parallel:
        same["shared_norm"] = True
    if cfg.attention_window and cfg.max_positions and cfg.attention_window >= cfg.max_positions:
        same["attention_window"] = None
    if cfg.position == "rotary":
        same["rotary_dim"] = cfg.rotary_dim or cfg.head_dim
    else:
        unused = dict(rotary_dim=None, rotary_base=1.0, rotary_scale=1.0, rotary_interleaved=False)
        same |= unused
    if cfg.position != "relative":
        same |= {"relative_buckets": 1, "relative_max_distance": 1}
    return dataclasses.replace(cfg, **same)


def _fields(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(one, dict):
        return [
            found
            for name in one
            for found in _fields(one[name], other[name], f"{path}.{name}" if path else name)
        ]
    return [(path, one, other)]
