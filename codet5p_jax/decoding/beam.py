"""Beam search, token for token as in transformers (5.x)."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding import stop
from codet5p_jax.decoding.sampling import check_ranges, forbid_end, is_end, penalize
from codet5p_jax.models.stack import reorder

NEVER = -1e9  # the score of what cannot be chosen
_BLOCK = 128


@dataclass(frozen=True)
class BeamSearch:
    """The texts of the highest score = log-probability / length ** length_penalty.

    Attributes:
      max_length: tokens written after the prefix at most, end token included.
      min_length: tokens written at least, counted likewise.
      beams: unfinished texts that are kept at each length, and finished ones.
      outputs: texts given back of each prompt, best first (n-best).
      length_penalty: above 0 favours longer texts; 0 compares log-probabilities. It is a number
        with which scores of texts of `max_length` stay apart from each other and from `NEVER`:
        max_length ** length_penalty is between 1e-5 and 1e30.
      early_stopping: when a prompt is done. True: as soon as there are `beams` finished texts.
        False: when the best unfinished text, were it to end here, would score lower than all of
        these. "never": when none could score higher at any length up to `max_length`.
      repetition_penalty: as of `Sampling`, on log-probabilities.
    """

    max_length: int
    min_length: int = 0
    beams: int = 5
    outputs: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            max_length=self.max_length >= 1,
            min_length=0 <= self.min_length <= self.max_length,
            beams=self.beams >= 1,
            outputs=1 <= self.outputs <= self.beams,
            early_stopping=self.early_stopping in (True, False, "never"),
            repetition_penalty=self.repetition_penalty > 0,
            length_penalty=-5 <= self.length_penalty * math.log10(self.max_length) <= 30
            and math.isfinite(self.length_penalty),
        )

    @property
    def rows(self) -> int:
        """Rows that continue each prompt."""
        return self.beams


class Texts(NamedTuple):
    """Texts of each prompt, best first."""

    tokens_BNT: Int[Array, "B N T"]
    lengths_BN: Int[Array, "B N"]
    scores_BN: Float[Array, "B N"]


class _State(NamedTuple):
    step: Int[Array, ""]
    cache: dict[str, Any]
    last_BN: Int[Array, "B N"]
    running: Texts
    finished: Texts
    is_finished_BN: Bool[Array, "B N"]  # whether `finished` holds a text there
    open_B: Bool[Array, " B"]  # whether a running text may still be better
    stop_BN: Int[Array, "B N"] | None
    seen_BNV: Bool[Array, "B N V"] | None


def search(
    model: Any,
    weights: Any,
    cache: dict[str, Any],
    last_BN: Int[Array, "B N"],
    seen_BNV: Bool[Array, "B N V"] | None,
    special: SpecialTokens,
    how: BeamSearch,
    stop_QV: Int[Array, "Q V"] | None,
) -> Texts:
    """The `how.outputs` best texts of each prompt.

    As in transformers, beams × (1 + number of end tokens) candidates are looked at in each step, so
    that as many as there are beams go on; of those that end, only the ones among the first `beams`
    are kept.

    Args:
      model, weights: bound, and its `step_weights()`.
      cache: with `beams`, after all but the last token that the decoder is given.
      last_BN: that token, for each beam.
      seen_BNV: what the decoder is given, for a repetition penalty.
      special, how, stop_QV: as of `generate`.
    """
    B, N = last_BN.shape
    T = how.max_length
    blank = jnp.full((B, N, T), special.pad, jnp.int32)
    zeros = jnp.zeros((B, N), jnp.int32)
    first_BN = jnp.broadcast_to(jnp.where(jnp.arange(N) == 0, 0.0, NEVER), (B, N))

    def running(state: _State) -> Array:
        go_on = state.open_B.any() & (state.step < T)
        return go_on & ~state.is_finished_BN.all() if how.early_stopping is True else go_on

    def advance(state: _State) -> _State:
        states_BND, cache = model.decode_step(state.last_BN, state.cache, weights)
        logits_BNV = model.logits(states_BND, weights)
        scores_BNV = logits_BNV - jax.nn.logsumexp(logits_BNV, axis=-1, keepdims=True)
        if state.seen_BNV is not None:
            scores_BNV = penalize(scores_BNV, state.seen_BNV, how.repetition_penalty)
        scores_BNV = forbid_end(scores_BNV, state.step, special.ends, how.min_length)
        scores_BNV += state.running.scores_BN[..., None]
        scores_BM, parents_BM, ids_BM = best_continuations(scores_BNV, (1 + len(special.ends)) * N)
        candidates = Texts(
            jax.lax.dynamic_update_slice(
                _of(state.running.tokens_BNT, parents_BM), ids_BM[..., None], (0, 0, state.step)
            ),
            jnp.full_like(ids_BM, state.step + 1),
            scores_BM,
        )
        ends_BM = is_end(ids_BM, special.ends) | (state.step + 1 == T)
        stop_BM = None
        if stop_QV is not None:
            assert state.stop_BN is not None, "made with the table"
            stop_BM = stop.advance(stop_QV, _of(state.stop_BN, parents_BM), ids_BM)
            ends_BM |= stop.has_stopped(stop_QV, stop_BM)
        finished, is_finished_BN = _with_finished(state, candidates, ends_BM, how)

        going = candidates._replace(scores_BN=scores_BM + jnp.where(ends_BM, NEVER, 0.0))
        _, chosen_BN = jax.lax.top_k(going.scores_BN, N)
        going, last_BN = _chosen(going, chosen_BN), _of(ids_BM, chosen_BN)
        parents_BN = _of(parents_BM, chosen_BN)
        seen_BNV = state.seen_BNV
        if seen_BNV is not None:
            seen_BNV = _of(seen_BNV, parents_BN)
            seen_BNV |= jnp.arange(seen_BNV.shape[-1]) == last_BN[..., None]
        step = state.step + 1
        return _State(
            step=step,
            cache=reorder(cache, parents_BN),
            last_BN=last_BN,
            running=going,
            finished=finished,
            is_finished_BN=is_finished_BN,
            open_B=state.open_B & _may_improve(going, finished, is_finished_BN, step, how),
            stop_BN=None if stop_BM is None else _of(stop_BM, chosen_BN),
            seen_BNV=seen_BNV,
        )

    state = _State(
        step=jnp.int32(0),
        cache=cache,
        last_BN=last_BN,
        running=Texts(blank, zeros, first_BN),
        finished=Texts(blank, zeros, jnp.full((B, N), NEVER)),
        is_finished_BN=jnp.zeros((B, N), bool),
        open_B=jnp.ones(B, bool),
        stop_BN=None if stop_QV is None else zeros,
        seen_BNV=seen_BNV,
    )
    finished = jax.lax.while_loop(running, advance, state).finished
    return Texts(*(x[:, : how.outputs] for x in finished))


def best_continuations(
    scores_BNV: Float[Array, "B N V"], number: int
) -> tuple[Float[Array, "B M"], Int[Array, "B M"], Int[Array, "B M"]]:
    """The highest scores of all beams of a prompt, in order: scores, beams, tokens.

    The blocks with the highest maxima hold them all, so only these are sorted: on CPU, selecting
    among whole vocabularies takes longer than the decoder does.
    """
    B, N, V = scores_BNV.shape
    blocks = -(-V // _BLOCK)
    padded = jnp.pad(
        scores_BNV, ((0, 0), (0, 0), (0, blocks * _BLOCK - V)), constant_values=-jnp.inf
    )
    by_block = padded.reshape(B, N * blocks, _BLOCK)
    _, top_BM = jax.lax.top_k(by_block.max(-1), min(number, N * blocks))
    top_BM = jnp.sort(top_BM, axis=-1)  # equal scores in the order of beams and tokens
    within = jnp.take_along_axis(by_block, top_BM[..., None], axis=1)
    scores_BM, at_BM = jax.lax.top_k(within.reshape(B, -1), number)
    block_BM = jnp.take_along_axis(top_BM, at_BM // _BLOCK, axis=1)
    token_BM = block_BM % blocks * _BLOCK + at_BM % _BLOCK
    return scores_BM, block_BM // blocks, token_BM


def _with_finished(
    state: _State, candidates: Texts, ends_BM: Array, how: BeamSearch
) -> tuple[Texts, Array]:
    """The best of what had ended and of what ends in this step, and which of them are texts."""
    N = how.beams
    ends_BM = ends_BM & (jnp.arange(ends_BM.shape[1]) < N)
    scores_BM = candidates.scores_BN / (state.step + 1.0) ** how.length_penalty
    closed_B = ~state.open_B
    if how.early_stopping is True:
        closed_B |= state.is_finished_BN.all(axis=1)
    scores_BM += jnp.where(closed_B[:, None], NEVER, 0.0) + jnp.where(ends_BM, 0.0, NEVER)
    both = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b], axis=1),
        (state.finished, state.is_finished_BN),
        (candidates._replace(scores_BN=scores_BM), ends_BM),
    )
    texts, is_text = both
    _, best_BN = jax.lax.top_k(texts.scores_BN, N)
    return _chosen(texts, best_BN), _of(is_text, best_BN)


def _may_improve(
    running: Texts, finished: Texts, is_finished_BN: Array, step: Array, how: BeamSearch
) -> Array:
    """Whether the best running text may yet score higher than the worst finished one."""
    longest = how.early_stopping == "never" and how.length_penalty > 0
    length = jnp.float32(how.max_length) if longest else step.astype(jnp.float32)
    possible_B1 = running.scores_BN[:, :1] / length**how.length_penalty
    worst_B1 = finished.scores_BN.min(axis=1, keepdims=True)
    return (possible_B1 > jnp.where(is_finished_BN, worst_B1, NEVER)).any(axis=1)


def _of(x: Array, rows_BM: Array) -> Array:
    """Rows along the second axis."""
    return jnp.take_along_axis(x, rows_BM.reshape(*rows_BM.shape, *(1,) * (x.ndim - 2)), axis=1)


def _chosen(texts: Texts, rows_BN: Array) -> Texts:
    return Texts(*(_of(x, rows_BN) for x in texts))
