"""CodeT5p: an encoder, a decoder, and every way the paper uses them, alone or together."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.models.cross_entropy import TokenLosses, token_losses
from codet5p_jax.models.params import Params, declare, normal, zeros
from codet5p_jax.models.stack import Stack
from codet5p_jax.sharding import looked_up

INITIAL_TEMPERATURE = 0.07


class StepWeights(NamedTuple):
    """What steps of decoding read: layers, and the output projection with the vocabulary last, as
    products of few rows want it (on CPU, half the time)."""

    layers: dict[str, Any]
    head_DV: Array


class Dense(nnx.Module):
    """x kernel + bias."""

    def __init__(self, inputs: int, outputs: int):
        self.kernel = declare((inputs, outputs), ("embed", "joint"), normal(inputs**-0.5))
        self.bias = declare((outputs,), ("joint",), zeros)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """Applies the projection in the dtype of `x`."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Classifier(nnx.Module):
    """Logits of classes; of a pair, from both states through a layer with tanh (CodeT5's heads)."""

    def __init__(self, width: int, classes: int, pairs: bool):
        if pairs:
            self.hidden = Dense(2 * width, width)
        self.output = Dense(width, classes)

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B C"]:
        """Applies the head in the dtype of `x`."""
        return self.output(jnp.tanh(self.hidden(x)) if hasattr(self, "hidden") else x)


class CodeT5p(nnx.Module):
    """The network. Freshly made it is abstract: its leaves are `ParamSpec`, nothing is allocated.

    >>> model = CodeT5p(config)
    >>> params = init_params(model.specs, jax.random.key(0))
    >>> states = model.bind(params).encode(tokens, segments)

    Segments are int32: 0 for padding, 1.. for real tokens; several values where rows are packed.
    A `key` switches dropout on.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        last = config.decoder if config.decoder.num_layers else config.encoder
        V, D, De = config.vocab_size, last.d_model, config.encoder.d_model
        rows = normal(config.embedding_stddev)
        self.embedding = declare((V, D), ("vocab", "embed"), rows)
        if config.encoder_vocab_size is not None:
            self.encoder_embedding = declare(
                (config.encoder_vocab_size, De), ("vocab", "embed"), rows
            )
        if config.project_encoder:
            self.encoder_to_decoder = Dense(De, D)
        if config.encoder.num_layers:
            self.encoder = Stack(config.encoder, config)
        if config.decoder.num_layers:
            self.decoder = Stack(config.decoder, config)
            if not config.tie_embeddings:
                stddev = config.decoder.init_stddev or D**-0.5
                self.lm_head = declare((V, D), ("vocab", "embed"), normal(stddev))
            if config.head_bias:
                self.lm_head_bias = declare((V,), ("vocab",), zeros)
        if config.embed_dim is not None:
            self.projection = Dense(De, config.embed_dim)
            # Learned on a log scale: one Adam step is then a factor, whatever the learning rate.
            self.log_temperature = declare((), (), _constant(math.log(INITIAL_TEMPERATURE)))
        if config.matching_head:
            self.matching_head = Dense(D, 2)
        if config.classes is not None:
            self.classifier = Classifier(De, config.classes, config.classify_pairs)

    @property
    def specs(self) -> Params:
        """Nested dict of `ParamSpec`: what there is, its shape, sharding and initial value."""
        _, state = nnx.split(self)
        return nnx.to_pure_dict(state)

    @property
    def params(self) -> Params:
        """The arrays that `bind` was given; parts left out are `ParamSpec`."""
        return self.specs

    def bind(self, params: Params) -> "CodeT5p":
        """The same network holding `params`; parts left out stay abstract."""
        graphdef, state = nnx.split(self)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    @property
    def temperature(self) -> Float[Array, ""]:
        """The contrastive temperature τ (paper §3.2)."""
        return jnp.exp(self.log_temperature[...])

    def encode(
        self,
        tokens_BS: Int[Array, "B S"],
        segments_BS: Int[Array, "B S"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "B S D"]:
        """Encoder states after the final norm."""
        own = self.config.encoder_vocab_size is not None
        table = self.encoder_embedding if own else self.embedding
        return self.encoder(self._embed_tokens(tokens_BS, table), segments_BS, key=key)

    def decode(
        self,
        tokens_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
        encoded_BSD: Float[Array, "B S De"] | None = None,
        encoder_segments_BS: Int[Array, "B S"] | None = None,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Decoder states after the final norm. No `encoded_BSD`: cross-attention is bypassed."""
        return self.decoder(
            self._embed_tokens(tokens_BT, self.embedding),
            segments_BT,
            self._for_decoder(encoded_BSD),
            encoder_segments_BS,
            key=key,
        )

    def embed(
        self, states_BSD: Float[Array, "B S D"], segments_BS: Int[Array, "B S"]
    ) -> Float[Array, "B E"]:
        """Unit vectors of encoder states, fp32: pooled, projected, normalised (paper §3.2)."""
        e_BE = self.projection(self._pool(states_BSD, segments_BS)).astype(jnp.float32)
        norm = jnp.sqrt(jnp.sum(jnp.square(e_BE), axis=-1, keepdims=True) + 1e-12)
        return e_BE / norm

    def classify(
        self, *encoded: tuple[Float[Array, "B S D"], Int[Array, "B S"]]
    ) -> Float[Array, "B C"]:
        """Logits of the classes, fp32, from encoder states and their segments; of both sides where
        the model classifies pairs."""
        pooled = [self._pool(states_BSD, segments_BS) for states_BSD, segments_BS in encoded]
        return self.classifier(jnp.concatenate(pooled, axis=1)).astype(jnp.float32)

    def match(
        self, states_BTD: Float[Array, "B T D"], segments_BT: Int[Array, "B T"]
    ) -> Float[Array, "B 2"]:
        """Matching logits (no match, match), fp32, from the state of the last real token."""
        T = states_BTD.shape[1]
        last_B = jnp.max(jnp.where(segments_BT > 0, jnp.arange(T), 0), axis=1)
        state_BD = looked_up(
            lambda states, last: jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0],
            ("batch", "features"),
            states_BTD,
            last_B,
        )
        return self.matching_head(state_BD).astype(jnp.float32)

    def token_losses(
        self,
        states_BTD: Float[Array, "B T D"],
        targets_BT: Int[Array, "B T"],
        weights_BT: Float[Array, "B T"],
        *,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> TokenLosses:
        """Summed cross-entropy of decoder states; never builds logits of the whole batch."""
        return token_losses(
            self._scale_for_head(states_BTD),
            self._head(),
            targets_BT,
            weights_BT,
            self.lm_head_bias[...] if self.config.head_bias else None,
            chunk=self.config.loss_chunk,
            chunks=self.config.loss_chunks,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
        )

    def logits(
        self, states_BTD: Float[Array, "B T D"], weights: "StepWeights | None" = None
    ) -> Float[Array, "B T V"]:
        """fp32 logits; for decoding, where T is small, and for tests."""
        states = self._scale_for_head(states_BTD)
        head_DV = self._head().T if weights is None else weights.head_DV
        y = jnp.einsum(
            "BTD,DV->BTV", states, head_DV.astype(states.dtype), preferred_element_type=jnp.float32
        )
        return y + self.lm_head_bias[...] if self.config.head_bias else y

    def init_cache(
        self,
        encoded_BSD: Float[Array, "B S De"] | None,
        encoder_segments_BS: Int[Array, "B S"] | None,
        max_length: int,
        batch: int | None = None,
        *,
        rows: int = 1,
        beams: bool = False,
        prefix_BP: Int[Array, "B P"] | None = None,
        prefix_segments_BP: Int[Array, "B P"] | None = None,
    ) -> dict[str, Any]:
        """A decoder cache for `max_length` positions; encoder rows must not be packed.

        Args:
          encoded_BSD, encoder_segments_BS: None: cross-attention is bypassed.
          max_length: positions after the prefix.
          batch: number of prompts, where there are no encoder states.
          rows: that continue each prompt: the N of `decode_step`.
          beams: whether rows are exchanged by `stack.reorder`.
          prefix_BP, prefix_segments_BP: what the decoder has read before, padded on the left.
        """
        if encoded_BSD is not None:
            batch = encoded_BSD.shape[0]
        assert batch is not None, "without encoder states, `batch` is needed"
        prefix = None
        if prefix_BP is not None:
            assert prefix_segments_BP is not None, "a prefix comes with its segments"
            prefix = self._embed_tokens(prefix_BP, self.embedding), prefix_segments_BP
        return self.decoder.init_cache(
            self._for_decoder(encoded_BSD),
            encoder_segments_BS,
            batch,
            max_length,
            rows=rows,
            beams=beams,
            prefix=prefix,
        )

    def step_weights(self) -> "StepWeights":
        """Parameters as a step of decoding reads them, to be made once, outside of the loop."""
        return StepWeights(self.decoder.layer_params(), self._head().T.astype(self.config.dtype))

    def decode_step(
        self,
        tokens_BN: Int[Array, "B N"],
        cache: dict[str, Any],
        weights: "StepWeights | None" = None,
    ) -> tuple[Float[Array, "B N D"], dict[str, Any]]:
        """Decoder states of the next position of N rows of each prompt. Call it at most
        `max_length` times."""
        x_BND = self._embed_tokens(tokens_BN, self.embedding)
        return self.decoder.step(x_BND, cache, None if weights is None else weights.layers)

    def _pool(
        self, states_BSD: Float[Array, "B S D"], segments_BS: Int[Array, "B S"]
    ) -> Float[Array, "B D"]:
        """One state for each row, as `ModelConfig.pooling` says."""
        if self.config.pooling == "first":
            return looked_up(lambda states: states[:, 0], ("batch", "features"), states_BSD)
        real_BS1 = (segments_BS > 0)[..., None]
        total = jnp.sum(jnp.where(real_BS1, states_BSD, 0), axis=1, dtype=jnp.float32)
        number = jnp.maximum(jnp.sum(real_BS1, axis=1), 1)
        return (total / number).astype(states_BSD.dtype)

    def _for_decoder(self, encoded: Array | None) -> Array | None:
        if encoded is None or not self.config.project_encoder:
            return encoded
        return self.encoder_to_decoder(encoded)

    def _embed_tokens(self, tokens: Array, table: nnx.Param) -> Array:
        rows = table[...].astype(self.config.dtype)
        axes = ("batch", "length", "features")
        embedded = looked_up(lambda rows, tokens: rows[tokens], axes, rows, tokens)
        if not self.config.scale_embedding:
            return embedded
        return embedded * jnp.asarray(embedded.shape[-1] ** 0.5, embedded.dtype)

    def _head(self) -> Array:
        return self.embedding[...] if self.config.tie_embeddings else self.lm_head[...]

    def _scale_for_head(self, states: Array) -> Array:
        # T5 v1.0 rescales what meets the tied embedding, whose rows have unit variance.
        if not (self.config.tie_embeddings and self.config.scale_tied_head):
            return states
        return states * jnp.asarray(self.config.decoder.d_model**-0.5, states.dtype)


def _constant(value: float) -> Any:
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)
