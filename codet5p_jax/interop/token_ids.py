"""Special tokens of a Hugging Face folder: read, and written for those who generate."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from codet5p_jax.files import check_file
from codet5p_jax.interop import codet5p_large
from codet5p_jax.interop.causal_families import FAMILIES
from codet5p_jax.interop.hf_config import COMPOSED, ENCODERS, load_config, read_object

GENERATION = "generation_config.json"
_UNSET = {"output_attentions": False, "output_hidden_states": False, "use_cache": True}
_ID_KEYS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Special tokens of an exported model; the defaults are CodeT5's. A decoder alone has no start
    token, and may lack others."""

    pad: int | None = 0
    bos: int | None = 1
    eos: int | None = 2
    decoder_start: int | None = 0
    other_eos: tuple[int, ...] = ()
    """More tokens that end a generation, such as the end of a turn."""

    @classmethod
    def read(cls, folder: Path, arch: str = "t5") -> "TokenIds":
        """Those that a folder names: `generation_config.json` before `config.json`, as in
        transformers; the architecture's where neither names one.

        Raises:
          FileNotFoundError: there is no `config.json`.
          ValueError: an id is no id, or one where there can be one only is several; names file and
            key.
        """
        values = load_config(folder)
        if arch not in FAMILIES:  # these cannot do without
            values = {key: value for key, value in values.items() if value is not None}
        if arch in COMPOSED and isinstance(values.get("decoder"), dict):
            values = {**values["decoder"], **values}
        ids = _ids({**_token_defaults(arch), **values}, folder / "config.json")
        path = folder / GENERATION
        if check_file(path):
            found = _ids(read_object(path), path)
            ids |= {key: tokens for key, tokens in found.items() if tokens}

        pad, bos, eos, start = (tokens[0] if tokens else None for tokens in ids.values())
        found = cls(pad, bos, eos, start, other_eos=ids["eos_token_id"][1:])
        if arch in COMPOSED:
            return found.of_seq2seq(codet5p_large.TOKEN if arch == "codet5p" else None)
        start = None if arch in FAMILIES else _first((start, pad))
        return dataclasses.replace(found, decoder_start=start)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TokenIds":
        """The inverse of `dataclasses.asdict`, from JSON."""
        return cls(**{**values, "other_eos": tuple(values.get("other_eos", ()))})

    def of_seq2seq(self, token: int | None = None) -> "TokenIds":
        """With a start and a padding token, which language models lack: the decoder starts with
        what the language model does, and what ends a text pads it. `token` is there for those that
        have none of them."""
        eos = _first((self.eos, token))
        start = _first((self.decoder_start, self.bos, eos))
        return dataclasses.replace(
            self, pad=_first((self.pad, eos, start)), eos=eos, decoder_start=start
        )

    def within(self, rows: int) -> tuple["TokenIds", list[str]]:
        """Those that name one of so many rows of an embedding, and the others: `eos 50,256`.

        >>> TokenIds(eos=50256, decoder_start=None).within(64)[1]
        ['eos 50,256']
        """
        ends = [end for end in (self.eos, *self.other_eos) if end is not None]
        kept = [end for end in ends if end < rows]
        others = [f"eos {end:,}" for end in ends if end >= rows]
        found = dataclasses.replace(self, eos=kept[0] if kept else None, other_eos=tuple(kept[1:]))
        for name in ("pad", "bos", "decoder_start"):
            number = getattr(self, name)
            if number is not None and number >= rows:
                others.append(f"{name} {number:,}")
                found = dataclasses.replace(found, **{name: None})
        return found, others

    def missing(self) -> list[str]:
        """Names of those that an encoder-decoder cannot do without, and that there are none of."""
        return [name for name in ("pad", "eos", "decoder_start") if getattr(self, name) is None]

    def require_rows(self, rows: int, where: Path) -> None:
        """Fails if an id is none of the rows of the embedding.

        Raises:
          ValueError: names the token, and the folder `where` that says so.
        """
        named = {**dataclasses.asdict(self), "other_eos": max(self.other_eos, default=None)}
        for name, number in named.items():
            if number is not None and number >= rows:
                raise ValueError(
                    f"{where}: the {name} token has id {number:,}, but the embedding has {rows:,} "
                    "rows"
                )

    def to_config(self, arch: str) -> dict[str, int | None]:
        """Their keys in the `config.json` of an architecture."""
        values = self._by_key()
        if arch in FAMILIES or arch in ENCODERS:
            del values["decoder_start_token_id"]
        if arch not in FAMILIES and self.bos is None:
            del values["bos_token_id"]
        return values

    def to_generation_config(self) -> dict[str, Any]:
        """The `generation_config.json` that makes `generate` start and end as in training."""
        values: dict[str, Any] = dict(self._by_key())
        if self.other_eos:
            values["eos_token_id"] = [self.eos, *self.other_eos]
        return {key: value for key, value in values.items() if value is not None}

    def _by_key(self) -> dict[str, int | None]:
        tokens = self.pad, self.bos, self.eos, self.decoder_start
        return {key: token for key, token in zip(_ID_KEYS, tokens, strict=True)}


def note_of_others(others: list[str], where: str | Path, rows: int) -> str:
    """What to tell of ids that `TokenIds.within` left out."""
    return (
        f"left out of the special tokens of {where}: {', '.join(others)}, since its embedding has "
        f"{rows:,} rows"
    )


def other_generation_settings(folder: Path) -> list[str]:
    """Names of what a `generation_config.json` says besides special tokens, and other than what
    transformers writes where nobody has set anything."""
    path = folder / GENERATION
    values = read_object(path) if check_file(path) else {}
    told = {key for key, value in values.items() if value != _UNSET.get(key)}
    return sorted(told - {*_ID_KEYS, "_from_model_config", "transformers_version"})


def _ids(values: Mapping[str, Any], where: Path) -> dict[str, tuple[int, ...]]:
    """Ids by key; several of one where a list has them, none where there is no such token."""
    out = {}
    for name in _ID_KEYS:
        value = values.get(name)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(number) is not int or number >= 2**31 for number in numbers):
            raise ValueError(f"{where}: expected an id as {name}, found {value!r}")
        if len(numbers) > 1 and name != "eos_token_id":
            raise ValueError(f"{where}: expected one id as {name}, found {value!r}")
        out[name] = tuple(number for number in numbers if number >= 0)  # -1 is none as well
    return out


def _token_defaults(arch: str) -> Mapping[str, Any]:
    """Ids of special tokens that hold where a folder names none."""
    if arch in FAMILIES:
        return FAMILIES[arch].defaults
    if arch in COMPOSED:
        return {}
    return {"pad_token_id": 0, "eos_token_id": 1}


def _first(values: Iterable[int | None]) -> int | None:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
