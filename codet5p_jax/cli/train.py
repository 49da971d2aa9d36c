"""Trains what gin files describe, or goes on where MODEL_DIR left off.

  codet5p train --gin_file=runs/quickstart_stage1.gin \\
    --gin.MODEL_DIR="'/tmp/run'" --gin.CACHE_DIR="'/tmp/cache'" --tokenizer=TOKENIZER

A mixture that is not in CACHE_DIR is prepared first, unless USE_CACHED_TASKS is True.
docs/configuration.md explains gin files; `--dry_run` says what one amounts to.
"""

import argparse
import sys

from codet5p_jax.cli import data_options, gin_flags
from codet5p_jax.cli.arguments import positive
from codet5p_jax.cli.errors import ConfigError, configuration
from codet5p_jax.cli.prepare import ensure_prepared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p train`."""
    gin_flags.add_arguments(parser)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print parameters, FLOPs, memory, shardings and the operative configuration, and stop",
    )
    parser.add_argument(
        "--num_devices",
        type=positive,
        help="devices that --dry_run reckons with (default: those of this machine)",
    )
    data_options.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Checks the configuration, prepares what is not cached, trains."""
    if not args.gin_file:
        raise ConfigError("--gin_file is missing; for example --gin_file=runs/stage1_220m.gin")
    from codet5p_jax.cli import gin_config
    from codet5p_jax.training.checks import check_configuration, check_mesh
    from codet5p_jax.training.train import train

    placeholders = gin_config.PATHS if args.dry_run else None
    config = gin_config.load_flags(train, args, placeholders=placeholders)
    if config.unused:
        print(f"not used by this run: {', '.join(config.unused)}", file=sys.stderr)
    checked = config.arguments_of(check_configuration)
    if args.dry_run:
        checked |= {"init_from": None, "model_dir": None}  # its paths need not exist
    with configuration():
        check_configuration(**checked)
    if args.dry_run:
        from codet5p_jax.cli.dry_run import dry_run

        with configuration():
            print(dry_run(config, args))
        return
    with configuration():
        check_mesh(**config.arguments_of(check_mesh))
    arguments = config.arguments
    ensure_prepared(
        (phase.mixture for phase in arguments["phases"]),
        arguments["cache_dir"],
        args,
        prepare=not config.macros.get("USE_CACHED_TASKS", False),
        lengths=config.macros.get("TASK_FEATURE_LENGTHS"),
    )
    train(**{**arguments, "operative_config": config.text})
