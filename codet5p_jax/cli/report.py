"""Lays training runs over each other on one page: losses, speed, goodput, and how they differ.

  codet5p report RUN_A RUN_B --output=report.html

The page is one file, without scripts and without anything from the network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from codet5p_jax.cli.arguments import output_file
from codet5p_jax.cli.errors import ConfigError, configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p report`."""
    parser.add_argument(
        "model_dirs", nargs="+", type=Path, metavar="MODEL_DIR", help="what runs wrote"
    )
    parser.add_argument(
        "--output",
        type=output_file,
        default="report.html",
        help="the page (default: ./%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Reads what the runs recorded and writes the page."""
    from codet5p_jax.evaluation.report import write
    from codet5p_jax.evaluation.runs_report import Run, make_report
    from codet5p_jax.training.metrics import read_records
    from codet5p_jax.training.model_dir import ModelDir

    if len({path.resolve() for path in args.model_dirs}) < len(args.model_dirs):
        raise ConfigError(f"a run is named twice: {' '.join(map(str, args.model_dirs))}")
    runs = []
    for path, name in zip(args.model_dirs, names(args.model_dirs), strict=True):
        directory = ModelDir(path)
        if not directory.metrics.is_file():
            raise ConfigError(
                f"{path} has no {directory.metrics.name}; name folders that training wrote "
                "(MODEL_DIR)"
            )
        config = directory.operative_config
        text = config.read_text(encoding="utf-8") if config.is_file() else ""
        runs.append(Run(name, read_records(directory.metrics), text))
    with configuration():
        report = make_report(runs)
    write(report, args.output)
    print(args.output)


def names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or as much as tells them apart.

    >>> names([Path("a/run"), Path("b/run")])
    ['a/run', 'b/run']
    """
    parts = [folder.resolve().parts[1:] for folder in folders]
    for number in range(1, max(map(len, parts), default=0)):
        short = ["/".join(each[-number:]) for each in parts]
        if len(set(short)) == len(short):
            return short
    return [str(folder) for folder in folders]
