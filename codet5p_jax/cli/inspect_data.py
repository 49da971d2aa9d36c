"""Prints examples of a mixture as the model sees them, for each objective.

  codet5p inspect-data stdlib_stage1 --cache_dir=CACHE --gin_file=runs/quickstart_stage1.gin

With a gin file, objectives have the lengths of that run, and the batch its size; without one, the
paper's. A mixture that is not in the cache is prepared first.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from codet5p_jax.cli import data_options, gin_flags
from codet5p_jax.cli.arguments import natural, positive, seed
from codet5p_jax.cli.prepare import ensure_prepared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p inspect-data`."""
    add = parser.add_argument
    add("mixture", help="name of a mixture")
    add("--cache_dir", required=True, help="folder of the token cache")
    add("--split", default="train", help="(default: %(default)s)")
    add("--batch_size", type=positive, help="rows of a batch (default: the gin file's, or 96)")
    add("--examples", type=natural, default=2, help="of each objective (default: %(default)s)")
    add("--characters", type=natural, default=600, help="of each array (default: %(default)s)")
    add("--seed", type=seed, default=0, help="which batches are looked at (default: %(default)s)")
    gin_flags.add_arguments(parser)
    data_options.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Prints what `data.inspect` has to say."""
    from codet5p_jax.data.cache import open_mixture
    from codet5p_jax.data.inspect import inspect

    objectives, batch_size = _configured(args) if args.gin_file else (_defaults(), 96)
    ensure_prepared([args.mixture], args.cache_dir, args)
    mixture = open_mixture(args.cache_dir, args.mixture, args.split)
    lines = inspect(
        mixture,
        objectives,
        args.batch_size or batch_size,
        seed=args.seed,
        examples=args.examples,
        characters=args.characters,
    )
    for line in lines:
        print(line)


def _defaults() -> dict[str, Any]:
    from codet5p_jax.objectives import OBJECTIVES

    return {name: kind() for name, kind in OBJECTIVES.items()}


def _configured(args: argparse.Namespace) -> tuple[Mapping[str, Any], int]:
    """Objectives by name, and the batch size of the phase that reads the mixture (or the last)."""
    from codet5p_jax.cli import gin_config
    from codet5p_jax.training.train import train

    run = gin_config.load_flags(train, args, placeholders=gin_config.PATHS).arguments
    phases = {phase.mixture: phase for phase in run["phases"]}
    phase = phases.get(args.mixture, run["phases"][-1])
    return {objective.name: objective for objective in run["objectives"]}, phase.batch_size
