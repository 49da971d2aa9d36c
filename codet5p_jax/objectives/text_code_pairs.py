"""Contrastive and matching objectives over text-code pairs, each pair encoded once (paper §3.2)."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives import contrastive, matching
from codet5p_jax.objectives.base import Batch, Features, Loss, State
from codet5p_jax.objectives.matching import Codes, Texts
from codet5p_jax.objectives.rows import as_tokens, pad, segments, wrap

MOMENTUM_PARTS = ("embedding", "encoder", "projection")  # what `encode` and `embed` read


class _Pairs(NamedTuple):
    """Embeddings of pairs, as queries or candidates; `filled` is False for unused queue slots."""

    text_NE: Float[Array, "N E"]
    code_NE: Float[Array, "N E"]
    ids_N2: Int[Array, "N 2"]
    filled_N: Bool[Array, "N"]


class _Comparison(NamedTuple):
    """Similarity over temperature in both directions, and the summed contrastive loss."""

    text_to_code_BN: Float[Array, "B N"]
    code_to_text_BN: Float[Array, "B N"]
    loss: Float[Array, ""]


@dataclass(frozen=True, kw_only=True)
class TextCodePairs:
    """L_tcc and L_tcm. The mean of both directions' contrastive loss, and two-way matching.

    Every row of the global batch is a negative of every other on any mesh: the loss is plain
    `jax.numpy` over the global batch. Pairs that share their text or their code (by hash of the
    ids) are left out of each other's candidates, and are never drawn as hard negatives.

    In training the order is BLIP's: the momentum network takes a step towards the live one; live
    embeddings are compared with [momentum embeddings of the batch | queue]; hard negatives are
    drawn; the momentum embeddings enter the queue. Each micro-batch of gradient accumulation does
    all of it, and sees only its own rows and the queue.

    With train=False candidates are the live embeddings of the batch, targets are one-hot and hard
    negatives come from the batch: the losses then depend on parameters, batch and key only, and are
    comparable from the first step (empty queue) to the last.

    NOT STATED in the paper are the momentum coefficient, the queue's size in pretraining, the
    temperature's bounds, soft targets and how negatives are drawn; the defaults are BLIP's, except
    that alpha is 0 because the paper's targets are one-hot. The momentum network runs without
    dropout.

    Attributes:
      text_length, code_length: of `<s> … </s>`; 128 and 420 (paper §4).
      token_dropout: share of tokens that the encoder does not see in training, so that a corpus of
        a few thousand pairs is not learnt by heart; 0 in the paper. The momentum network sees all,
        and texts that are encoded again as hard negatives lose their own share.
      matching: whether there is a matching loss; needs [ENC] and the model's matching head.
      matching_rows: rows of the batch that are matched, the first ones (their negatives come from
        the whole batch); None: all, as in the paper. The decoder reads three sequences for each.
      momentum: coefficient of the momentum network; None: no such network, so no queue, and live
        embeddings are compared with live embeddings (for small runs).
      queue_size: pairs in the queue; a multiple of the rows per batch; 0: none.
      negatives_from_queue: draw hard negatives from the queue too and encode the drawn texts again,
        or from the batch only, whose encodings exist.
      alpha: share of the momentum network's softmax in the targets.
      alpha_ramp_steps: steps over which alpha rises linearly from 0.
      temperature_bounds: the learned temperature is clamped to them where it is used.
    """

    text_length: int = 128
    code_length: int = 420
    token_dropout: float = 0.0
    matching: bool = True
    matching_rows: int | None = None
    momentum: float | None = 0.995
    queue_size: int = 57_600
    negatives_from_queue: bool = True
    alpha: float = 0.0
    alpha_ramp_steps: int = 0
    temperature_bounds: tuple[float, float] = (0.001, 0.5)

    name: ClassVar[str] = "text_code_pairs"

    def __post_init__(self) -> None:
        if min(self.text_length, self.code_length) < 3:
            raise ValueError(
                f"{self.name}: text_length={self.text_length} and code_length={self.code_length} "
                "must be 3 or more, for <s> token </s>"
            )
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"{self.name}: token_dropout={self.token_dropout} is not in [0, 1)")
        if self.momentum is None and (self.queue_size or self.alpha):
            raise ValueError(
                f"{self.name}: queue_size={self.queue_size} and alpha={self.alpha} need the "
                "momentum network; set both to 0, or momentum to a number"
            )
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise ValueError(f"{self.name}: momentum={self.momentum} is not between 0 and 1")
        if self.matching_rows is not None and self.matching_rows < 1:
            raise ValueError(
                f"{self.name}: matching_rows={self.matching_rows} must be 1 or more, or None for "
                "all; set matching=False to match none"
            )
        for name in ("queue_size", "alpha_ramp_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{self.name}: {name}={getattr(self, name)} must be 0 or more")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"{self.name}: alpha={self.alpha} is not between 0 and 1")
        low, high = self.temperature_bounds
        if not 0 < low <= high < math.inf:
            raise ValueError(
                f"{self.name}: temperature_bounds must be a positive number and one that is no "
                f"less, not {self.temperature_bounds}"
            )

    @property
    def losses(self) -> tuple[str, ...]:
        """`contrastive`, and `matching` if it is on."""
        return ("contrastive", "matching") if self.matching else ("contrastive",)

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one row. `pair_id` is the hash of the text and that of the code."""
        text, code = (self.text_length,), (self.code_length,)
        shapes: dict[str, tuple[int, ...]] = {
            "text_tokens": text,
            "text_segments": text,
            "code_tokens": code,
            "code_segments": code,
            "pair_id": (2,),
        }
        if self.matching:
            shapes["enc_token"] = ()
        return {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """`text` and `code` int32 [n], [m], no special tokens -> `<s> … </s>` of both."""
        del rng
        text = wrap(as_tokens(example["text"]), self.text_length, special)
        code = wrap(as_tokens(example["code"]), self.code_length, special)
        row = {
            "text_tokens": pad(text, self.text_length, special.pad),
            "text_segments": segments(len(text), self.text_length),
            "code_tokens": pad(code, self.code_length, special.pad),
            "code_segments": segments(len(code), self.code_length),
            "pair_id": np.array([zlib.crc32(x.tobytes()) for x in (text, code)], np.uint32).view(
                np.int32
            ),
        }
        if self.matching:
            if special.enc is None:
                raise ValueError(
                    f"{self.name} needs a vocabulary with [ENC] (special tokens with enc set) for "
                    "its matching loss; set matching=False to train without"
                )
            row["enc_token"] = np.array(special.enc, np.int32)
        return row

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Rows; three judgements for each that is matched."""
        rows = len(batch["pair_id"])
        numbers = {"contrastive": rows, "matching": 3 * min(rows, self.matching_rows or rows)}
        return {name: jnp.float32(numbers[name]) for name in self.losses}

    def init_state(self, model: Any, params: Any) -> State:
        """The momentum network starts as a copy; the queue starts empty."""
        self._check(model)
        if self.momentum is None:
            return {}
        # A copy, for the live parameters' buffers are donated to the step.
        average = jax.tree.map(jnp.copy, {name: params[name] for name in MOMENTUM_PARTS})
        state = {"momentum": average, "step": jnp.zeros((), jnp.int32)}
        if self.queue_size:
            unit = jax.ShapeDtypeStruct((model.config.embed_dim,), jnp.float32)
            arrays = {"text": unit, "code": unit, "pair_id": self.spec["pair_id"]}
            if self._mines_queue:
                tokens = ("text_tokens", "text_segments", "code_tokens", "code_segments")
                arrays |= {name: self.spec[name] for name in tokens}
            state["queue"] = contrastive.empty_queue(arrays, self.queue_size)
        return state

    def loss(
        self, model: Any, batch: Batch, state: State, key: jax.Array, train: bool
    ) -> tuple[dict[str, Loss], State]:
        """Encodes both sides once, compares, draws negatives, matches.

        Metrics per row: `loss`, `accuracy` (own partner on top, mean of both directions) and
        `temperature` of `contrastive`; `loss` and `accuracy` of `matching`, per pair judged.
        """
        self._check(model)
        keys = _Keys.split(key, train)
        seen = _thin(batch, self.token_dropout, keys.thin) if train else batch
        texts, live = _encode(model, seen, keys.text, keys.code)
        temperature = contrastive.clamp(model.temperature, self.temperature_bounds)

        teacher, average = None, None
        if train and self.momentum is not None:
            params = {name: model.params[name] for name in MOMENTUM_PARTS}
            average = contrastive.momentum_update(state["momentum"], params, self.momentum)
            _, teacher = jax.lax.stop_gradient(_encode(model.bind(average), batch, None, None))

        candidates = live if teacher is None else teacher
        if teacher is not None and self.queue_size:
            candidates = jax.tree.map(_concatenate, teacher, _queued(state["queue"]))
        comparison = self._compare(live, teacher, candidates, temperature, state)
        losses = {"contrastive": _contrastive_loss(comparison, temperature)}
        if self.matching:
            mined = state["queue"] if train and self._mines_queue else None
            rows = min(len(batch["pair_id"]), self.matching_rows or len(batch["pair_id"]))
            losses["matching"] = _matching_loss(
                model, batch, texts, comparison, mined, keys, rows, self.token_dropout
            )
        if teacher is not None:
            state = self._next_state(state, average, teacher, batch)
        return losses, state

    @property
    def _mines_queue(self) -> bool:
        return self.matching and self.negatives_from_queue and self.queue_size > 0

    def _check(self, model: Any) -> None:
        if model.config.embed_dim is None:
            raise ValueError(f"{self.name} needs a model with embed_dim (256 in the paper)")
        if self.matching and not model.config.matching_head:
            raise ValueError(
                f"{self.name} with matching=True needs a model with matching_head=True"
            )

    def _compare(
        self,
        live: _Pairs,
        teacher: _Pairs | None,
        candidates: _Pairs,
        temperature: Float[Array, ""],
        state: State,
    ) -> _Comparison:
        allowed_BN = contrastive.allowed_candidates(
            live.ids_N2, candidates.ids_N2, candidates.filled_N
        )

        def both(queries: _Pairs) -> tuple[Array, Array]:
            return (
                contrastive.logits(queries.text_NE, candidates.code_NE, temperature, allowed_BN),
                contrastive.logits(queries.code_NE, candidates.text_NE, temperature, allowed_BN),
            )

        t2c, c2t = both(live)
        soft_t2c, soft_c2t, alpha = None, None, 0.0
        if teacher is not None and self.alpha:
            soft_t2c, soft_c2t = both(teacher)
            ramp = state["step"] / self.alpha_ramp_steps if self.alpha_ramp_steps else 1.0
            alpha = self.alpha * jnp.minimum(ramp, 1.0)
        loss = contrastive.cross_entropy(t2c, soft_t2c, alpha)
        loss += contrastive.cross_entropy(c2t, soft_c2t, alpha)
        return _Comparison(t2c, c2t, loss / 2)

    def _next_state(self, state: State, average: Any, teacher: _Pairs, batch: Batch) -> State:
        state = state | {"momentum": average, "step": state["step"] + 1}
        if self.queue_size:
            rows = {"text": teacher.text_NE, "code": teacher.code_NE, **batch}
            names = state["queue"].keys() - {"count"}
            state["queue"] = contrastive.enqueue(state["queue"], {n: rows[n] for n in names})
        return state


class _Keys(NamedTuple):
    """Keys by use; those of dropout are None in evaluation."""

    thin: jax.Array
    thin_negative: jax.Array
    draw_text: jax.Array
    draw_code: jax.Array
    text: jax.Array | None
    code: jax.Array | None
    negative: jax.Array | None
    decoder: jax.Array | None

    @classmethod
    def split(cls, key: jax.Array, train: bool) -> "_Keys":
        draw_text, draw_code, thin, *dropout, thin_negative = jax.random.split(key, 8)
        return cls(thin, thin_negative, draw_text, draw_code, *(dropout if train else [None] * 4))


def _encode(
    model: Any, batch: Batch, text_key: jax.Array | None, code_key: jax.Array | None
) -> tuple[Texts, _Pairs]:
    """Encodes both sides; of the code only its embedding is needed later."""

    def side(name: str, key: jax.Array | None) -> tuple[Array, Array]:
        segments_BS = batch[f"{name}_segments"]
        states_BSD = model.encode(batch[f"{name}_tokens"], segments_BS, key=key)
        return states_BSD, model.embed(states_BSD, segments_BS)

    text_states_BSD, text_BE = side("text", text_key)
    _, code_BE = side("code", code_key)
    pairs = _Pairs(text_BE, code_BE, batch["pair_id"], jnp.ones(len(text_BE), bool))
    return Texts(text_states_BSD, batch["text_segments"]), pairs


def _thin(batch: Batch, rate: float, key: jax.Array) -> Batch:
    """The batch with a share of the positions of both sides marked as padding."""
    names = ("text_segments", "code_segments")
    keys = jax.random.split(key)
    return {
        **batch,
        **{n: _thin_segments(batch[n], rate, k) for n, k in zip(names, keys, strict=True)},
    }


def _thin_segments(
    segments_BS: Int[Array, "B S"], rate: float, key: jax.Array
) -> Int[Array, "B S"]:
    """A share of positions as padding, never the first of a row."""
    if not rate:
        return segments_BS
    kept_BS = jax.random.bernoulli(key, 1.0 - rate, segments_BS.shape).at[:, 0].set(True)
    return jnp.where(kept_BS, segments_BS, 0)


def _queued(queue: contrastive.Queue) -> _Pairs:
    return _Pairs(queue["text"], queue["code"], queue["pair_id"], contrastive.filled(queue))


def _concatenate(first: Array, second: Array) -> Array:
    return jnp.concatenate((first, second))


def _contrastive_loss(comparison: _Comparison, temperature: Array) -> Loss:
    rows = jnp.float32(len(comparison.text_to_code_BN))
    hits = contrastive.correct(comparison.text_to_code_BN)
    hits += contrastive.correct(comparison.code_to_text_BN)
    metrics = {
        "loss": (comparison.loss, rows),
        "accuracy": (hits / 2, rows),
        "temperature": (temperature * rows, rows),
    }
    return Loss(comparison.loss, metrics)


def _matching_loss(
    model: Any,
    batch: Batch,
    texts: Texts,
    comparison: _Comparison,
    queue: contrastive.Queue | None,
    keys: _Keys,
    rows: int,
    token_dropout: float,
) -> Loss:
    """Draws a text for each code and a code for each text, from the batch or from `queue` too.

    `rows` of the batch, the first ones, are matched. `texts` have lost a share `token_dropout`
    already, texts that are encoded here lose it too: a whole text would give itself away as the
    negative.
    """
    B = len(batch["pair_id"])
    N = B if queue is None else comparison.text_to_code_BN.shape[1]
    text_index_B, has_text_B = matching.draw_negatives(
        comparison.code_to_text_BN[:rows, :N], keys.draw_text
    )
    code_index_B, has_code_B = matching.draw_negatives(
        comparison.text_to_code_BN[:rows, :N], keys.draw_code
    )

    def drawn(name: str, index_B: Array) -> Array:
        in_batch = batch[name][index_B % B]
        if queue is None:
            return in_batch
        in_queue = queue[name][jnp.maximum(index_B - B, 0)]
        return jnp.where((index_B < B)[:, None], in_batch, in_queue)

    if queue is None:
        negative_texts = jax.tree.map(lambda x: x[text_index_B], texts)
    else:
        whole = drawn("text_segments", text_index_B)
        text_segments = _thin_segments(whole, token_dropout, keys.thin_negative)
        states = model.encode(drawn("text_tokens", text_index_B), text_segments, key=keys.negative)
        negative_texts = Texts(states, text_segments)

    def codes(tokens: Array, code_segments: Array) -> Codes:
        return Codes(matching.decoder_input(tokens, batch["enc_token"][:rows]), code_segments)

    outcome = matching.matching_loss(
        model,
        jax.tree.map(lambda x: x[:rows], texts),
        codes(batch["code_tokens"][:rows], batch["code_segments"][:rows]),
        negative_texts,
        codes(drawn("code_tokens", code_index_B), drawn("code_segments", code_index_B)),
        jnp.stack((jnp.ones(rows), has_text_B, has_code_B), axis=1).astype(jnp.float32),
        keys.decoder,
    )
    metrics = {
        "loss": (outcome.loss, outcome.number),
        "accuracy": (outcome.correct, outcome.number),
    }
    return Loss(outcome.loss, metrics)
