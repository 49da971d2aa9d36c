"""Trains what gin files describe, or goes on where MODEL_DIR left off.

  codet5p train --gin_file=runs/quickstart_stage1.gin \\
    --gin.MODEL_DIR="'/tmp/run'" --gin.CACHE_DIR="'/tmp/cache'" --tokenizer=TOKENIZER

A mixture that is not in CACHE_DIR is prepared first, unless USE_CACHED_TASKS is True. On several
hosts, start the same command on each with --coordinator (docs/multihost.md).
--seeds=0,1,2 trains three times, in MODEL_DIR/seed_0 and so on, and writes mean and spread of the
held-out metrics to MODEL_DIR/seeds.json.
docs/configuration.md explains gin files; `--dry_run` says what one amounts to.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from codet5p_jax.cli import child, data_options, errors, gin_flags
from codet5p_jax.cli.arguments import natural, positive, seeds, span
from codet5p_jax.cli.errors import ConfigError, configuration
from codet5p_jax.cli.prepare import ensure_prepared, missing

if TYPE_CHECKING:
    from codet5p_jax.cli.gin_config import Config


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
    parser.add_argument(
        "--profile_steps",
        type=span,
        metavar="FIRST:END",
        help="trace the steps after the first up to the end into MODEL_DIR/profile; 10:15 are five",
    )
    parser.add_argument(
        "--seeds",
        type=seeds,
        metavar="SEED,…",
        help="train once with each of these seeds, one after the other, and compare them",
    )
    parser.add_argument(
        "--fail_on_sigterm",
        action="store_true",
        help="exit with 143, not 0, where SIGTERM came before the last step; all is saved as well. "
        "For what starts again only runs that fail, such as Kubernetes",
    )
    several = parser.add_argument_group("several hosts")
    several.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of process 0, or `auto` on Cloud TPU, GKE, SLURM and Open MPI",
    )
    several.add_argument("--num_processes", type=positive, help="processes of the run")
    several.add_argument("--process_id", type=natural, help="this one's number, from 0")
    several.add_argument(
        "--join_timeout",
        type=positive,
        default=300,
        metavar="SECONDS",
        help="to wait for all processes; who is missing is named every minute "
        "(default: %(default)s)",
    )
    data_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks the configuration, prepares what is not cached, trains; returns the exit code."""
    if not args.gin_file:
        raise ConfigError("--gin_file is missing; for example --gin_file=runs/stage1_220m.gin")
    from codet5p_jax.cli import gin_config
    from codet5p_jax.training.checks import check_configuration, check_mesh
    from codet5p_jax.training.train import train

    placeholders = gin_config.PATHS if args.dry_run else None
    config = gin_config.load_flags(train, args, placeholders=placeholders)
    unused = f"not used by this run: {', '.join(config.unused)}" if config.unused else ""
    if args.profile_steps is not None:
        config.arguments["profile_steps"] = args.profile_steps
    checked = config.arguments_of(check_configuration)
    if args.dry_run:
        checked |= {"init_from": None, "model_dir": None}  # its paths need not exist
    with configuration():
        check_configuration(**checked)
    if args.dry_run:
        from codet5p_jax.cli.dry_run import dry_run

        if unused:
            print(unused, file=sys.stderr)
        with configuration():
            print(dry_run(config, args))
        return errors.OK
    runs = {seed: _of_seed(args, config, seed) for seed in args.seeds or ()}
    from codet5p_jax.training import cluster, hosts

    with configuration():
        processes = cluster.find(
            args.coordinator, args.num_processes, args.process_id, args.join_timeout
        )
        if unused and (processes is None or processes.process_id == 0):
            print(unused, file=sys.stderr)
        if processes is None:  # several are not connected yet, and do not know their devices
            check_mesh(**config.arguments_of(check_mesh))
    arguments = config.arguments
    mixtures, cache_dir = [phase.mixture for phase in arguments["phases"]], arguments["cache_dir"]

    def prepare() -> None:
        ensure_prepared(
            mixtures,
            cache_dir,
            args,
            prepare=not config.macros.get("USE_CACHED_TASKS", False),
            lengths=config.macros.get("TASK_FEATURE_LENGTHS"),
        )

    with hosts.joined(processes, args.join_timeout, child.end_all) as party:
        absent = ", ".join(missing(mixtures, cache_dir))
        waiting = f"waiting for process 0 to prepare {absent} in {cache_dir}" if absent else None
        party.first(prepare, waiting)
        party.connect()
        if args.seeds is None:
            done = not train(**{**arguments, "operative_config": config.text}).interrupted
        else:
            done = _train_seeds(arguments["model_dir"], runs)
    return errors.OK if done or not args.fail_on_sigterm else errors.TERMINATED


def _train_seeds(model_dir: str, runs: Mapping[int, "Config"]) -> bool:
    """One run after the other; a signal ends all of them. Returns whether all came to their end."""
    import jax

    from codet5p_jax.training import spread
    from codet5p_jax.training.train import train

    results = {}
    for seed, config in runs.items():
        print(f"seed {seed}: {config.arguments['model_dir']}", flush=True)
        result = results[seed] = train(**{**config.arguments, "operative_config": config.text})
        if result.interrupted:
            return False
        left = [str(other) for other in runs if other not in results]
        if result.terminated and left:
            print(f"stopped by SIGTERM before seed {', '.join(left)}; start again to go on")
            return False
    if jax.process_index() == 0:
        print(spread.write_summary(model_dir, results), flush=True)
    return True


def _of_seed(args: argparse.Namespace, config: "Config", seed: int) -> "Config":
    """The configuration of one seed, in a MODEL_DIR of its own.

    Raises:
      ConfigError: the gin files leave no place for either.
    """
    from codet5p_jax.cli import gin_config
    from codet5p_jax.training import spread
    from codet5p_jax.training.train import train

    folder = str(spread.folder_of(config.arguments["model_dir"], seed))
    macro = "RANDOM_SEED" if "RANDOM_SEED" in config.macros else "train.train.seed"
    bindings = [*args.gin_bindings, f"{macro}={seed}", f"MODEL_DIR={folder!r}"]
    flags = argparse.Namespace(**{**vars(args), "gin_bindings": bindings})
    own = gin_config.load_flags(train, flags)
    found = own.arguments.get("seed"), own.arguments["model_dir"]
    if found != (seed, folder):
        raise ConfigError(
            "--seeds sets RANDOM_SEED and MODEL_DIR; expected train.train.seed = %RANDOM_SEED and "
            f"model_dir = %MODEL_DIR in the gin files, found {found[0]} and {found[1]!r}"
        )
    if args.profile_steps is not None:
        own.arguments["profile_steps"] = args.profile_steps
    return own
