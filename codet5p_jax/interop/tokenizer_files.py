"""Tokenizer files, copied as they are; and what PyTorch users need beside those trained here."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codet5p_jax.files import check_file, check_inside
from codet5p_jax.interop.safetensors_files import read_json
from codet5p_jax.interop.token_ids import TokenIds

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
    "chat_template.jinja",
    "spiece.model",
    SENTENCEPIECE,
    "tokenizer.model",  # as LLaMA calls it
    ROLES,
)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copies the tokenizer files of a folder; whether there were any.

    References to code are dropped from `tokenizer_config.json`.

    Raises:
      ValueError: a file is not of the form that its name says, or a link out of the folder.
    """
    found = [name for name in FILES if check_file(source / name)]
    for name in found:
        check_inside(source / name)
    content = _read(source)
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for name in found:
        shutil.copyfile(source / name, target / name)
    if content.get(CONFIG, {}).pop("auto_map", None) is not None:
        _write(target / CONFIG, content[CONFIG])
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
    left = drop_tokens(target, rows)
    if _is_bare(left):
        vocab = left["vocab.json"]
        sentinels = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
        fit = len(vocab) + len(sentinels) <= rows
        values = {
            "tokenizer_class": "RobertaTokenizer",
            "additional_special_tokens": sentinels if fit else [],
        }
        _write(target / CONFIG, values)
    roles = left.get(ROLES)
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


def _is_bare(files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it is CodeT5's as Salesforce's repository has it, without the name of a class:
    transformers then takes it for SentencePiece's, and every piece for an unknown one."""
    others = {CONFIG, "tokenizer.json", "added_tokens.json", ROLES}
    return {"<s>", "<mask>"} <= files.get("vocab.json", {}).keys() and not others & files.keys()


def drop_tokens(folder: Path, rows: int) -> dict[str, dict[str, Any]]:
    """Takes added tokens with ids from `rows` on out of every file of a tokenizer; returns what is
    left, by file.

    Raises:
      ValueError: a token of another kind has no row; names it.
    """
    found = _read(folder)
    fast = found.get("tokenizer.json", {})
    slow, roles = found.get("added_tokens.json", {}), found.get(ROLES, {})
    by_id = found.get(CONFIG, {}).get("added_tokens_decoder", {})

    added = {token["content"]: token["id"] for token in fast.get("added_tokens", ())}
    added |= slow | {token["content"]: int(number) for number, token in by_id.items()}
    vocab = _vocabulary(fast)
    ids = {**found.get("vocab.json", {}), **vocab, **added}
    beyond = {token: number for token, number in ids.items() if number >= rows}
    if not beyond:
        return found
    needed = _needed(roles)
    for token, number in beyond.items():
        if token not in added or token in needed:
            raise ValueError(
                f"{token!r} of the tokenizer has id {number:,}, but {rows:,} rows of the embedding "
                "are kept; choose a larger --vocab_size"
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
    return found


def _needed(roles: Mapping[str, Any]) -> set[str]:
    """Tokens that every model has: those of all roles but the prefixes."""
    basic = (roles.get(name) for name in _BASIC)
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
    found = {} if folder is None else _read(folder)
    if folder is None or not {ROLES, "tokenizer.json"} <= found.keys():
        return None
    roles, spec = found[ROLES], found["tokenizer.json"]
    vocab = _vocabulary(spec) | {t["content"]: t["id"] for t in spec.get("added_tokens", ())}
    absent = [roles[name] for name in _BASIC if roles[name] not in vocab]
    if absent:
        raise ValueError(
            f"{folder / ROLES}: {', '.join(map(ascii, absent))} is not in the vocabulary of "
            "tokenizer.json"
        )
    pad, bos, eos, _, start = (vocab[roles[name]] for name in _BASIC)
    return TokenIds(pad, bos, eos, start)


def _prefixes(roles: dict[str, Any]) -> list[str]:
    return [roles[name] for name in ("enc", "tdec", "cdec") if roles.get(name) is not None]


def _vocabulary(spec: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token of the model in a `tokenizer.json`."""
    vocab = spec.get("model", {}).get("vocab", {})
    if isinstance(vocab, list):  # SentencePiece's: [token, score], by id
        return {token: number for number, (token, _) in enumerate(vocab)}
    return vocab


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a tokenizer by name, each an object of the form that its readers expect.

    Raises:
      ValueError: one is not; names the file and what was expected.
    """
    out = {}
    for name in FILES:
        if not name.endswith(".json") or not check_file(folder / name):
            continue
        out[name] = values = read_json(folder / name)
        expected, sound = _FORMS.get(name, ("a JSON object", lambda _: True))
        if not isinstance(values, dict) or not sound(values):
            raise ValueError(f"{folder / name}: expected {expected}")
    return out


def _are_ids(values: Any) -> bool:
    return isinstance(values, dict) and all(type(n) is int and n >= 0 for n in values.values())


def _is_tokenizer(spec: dict[str, Any]) -> bool:
    model, added = spec.get("model"), spec.get("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(added, list):
        return False
    vocab = model.get("vocab", {})
    pairs = isinstance(vocab, list) and all(
        isinstance(x, list) and len(x) == 2 and isinstance(x[0], str) for x in vocab
    )
    return (pairs or _are_ids(vocab)) and all(
        isinstance(t, dict) and isinstance(t.get("content"), str) and _are_ids({"": t.get("id")})
        for t in added
    )


def _is_config(values: dict[str, Any]) -> bool:
    by_id = values.get("added_tokens_decoder", {})
    return isinstance(by_id, dict) and all(
        re.fullmatch(r"\d{1,18}", number, re.ASCII)
        and isinstance(t, dict)
        and isinstance(t.get("content"), str)
        for number, t in by_id.items()
    )


_BASIC = ("pad", "bos", "eos", "unk", "decoder_start")


def _is_roles(values: dict[str, Any]) -> bool:
    sentinels, prefixes = values.get("sentinels", []), map(values.get, ("enc", "tdec", "cdec"))
    return (
        all(isinstance(values.get(name), str) for name in _BASIC)
        and isinstance(sentinels, list)
        and all(isinstance(token, str) for token in sentinels)
        and all(isinstance(token, str | None) for token in prefixes)
    )


_FORMS: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "tokenizer.json": (
        "an object with the vocabulary of a `model` and `added_tokens`, each with content and id",
        _is_tokenizer,
    ),
    "vocab.json": ("an object of ids by token", _are_ids),
    "added_tokens.json": ("an object of ids by token", _are_ids),
    CONFIG: (
        "an object whose `added_tokens_decoder`, if any, is an object of tokens by id",
        _is_config,
    ),
    ROLES: (f"an object with a token each as {', '.join(_BASIC)}", _is_roles),
}
"""File -> what it has to be, and whether an object is that."""


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
