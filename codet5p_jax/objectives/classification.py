"""Classes of functions, or of pairs of them, from the encoder alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Batch, Features, Loss, State
from codet5p_jax.objectives.rows import as_tokens, pad, segments, wrap


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy of the class of a function, `<s> code </s>`: has it a defect?

    Which state is pooled and what reads it is NOT STATED in the paper: it is that of `<s>`
    (`ModelConfig.pooling`), under the head of CodeT5 (`models.codet5p.Classifier`).

    Attributes:
      length: S, of `<s> … </s>`; 512 for defects.
    """

    length: int = 512

    name: ClassVar[str] = "classification"
    sides: ClassVar[tuple[str, ...]] = ("code",)

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ValueError(
                f"{self.name}: length={self.length} must be 3 or more, for <s> token </s>"
            )

    @property
    def losses(self) -> tuple[str, ...]:
        """One loss, named as the objective."""
        return (self.name,)

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one row."""
        arrays = [f"{side}_{kind}" for side in self.sides for kind in ("tokens", "segments")]
        shapes = {**dict.fromkeys(arrays, (self.length,)), "label": ()}
        return {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """A vector of ids for each side, no special tokens, and `label` -> `<s> … </s>`."""
        del rng
        row = {}
        for side in self.sides:
            tokens = wrap(as_tokens(example[side]), self.length, special)
            row[f"{side}_tokens"] = pad(tokens, self.length, special.pad)
            row[f"{side}_segments"] = segments(len(tokens), self.length)
        return {**row, "label": np.array(example["label"], np.int32)}

    def init_state(self, model: Any, params: Any) -> State:
        """No state; checks the network.

        Raises:
          ValueError: it has no head of this kind, or a decoder that nothing would train.
        """
        del params
        config, pairs = model.config, len(self.sides) == 2
        if config.classes is None or config.classify_pairs != pairs:
            raise ValueError(
                f"{self.name} needs a model with classes (2 in the paper) and classify_pairs = "
                f"{pairs}, found {config.classes} and {config.classify_pairs}"
            )
        if config.decoder.num_layers:
            raise ValueError(
                f"{self.name} reads the encoder alone; expected a model without a decoder, found "
                f"{config.decoder.num_layers} layers; set num_decoder_layers = 0"
            )
        return {}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Rows."""
        return {self.name: jnp.float32(len(batch["label"]))}

    def loss(
        self, model: Any, batch: Batch, state: State, key: jax.Array, train: bool
    ) -> tuple[dict[str, Loss], State]:
        """Encode, pool, classify.

        Metrics: `loss` and `accuracy` per row; where there are two classes, also `precision`,
        `recall` and `f1` of class 1.
        """
        keys = jax.random.split(key, len(self.sides)) if train else [None] * len(self.sides)
        encoded = []
        for side, side_key in zip(self.sides, keys, strict=True):
            real_BS = batch[f"{side}_segments"]
            states_BSD = model.encode(batch[f"{side}_tokens"], real_BS, key=side_key)
            encoded.append((states_BSD, real_BS))
        logits_BC = model.classify(*encoded)
        label_B = batch["label"]
        log_p = jax.nn.log_softmax(logits_BC)
        loss = -jnp.sum(jnp.take_along_axis(log_p, label_B[:, None], axis=1))
        guess_B, rows = jnp.argmax(logits_BC, axis=1), jnp.float32(len(label_B))
        metrics = {"loss": (loss, rows), "accuracy": (_number(guess_B == label_B), rows)}
        if model.config.classes == 2:
            hits, guessed, right = map(_number, (guess_B * label_B, guess_B, label_B))
            metrics |= {
                "precision": (hits, guessed),
                "recall": (hits, right),
                "f1": (2 * hits, guessed + right),
            }
        return {self.name: Loss(loss, metrics)}, state


@dataclass(frozen=True, kw_only=True)
class PairClassification(Classification):
    """The same of a pair of functions, `code` and `other`, each encoded by itself: are they clones?

    Attributes:
      length: of each; 400 for clones.
    """

    length: int = 400

    name: ClassVar[str] = "pair_classification"
    sides: ClassVar[tuple[str, ...]] = ("code", "other")


def _number(x: Array) -> Float[Array, ""]:
    return jnp.sum(x, dtype=jnp.float32)
