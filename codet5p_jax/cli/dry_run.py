"""`codet5p train --dry_run`: what a run amounts to, from a machine that could not run it."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from codet5p_jax.cli import data_options, gin_static
from codet5p_jax.cli.gin_config import Config
from codet5p_jax.data.cache import CacheError, open_mixture
from codet5p_jax.data.position import divide_rows
from codet5p_jax.training.describe import describe


def dry_run(config: Config, args: argparse.Namespace) -> str:
    """The report, and the operative configuration as it would be written.

    Args:
      config: of `train`; its paths need not exist.
      args: with `num_devices`, and the options of `data_options`.

    Raises:
      ValueError: a mixture is unknown, its tokenizer has more ids than the model's embedding rows,
        or the run does not divide over the devices.
    """
    report = describe(
        **config.arguments_of(describe),
        rows=rows_of_phases(config, args),
        num_devices=args.num_devices,
    )
    return f"{report}\n\noperative configuration:\n\n{config.text}"


def rows_of_phases(config: Config, args: argparse.Namespace) -> list[dict[str, int]]:
    """Of each phase, the rows of each objective in a batch.

    Raises:
      ValueError: a mixture is unknown, or its tokenizer has more ids than the model's embedding
        rows.
    """
    arguments = config.arguments
    mixtures = [find(phase.mixture, arguments["cache_dir"], args) for phase in arguments["phases"]]
    for mixture in mixtures:
        _check_vocabulary(mixture, arguments["model"].vocab_size)
    return [
        divide_rows(mixture.rates, phase.batch_size)
        for mixture, phase in zip(mixtures, arguments["phases"], strict=True)
    ]


@dataclass(frozen=True)
class Mixture:
    """What a dry run has to know of a mixture.

    Attributes:
      rates: by objective.
      vocab_size: ids of its tokenizer; None where that is not known yet.
      tokenizer: where that is.
    """

    name: str
    rates: dict[str, float]
    vocab_size: int | None
    tokenizer: str


def find(name: str, cache_dir: str, args: argparse.Namespace) -> Mixture:
    """The mixture as it is in the cache, or else as it is registered."""
    try:
        cached = open_mixture(cache_dir, name, "train")
    except CacheError:  # not prepared: the registry knows as well, but imports TensorFlow
        return _registered(name, args)
    rates = _by_objective((task.objective, task.rate) for task in cached.tasks)
    return Mixture(name, rates, cached.vocab_size, str(cached.tokenizer))


def _registered(name: str, args: argparse.Namespace) -> Mixture:
    data_options.configure(args)
    from codet5p_jax.data.seqio_tasks import objective_of, seqio, vocabulary_of
    from codet5p_jax.data.vocab import CodeVocabulary

    providers: Mapping[str, Any] = {
        name: registry.get(name)
        for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)
        for name in registry.names()
    }
    if name not in providers:
        hint = gin_static.nearest(name, providers)
        raise ValueError(f"no mixture or task {name!r} is cached or registered{hint}")
    provider = providers[name]
    rate = provider.get_rate if isinstance(provider, seqio.Mixture) else lambda task: 1.0
    tasks = seqio.get_subtasks(provider)
    rates = _by_objective((objective_of(task), float(rate(task))) for task in tasks)
    vocabulary = vocabulary_of(tasks[0])
    if not isinstance(vocabulary, CodeVocabulary):
        return Mixture(name, rates, None, "")  # SeqIO's may lie on another machine
    try:
        path = vocabulary.path
    except ValueError:  # no --tokenizer; a dry run needs none
        return Mixture(name, rates, None, "")
    return Mixture(name, rates, vocabulary.vocab_size, path)


def _by_objective(rates: Iterable[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for objective, rate in rates:
        total[objective] = total.get(objective, 0.0) + rate
    return total


def _check_vocabulary(mixture: Mixture, rows: int) -> None:
    if mixture.vocab_size is not None and mixture.vocab_size > rows:
        raise ValueError(
            f"expected an embedding with a row for each id; the tokenizer of {mixture.name} in "
            f"{mixture.tokenizer} has {mixture.vocab_size:,} ids, the model {rows:,} rows; set "
            "vocab_size of the model (VOCAB_SIZE) to at least the former, or --tokenizer to "
            "another"
        )
