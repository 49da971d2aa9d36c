"""NumPy helpers that the host halves share: wrapping, cropping, padding, the teacher-forced row."""

import numpy as np
from jaxtyping import Int, Int32

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Features


def as_tokens(ids: Int[np.ndarray, "n"]) -> Int32[np.ndarray, "n"]:
    """Ids of any integer type as int32."""
    return ids.astype(np.int32, copy=False)


def wrap(
    tokens: Int[np.ndarray, "n"], length: int, special: SpecialTokens
) -> Int32[np.ndarray, "m"]:
    """`<s> tokens </s>` in at most `length` ids; tokens that do not fit are cut from the end.

    An encoder input always keeps its `</s>`, as the tokenizers of CodeT5 do when they truncate.

    Raises:
      ValueError: if `length` has no room for `<s>` and `</s>`.
    """
    if length < 2:
        raise ValueError(
            f"a length of {length} has no room for <s> and </s>; raise it to 2 or more"
        )
    return np.concatenate(([special.bos], tokens[: length - 2], [special.eos])).astype(np.int32)


def close(tokens: Int[np.ndarray, "n"], special: SpecialTokens) -> Int32[np.ndarray, "n+1"]:
    """`tokens </s>`. Trimmed later, a target keeps its `</s>` only where it is complete, so that no
    decoder learns to stop in the middle of a function."""
    return np.append(tokens, special.eos).astype(np.int32)


def window(size: int, length: int, rng: np.random.Generator) -> slice:
    """All of `size` items if they fit into `length`, else `length` of them at a random offset."""
    start = int(rng.integers(size - length + 1)) if size > length else 0
    return slice(start, start + length)


def pad(tokens: Int[np.ndarray, "n"], length: int, value: int) -> Int32[np.ndarray, "{length}"]:
    """The first `length` ids as int32, filled up on the right with `value`."""
    row = np.full(length, value, dtype=np.int32)
    row[: len(tokens)] = tokens[:length]
    return row


def segments(used: int, length: int) -> Int32[np.ndarray, "{length}"]:
    """1 for the first `used` of `length` positions, 0 for padding."""
    return (np.arange(length) < used).astype(np.int32)


def teacher_forced_row(
    inputs: Int[np.ndarray, "n"],
    targets: Int[np.ndarray, "m"],
    *,
    inputs_length: int,
    targets_length: int,
    special: SpecialTokens,
    prompt: Int[np.ndarray, "p"] | None = None,
) -> Features:
    """The six arrays of every teacher-forced objective; what does not fit is cut from the end.

    With pad = decoder start = 0, inputs `[5, 6]`, targets `[7, 8, 2]` and lengths 3 and 4:

        encoder_tokens    [5, 6, 0]        decoder_tokens    [0, 7, 8, 0]
        encoder_segments  [1, 1, 0]        decoder_segments  [1, 1, 1, 0]
                                           decoder_targets   [7, 8, 2, 0]
                                           decoder_weights   [1, 1, 1, 0]

    A prompt stands before the targets and has weight 0: with prompt `[9]` and length 5,

        decoder_tokens [0, 9, 7, 8, 0]  decoder_targets [9, 7, 8, 2, 0]  weights [0, 1, 1, 1, 0]
    """
    asked = 0 if prompt is None else len(prompt)
    if prompt is not None:
        targets = np.concatenate((prompt, targets))
    targets = targets[:targets_length]
    shifted = np.concatenate(([special.decoder_start], targets[:-1])) if len(targets) else targets
    decoder_segments = segments(len(targets), targets_length)
    return {
        "encoder_tokens": pad(inputs, inputs_length, special.pad),
        "encoder_segments": segments(len(inputs), inputs_length),
        "decoder_tokens": pad(shifted, targets_length, special.pad),
        "decoder_segments": decoder_segments,
        "decoder_targets": pad(targets, targets_length, special.pad),
        "decoder_weights": (decoder_segments * (np.arange(targets_length) >= asked)).astype(
            np.float32
        ),
    }
