"""Texts that a model writes from many prompts: the one place where benchmarks call decoding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int32

from codet5p_jax.decoding.generate import Sampling, compiled
from codet5p_jax.evaluation.benchmarks.base import Model, Settings
from codet5p_jax.evaluation.encoder import batches, pad
from codet5p_jax.objectives.rows import wrap

_SHORTEST = 64  # padded tokens of a prompt
_compiled = cache(compiled)  # benchmarks of one command share what they can


@dataclass(frozen=True)
class Decoding:
    """How texts are found.

    Attributes:
      max_tokens: written at most, end token included.
      beams: of beam search; 1: none.
      temperature: 0: the most likely token.
      top_p: sample among the fewest tokens whose probabilities add up to this.
      samples: texts of each prompt.
    """

    max_tokens: int
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1

    def of(self, settings: Settings) -> "Decoding":
        """As the settings of a run change it."""
        names = ("max_tokens", "temperature", "top_p", "samples")
        given = {name: getattr(settings, name) for name in names}
        changed = replace(self, **{k: v for k, v in given.items() if v is not None})
        if changed.temperature and changed.beams > 1:
            changed = replace(changed, beams=1)
        return changed


class Prompt(NamedTuple):
    """What the encoder reads, and what the decoder reads after its start token."""

    encoder: Int32[np.ndarray, "n"]
    prefix: Int32[np.ndarray, "m"]


def framed(model: Model, text: str, length: int) -> Prompt:
    """`<s> text </s>` to the encoder, as the tokenizers of CodeT5 frame inputs; where the network
    has `prompt_to_decoder`, the bare text to both, as for CodeT5+ 2B and more. What is too long
    loses its end."""
    ids = np.array(model.tokenizer.encode(text), np.int32)
    if model.network.config.prompt_to_decoder:
        return Prompt(ids[:length], ids[:length])
    return Prompt(wrap(ids, length, model.tokenizer.special), ids[:0])


def check_generation(name: str, model: Model) -> None:
    """Raises ValueError where a network cannot write."""
    config = model.network.config
    for tower in ("encoder", "decoder"):
        if not getattr(config, tower).num_layers:
            raise ValueError(
                f"{name} needs a model with encoder and decoder; --checkpoint has no {tower}"
            )


def generate_texts(
    model: Model,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    key: jax.Array,
    batch_size: int,
) -> Iterator[list[tuple[int, str]]]:
    """A text for each prompt: (place of the prompt, text without special tokens), batch by batch.

    Prompts of like length go together. For several texts of a prompt, it is given several times.
    There is no beam search yet: where `decoding.beams` asks for it, the most likely token is taken.
    """
    tokenizer, special = model.tokenizer, model.tokenizer.special
    lengths = [max(len(prompt.encoder), len(prompt.prefix)) for prompt in prompts]

    longest = max(_SHORTEST, *lengths)  # one shape for all short ones
    for size, picked, real in batches(lengths, longest, batch_size, _SHORTEST):
        rows = [prompts[i] for i in picked]
        width = max(len(row.encoder) for row in rows)
        width = 1 if width == 1 else size  # of completions, the encoder reads [CLM] alone
        tokens, segments = pad([row.encoder for row in rows], width, special.pad)
        ends = np.array([len(row.prefix) for row in rows], np.int32)
        forced, _ = pad([row.prefix for row in rows], size if ends.any() else 0, special.pad)
        batch_key = jax.random.fold_in(key, int(picked[0]))
        how = Sampling(
            max_length=forced.shape[1] + decoding.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
        )
        run = _compiled(model.network, special, how)
        made = np.asarray(run(model.params, tokens, segments, forced, ends, batch_key).tokens)
        texts = [
            tokenizer.decode(row[end : end + decoding.max_tokens])
            for row, end in zip(made[:real], ends, strict=False)
        ]
        yield list(zip(map(int, picked[:real]), texts, strict=True))
