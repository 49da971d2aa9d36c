"""`codet5p train --dry_run`: what a run amounts to, from a machine that could not run it."""

import argparse
from collections.abc import Mapping
from typing import Any

from codet5p_jax.cli import data_options, gin_static
from codet5p_jax.cli.gin_config import Config
from codet5p_jax.data.cache import CacheError, open_mixture
from codet5p_jax.data.position import divide_rows
from codet5p_jax.training.describe import describe
from codet5p_jax.training.phases import Phase


def dry_run(config: Config, args: argparse.Namespace) -> str:
    """The report, and the operative configuration as it would be written.

    Args:
      config: of `train`; its paths need not exist.
      args: with `num_devices`, and the options of `data_options`.

    Raises:
      ValueError: a mixture is unknown, or the run does not divide over the devices.
    """
    arguments = config.arguments
    report = describe(
        **config.arguments_of(describe),
        rows=[rows_of(phase, arguments["cache_dir"], args) for phase in arguments["phases"]],
        num_devices=args.num_devices,
    )
    return f"{report}\n\noperative configuration:\n\n{config.text}"


def rows_of(phase: Phase, cache_dir: str, args: argparse.Namespace) -> dict[str, int]:
    """Rows of each objective in a batch of the phase."""
    try:
        tasks = open_mixture(cache_dir, phase.mixture, "train").tasks
        rates = [(task.objective, task.rate) for task in tasks]
    except CacheError:  # not prepared: the registry knows as well, but imports TensorFlow
        rates = _registered_rates(phase.mixture, args)
    by_objective: dict[str, float] = {}
    for objective, rate in rates:
        by_objective[objective] = by_objective.get(objective, 0.0) + rate
    return divide_rows(by_objective, phase.batch_size)


def _registered_rates(mixture: str, args: argparse.Namespace) -> list[tuple[str, float]]:
    data_options.configure(args)
    from codet5p_jax.data.seqio_tasks import objective_of, seqio

    providers: Mapping[str, Any] = {
        name: registry.get(name)
        for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)
        for name in registry.names()
    }
    if mixture not in providers:
        hint = gin_static.nearest(mixture, providers)
        raise ValueError(f"no mixture or task {mixture!r} is cached or registered{hint}")
    provider = providers[mixture]
    rate = provider.get_rate if isinstance(provider, seqio.Mixture) else lambda task: 1.0
    return [(objective_of(t), float(rate(t))) for t in seqio.get_subtasks(provider)]
