"""Batches on their way from the loaders to the devices."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
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
    mesh: Mesh,
    *,
    num_workers: int = 0,
    encoder_tokenizer: Path | None = None,
) -> list[Loader]:
    """One loader of this host's rows for each phase.

    Args:
      mesh: says which rows those are.
      encoder_tokenizer: folder of a tokenizer of the encoder's own, which is then given its ids;
        None: encoder and decoder share that of the data.

    Raises:
      ValueError: a cache is missing, or does not fit the phase; says which and what to do.
    """
    mixtures = [open_mixture(cache_dir, phase.mixture, split) for phase in phases]
    check_one_tokenizer(mixtures)
    parts, num_parts = own_parts(mesh)
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
                parts=parts,
                num_parts=num_parts,
                num_workers=num_workers,
            )
        )
    return loaders


def data_identity(phases: Sequence[Phase], cache_dir: str | Path) -> str:
    """What decides which examples the phases have, as text."""
    mixtures = [open_mixture(cache_dir, phase.mixture, "train") for phase in phases]
    tasks = [(t.objective, t.rate, t.examples.manifest) for m in mixtures for t in m.tasks]
    return repr((tasks, mixtures[-1].tokenizer.name))


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


def own_parts(mesh: Mesh) -> tuple[list[int], int]:
    """Which parts of a batch the devices of this process hold, and how many parts there are.

    A part is what one data-parallel device has, or all of it where a process is alone. Processes
    that share one, as those along a tensor axis do, both make it.
    """
    if jax.process_count() == 1:
        return [0], 1
    number = mesh.shape["replica"] * mesh.shape["fsdp"]
    indices = batch_sharding(mesh).addressable_devices_indices_map((number,))
    return sorted({index[0].indices(number)[0] for index in indices.values() if index}), number


def place(batch: Mapping[str, Any], mesh: Mesh) -> Any:
    """This host's rows as part of global arrays, rows over the data-parallel axes."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    parts, number = own_parts(mesh)

    def one(own: np.ndarray) -> jax.Array:
        rows = len(own) // len(parts)  # of a part

        def part(index: Any) -> np.ndarray:
            at = parts.index((index[0].start or 0) // rows) * rows
            return own[at : at + rows]

        return jax.make_array_from_callback((number * rows, *own.shape[1:]), sharding, part)

    return jax.tree.map(one, batch)


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
