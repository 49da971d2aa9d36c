"""Batches on their way from the loaders to the devices."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from codet5p_jax.data.cache import open_mixture
from codet5p_jax.data.loader import HostHalf, Loader
from codet5p_jax.data.reencoding import Reencoded
from codet5p_jax.objectives.base import Objective
from codet5p_jax.sharding import batch_sharding
from codet5p_jax.training.phases import (
    Phase,
    check_one_tokenizer,
    data_seed,
    locate,
    select_objectives,
)


def open_loaders(
    phases: Sequence[Phase],
    objectives: Sequence[Objective],
    cache_dir: str | Path,
    split: str,
    seed: int,
    *,
    num_workers: int = 0,
    encoder_tokenizer: Path | None = None,
) -> list[Loader]:
    """One loader of this host's rows for each phase.

    Args:
      encoder_tokenizer: folder of a tokenizer of the encoder's own, which is then given its ids;
        None: encoder and decoder share that of the data.

    Raises:
      ValueError: a cache is missing, or does not fit the phase; says which and what to do.
    """
    mixtures = [open_mixture(cache_dir, phase.mixture, split) for phase in phases]
    check_one_tokenizer(mixtures)
    loaders = []
    for index, (phase, mixture) in enumerate(zip(phases, mixtures, strict=True)):
        halves: dict[str, HostHalf] = {
            o.name: o for o in select_objectives(objectives, mixture.objectives)
        }
        if encoder_tokenizer is not None:
            halves = {
                name: Reencoded(half, mixture.tokenizer, encoder_tokenizer)
                for name, half in halves.items()
            }
        loaders.append(
            Loader(
                mixture,
                halves,
                phase.batch_size,
                data_seed(seed, index),
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                num_workers=num_workers,
            )
        )
    return loaders


def train_batches(
    loaders: Sequence[Loader], phases: Sequence[Phase], start: int, total: int
) -> Generator[tuple[int, Mapping[str, Any]], None, None]:
    """(phase, batch) of the steps from `start` on, made ahead of their use."""
    step = start
    while step < total:
        index, within = locate(phases, step)
        left = phases[index].steps - within if index < len(phases) - 1 else total - step
        made: Any = loaders[index].iterate(within)  # a generator
        with closing(made) as batches:
            for _, batch in zip(range(left), batches, strict=False):
                yield index, batch
        step += left


def place(batch: Mapping[str, Any], mesh: Mesh) -> Any:
    """This host's rows as part of global arrays, rows over the data-parallel axes."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def abstract_batch(objectives: Sequence[Objective], rows: Mapping[str, int], mesh: Mesh) -> Any:
    """What `place` returns for a batch of `rows`, as `jax.ShapeDtypeStruct`."""
    sharding = batch_sharding(mesh)
    return {
        o.name: {
            name: jax.ShapeDtypeStruct((rows[o.name], *x.shape), x.dtype, sharding=sharding)
            for name, x in o.spec.items()
        }
        for o in objectives
        if o.name in rows
    }
