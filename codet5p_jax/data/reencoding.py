"""Rows whose encoder reads another tokenizer's ids than the decoder, made of data tokenised once.

    Reencoded(objective, CACHE / "tokenizers/0123…", MODEL_DIR / "encoder_tokenizer")

An objective sees ids of the data's tokenizer, the decoder's. What its encoder is to read becomes
text again, and ids of the encoder's tokenizer; special tokens keep their roles.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from codet5p_jax.data.loader import DataError, HostHalf
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.data.tokens import SpecialTokens

TOKENS, SEGMENTS = "encoder_tokens", "encoder_segments"

# Ids that stand for special tokens while a row is made: no vocabulary has them. One tokenizer may
# have a token for several roles, and the other one each.
# The last one wins where finished inputs hold an id that several roles share.
_ROLES = ("pad", "decoder_start", "bos", "unk", "enc", "tdec", "cdec", "eos")
_SENTINEL = -100  # and below


class Reencoded:
    """The host half of an objective, for an encoder with a tokenizer of its own.

    Args:
      objective: whose rows have `encoder_tokens` and `encoder_segments`.
      tokenizer: folder of the data's.
      encoder_tokenizer: folder of the encoder's.

    Raises:
      DataError: the objective's rows have none; both sides of them read the same arrays.
    """

    def __init__(self, objective: HostHalf, tokenizer: Path, encoder_tokenizer: Path):
        self._objective = objective
        self._folders = tokenizer, encoder_tokenizer
        self.spec = objective.spec
        if TOKENS not in self.spec:
            raise DataError(
                f"{type(objective).__name__} needs one tokenizer for encoder and decoder, which "
                f"read the same tokens; the encoder has its own in {encoder_tokenizer}"
            )

    # Loaded where they are used: in the processes that make batches.
    @cached_property
    def _theirs(self) -> Tokenizer:
        return Tokenizer.load(self._folders[0])

    @cached_property
    def _own(self) -> Tokenizer:
        return Tokenizer.load(self._folders[1])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_theirs", "_own")}

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> dict[str, np.ndarray]:
        """One row; what does not fit any more is cut where the objective cuts."""
        example = {name: _marked(array, special) for name, array in example.items()}
        row = dict(self._objective.features(example, rng, self._marks(special)))
        tokens = self._reencode(row[TOKENS][row[SEGMENTS] > 0])
        tokens = self._fitted(tokens, len(row[TOKENS]))
        for name, array in row.items():
            if array.dtype == np.int32:
                row[name] = _resolved(array, special)
        row[TOKENS] = np.full_like(row[TOKENS], self._own.special.pad)
        row[TOKENS][: len(tokens)] = _resolved(tokens, self._own.special)
        row[SEGMENTS] = (np.arange(len(row[SEGMENTS])) < len(tokens)).astype(np.int32)
        return row

    def _marks(self, special: SpecialTokens) -> SpecialTokens:
        """Placeholders for every special token that the data's tokenizer has."""
        marks = {
            name: -1 - i for i, name in enumerate(_ROLES) if getattr(special, name) is not None
        }
        number = min(len(special.sentinels), len(self._own.special.sentinels))
        return replace(special, **marks, sentinels=tuple(_SENTINEL - i for i in range(number)))

    def _reencode(self, tokens: Int32[np.ndarray, "n"]) -> Int32[np.ndarray, "m"]:
        """Text between placeholders in ids of the encoder's tokenizer; placeholders stay."""
        edges = np.flatnonzero(np.diff(tokens < 0, prepend=False, append=False))
        pieces: list[int] = []
        for run in np.split(tokens, edges):
            if len(run) and run[0] < 0:
                pieces += run.tolist()
            else:
                pieces += self._own.encode(self._theirs.decode_bytes(run))
        return np.array(pieces, np.int32)

    def _fitted(self, tokens: Int32[np.ndarray, "n"], length: int) -> Int32[np.ndarray, "m"]:
        """At most `length` tokens, special ones at both ends among them."""
        extra = len(tokens) - length
        if extra <= 0:
            return tokens
        ordinary = np.flatnonzero(tokens >= 0)
        if getattr(self._objective, "cuts_beginning", False):
            first = int(ordinary[0])
            return np.delete(tokens, slice(first, first + extra))
        last = int(ordinary[-1]) + 1
        return np.delete(tokens, slice(last - extra, last))


@lru_cache
def _tables(special: SpecialTokens) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "m"]]:
    """(ids at minus their placeholder, placeholders or ids at each id up to the last special)."""
    ids = {-1 - i: getattr(special, name) for i, name in enumerate(_ROLES)}
    ids |= {_SENTINEL - i: id for i, id in enumerate(special.sentinels)}
    ids = {mark: id for mark, id in ids.items() if id is not None}
    by_mark = np.zeros(1 - min(ids), np.int32)
    by_id = np.arange(1 + max(ids.values()), dtype=np.int32)
    for mark, id in ids.items():
        by_mark[-mark], by_id[id] = id, mark
    return by_mark, by_id


def _marked(array: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """Ids of special tokens as placeholders; what holds no ids stays."""
    if array.dtype.kind not in "iu":
        return array
    _, by_id = _tables(special)
    return np.where(array < len(by_id), by_id.take(array, mode="clip"), array).astype(np.int32)


def _resolved(tokens: Int[np.ndarray, "*n"], special: SpecialTokens) -> Int32[np.ndarray, "*n"]:
    """Placeholders as ids."""
    by_mark, _ = _tables(special)
    return np.where(tokens < 0, by_mark.take(-tokens, mode="clip"), tokens)
