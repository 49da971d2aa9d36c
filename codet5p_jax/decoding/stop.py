"""Texts that end a generation, found on the device in the bytes of the tokens."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32


def stop_table(
    texts: Sequence[str | bytes], token_bytes: Mapping[int, bytes], vocab_size: int
) -> Int32[np.ndarray, "Q V"]:
    """What a step looks up to know whether one of the texts has been written.

    The rows are the states of an automaton that reads bytes (Aho and Corasick 1975): state 0 has
    seen nothing of any text, the last one a whole text, and stays there. `table[state, token]` is
    the state after all bytes of the token. So a text is found wherever it lies across tokens, in
    the step that completes it; that step's token may hold more bytes, which `cut` takes away.

    Args:
      texts: none of them empty.
      token_bytes: bytes of each token; those of special tokens are to be missing, or b"".
      vocab_size: columns of the table; at least every id.

    Raises:
      ValueError: there is no text, or an empty one.
    """
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    if not encoded or not all(encoded):
        raise ValueError(f"expected stop texts of one byte or more, found {list(texts)}")
    next_QB = _automaton(encoded)
    states = len(next_QB)
    table = np.repeat(np.arange(states, dtype=np.int32)[:, None], vocab_size, axis=1)
    ids = np.array([i for i, data in token_bytes.items() if data and i < vocab_size], np.int64)
    data = [token_bytes[int(i)] for i in ids]
    place = 0
    while len(ids):
        byte = np.array([d[place] for d in data])
        table[:, ids] = next_QB[table[:, ids], byte]
        place += 1
        longer = [j for j, d in enumerate(data) if len(d) > place]
        ids, data = ids[longer], [data[j] for j in longer]
    return table


def advance(
    table_QV: Int[Array, "Q V"], state: Int[Array, "*B"], tokens: Int[Array, "*B"]
) -> Int[Array, "*B"]:
    """The states after a token each."""
    return table_QV[state, tokens].astype(jnp.int32)


def has_stopped(table_QV: Int[Array, "Q V"], state: Int[Array, "*B"]) -> Array:
    """Whether a whole text has been written."""
    return state == table_QV.shape[0] - 1


def cut(text: str, texts: Sequence[str]) -> str:
    """What is before the first of the stop texts.

    >>> cut("a + b\\n\\ndef f", ["\\nclass", "\\ndef"])
    'a + b\\n'
    """
    found = [i for i in (text.find(stop) for stop in texts) if i >= 0]
    return text[: min(found, default=len(text))]


def ends_inside(text: str, texts: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop text.

    >>> ends_inside("return a\\n\\nd", ["\\ndef"])
    2
    """
    ends = (n for stop in texts for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(ends, default=0)


def _automaton(texts: Sequence[bytes]) -> Int32[np.ndarray, "Q 256"]:
    """The next state for each state and byte; states are prefixes of the texts, and the end."""
    prefixes = sorted({text[:n] for text in texts for n in range(len(text))}, key=len)
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    end = len(prefixes)
    table = np.full((end + 1, 256), end, np.int32)
    for prefix, i in number.items():
        for byte in range(256):
            read = prefix + bytes([byte])
            if any(read.endswith(text) for text in texts):
                continue
            suffixes = (read[n:] for n in range(len(read) + 1))
            table[i, byte] = next(number[s] for s in suffixes if s in number)
    return table
