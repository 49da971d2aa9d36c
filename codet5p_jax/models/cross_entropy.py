"""Cross-entropy over a large vocabulary without holding all logits.

The gradient is computed in the same pass as the loss, chunk by chunk: three matrix products per
chunk, none of them twice, and with several chunks no array of batch × length × vocabulary. A head
or states that need no gradient cost no product for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from codet5p_jax.sharding import batch_parts, constrain, looked_up, moved


class TokenLosses(NamedTuple):
    """Sums over target tokens, fp32 scalars; divide by `weight` for means.

    Attributes:
      loss: cross-entropy (with label smoothing) plus z_loss: what is optimised.
      z_loss: the part of `loss` that keeps log Z near zero.
      correct: weight of tokens whose target has the largest logit.
      weight: sum of weights.
    """

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]


def token_losses(
    states_BTD: Float[Array, "B T D"],
    kernel_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    bias_V: Float[Array, "V"] | None = None,
    *,
    chunk: int,
    chunks: int = 1,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> TokenLosses:
    """Sums of weighted losses of `softmax(states · kernelᵀ + bias)` against `targets`.

    With smoothing ε the target distribution is 1 − ε on the target and ε/(V−1) elsewhere, less its
    own entropy, so that a perfect prediction still costs 0 (T5X's convention). z_loss adds
    z_loss · (log Z)² per token.

    Args:
      states_BTD: activations, in the dtype of the matrix product.
      kernel_VD: output projection, one row per vocabulary entry.
      targets_BT: ids; entries of weight 0 may be anything in range.
      weights_BT: fp32.
      bias_V: of the output projection; None: it has none.
      chunk: most target positions whose logits [B, chunk, V] exist at a time.
      chunks: into how many parts T is split where that makes smaller ones; fewer where T is small
        (equal parts of 9 positions are 3 of 3, not 4).
    """
    chunk = chunk_length(states_BTD.shape[1], chunk, chunks)
    pad = -states_BTD.shape[1] % chunk
    if pad:
        widths = ((0, 0), (0, pad))
        states_BTD = jnp.pad(states_BTD, (*widths, (0, 0)))
        targets_BT, weights_BT = jnp.pad(targets_BT, widths), jnp.pad(weights_BT, widths)
    loss, z, correct = _chunked(
        states_BTD,
        kernel_VD,
        bias_V,
        targets_BT,
        weights_BT,
        chunk,
        z_loss,
        label_smoothing,
    )
    return TokenLosses(loss, z, correct, jnp.sum(weights_BT))


def chunk_length(length: int, longest: int, least: int) -> int:
    """Positions of each of the chunks that `length` is split into, `least` if it has as many: equal
    chunks, so that padding is short.

    >>> [chunk_length(n, 128, least=4) for n in (128, 420, 600, 3)]
    [32, 105, 120, 1]
    """
    number = max(-(-length // longest), min(length, least))
    return -(-length // number)


class _Wanted(NamedTuple):
    """Of which inputs the gradient is computed."""

    states: bool = False
    kernel: bool = False
    bias: bool = False


def _sums(*args):
    sums, _ = _scan(*args, wanted=_Wanted())
    return sums


def _forward(states, kernel, bias, targets, weights, *settings):
    wanted = _Wanted(*(x is not None and x.perturbed for x in (states, kernel, bias)))
    inputs = (states, kernel, bias, targets, weights)
    return _scan(*(None if x is None else x.value for x in inputs), *settings, wanted=wanted)


def _backward(chunk, z_loss, label_smoothing, gradients, cotangents):
    del chunk, z_loss, label_smoothing
    g = cotangents[0]  # the other outputs are for reporting
    if isinstance(g, SymbolicZero):
        return None, None, None, None, None
    d_states, *d_head = gradients
    if d_states is not None:
        d_states = g.astype(d_states.dtype) * d_states
    d_kernel, d_bias = (None if d is None else (g * d).astype(d.dtype) for d in d_head)
    return d_states, d_kernel, d_bias, None, None


_chunked = jax.custom_vjp(_sums, nondiff_argnums=(5, 6, 7))
_chunked.defvjp(_forward, _backward, symbolic_zeros=True)


def _scan(states, kernel, bias, targets, weights, chunk, z_loss, label_smoothing, *, wanted):
    """Sums over chunks, and those gradients of the first sum that are wanted, else None."""
    B, T, D = states.shape
    V = kernel.shape[0]
    number, copies = T // chunk, batch_parts(B)
    # Gathered and laid out once, not for every chunk.
    cast_kernel = moved(kernel.astype(states.dtype), "vocab", "features")
    cast_kernel = constrain(cast_kernel, "vocab", "features")
    kernel_DV = cast_kernel.T
    low = label_smoothing / (V - 1)
    high = 1.0 - label_smoothing
    entropy = 0.0
    if label_smoothing:
        entropy = -(high * jnp.log(high) + (V - 1) * low * jnp.log(low + 1e-20))

    def body(carry, part):
        (loss_sum, z_sum, correct_sum), (d_kernel, d_bias) = carry
        x_BCD, y_BC, w_BC = part
        logits = jnp.einsum("BCD,DV->BCV", x_BCD, kernel_DV, preferred_element_type=jnp.float32)
        if bias is not None:
            logits += bias
        top = jnp.max(logits, axis=-1, keepdims=True)
        exp = jnp.exp(logits - top)
        total = jnp.sum(exp, axis=-1, keepdims=True)
        log_z_BC = (jnp.log(total) + top)[..., 0]
        target_logit_BC = looked_up(
            lambda logits, y: jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0],
            ("batch", "length"),
            logits,
            y_BC,
        )
        nll_BC = log_z_BC - (high - low) * target_logit_BC - entropy
        if label_smoothing:
            nll_BC -= low * jnp.sum(logits, axis=-1)
        z_BC = z_loss * jnp.square(log_z_BC)
        sums = (
            loss_sum + jnp.sum(w_BC * (nll_BC + z_BC)),
            z_sum + jnp.sum(w_BC * z_BC),
            correct_sum + jnp.sum(jnp.where(target_logit_BC >= top[..., 0], w_BC, 0.0)),
        )
        if not any(wanted):
            return (sums, (None, None)), None
        # d loss / d logits = w (softmax (1 + 2 z log Z) − target distribution)
        scale_BC1 = (w_BC * (1.0 + 2.0 * z_loss * log_z_BC))[..., None] / total
        is_target = jnp.arange(V) == y_BC[..., None]
        d_logits = exp * scale_BC1 - w_BC[..., None] * jnp.where(is_target, high, low)
        d_logits = d_logits.astype(x_BCD.dtype)
        d_x = None
        if wanted.states:
            d_x = jnp.einsum("BCV,VD->BCD", d_logits, cast_kernel)
        if wanted.kernel:
            # [D, V], so that it is the small operand that has to be turned round
            d_kernel += jnp.einsum(
                "PBCD,PBCV->PDV",
                x_BCD.reshape(copies, B // copies, chunk, D),
                d_logits.reshape(copies, B // copies, chunk, V),
                preferred_element_type=jnp.float32,
            )
        if wanted.bias:
            d_bias += jnp.sum(d_logits, axis=(0, 1), dtype=jnp.float32)
        return (sums, (d_kernel, d_bias)), d_x

    zero = jnp.zeros((), jnp.float32)
    d_kernel = None
    if wanted.kernel:
        # One for each device with rows, which sums over chunks before devices add theirs.
        d_kernel = jnp.zeros((copies, D, V), jnp.float32)
        d_kernel = constrain(d_kernel, "batch", "features", "vocab") if copies > 1 else d_kernel
    d_bias = jnp.zeros(V, jnp.float32) if wanted.bias else None
    init = ((zero, zero, zero), (d_kernel, d_bias))
    if number == 1:
        (sums, (d_kernel, d_bias)), d_states = body(init, (states, targets, weights))
    else:
        # [B, T, ...] -> [T / chunk, B, chunk, ...]: rows stay where they are sharded, and so do
        # positions, since a chunk takes each (T / chunk)-th of them.
        split = lambda x: jnp.moveaxis(x.reshape(B, chunk, number, *x.shape[2:]), 2, 0)  # noqa: E731
        (sums, (d_kernel, d_bias)), parts = jax.lax.scan(
            body, init, jax.tree.map(split, (states, targets, weights))
        )
        d_states = None if parts is None else jnp.moveaxis(parts, 0, 2).reshape(B, T, D)
    if d_kernel is not None:
        d_kernel = jnp.sum(d_kernel, axis=0).T.astype(kernel.dtype)
    if d_bias is not None:
        d_bias = d_bias.astype(bias.dtype)
    return sums, (d_states, d_kernel, d_bias)
