"""Writing from prompts with a key-value cache: one compiled loop of static shapes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding import beam, stop
from codet5p_jax.decoding.beam import BeamSearch
from codet5p_jax.decoding.sampling import Sampling, choose, forbid_end, is_end, penalize
from codet5p_jax.sharding import looked_up


class Generation(NamedTuple):
    """What was written after the prefixes. R is prompts × outputs: `Sampling.samples` or
    `BeamSearch.outputs` of each prompt, those of a prompt side by side.

    Attributes:
      tokens: int32, end token included, padding after it.
      lengths: int32, number of tokens before the padding.
      scores: of beam search, best first: log-probability / length ** length_penalty.
    """

    tokens: Int[Array, "R T"]
    lengths: Int[Array, " R"]
    scores: Float[Array, " R"] | None = None


class Writing(NamedTuple):
    """Where the loop of sampling stands: N rows of each of B prompts.

    Attributes:
      step: tokens written.
      cache: of the decoder.
      last_BN: the token to be read next.
      tokens_BNT, lengths_BN: what was written.
      ended_BN: rows with an end token or a stop text.
      keys_BN: of each row; None where nothing is drawn.
      stop_BN: states of the automaton of stop texts.
      seen_BNV: tokens read or written, for a repetition penalty.
    """

    step: Int[Array, ""]
    cache: dict[str, Any]
    last_BN: Int[Array, "B N"]
    tokens_BNT: Int[Array, "B N T"]
    lengths_BN: Int[Array, "B N"]
    ended_BN: Bool[Array, "B N"]
    keys_BN: jax.Array | None
    stop_BN: Int[Array, "B N"] | None
    seen_BNV: Bool[Array, "B N V"] | None


def generate(
    model: Any,
    encoder_tokens_BS: Int[Array, "B S"] | None,
    encoder_segments_BS: Int[Array, "B S"] | None,
    prefix_BP: Int[Array, "B P"],
    prefix_lengths_B: Int[Array, " B"],
    key: jax.Array,
    special: SpecialTokens,
    how: Sampling | BeamSearch,
    start_B: Int[Array, " B"] | None = None,
    stop_QV: Int[Array, "Q V"] | None = None,
) -> Generation:
    """Continues each prompt until its end token, a stop text or `max_length`.

    The encoder reads the prompt. The decoder starts from `special.decoder_start` and the row's
    prefix, read in one pass, and goes on by itself. A forced first token such as `[TDEC]` is a
    prefix of length 1; a free start is a prefix of width 0. Only what comes after the prefix is
    given back:

      prefix [[TDEC]], lengths [1]      ->  tokens [[a, b, </s>, <pad>]], lengths [3]

    With `ModelConfig.prompt_to_decoder` the prefix is the prompt again, in the decoder's tokens.

    A decoder alone is given a prompt `[a, b, c]` as start a and prefix [b, c], without a start id.

    Traceable: called inside `jax.jit`, usually through `compiled`. The whole batch runs until its
    last row has ended. What a row gets does not depend on the rows beside it, nor on how wide the
    prefixes are padded, but for rounding.

    Args:
      model: bound CodeT5p (parameters inside).
      encoder_tokens_BS, encoder_segments_BS: the prompts; segment 0 is padding. None: the decoder
        alone.
      prefix_BP, prefix_lengths_B: right-padded forced tokens and their counts.
      key: for sampling: one, one for each prompt, or for each row of each; unused at temperature 0.
      special: token ids.
      how: how to choose, and the lengths.
      start_B: what the decoder reads first; None: `special.decoder_start`.
      stop_QV: of `stop.stop_table`; rows end in the step that completes one of its texts.

    Raises:
      ValueError: the prefix is absent where the model has `prompt_to_decoder`.
    """
    cache, given_BQ, real_BQ = read_prompts(
        model, encoder_tokens_BS, encoder_segments_BS, prefix_BP, prefix_lengths_B, special, how,
        start_B,
    )  # fmt: skip
    weights = model.step_weights()
    if isinstance(how, BeamSearch):
        last_BN, seen_BNV = _rows(given_BQ, real_BQ, how, model.config.vocab_size)
        found = beam.search(model, weights, cache, last_BN, seen_BNV, special, how, stop_QV)
        tokens_BNT, lengths_BN, scores_BN = found
        return Generation(
            tokens_BNT.reshape(-1, how.max_length), lengths_BN.reshape(-1), scores_BN.reshape(-1)
        )
    state = start_writing(
        cache, given_BQ, real_BQ, key, special, how, stop_QV, model.config.vocab_size
    )
    state = write(model, weights, state, special, how, stop_QV, how.max_length)
    return Generation(state.tokens_BNT.reshape(-1, how.max_length), state.lengths_BN.reshape(-1))


def compiled(
    model: Any, special: SpecialTokens, how: Sampling | BeamSearch
) -> Callable[..., Generation]:
    """`(params, encoder_tokens, encoder_segments, prefix, prefix_lengths, key, start=None,
    stop=None) -> Generation`, compiled once for each set of shapes."""

    @jax.jit
    def run(params, tokens, segments, prefix, prefix_lengths, key, start=None, stop=None):
        bound = model.bind(params)
        return generate(
            bound, tokens, segments, prefix, prefix_lengths, key, special, how, start, stop
        )

    return run


def read_prompts(
    model: Any,
    encoder_tokens_BS: Array | None,
    encoder_segments_BS: Array | None,
    prefix_BP: Array,
    prefix_lengths_B: Array,
    special: SpecialTokens,
    how: Sampling | BeamSearch,
    start_B: Array | None = None,
) -> tuple[dict[str, Any], Int[Array, "B Q"], Bool[Array, "B Q"]]:
    """The cache after all but the last token that the decoder is given; these tokens, padded on the
    left; which of them are real."""
    batch, width = prefix_BP.shape
    if encoder_tokens_BS is not None and model.config.prompt_to_decoder and not width:
        raise ValueError(
            "the model has prompt_to_decoder, so the prompt has to be the prefix as well; found a "
            "prefix of width 0"
        )
    if start_B is None:
        start_B = jnp.full(batch, special.decoder_start, jnp.int32)
    # Padded on the left, all rows have their last token, and what they write, in the same columns.
    given = jnp.concatenate([start_B[:, None], prefix_BP], axis=1).astype(jnp.int32)
    source = jnp.arange(width + 1) - (width - prefix_lengths_B[:, None])
    real = source >= 0
    take = lambda x, at: jnp.take_along_axis(x, jnp.maximum(at, 0), axis=1)  # noqa: E731
    given = jnp.where(real, looked_up(take, ("batch", "length"), given, source), special.pad)
    encoded_BSD = None
    if encoder_tokens_BS is not None:
        encoded_BSD = model.encode(encoder_tokens_BS, encoder_segments_BS)
    cache = model.init_cache(
        encoded_BSD,
        encoder_segments_BS,
        how.max_length,
        batch,
        rows=how.rows,
        beams=isinstance(how, BeamSearch),
        prefix_BP=given[:, :width] if width else None,
        prefix_segments_BP=real[:, :width].astype(jnp.int32) if width else None,
    )
    return cache, given, real


def start_writing(
    cache: dict[str, Any],
    given_BQ: Array,
    real_BQ: Array,
    key: jax.Array,
    special: SpecialTokens,
    sampling: Sampling,
    stop_QV: Array | None,
    vocab_size: int,
) -> Writing:
    """The state before the first token, after what `read_prompts` gives."""
    last_BN, seen_BNV = _rows(given_BQ, real_BQ, sampling, vocab_size)
    B, N = last_BN.shape
    keys_BN = None
    if sampling.temperature:
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = key if key.ndim else fold(key, jnp.arange(B))
        keys_BN = keys if keys.ndim == 2 else jax.vmap(fold, (0, None))(keys, jnp.arange(N))
    zeros = jnp.zeros((B, N), jnp.int32)
    return Writing(
        step=jnp.int32(0),
        cache=cache,
        last_BN=last_BN,
        tokens_BNT=jnp.full((B, N, sampling.max_length), special.pad, jnp.int32),
        lengths_BN=zeros,
        ended_BN=jnp.zeros((B, N), bool),
        keys_BN=keys_BN,
        stop_BN=None if stop_QV is None else zeros,
        seen_BNV=seen_BNV,
    )


def write(
    model: Any,
    weights: Any,
    state: Writing,
    special: SpecialTokens,
    sampling: Sampling,
    stop_QV: Array | None,
    until: Int[Array, ""] | int,
) -> Writing:
    """Goes on until every row has ended or `until` tokens are written."""

    def running(state: Writing) -> Array:
        return (state.step < until) & ~state.ended_BN.all()

    def advance(state: Writing) -> Writing:
        states_BND, cache = model.decode_step(state.last_BN, state.cache, weights)
        logits_BNV = model.logits(states_BND, weights)
        seen_BNV, stop_BN = state.seen_BNV, state.stop_BN
        if seen_BNV is not None:
            logits_BNV = penalize(logits_BNV, seen_BNV, sampling.repetition_penalty)
        logits_BNV = forbid_end(logits_BNV, state.step, special.ends, sampling.min_length)
        keys_BN = None
        if state.keys_BN is not None:
            keys_BN = jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, state.step)))(state.keys_BN)
        next_BN = choose(logits_BNV, sampling, keys_BN)
        next_BN = jnp.where(state.ended_BN, special.pad, next_BN)
        ended_BN = state.ended_BN | is_end(next_BN, special.ends)
        if stop_QV is not None:
            assert stop_BN is not None, "a state that was made with stop texts"
            stop_BN = stop.advance(stop_QV, stop_BN, next_BN)
            ended_BN |= stop.has_stopped(stop_QV, stop_BN)
        if seen_BNV is not None:
            seen_BNV |= jnp.arange(seen_BNV.shape[-1]) == next_BN[..., None]
        tokens_BNT = jax.lax.dynamic_update_slice(
            state.tokens_BNT, next_BN[..., None], (0, 0, state.step)
        )
        return Writing(
            step=state.step + 1,
            cache=cache,
            last_BN=next_BN,
            tokens_BNT=tokens_BNT,
            lengths_BN=state.lengths_BN + ~state.ended_BN,
            ended_BN=ended_BN,
            keys_BN=state.keys_BN,
            stop_BN=stop_BN,
            seen_BNV=seen_BNV,
        )

    return jax.lax.while_loop(running, advance, state)


def _rows(
    given_BQ: Array, real_BQ: Array, how: Sampling | BeamSearch, vocab_size: int
) -> tuple[Array, Array | None]:
    """What each row reads first, and for a repetition penalty what it was given."""
    last_BN = jnp.repeat(given_BQ[:, -1:], how.rows, axis=1)
    if how.repetition_penalty == 1.0:
        return last_BN, None
    scatter = lambda seen, row, real: seen.at[row].max(real)  # noqa: E731
    seen_BV = jax.vmap(scatter)(jnp.zeros((len(given_BQ), vocab_size), bool), given_BQ, real_BQ)
    return last_BN, jnp.repeat(seen_BV[:, None], how.rows, axis=1)
