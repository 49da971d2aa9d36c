"""A small cache and a small objective, for tests of what reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codet5p_jax.data.cache import CachedMixture, open_mixture
from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.data.tokens import SpecialTokens

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, unk=3, sentinels=(99, 98), decoder_start=0)


class Array(NamedTuple):
    """As much of `jax.ShapeDtypeStruct` as a loader looks at."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class TinyObjective:
    """Tokens, padded, and a random number: shows which example came with which noise."""

    name: str = "tiny"
    length: int = 4

    @property
    def spec(self) -> dict[str, Array]:
        return {
            "x_tokens": Array((self.length,), np.int32),
            "x_segments": Array((self.length,), np.int32),
            "noise": Array((), np.float64),
        }

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> dict[str, np.ndarray]:
        tokens = np.full(self.length, special.pad, np.int32)
        n = min(self.length, len(example["tokens"]))
        tokens[:n] = example["tokens"][:n]
        segments = (np.arange(self.length) < n).astype(np.int32)
        return {"x_tokens": tokens, "x_segments": segments, "noise": np.array(rng.random())}


def write_task(
    cache_dir: Path, task: str, epochs: Sequence[int], split: str = "train", first: int = 0
) -> None:
    """Example i of epoch e is `[first + i, e, …]`, one to three tokens long, at least two."""
    with CacheWriter(cache_dir, task, split, {"source": task}) as writer:
        for e, n in enumerate(epochs):
            if e:
                writer.end_epoch()
            for i in range(n):
                tokens = np.array([first + i, e, 7][: 2 + i % 2], np.int32)
                writer.write({"tokens": tokens, "word_starts": tokens > 5})


def make_mixture(
    cache_dir: Path,
    tasks: Mapping[str, tuple[str, float, int]],
    name: str = "mix",
    split: str = "train",
) -> CachedMixture:
    """A mixture of tasks `{name: (objective, rate, examples)}`; task k counts from 1000·k."""
    for k, (task, (_, _, size)) in enumerate(tasks.items()):
        write_task(cache_dir, task, [size], split, first=1000 * k)
    write_mixture(
        cache_dir,
        name,
        [(task, objective, rate) for task, (objective, rate, _) in tasks.items()],
        special=SPECIAL,
        vocab_size=100,
        tokenizer_digest="none",
        save_tokenizer=lambda folder: None,
    )
    return open_mixture(cache_dir, name, split)
