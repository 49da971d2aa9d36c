"""Other weights with something changed on the way, one parameter at a time: rows of the vocabulary
added or taken away, low-rank additions merged."""

import dataclasses
from pathlib import Path

import numpy as np

from codet5p_jax.interop.weights import Index, Weights, cast

LORA_ENDS = ("_lora_a", "_lora_b")
_BY_VOCABULARY = ("embedding", "lm_head", "lm_head_bias")


class ResizedVocabulary:
    """Other weights with more or fewer rows of the embedding (and of an output projection of its
    own). The last rows go; each new row is the mean of all there are.

    Args:
      weights: the other ones.
      rows: of the embedding.
      encoder_rows: of the encoder's where it has one of its own; None: as many as there are.

    Raises:
      ValueError: `rows` is not positive.
    """

    def __init__(self, weights: Weights, rows: int, encoder_rows: int | None = None):
        if rows < 1:
            raise ValueError(f"vocab_size has to be 1 or more, found {rows}")
        self._weights = weights
        sizes = {"vocab_size": rows} | (
            {"encoder_vocab_size": encoder_rows} if encoder_rows else {}
        )
        self.config = dataclasses.replace(weights.config, **sizes)
        self._rows: dict[str, int] = dict.fromkeys(_BY_VOCABULARY, rows)
        if encoder_rows:
            self._rows["encoder_embedding"] = encoder_rows
        self.shapes = {
            path: (self._rows[path], *shape[1:]) if path in self._rows else shape
            for path, shape in weights.shapes.items()
        }

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`."""
        return self._weights.dtype(path)

    def read(
        self, path: str, dtype: np.dtype | None = None, index: Index | None = None
    ) -> np.ndarray:
        """See `Weights`."""
        if path not in self._rows:
            return self._weights.read(path, dtype, index)
        array = self._weights.read(path, dtype)
        new = self._rows[path] - len(array)
        if new > 0:
            mean = array.mean(axis=0, dtype=np.float32).astype(array.dtype)
            array = np.concatenate([array, np.broadcast_to(mean, (new, *mean.shape))])
        return np.asarray(array[: self._rows[path]][index or ()])


class MergedLora:
    """Other weights with what `Lora` adds to their projections added once and for all.

    Args:
      weights: with additions or without.
      dtype: of the projections that something is added to; None: as the kernels are stored, to
        which the sum, made in float32, is rounded.

    Attributes:
      merged: paths of these projections.
    """

    def __init__(self, weights: Weights, dtype: np.dtype | None = None):
        self._weights, self._dtype = weights, dtype
        end = LORA_ENDS[0]
        self.merged = {p.removesuffix(end) for p in weights.shapes if p.endswith(end)}
        config = weights.config
        self._scales = {
            name: getattr(config, name).lora.scale
            for name in ("encoder", "decoder")
            if getattr(config, name).lora is not None
        }
        towers = {
            name: dataclasses.replace(getattr(config, name), lora=None) for name in self._scales
        }
        self.config = dataclasses.replace(config, **towers)
        self.shapes = {p: s for p, s in weights.shapes.items() if not p.endswith(LORA_ENDS)}

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`."""
        own = self._dtype if path in self.merged else None
        return own or self._weights.dtype(path)

    def read(
        self, path: str, dtype: np.dtype | None = None, index: Index | None = None
    ) -> np.ndarray:
        """See `Weights`."""
        if path not in self.merged:
            return self._weights.read(path, dtype, index)
        a_path, b_path = (path + end for end in LORA_ENDS)
        fp32 = np.dtype(np.float32)
        kernel, a, b = (np.array(self._weights.read(p, fp32)) for p in (path, a_path, b_path))
        layers, rank = len(a), a.shape[-1]
        low, high = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        scale = self._scales[path.partition("/")[0]]
        for i in range(layers):
            kernel[i] += scale * (low[i] @ high[i]).reshape(kernel[i].shape)
        kind = dtype or self.dtype(path)
        return cast(kernel[index or ()], kind, path, Path("low-rank additions merged"))
