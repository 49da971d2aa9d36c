"""Texts that a model writes from many prompts: the one place where benchmarks call decoding."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from codet5p_jax.decoding.beam import BeamSearch
from codet5p_jax.decoding.prompts import Prompt, Room, room
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.decoding.stop import stop_table
from codet5p_jax.decoding.writer import Writer
from codet5p_jax.evaluation.benchmarks.base import Model, Settings
from codet5p_jax.objectives.rows import wrap
from codet5p_jax.sharding import ways


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
        """As the settings of a run change it; what is sampled has no beams.

        Raises:
          ValueError: both are asked for, or several beams of what the benchmark samples.
        """
        names = ("max_tokens", "beams", "temperature", "top_p", "samples")
        given = {name: getattr(settings, name) for name in names}
        changed = replace(self, **{k: v for k, v in given.items() if v is not None})
        if changed.temperature and (settings.beams or 1) > 1:
            raise ValueError(
                f"beams = {settings.beams} are for one text at temperature 0, found temperature "
                f"{changed.temperature:g}; set temperature to 0 and samples to 1 as well"
            )
        return replace(changed, beams=1) if changed.temperature else changed

    def how(self, samples: int = 1) -> Sampling | BeamSearch:
        """So many texts of a prompt at a time."""
        if self.beams > 1:
            return BeamSearch(max_length=self.max_tokens, beams=self.beams)
        return Sampling(
            max_length=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            samples=samples,
        )


def framed(model: Model, text: str, length: int) -> Prompt:
    """`<s> text </s>` to the encoder, as the tokenizers of CodeT5 frame inputs; where the network
    has `prompt_to_decoder`, the bare text to both, as for CodeT5+ 2B and more. What is too long
    loses its end."""
    return framed_ids(model, model.tokenizer.encode(text), length)


def framed_ids(model: Model, tokens: Sequence[int], length: int) -> Prompt:
    """The same of ids."""
    ids = np.array(tokens, np.int32)
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


def check_positions(name: str, model: Model, prompts: Iterable[Prompt], decoding: Decoding) -> None:
    """Raises ValueError where a network has too few positions for one of the prompts, which are
    made only where it has a limit, and what is written after it."""
    left = room(model.network.config, decoding.max_tokens)
    if left == Room(None, None):
        return
    for prompt in prompts:
        if left.encoder is not None and len(prompt.encoder) > left.encoder:
            raise ValueError(
                f"{name}: a prompt has {len(prompt.encoder)} tokens, and the network's encoder has "
                f"{left.encoder} positions; take another model"
            )
        if left.decoder is not None and len(prompt.prefix) > left.decoder:
            raise ValueError(
                f"{name}: the network's decoder has {left.decoder + decoding.max_tokens} "
                f"positions, too few to read {len(prompt.prefix)} tokens of a prompt and write "
                f"{decoding.max_tokens}; lower --max_tokens, or take another model"
            )


def generate_texts(
    model: Model,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    key: jax.Array,
    batch_size: int,
    stop: Sequence[str] = (),
    times: Sequence[int] | None = None,
) -> Iterator[list[tuple[int, str]]]:
    """Texts for each prompt, a batch at a time: (place of the prompt, no special tokens).

    Prompts of like length go together. A text ends with the token that completes one of `stop`.
    What is drawn depends on the key, the place of the prompt and the number of the text alone.

    Args:
      batch_size: rows of a compiled call, of all texts of all its prompts.
      times: texts of each prompt; default: one. Some of them are written side by side, from a
        prompt that is read once.

    Raises:
      ValueError: batches do not divide over the mesh.
    """
    rows = model.network.config.vocab_size
    table = stop_table(stop, model.tokenizer.token_bytes, rows) if stop else None
    wanted = np.ones(len(prompts), np.int64) if times is None else np.asarray(times)
    devices = 1
    if model.mesh is not None:
        devices = ways("batch_size", (batch_size,), ("batch",), model.mesh.shape)
    at_once = samples_at_once(int(wanted.max(initial=1)), batch_size, devices)
    writer = Writer(
        model.network,
        model.params,
        model.special,
        decoding.how(at_once),
        batch_size=batch_size // at_once // devices * devices,
        stop_table=table,
        mesh=model.mesh,
    )
    calls = [
        (place, first) for place, n in enumerate(wanted) for first in range(0, int(n), at_once)
    ]
    places, firsts = np.array(calls, np.int32).reshape(-1, 2).T
    fold = jax.vmap(jax.random.fold_in)
    numbers = firsts[:, None] + np.arange(at_once, dtype=np.int32)
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(
        fold(jnp.broadcast_to(key, len(places)), places), numbers
    )
    batch = []
    for call, texts in writer.write([prompts[place] for place, _ in calls], keys):
        place, first = calls[call]
        for tokens in texts[: wanted[place] - first]:
            batch.append((place, model.tokenizer.decode(tokens)))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def samples_at_once(times: int, rows: int, devices: int = 1) -> int:
    """How many texts of a prompt are written side by side: as many as leave an eighth of the rows
    without use at most, where prompts are a multiple of `devices`.

    >>> samples_at_once(200, 16), samples_at_once(10, 16), samples_at_once(200, 16, devices=8)
    (16, 5, 2)
    """

    def useful(samples: int) -> float:
        prompts = rows // samples // devices * devices
        return prompts * times / math.ceil(times / samples)

    return max(n for n in range(1, rows // devices + 1) if useful(n) >= 7 / 8 * rows)
