"""Text-code contrastive learning (paper §3.2): pure functions over unit vectors, no model.

Axes: B rows of the batch, N candidates (the batch, or the batch followed by the queue), Q queue
slots, E embedding width. `ids [.., 2]` identify the text and the code of a pair; pairs that share
either are not negatives of each other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e9  # finite, so that a target of 0 times a masked log-probability is 0 and not NaN

Queue = dict[str, Array]


def momentum_update(average: Any, params: Any, momentum: float) -> Any:
    """momentum · average + (1 − momentum) · params, leaf by leaf; no gradient.
    Integers, which do not train, stay."""

    def mix(a: Any, p: Any) -> Any:
        if jnp.issubdtype(a.dtype, jnp.integer):
            return a
        return momentum * a + (1 - momentum) * jax.lax.stop_gradient(p)

    return jax.tree.map(mix, average, params)


def clamp(temperature: Float[Array, ""], bounds: tuple[float, float]) -> Float[Array, ""]:
    """The temperature inside its bounds, with the gradient it would have without them.

    A plain clip has no gradient outside the bounds: a learned temperature that one step carries
    past them would stay there for good.
    """
    clipped = jnp.clip(jax.lax.stop_gradient(temperature), *bounds)
    return clipped + (temperature - jax.lax.stop_gradient(temperature))  # plus 0, with a gradient


def allowed_candidates(
    ids_B2: Int[Array, "B 2"], candidate_ids_N2: Int[Array, "N 2"], filled_N: Bool[Array, "N"]
) -> Bool[Array, "B N"]:
    """Which candidates each row is compared with; candidate b < B belongs to row b.

    A row's own partner, and every filled candidate that shares neither text nor code with it.
    """
    shared_BN = jnp.any(ids_B2[:, None] == candidate_ids_N2[None], axis=-1)
    own_BN = jnp.eye(*shared_BN.shape, dtype=bool)
    return own_BN | (~shared_BN & filled_N)


def logits(
    queries_BE: Float[Array, "B E"],
    candidates_NE: Float[Array, "N E"],
    temperature: Float[Array, ""],
    allowed_BN: Bool[Array, "B N"],
) -> Float[Array, "B N"]:
    """Similarity over temperature, fp32; MASKED where not allowed."""
    similarity_BN = jnp.einsum(
        "BE,NE->BN",
        queries_BE.astype(jnp.float32),
        candidates_NE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,  # divided by a temperature near 0.01, errors show
    )
    return jnp.where(allowed_BN, similarity_BN / temperature, MASKED)


def cross_entropy(
    logits_BN: Float[Array, "B N"],
    teacher_logits_BN: Float[Array, "B N"] | None = None,
    alpha: float | Float[Array, ""] = 0.0,
) -> Float[Array, ""]:
    """Summed over rows, against (1 − alpha) · one-hot(own partner) + alpha · softmax(teacher)."""
    log_p_BN = jax.nn.log_softmax(logits_BN)
    targets_BN = jnp.eye(*logits_BN.shape, dtype=jnp.float32)
    if teacher_logits_BN is not None:
        soft_BN = jax.lax.stop_gradient(jax.nn.softmax(teacher_logits_BN))
        targets_BN = (1 - alpha) * targets_BN + alpha * soft_BN
    return -jnp.sum(targets_BN * log_p_BN)


def correct(logits_BN: Float[Array, "B N"]) -> Float[Array, ""]:
    """Number of rows whose own partner scores highest."""
    hits_B = jnp.argmax(logits_BN, axis=1) == jnp.arange(logits_BN.shape[0])
    return jnp.sum(hits_B, dtype=jnp.float32)


def empty_queue(arrays: dict[str, jax.ShapeDtypeStruct], size: int) -> Queue:
    """A queue of `size` rows of each array, and `count`, the number of rows ever put in."""
    queue = {name: jnp.zeros((size, *a.shape), a.dtype) for name, a in arrays.items()}
    return queue | {"count": jnp.zeros((), jnp.int32)}


def enqueue(queue: Queue, rows: Queue) -> Queue:
    """Writes B rows over the B oldest slots.

    Slot `count % Q` is the next to be written, so a queue of 4 after rows a, b, c and then d, e
    holds [e, b, c, d].

    Raises:
      ValueError: if the batch has more rows than the queue has slots.
    """
    size, number = (len(next(iter(x.values()))) for x in (_arrays(queue), rows))
    if number > size:
        raise ValueError(
            f"a queue of {size} rows cannot take a batch of {number}; raise queue_size to a "
            "multiple of the rows per batch, or set it to 0"
        )
    slots = (queue["count"] + jnp.arange(number)) % size
    written = {
        name: old.at[slots].set(rows[name].astype(old.dtype), unique_indices=True)
        for name, old in _arrays(queue).items()
    }
    return written | {"count": queue["count"] + number}


def filled(queue: Queue) -> Bool[Array, "Q"]:
    """Which slots have been written."""
    size = len(next(iter(_arrays(queue).values())))
    return jnp.arange(size) < queue["count"]


def _arrays(queue: Queue) -> Queue:
    return {name: x for name, x in queue.items() if name != "count"}
