"""Many prompts in batches of few shapes, or one whose text comes while it is written."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int32

from codet5p_jax.data.buckets import batches, bucket, pad
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding.beam import BeamSearch
from codet5p_jax.decoding.generate import (
    Writing,
    compiled,
    read_prompts,
    start_writing,
    write,
)
from codet5p_jax.decoding.prompts import Prompt, room
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.sharding import on_mesh, placed, ways


class Writer:
    """Writes from prompts.

    Prompts of like length go together, so that only a few shapes are compiled. What is written from
    a prompt depends on the key and the place of the prompt, not on what it is batched with, but for
    rounding.

    Args:
      model: abstract CodeT5p with a decoder.
      params: its parameters, on the mesh if there is one.
      special: token ids.
      how: Sampling or BeamSearch.
      batch_size: prompts at a time.
      stop_table: of `stop.stop_table`.
      mesh: batches are divided over it as in training.

    Raises:
      ValueError: there is no decoder, or batches do not divide over the mesh.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        special: SpecialTokens,
        how: Sampling | BeamSearch,
        *,
        batch_size: int = 8,
        stop_table: Int32[np.ndarray, "Q V"] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        if not model.config.decoder.num_layers:
            raise ValueError("the model has no decoder, which is what writes")
        if mesh is not None:
            ways("a batch of prompts", (batch_size,), ("batch",), mesh.shape)
        self.model, self.params, self.special, self.how = model, params, special, how
        self.batch_size, self.stop_table, self.mesh = batch_size, stop_table, mesh
        self._run = compiled(model, special, how)
        self._room = room(model.config, how.max_length)

    def write(
        self, prompts: Sequence[Prompt], key: jax.Array
    ) -> Iterator[tuple[int, list[Int32[np.ndarray, "_"]]]]:
        """Yields the place of each prompt and the tokens written from it, the end token left out,
        `how.samples` or `how.outputs` rows of them, in the order in which batches are done: short
        prompts first.

        Args:
          key: for sampling: one, or `[prompts, samples]` of them.
        """
        lengths = [max(len(p.encoder), len(p.prefix)) for p in prompts]
        outputs = self.how.outputs if isinstance(self.how, BeamSearch) else self.how.samples
        with on_mesh(self.mesh):
            longest = self._width(max(lengths, default=1))
            for width, picked, real in batches(lengths, longest, self.batch_size):
                arrays, start = self._arrays([prompts[i] for i in picked], width)
                keys = (
                    key[picked]
                    if key.ndim
                    else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(picked))
                )
                arrays, start = placed(((*arrays, keys), start), self.mesh)
                made = self._run(self.params, *arrays, start, self.stop_table)
                tokens, ends = self._fetched(made.tokens), self._fetched(made.lengths)
                for row, place in enumerate(picked[:real]):
                    rows = range(row * outputs, (row + 1) * outputs)
                    yield int(place), [self._text(tokens[r, : ends[r]]) for r in rows]

    def stream(
        self, prompt: Prompt, key: jax.Array, chunk: int = 16
    ) -> Iterator[Int32[np.ndarray, "_"]]:
        """Yields the tokens of one text as they come, `chunk` steps at a time.

        Raises:
          ValueError: there are several texts, or beams, whose text is not known before the end.
        """
        if isinstance(self.how, BeamSearch) or self.how.samples > 1:
            raise ValueError("only a single text, written without beams, comes bit by bit")
        width = self._width(max(len(prompt.encoder), len(prompt.prefix)))
        begin, advance = self._steps()
        arrays, start = self._arrays([prompt], width)
        state, weights = begin(self.params, *arrays, key, start, self.stop_table)
        told = 0
        while told < self.how.max_length:
            state = advance(self.params, weights, state, self.stop_table, chunk)
            length = int(state.lengths_BN[0, 0])
            yield self._text(np.asarray(state.tokens_BNT)[0, 0, told:length])
            told = length
            if bool(state.ended_BN.all()):
                return

    def _steps(self) -> tuple[Any, Any]:
        model, special, how = self.model, self.special, self.how
        assert isinstance(how, Sampling), "checked by `stream`"

        @jax.jit
        def begin(params, tokens, segments, prefix, lengths, key, start, table):
            bound = model.bind(params)
            cache, given, real = read_prompts(
                bound, tokens, segments, prefix, lengths, special, how, start
            )
            state = start_writing(
                cache, given, real, key, special, how, table, model.config.vocab_size
            )
            return state, bound.step_weights()

        def advance(params, weights, state: Writing, table, chunk):
            bound = model.bind(params)
            until = jnp.minimum(state.step + chunk, how.max_length)
            return write(bound, weights, state, special, how, table, until)

        return begin, jax.jit(advance, donate_argnums=2, static_argnums=4)

    def _text(self, row: Int32[np.ndarray, "_"]) -> Int32[np.ndarray, "_"]:
        """What was written, without the end token."""
        return row[:-1] if len(row) and row[-1] in self.special.ends else row

    def _width(self, length: int) -> int:
        """Padded length of a prompt of so many tokens, within the positions of the network."""
        config = self.model.config
        both = config.prompt_to_decoder or not config.encoder.num_layers
        limits = [self._room.encoder, self._room.decoder if both else None]
        return max(length, min([bucket(length), *(x for x in limits if x is not None)]))

    def _arrays(self, prompts: Sequence[Prompt], width: int) -> tuple[tuple[Any, ...], Any]:
        """Padded tokens and segments of the encoder, prefixes and their lengths; what the decoder
        starts with, where it is alone: the first token of its prefix."""
        tokens, segments, start = None, None, None
        prefixes = [p.prefix for p in prompts]
        if self.model.config.encoder.num_layers:
            tokens, segments = pad([p.encoder for p in prompts], width, self.special.pad)
        else:
            start = np.array([prefix[0] for prefix in prefixes], np.int32)
            prefixes = [prefix[1:] for prefix in prefixes]
        lengths = np.array([len(prefix) for prefix in prefixes], np.int32)
        longest = int(lengths.max())
        # A prefix of one token, or as wide as prompts: few shapes.
        if longest > 1:
            longest = max(longest, min(width, self._room.decoder or width))
        forced, _ = pad(prefixes, longest, self.special.pad)
        return (tokens, segments, forced, lengths), start

    def _fetched(self, rows: jax.Array) -> np.ndarray:
        """All rows, in every process."""
        if not rows.is_fully_addressable:
            rows = multihost_utils.process_allgather(rows, tiled=True)
        return np.asarray(rows)
