"""The device half of every objective that predicts targets token by token."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Batch, Features, Loss, State
from codet5p_jax.objectives.rows import teacher_forced_row


@dataclass(frozen=True, kw_only=True)
class TeacherForced:
    """Cross-entropy of the targets given the inputs and the targets before (base class).

    Subclasses say what inputs and targets are: they implement `features`, and set `name`,
    `inputs_length` and `targets_length`.

    Attributes:
      z_loss: weight of log(Z)^2 per target token, which keeps the logits from drifting, 0 or more.
        NOT STATED in the paper; 0, as in the T5 implementation its checkpoints come from.
      label_smoothing: share of probability spread over the vocabulary, below 1. NOT STATED; 0.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    name: ClassVar[str]
    inputs_length: ClassVar[int]
    targets_length: ClassVar[int]

    def __post_init__(self) -> None:
        for field in ("inputs_length", "targets_length"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{self.name}: {field} must be 1 or more, not {getattr(self, field)}"
                )
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"{self.name}: z_loss must be 0 or more, not {self.z_loss}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"{self.name}: label_smoothing must be at least 0 and below 1, "
                f"not {self.label_smoothing}"
            )

    @property
    def losses(self) -> tuple[str, ...]:
        """One loss, named as the objective."""
        return (self.name,)

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one row: S = inputs_length, T = targets_length."""
        source, target = (self.inputs_length,), (self.targets_length,)
        return {
            "encoder_tokens": jax.ShapeDtypeStruct(source, np.int32),
            "encoder_segments": jax.ShapeDtypeStruct(source, np.int32),
            "decoder_tokens": jax.ShapeDtypeStruct(target, np.int32),
            "decoder_segments": jax.ShapeDtypeStruct(target, np.int32),
            "decoder_targets": jax.ShapeDtypeStruct(target, np.int32),
            "decoder_weights": jax.ShapeDtypeStruct(target, np.float32),
        }

    def row(
        self, inputs: Int[np.ndarray, "n"], targets: Int[np.ndarray, "m"], special: SpecialTokens
    ) -> Features:
        """Pads, trims and shifts; see `rows.teacher_forced_row`."""
        return teacher_forced_row(
            inputs,
            targets,
            inputs_length=self.inputs_length,
            targets_length=self.targets_length,
            special=special,
        )

    def init_state(self, model: Any, params: Any) -> State:
        """No state."""
        del model, params
        return {}

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The number of target tokens."""
        return {self.name: jnp.sum(jnp.asarray(batch["decoder_weights"], jnp.float32))}

    def loss(
        self, model: Any, batch: Batch, state: State, key: jax.Array, train: bool
    ) -> tuple[dict[str, Loss], State]:
        """Encode, decode, cross-entropy.

        Metrics, per target token: `loss` (cross-entropy without z-loss), `z_loss`, `accuracy`.
        """
        encoder_key, decoder_key = jax.random.split(key) if train else (None, None)
        encoded_BSD = None
        if model.config.encoder.num_layers:
            encoded_BSD = model.encode(
                batch["encoder_tokens"], batch["encoder_segments"], key=encoder_key
            )
        elif self.inputs_length > 1:
            raise ValueError(
                f"{self.name} has inputs for an encoder, and the network is a decoder alone; train "
                "it on decoder_clm"
            )
        states_BTD = model.decode(
            batch["decoder_tokens"],
            batch["decoder_segments"],
            encoded_BSD,
            batch["encoder_segments"],
            key=decoder_key,
        )
        tokens = model.token_losses(
            states_BTD,
            batch["decoder_targets"],
            batch["decoder_weights"],
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
        )
        metrics = {
            "loss": (tokens.loss - tokens.z_loss, tokens.weight),
            "z_loss": (tokens.z_loss, tokens.weight),
            "accuracy": (tokens.correct, tokens.weight),
        }
        return {self.name: Loss(tokens.loss, metrics)}, state
