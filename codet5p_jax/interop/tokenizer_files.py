"""Tokenizer files, copied as they are; and what PyTorch users need beside those trained here."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codet5p_jax.interop.hf_config import TokenIds
from codet5p_jax.interop.safetensors_files import read_json

ENCODER = "encoder_tokenizer"
"""Where a folder or model directory keeps the tokenizer of an encoder that has one of its own."""
ROLES, CONFIG = "roles.json", "tokenizer_config.json"
SENTENCEPIECE = "sentencepiece.model"  # of a SeqIO task; transformers calls it spiece.model
FILES = (
    "tokenizer.json",
    CONFIG,
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    SENTENCEPIECE,
    "tokenizer.model",  # as LLaMA calls it
    ROLES,
)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copies the tokenizer files of a folder; whether there were any.

    References to code are dropped from `tokenizer_config.json`.
    """
    found = [name for name in FILES if (source / name).is_file()]
    for name in found:
        # A hub's cache holds links to files named after their hashes, beside the snapshots.
        real = (source / name).resolve()
        if real.parent not in (source.resolve(), source.resolve().parent.parent / "blobs"):
            raise ValueError(f"{source / name} is a link out of the folder, to {real}")
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for name in found:
        shutil.copyfile(source / name, target / name)
    if CONFIG in found:
        values = read_json(source / CONFIG)
        if isinstance(values, dict) and values.pop("auto_map", None) is not None:
            _write(target / CONFIG, values)
    return bool(found)


def export_tokenizer(source: Path, target: Path, rows: int) -> None:
    """Copies tokenizer files so that `AutoTokenizer.from_pretrained(target)` reads them.

    Added tokens without a row in the embedding, such as `[ENC]` where a stage-2 model is exported
    with the rows of stage 1, are left out.

    Raises:
      ValueError: a token of another kind has no row; names it.
    """
    copy_tokenizer(source, target)
    if (target / SENTENCEPIECE).exists():
        (target / SENTENCEPIECE).rename(target / "spiece.model")
        if not (target / CONFIG).exists():
            _write(target / CONFIG, {"tokenizer_class": "T5Tokenizer"})
    _drop(target, rows)
    roles = _roles(target)
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


def _drop(folder: Path, rows: int) -> None:
    """Takes added tokens with ids from `rows` on out of every file of a tokenizer."""
    names = [name for name in FILES if name.endswith(".json") and (folder / name).is_file()]
    found: dict[str, Any] = {name: read_json(folder / name) for name in names}
    fast = found.get("tokenizer.json", {})
    slow, roles = found.get("added_tokens.json", {}), found.get(ROLES, {})
    by_id = found.get(CONFIG, {}).get("added_tokens_decoder", {})

    added = {token["content"]: token["id"] for token in fast.get("added_tokens", ())}
    added |= slow | {token["content"]: int(number) for number, token in by_id.items()}
    vocab = fast.get("model", {}).get("vocab", {})
    if isinstance(vocab, list):  # SentencePiece's: [token, score], by id
        vocab = {token: number for number, (token, _) in enumerate(vocab)}
    ids = {**found.get("vocab.json", {}), **vocab, **added}
    beyond = {token: number for token, number in ids.items() if number >= rows}
    if not beyond:
        return
    needed = _needed(roles)
    for token, number in beyond.items():
        if token not in added or token in needed:
            raise ValueError(
                f"{token!r} of the tokenizer has id {number:,}, but {rows:,} rows of the embedding "
                "are exported; choose a larger --vocab_size"
            )
    if "added_tokens" in fast:
        fast["added_tokens"] = [t for t in fast["added_tokens"] if t["content"] not in beyond]
    for token, number in beyond.items():
        slow.pop(token, None)
        by_id.pop(str(number), None)
        vocab.pop(token, None)
    for name in (CONFIG, "special_tokens_map.json", ROLES):
        if name in found:
            found[name] = _without(found[name], beyond)
    for name, values in found.items():
        _write(folder / name, values)


def _needed(roles: Mapping[str, Any]) -> set[str]:
    """Tokens that every model has: those of all roles but the prefixes."""
    basic = (roles.get(name) for name in ("pad", "bos", "eos", "unk", "decoder_start"))
    return {*(token for token in basic if token is not None), *roles.get("sentinels", ())}


def _without(values: dict[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    """Settings of a tokenizer that name none of these tokens: roles None, lists and tables less."""

    def named(value: Any) -> bool:
        return (value.get("content") if isinstance(value, dict) else value) in tokens

    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list):
            out[key] = [x for x in value if not (isinstance(x, str | dict) and named(x))]
        elif isinstance(value, dict) and "content" not in value:
            out[key] = {k: v for k, v in value.items() if k not in tokens}
        else:
            out[key] = None if isinstance(value, str | dict) and named(value) else value
    return out


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
