"""The tokenizer as a `seqio.Vocabulary`, for SeqIO tasks."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from codet5p_jax.data.tokenizer import Tokenizer, files_state
from codet5p_jax.data.tokens import SpecialTokens

Locator = str | os.PathLike[str] | Callable[[], str]
# AutoGraph has nothing to convert here, and warns where it finds no source.
_plain = tf.autograph.experimental.do_not_convert


class CodeVocabulary(seqio.Vocabulary):
    """Byte-level BPE for SeqIO, read when it is first used.

    Text and special tokens are kept apart as in `Tokenizer`: `encode` never gives a special id,
    and `decode` leaves special tokens out. Ids above the vocabulary decode as `unk`, and decoding
    stops at the first `eos`, as everywhere in SeqIO.
    """

    def __init__(self, path: Locator, prefixes: bool = False) -> None:
        """Nothing is read here.

        Args:
          path: what `Tokenizer.load` takes, or a function that returns it, for tasks that are
            registered before it is known.
          prefixes: append `[ENC]`, `[TDEC]`, `[CDEC]` if the vocabulary lacks them (stage 2).
        """
        super().__init__()
        self._locator = path
        self._prefixes = prefixes
        self._loaded: tuple[tuple[str, tuple[Any, ...]], Tokenizer] | None = None

    @property
    def path(self) -> str:
        """Where the tokenizer is."""
        located = self._locator() if callable(self._locator) else self._locator
        return os.fspath(located)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded on first use and again when its files change."""
        path = self.path
        key = (path, files_state(path))
        if self._loaded is None or self._loaded[0] != key:
            tokenizer = Tokenizer.load(Path(path))
            self._loaded = (key, tokenizer.with_prefixes() if self._prefixes else tokenizer)
        return self._loaded[1]

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides every id."""
        return self.tokenizer.fingerprint

    @property
    def special(self) -> SpecialTokens:
        """Ids by role."""
        return self.tokenizer.special

    @property
    def bos_id(self) -> int:
        """`<s>`."""
        return self.tokenizer.special.bos

    @property
    def eos_id(self) -> int:
        """`</s>`."""
        return self.tokenizer.special.eos

    @property
    def unk_id(self) -> int:
        """`<unk>`, the paper's [CLM]."""
        return self.tokenizer.special.unk

    @property
    def pad_id(self) -> int:
        """`<pad>`."""
        return self.tokenizer.special.pad

    @property
    def extra_ids(self) -> int:
        """Number of sentinels, which are among `vocab_size`."""
        return len(self.tokenizer.special.sentinels)

    @property
    def vocab_size(self) -> int:
        """Ids, sentinels and prefixes included."""
        return self._base_vocab_size

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @_plain
    def encode_words_tf(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scalar string -> (ids int32 [n], word_starts bool [n]), as `Tokenizer.encode_words`."""
        tokenizer = self.tokenizer
        ids, starts = tf.numpy_function(tokenizer.encode_words, [text], (tf.int32, tf.bool))
        ids.set_shape([None])
        starts.set_shape([None])
        return ids, starts

    def _encode(self, s: str | bytes) -> Sequence[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    @_plain
    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        tokenizer = self.tokenizer

        def encode(data: bytes) -> np.ndarray:
            return np.asarray(tokenizer.encode(data), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    @_plain
    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        tokenizer = self.tokenizer

        def decode(rows: np.ndarray) -> np.ndarray:
            texts = np.empty(rows.shape[:-1], object)
            for index in np.ndindex(texts.shape):
                texts[index] = tokenizer.decode_bytes(rows[index])
            return texts

        text = tf.numpy_function(decode, [ids], tf.string)
        text.set_shape(ids.shape[:-1])
        return text

    def __eq__(self, other: object) -> bool:
        # By where the tokenizer is looked for, not by content: SeqIO compares vocabularies when
        # mixtures are registered, before there is a tokenizer.
        if not isinstance(other, CodeVocabulary):
            return NotImplemented
        return (self._locator, self._prefixes) == (other._locator, other._prefixes)

    def __hash__(self) -> int:
        return hash((self._locator, self._prefixes))

    def __reduce__(self) -> tuple[type, tuple[str, bool]]:
        return CodeVocabulary, (self.path, self._prefixes)
