"""Texts and functions through the model in batches of few shapes: embeddings and match logits."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from codet5p_jax.data.buckets import batches, pad
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives import contrastive
from codet5p_jax.objectives.rows import wrap
from codet5p_jax.objectives.text_code_pairs import TextCodePairs
from codet5p_jax.sharding import on_mesh, placed, replicated, ways

TokenIds = Sequence[int] | Int[np.ndarray, "_"]


class PairEncoder:
    """Embeds texts and functions, and judges pairs of them with the matching head.

    Rows are laid out as in training, `<s> … </s>`, and sorted into a few padded lengths, so that
    only a few shapes are compiled.

    Args:
      model: abstract CodeT5p with `embed_dim` (and `matching_head`, for `match`).
      params: its parameters, on the mesh if there is one.
      special: token ids; `match` needs `enc`.
      text_length, code_length: tokens at most, `<s>` and `</s>` included; longer ones are cut.
      batch_size: rows of a compiled call.
      shortest: the least padded length; `code_length` compiles one shape per tower, which is what
        a single query wants.
      temperature_bounds: what the objective clamped the temperature to in training.
      progress: called with the number of rows just finished.
      mesh: batches are divided over it as in training.

    Raises:
      ValueError: there is no embedding head, or batches do not divide over the mesh.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        special: SpecialTokens,
        *,
        text_length: int,
        code_length: int,
        batch_size: int = 64,
        shortest: int = 64,
        temperature_bounds: tuple[float, float] = TextCodePairs.temperature_bounds,
        progress: Callable[[int], None] = lambda rows: None,
        mesh: Mesh | None = None,
    ) -> None:
        if model.config.embed_dim is None:
            raise ValueError("the model has no embedding head: set ModelConfig.embed_dim (stage 2)")
        if mesh is not None:
            ways("a batch of texts", (batch_size,), ("batch",), mesh.shape)
        self.model, self.params, self.special, self.mesh = model, params, special, mesh
        self.text_length, self.code_length = text_length, code_length
        self.batch_size, self.shortest, self.progress = batch_size, shortest, progress
        self.temperature_bounds = temperature_bounds

        def embed(params: Any, tokens_BS: jax.Array, segments_BS: jax.Array) -> jax.Array:
            bound = model.bind(params)
            unit_BE = bound.embed(bound.encode(tokens_BS, segments_BS), segments_BS)
            return unit_BE.astype(jnp.float32)

        def encode(params: Any, tokens_BS: jax.Array, segments_BS: jax.Array) -> jax.Array:
            return model.bind(params).encode(tokens_BS, segments_BS)

        def match(
            params: Any,
            code_BT: jax.Array,
            code_segments_BT: jax.Array,
            texts_QSD: jax.Array,
            text_segments_QS: jax.Array,
            query_B: jax.Array,
        ) -> jax.Array:
            bound = model.bind(params)
            states_BTD = bound.decode(
                code_BT, code_segments_BT, texts_QSD[query_B], text_segments_QS[query_B]
            )
            return bound.match(states_BTD, code_segments_BT)

        self._embed, self._encode, self._match = jax.jit(embed), jax.jit(encode), jax.jit(match)

    def embed_texts(self, texts: Sequence[TokenIds]) -> Float32[np.ndarray, "texts E"]:
        """Unit vectors of tokenised texts (no special tokens in them)."""
        return self._embed_all(texts, self.text_length)

    def embed_codes(self, codes: Sequence[TokenIds]) -> Float32[np.ndarray, "codes E"]:
        """Unit vectors of tokenised functions (no special tokens in them)."""
        return self._embed_all(codes, self.code_length)

    def _embed_all(self, items: Sequence[TokenIds], longest: int) -> np.ndarray:
        rows = [wrap(np.asarray(item, np.int32), longest, self.special) for item in items]
        out = np.zeros((len(rows), self.model.config.embed_dim), np.float32)
        for length, picked, real in self._batches([len(row) for row in rows], longest):
            arrays = pad([rows[i] for i in picked], length, self.special.pad)
            out[picked[:real]] = np.asarray(self._read(self._embed, *arrays))[:real]
            self.progress(real)
        return out

    @property
    def temperature(self) -> float:
        """The learned contrastive temperature, clamped as in training: what the cosines were
        divided by when the matching head's hard negatives were drawn."""
        learned = jnp.exp(self.params["log_temperature"])
        return float(contrastive.clamp(learned, self.temperature_bounds))

    def match(
        self,
        texts: Sequence[TokenIds],
        codes: Sequence[TokenIds],
        pairs: Int[np.ndarray, "pairs 2"],
    ) -> Float32[np.ndarray, "pairs 2"]:
        """Logits (no match, match) of (text number, code number) pairs.

        Each text is encoded once. The decoder reads the function with `[ENC]` in place of `<s>`,
        and the head reads the state of its last `</s>` (paper §3.3).
        """
        if self.special.enc is None or not self.model.config.matching_head:
            raise ValueError(
                "matching needs ModelConfig.matching_head and a vocabulary with [ENC] (stage 2)"
            )
        texts_QSD, text_segments_QS = self._encode_texts(texts)
        rows = [wrap(np.asarray(c, np.int32), self.code_length, self.special) for c in codes]
        for row in rows:
            row[0] = self.special.enc
        out = np.zeros((len(pairs), 2), np.float32)
        lengths = [len(rows[code]) for _, code in pairs]
        for length, picked, real in self._batches(lengths, self.code_length):
            code_BT, segments_BT = pad(
                [rows[pairs[i, 1]] for i in picked], length, self.special.pad
            )
            query_B = placed(pairs[picked, 0].astype(np.int32), self.mesh)
            code = placed((code_BT, segments_BT), self.mesh)
            with on_mesh(self.mesh):
                logits = self._match(self.params, *code, texts_QSD, text_segments_QS, query_B)
            out[picked[:real]] = np.asarray(logits)[:real]
            self.progress(real)
        return out

    def _read(self, tower: Any, tokens: np.ndarray, segments: np.ndarray) -> jax.Array:
        with on_mesh(self.mesh):
            return tower(self.params, *placed((tokens, segments), self.mesh))

    def _batches(self, lengths: list[int], longest: int) -> Iterator[tuple[int, np.ndarray, int]]:
        return batches(lengths, longest, self.batch_size, self.shortest)

    def _encode_texts(self, texts: Sequence[TokenIds]) -> tuple[jax.Array, jax.Array]:
        rows = [wrap(np.asarray(t, np.int32), self.text_length, self.special) for t in texts]
        tokens, segments = pad(rows, self.text_length, self.special.pad)
        states = [
            self._read(
                self._encode,
                np.resize(tokens[i : i + self.batch_size], (self.batch_size, self.text_length)),
                np.resize(segments[i : i + self.batch_size], (self.batch_size, self.text_length)),
            )
            for i in range(0, len(rows), self.batch_size)
        ]
        found = jnp.concatenate(states)[: len(rows)], jnp.asarray(segments)
        # Any batch of functions may ask for any text.
        return found if self.mesh is None else jax.device_put(found, replicated(self.mesh))
