"""Compiles the training step of a run for TPUs, on a machine that has none.

  codet5p precompile --topology=v5e:4x4 --gin_file=runs/stage1_220m.gin \\
    --gin_file=meshes/fsdp.gin --json=report.json

Says what a chip holds, whether it fits, what is computed and moved, and how fast a step could be at
best. It needs neither data nor devices, but libtpu (pip install -e '.[precompile]').
Compiling proves neither that a step runs right nor how fast it is. Large models take minutes.
"""

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from codet5p_jax.cli import data_options, gin_flags
from codet5p_jax.cli.arguments import output_file
from codet5p_jax.cli.errors import ConfigError, configuration
from codet5p_jax.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p precompile`."""
    parser.add_argument(
        "--topology", required=True, help="chip and sides: v5e:4x4, v5p:4x4x4, tpu7x:2x2x1"
    )
    parser.add_argument(
        "--num_slices",
        type=int,
        default=1,
        help="slices of that topology, for `replica` to go over",
    )
    parser.add_argument(
        "--generate",
        metavar="ROWSxINPUTSxOUTPUTS",
        help="generation instead of the training step: 64x512x128",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, REMAT and ACCUMULATE instead of those of the files, then larger batches; "
        "as many times what one takes as there are trials",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=output_file, help="also write the report there"
    )
    gin_flags.add_arguments(parser)
    data_options.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Checks the configuration, compiles every phase's step, prints the report."""
    if not args.gin_file:
        raise ConfigError("--gin_file is missing; for example --gin_file=runs/stage1_220m.gin")
    if args.search and args.generate is not None:
        raise ConfigError("--search compares training steps; leave out --generate")
    os.environ["JAX_PLATFORMS"] = "cpu"  # with libtpu there, JAX would look for a TPU
    from codet5p_jax.cli import dry_run, gin_config
    from codet5p_jax.training.checks import check_configuration
    from codet5p_jax.training.chips import parse_topology
    from codet5p_jax.training.precompile import precompile
    from codet5p_jax.training.precompile_generation import Generation, precompile_generation
    from codet5p_jax.training.precompile_report import report_text
    from codet5p_jax.training.train import train

    with configuration():
        parse_topology(args.topology)
        generation = None if args.generate is None else Generation.parse(args.generate)
    config = gin_config.load_flags(train, args, placeholders=gin_config.PATHS)
    if config.unused:
        print(f"not used by this run: {', '.join(config.unused)}", file=sys.stderr)
    checked = config.arguments_of(check_configuration)
    checked |= {"init_from": None, "model_dir": None}  # its paths need not exist
    with configuration():
        check_configuration(**checked)
        where = {"topology": args.topology, "num_slices": args.num_slices}
        if generation is not None:
            settings = config.arguments_of(precompile_generation)
            report = precompile_generation(generation=generation, **where, **settings)
        elif args.search:
            _search(args, config, {**where, "rows": dry_run.rows_of_phases(config, args)})
            return
        else:
            rows = dry_run.rows_of_phases(config, args)
            report = precompile(rows=rows, **where, **config.arguments_of(precompile))
    print(report_text(report))
    if args.json is not None:
        write_text(args.json, json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def _search(args: argparse.Namespace, config: Any, settings: dict[str, Any]) -> None:
    """Prints a line for each trial, then those that fit, best first. --json has all made so far."""
    from codet5p_jax.training.precompile import precompile, topology_devices
    from codet5p_jax.training.precompile_report import trial_text
    from codet5p_jax.training.precompile_search import ranked, search

    topology_devices(args.topology, args.num_slices)  # else wrong in every trial
    tried = ("mesh", "accumulate")
    found = {**config.arguments_of(precompile), **settings}
    settings = {name: value for name, value in found.items() if name not in tried}
    trials, best = [], []
    for trial in search(**settings):
        trials.append(trial)
        print(f"{len(trials)}: {trial_text(trial)}", flush=True)
        best = ranked(trials, settings["phases"])
        if args.json is not None:
            listed = [
                *(trial for *_, trial in best),
                *(trial for trial in trials if not trial.fits),
            ]
            told = [{"fits": trial.fits, **dataclasses.asdict(trial)} for trial in listed]
            write_text(args.json, json.dumps(told, indent=2) + "\n")
    print(
        "\nbest first, by the least time of all rows and then by peak:" if best else "\nnone fits"
    )
    for seconds, peak, trial in best:
        print(f"  {seconds / 3600:.2f} h, {peak / 1e9:.2f} GB: {trial.name}")
