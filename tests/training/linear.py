"""A network of one matrix and an objective that compile in milliseconds, for tests of mechanics."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from codet5p_jax.models import CodeT5p
from codet5p_jax.models.params import declare, normal, zeros
from codet5p_jax.objectives import Loss


class Linear(CodeT5p):
    """y = x w + b, under the interface that training uses."""

    def __init__(self) -> None:
        self.w = declare((4, 8), ("embed", "joint"), normal(0.5))
        self.b = declare((8,), ("joint",), zeros)


@dataclass(frozen=True)
class Regression:
    """Squared error per element; its state counts the batches it has seen."""

    name: str = "regression"
    losses: ClassVar[tuple[str, ...]] = ("squared",)

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        f32 = np.float32
        return {
            "x": jax.ShapeDtypeStruct((4,), f32),
            "y": jax.ShapeDtypeStruct((8,), f32),
            "segments": jax.ShapeDtypeStruct((2,), np.int32),
        }

    def features(self, example: Any, rng: Any, special: Any) -> Any:
        raise NotImplementedError

    def init_state(self, model: Any, params: Any) -> Any:
        return {"seen": jnp.zeros((), jnp.int32), "momentum": {"w": params["w"]}}

    def weights(self, batch: Any) -> Any:
        return {"squared": jnp.float32(batch["y"].size)}

    def loss(self, model: Any, batch: Any, state: Any, key: Any, train: bool) -> Any:
        error = batch["x"] @ model.w[...] + model.b[...] - batch["y"]
        value = jnp.sum(jnp.square(error))
        rows = jnp.float32(error.shape[0])
        new = {**state, "seen": state["seen"] + 1} if train else state
        return {"squared": Loss(value, {"row": (value, rows)})}, new


def batch(rows: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        "regression": {
            "x": rng.normal(size=(rows, 4)).astype(np.float32),
            "y": rng.normal(size=(rows, 8)).astype(np.float32),
            "segments": np.tile(np.array([1, 0], np.int32), (rows, 1)),
        }
    }
