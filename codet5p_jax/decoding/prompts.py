"""What the encoder and the decoder are given for each kind of task, as in training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from codet5p_jax.data.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """Tokens to write from.

    Attributes:
      encoder: what the encoder reads; empty: there is none.
      prefix: what the decoder reads after its start token.
    """

    encoder: Int32[np.ndarray, "n"]
    prefix: Int32[np.ndarray, "m"]


class Room(NamedTuple):
    """Tokens that each tower can read; None: any number."""

    encoder: int | None
    decoder: int | None


def room(config: Any, max_length: int) -> Room:
    """What the positions of a network leave to prompts: in the decoder, before it writes
    `max_length` tokens."""
    encoder, decoder = config.encoder, config.decoder.max_positions
    return Room(
        encoder.max_positions if encoder.num_layers else None,
        None if decoder is None else decoder - max_length,
    )


KINDS: Mapping[str, str] = {
    "plain": "the text as it is, as an instruction or the input of a `seq2seq` task without </s>",
    "framed": "<s> text </s>, as the tokenizers of CodeT5 frame inputs",
    "completion": "[CLM] text, to be continued (paper §3.1)",
    "description": "<s> code </s>, and [TDEC] to the decoder: a text that describes it (stage 2)",
    "code": "<s> text </s>, and [CDEC] to the decoder: code that does it (stage 2)",
}


def make_prompt(
    text: str, kind: str, tokenizer: Tokenizer, length: int, config: Any, prefix: str = ""
) -> Prompt:
    """The prompt of a text.

    A completion that is too long keeps its end, all others their beginning. A text goes to the
    decoder as well, without special tokens, where the network has `prompt_to_decoder`; and to it
    alone where there is no encoder.

    Args:
      text: what is asked.
      kind: one of `KINDS`.
      tokenizer: of the network.
      length: tokens of the encoder at most, special ones included.
      config: of the network.
      prefix: text that the decoder has to begin with.

    Raises:
      ValueError: the vocabulary lacks the token, or `length` has no room.
    """
    special = tokenizer.special
    framed = kind in ("framed", "description", "code")
    room = length - {"plain": 0, "completion": 1}.get(kind, 2)
    if room < 1:
        raise ValueError(f"{length} tokens have no room for a prompt; raise the inputs' length")
    ids = np.array(tokenizer.encode(text), np.int32)
    ids = ids[-room:] if kind == "completion" else ids[:room]
    encoder = ids
    if kind == "completion":
        encoder = np.append(special.unk, ids)  # `unk` doubles as [CLM]
    elif framed:
        encoder = np.concatenate(([special.bos], ids, [special.eos]))
    start = []
    if kind in ("description", "code"):
        name = {"description": "tdec", "code": "cdec"}[kind]
        token = getattr(special, name)
        if token is None:
            raise ValueError(
                f"a prompt of kind {kind!r} needs a vocabulary with [{name.upper()}] (stage 2)"
            )
        start = [token]
    both = config.prompt_to_decoder or not config.encoder.num_layers
    forced = np.concatenate((start, ids if both else ids[:0], tokenizer.encode(prefix)))
    if not config.encoder.num_layers:
        encoder = ids[:0]
    return Prompt(encoder.astype(np.int32), forced.astype(np.int32))
