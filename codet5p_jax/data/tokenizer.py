"""Byte-level BPE with a hard line between text and special tokens, over `tokenizers`.

Text never becomes a special token: `</s>` in source code is encoded as plain characters. Special
ids come from objectives and prompts alone. So encoding is exact: `decode_bytes(encode(x))` is `x`
for any bytes, and the UTF-8 of `x` for any text (a str may carry bytes that are not UTF-8 as
Python's `surrogateescape` does).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsInt

import numpy as np
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from codet5p_jax.data.roles import PREFIXES, PRESETS, Roles, codet5_roles
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.files import write_text

# What `Tokenizer.load` reads of a folder, where it is there.
_FILES = (
    *("tokenizer.json", "roles.json", "vocab.json", "merges.txt"),
    *("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
)
_ESCAPED_BYTE = re.compile("([\udc80-\udcff])")
_SPACE = b" \t\n\r\v\f"


class Tokenizer:
    """Text to ids and back.

    Attributes:
      special: ids by role.
      roles: token strings by role.
      vocab_size: one more than the highest id; a model may have more rows.
    """

    special: SpecialTokens
    roles: Roles
    vocab_size: int

    def __init__(self, spec: Mapping[str, Any], roles: Roles, where: str = "tokenizer") -> None:
        """Wraps the content of a `tokenizer.json`; `where` names it in errors. See `load`."""
        _check_exact(spec, where)
        self.roles = roles
        self._spec = _with_added_tokens(spec, roles, where)
        self._vocab: dict[str, int] = self._spec["model"]["vocab"]
        self.special = roles.resolve(self._vocab, where)
        self.vocab_size = max(self._vocab.values()) + 1
        self._special_ids = {t["id"] for t in self._spec["added_tokens"] if t["special"]}
        self._bytes = self._token_bytes(where)
        self._byte_ids = {b[0]: i for i, b in self._ordinary() if len(b) == 1}
        self._check_bytes(where)
        self._backend = _text_only_backend(self._spec)
        self._check_text_never_special(where)

    @classmethod
    def load(cls, path: str | os.PathLike[str], roles: Roles | None = None) -> "Tokenizer":
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, from a folder or by file name.

        Args:
          path: the folder, or one of those files.
          roles: which token plays which role; by default `roles.json` of the folder, else the
            first of `PRESETS` whose tokens the vocabulary has (or may append).

        Raises:
          FileNotFoundError: no such files.
          ValueError: the tokenizer cannot reproduce its input, or does not fit its roles, or a
            file of it is damaged; the message names the file.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        json_file = path if path.is_file() else folder / "tokenizer.json"
        if json_file.is_file() and json_file.name not in ("vocab.json", "merges.txt"):
            spec = _read_spec(json_file)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            spec = _read_vocab_and_merges(folder)
        else:
            raise FileNotFoundError(
                f"no tokenizer at {path}: expected tokenizer.json, or vocab.json with merges.txt"
            )
        if roles is None:
            own = folder / "roles.json"
            roles = Roles.from_file(own) if own.is_file() else _guess_roles(spec, str(path))
        return cls(spec, roles, str(path))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` (any `tokenizers` library reads it) and `roles.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "roles.json", json.dumps(self.roles.to_json(), indent=2) + "\n")
        write_text(folder / "tokenizer.json", json.dumps(self._spec, ensure_ascii=False))

    def with_prefixes(self) -> "Tokenizer":
        """This vocabulary with `[ENC]`, `[TDEC]`, `[CDEC]` (stage 2), appended if it lacks them."""
        prefixes = dict(zip(("enc", "tdec", "cdec"), PREFIXES, strict=True))
        if all(getattr(self.special, role) is not None for role in prefixes):
            return self
        named = {role: getattr(self.roles, role) or token for role, token in prefixes.items()}
        append = (*self.roles.append, *named.values())
        return Tokenizer(self._spec, replace(self.roles, **named, append=append))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides what `encode` and `special` return."""
        parts = {
            "model": self._spec["model"],
            "pre_tokenizer": self._spec["pre_tokenizer"],
            "added": [[t["id"], t["content"], t["special"]] for t in self._spec["added_tokens"]],
            "special": {k: v for k, v in vars(self.special).items() if k != "other_eos"},
        }
        canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of `text`, no special ones among them.

        A str may hold bytes that are not UTF-8 as `surrogateescape` does (`"\\udcff"` is byte
        0xff); other lone surrogates are a ValueError, since they stand for no bytes.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for i, piece in enumerate(_ESCAPED_BYTE.split(text)):
            if i % 2:
                ids.append(self._byte_ids[ord(piece) - 0xDC00])
            elif piece:
                ids += self._encode_unicode(piece)
        return ids

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[list[int]]:
        """`encode` of each, on several threads."""
        try:
            return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:  # bytes, or surrogates, among them
            return [self.encode(text) for text in texts]

    def encode_words(
        self, text: str | bytes
    ) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Ids (int32) and where words start, for masking whole words; see `word_starts`."""
        ids = np.asarray(self.encode(text), np.int32)
        return ids, self.word_starts(ids)

    def word_starts(self, ids: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether a word starts at each token.

        A word is a maximal run of non-whitespace together with the (ASCII) whitespace before it, so
        every token belongs to exactly one word; whitespace at the very end is a word of its own.

            tokens   `def` ` f` `(` `x` `):` `\\n   ` ` return` ` x`
            starts     1     1   0   0    0      1        0       1
        """
        starts = self._begins_in_space[ids]
        starts[1:] &= ~self._ends_in_space[ids[:-1]]
        starts[:1] = True
        return starts

    def decode(
        self, ids: Iterable[SupportsInt], skip_special: bool = True, errors: str = "replace"
    ) -> str:
        """Text of `ids`. Bytes that are not UTF-8 (ids cut or made up by a model) become U+FFFD;
        with `errors="surrogateescape"` nothing is lost. See `decode_bytes`."""
        return self.decode_bytes(ids, skip_special).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[SupportsInt], skip_special: bool = True) -> bytes:
        """Exact bytes of `ids`. Ids that no token has (spare rows of a model) give nothing."""
        table, special = self._bytes, self._special_ids
        return b"".join(
            table.get(i, b"") for i in map(int, ids) if not (skip_special and i in special)
        )

    @cached_property
    def token_bytes(self) -> dict[int, bytes]:
        """Bytes of every token that stands for text."""
        return dict(self._ordinary())

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its stored string (`Ġ` for a leading space), special or not."""
        return self._vocab.get(token)

    @cached_property
    def _begins_in_space(self) -> np.ndarray:
        return self._flag(lambda b: b[:1] in _SPACE)

    @cached_property
    def _ends_in_space(self) -> np.ndarray:
        return self._flag(lambda b: b[-1:] in _SPACE)

    def _flag(self, test: Any) -> np.ndarray:
        flags = np.zeros(self.vocab_size, bool)
        for i, data in self._ordinary():
            flags[i] = test(data)
        return flags

    def _ordinary(self) -> Iterable[tuple[int, bytes]]:
        return ((i, b) for i, b in self._bytes.items() if i not in self._special_ids)

    def _encode_unicode(self, text: str) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise ValueError(
                f"{text[:40]!r}… holds surrogates that stand for no bytes; expected Unicode text, "
                "or bytes decoded with errors='surrogateescape'"
            ) from None

    def _token_bytes(self, where: str) -> dict[int, bytes]:
        added = {t["content"] for t in self._spec["added_tokens"]}
        alphabet = {char: byte for byte, char in enumerate(_byte_alphabet())}
        try:
            return {
                i: token.encode() if token in added else bytes(alphabet[c] for c in token)
                for token, i in self._vocab.items()
            }
        except KeyError as error:
            raise ValueError(
                f"{where}: a token contains {error.args[0]!r}, which is not in the byte-level "
                "alphabet; expected a byte-level BPE vocabulary"
            ) from None

    def _check_bytes(self, where: str) -> None:
        missing = sorted(set(range(256)) - set(self._byte_ids))
        if missing:
            raise ValueError(
                f"{where}: the vocabulary has no token for byte {missing[0]:#04x} "
                f"({len(missing)} of 256 are missing), so it cannot encode every text"
            )

    def _check_text_never_special(self, where: str) -> None:
        texts = [t["content"] for t in self._spec["added_tokens"] if t["special"]]
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            if not self._special_ids.isdisjoint(ids):
                raise ValueError(
                    f"{where}: the merges build the special token {text!r} from plain text; "
                    "train the vocabulary on text without it, or give it no role"
                )


def files_state(path: str | os.PathLike[str]) -> tuple[tuple[str, int, int], ...]:
    """(name, modification time in ns, bytes) of each file that `Tokenizer.load(path)` may read.

    Of the files, not of their folder, whose time stays the same when a file is rewritten in place.
    """
    path = os.fspath(path)
    folder, name = (path, "") if os.path.isdir(path) else os.path.split(path)
    state = []
    for file in dict.fromkeys([*_FILES, name] if name else _FILES):
        with suppress(OSError):  # os.stat rather than Path: this is asked for every text
            stat = os.stat(os.path.join(folder, file))
            state.append((file, stat.st_mtime_ns, stat.st_size))
    return tuple(state)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: str | os.PathLike[str],
    *,
    num_sentinels: int = 100,
    min_frequency: int = 3,
) -> Tokenizer:
    """Trains byte-level BPE on `texts`, saves it in `folder` and returns it.

    The layout is CodeT5's: `<pad>` 0, `<s>` 1, `</s>` 2, `<unk>` 3, `<mask>` 4, the 256 bytes and
    the merges, `<extra_id_99>` .. `<extra_id_0>`, `[ENC]`, `[TDEC]`, `[CDEC]`. The same texts in
    the same order give the same files.

    Args:
      texts: text to learn merges from.
      vocab_size: ids in all, special ones included; fewer come out where `texts` yield too few
        merges seen `min_frequency` times.
      folder: receives `tokenizer.json` and `roles.json`.
      num_sentinels: how many `<extra_id_*>`.
      min_frequency: of a pair that is merged.
    """
    roles = codet5_roles(num_sentinels)
    first = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    last = [*roles.append, *PREFIXES]
    least = len(first) + 256 + len(last)
    if vocab_size < least:
        raise ValueError(
            f"expected vocab_size of at least {least} (bytes and special tokens), got {vocab_size}"
        )
    learner = _bpe(models.BPE())
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(last),
            min_frequency=min_frequency,
            special_tokens=first,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    spec = json.loads(learner.to_str())
    tokenizer = Tokenizer(spec, replace(roles, append=tuple(last)), "trained tokenizer")
    tokenizer.save(folder)
    return tokenizer


def _bpe(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # For readers of the saved file: they get `<s> … </s>`, as CodeT5's own tokenizer gives.
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 1), add_prefix_space=False
    )
    return tokenizer


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file that its errors name."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"{file}, line {error.lineno}, column {error.colno}"
        raise ValueError(
            f"{place}: expected JSON, found {error.msg!r}; a file that was cut off has to be "
            "copied again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected JSON in UTF-8; {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_spec(file: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json`."""
    spec = _read_object(file)
    model = spec.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ValueError(
            f"{file}: expected the file of a tokenizer, with a model that has a vocab; found the "
            f"fields {', '.join(spec) or '(none)'}"
        )
    return spec


def _read_vocab_and_merges(folder: Path) -> dict[str, Any]:
    """The older file format as the content of a `tokenizer.json`."""
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    _read_object(vocab_file)  # whose errors say where; those of the library do not
    try:
        model = models.BPE.from_file(str(vocab_file), str(merges_file))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(
            f"{vocab_file} and {merges_file}: expected tokens with ids, and merges of two tokens a "
            f"line; {error}"
        ) from error
    spec = json.loads(_bpe(model).to_str())
    vocab = spec["model"]["vocab"]
    if vocab.get("<s>") != 1 or vocab.get("</s>") != 2:
        spec["post_processor"] = None  # not CodeT5's
    ids, special = _side_files(folder)
    free = max([*vocab.values(), *ids.values()]) + 1
    for token in sorted(special, key=special.__getitem__):
        if token not in vocab and token not in ids:
            ids[token], free = free, free + 1
    spec["added_tokens"] = [
        _added(token, vocab.get(token, ids.get(token)), token in special)
        for token in dict.fromkeys([*ids, *special])
    ]
    return spec


def _side_files(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of added tokens, and special tokens with their rank, from the files beside vocab.json."""

    def read(name: str) -> dict[str, Any]:
        file = folder / name
        return _read_object(file) if file.is_file() else {}

    def content(token: Any) -> str:
        return token["content"] if isinstance(token, dict) else token

    ids = dict(read("added_tokens.json"))
    listed: list[str] = []
    for i, token in read("tokenizer_config.json").get("added_tokens_decoder", {}).items():
        ids[content(token)] = int(i)
        listed += [content(token)] if token.get("special") else []
    for value in read("special_tokens_map.json").values():
        listed += [content(t) for t in (value if isinstance(value, list) else [value])]
    return ids, {token: rank for rank, token in enumerate(dict.fromkeys(listed))}


def _added(token: str, token_id: int, special: bool) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": token,
        "single_word": False,
        "lstrip": False,  # CodeGen's and RoBERTa's files strip; text would not come back exactly
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _with_added_tokens(spec: Mapping[str, Any], roles: Roles, where: str) -> dict[str, Any]:
    """`spec` with appended tokens, every role marked special, all in the model's vocabulary.

    A token in the model's vocabulary that no merge makes keeps its id whatever order the added
    tokens are read in.
    """
    vocab = dict(spec["model"]["vocab"])
    added: dict[str, dict[str, Any]] = {}
    for token in spec.get("added_tokens", ()):
        content, token_id = token["content"], token["id"]
        if vocab.setdefault(content, token_id) != token_id:
            raise ValueError(
                f"{where}: {content!r} has id {vocab[content]} in the vocabulary and {token_id} "
                "among the added tokens"
            )
        added[content] = _added(content, token_id, token["special"])
    for content in roles.append:
        vocab.setdefault(content, max(vocab.values()) + 1)
    if len(set(vocab.values())) != len(vocab):
        raise ValueError(f"{where}: two tokens share an id")
    for content in roles.strings:
        if content in vocab:
            added[content] = _added(content, vocab[content], special=True)
    return {
        **spec,
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added.values(), key=lambda t: t["id"]),
        "model": {**spec["model"], "vocab": vocab},
    }


def _text_only_backend(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """An encoder that does not know the special tokens, so text cannot become one."""
    ordinary = [t for t in spec["added_tokens"] if not t["special"]]
    text_only = {**spec, "added_tokens": ordinary, "post_processor": None}
    return tokenizers.Tokenizer.from_str(json.dumps(text_only))


def _check_exact(spec: Mapping[str, Any], where: str) -> None:
    """Refuses tokenizers that lose something of their input."""
    model, pre = spec.get("model") or {}, spec.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(pre):
        raise ValueError(
            f"{where}: expected byte-level BPE, found model {model.get('type')!r} with "
            f"pre-tokenizer {pre.get('type')!r}"
        )
    if spec.get("normalizer") is not None:
        raise ValueError(
            f"{where}: expected no normalizer (it changes text), found "
            f"{spec['normalizer'].get('type')!r}"
        )
    if '"add_prefix_space": true' in json.dumps(pre):
        raise ValueError(f"{where}: expected add_prefix_space false, found true")


def _guess_roles(spec: Mapping[str, Any], where: str) -> Roles:
    known = {*spec["model"]["vocab"], *(t["content"] for t in spec.get("added_tokens", ()))}
    for roles in PRESETS.values():
        if known.issuperset(set(roles.required) - set(roles.append)):
            return roles
    raise ValueError(
        f"{where}: no roles.json there, and the tokens are those of none of "
        f"{', '.join(PRESETS)}; pass `roles`"
    )


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE files (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
