"""Tokenizer files, copied as they are; and what PyTorch users need beside those trained here."""

import json
import shutil
from pathlib import Path
from typing import Any

from codet5p_jax.interop.hf_config import TokenIds
from codet5p_jax.interop.safetensors_files import read_json

ROLES, CONFIG = "roles.json", "tokenizer_config.json"
FILES = (
    "tokenizer.json",
    CONFIG,
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    ROLES,
)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copies the tokenizer files of a folder; whether there were any.

    References to code are dropped from `tokenizer_config.json`.
    """
    found = [name for name in FILES if (source / name).is_file()]
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for name in found:
        shutil.copyfile(source / name, target / name)
    if CONFIG in found:
        values = read_json(source / CONFIG)
        if isinstance(values, dict) and values.pop("auto_map", None) is not None:
            _write(target / CONFIG, values)
    return bool(found)


def export_tokenizer(source: Path, target: Path) -> None:
    """Copies tokenizer files so that `AutoTokenizer.from_pretrained(target)` reads them."""
    copy_tokenizer(source, target)
    roles = _roles(source)
    if roles is not None and not (target / CONFIG).exists():
        special = dict.fromkeys([*roles.get("sentinels", ()), *_prefixes(roles)])
        values = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": roles["pad"],
            "bos_token": roles["bos"],
            "eos_token": roles["eos"],
            "unk_token": roles["unk"],
            "cls_token": roles["bos"],
            "sep_token": roles["eos"],
            "additional_special_tokens": list(special),
            "clean_up_tokenization_spaces": False,
        }
        _write(target / CONFIG, values)


def token_ids(folder: Path | None) -> TokenIds | None:
    """Special ids of a tokenizer that says which token plays which role; None if it does not."""
    roles = None if folder is None else _roles(folder)
    if folder is None or roles is None or not (folder / "tokenizer.json").is_file():
        return None
    spec = read_json(folder / "tokenizer.json")
    vocab = spec["model"]["vocab"] | {t["content"]: t["id"] for t in spec.get("added_tokens", ())}
    return TokenIds(
        pad=vocab[roles["pad"]],
        bos=vocab[roles["bos"]],
        eos=vocab[roles["eos"]],
        decoder_start=vocab[roles["decoder_start"]],
    )


def _prefixes(roles: dict[str, Any]) -> list[str]:
    return [roles[name] for name in ("enc", "tdec", "cdec") if roles.get(name) is not None]


def _roles(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / ROLES) if (folder / ROLES).is_file() else None


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
