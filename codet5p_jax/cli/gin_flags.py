"""T5X's gin flags, apart from gin itself so that `--help` need not import it."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags. `main` turns `--gin.NAME=value` into `--gin_bindings=NAME=value`."""
    add = parser.add_argument_group("configuration").add_argument
    add(
        *("--gin_file", "--gin-file"),
        action="append",
        default=[],
        metavar="FILE",
        help="gin file, by path or by its name in the package (runs/stage1_220m.gin); repeatable",
    )
    add(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one binding; --gin.NAME=VALUE is short for it. Strings need quotes of their own: "
        "--gin.MODEL_DIR=\"'/tmp/run'\"",
    )
    add(
        "--gin_search_paths",
        default="",
        metavar="DIR,…",
        help="folders in which gin files are looked for before the package",
    )
