"""Tokenises mixtures into the cache that training reads.

An interrupted preparation goes on where it stopped, and what is there already is kept.

  codet5p prepare stdlib_stage1 --tokenizer=TOKENIZER --cache_dir=CACHE
  codet5p prepare my_mixture --module=my_tasks --cache_dir=CACHE
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from codet5p_jax.cli import child, data_options
from codet5p_jax.cli.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p prepare`."""
    add = parser.add_argument
    add("mixture", nargs="+", help="name of a mixture or task in SeqIO's registry")
    add("--cache_dir", required=True, help="folder of the token cache; made if missing")
    add("--splits", metavar="SPLIT,…", help="by default those that all tasks of a mixture have")
    add("--rebuild", action="store_true", help="write again what is there, stale or not")
    add(
        "--epochs",
        type=positive,
        default=1,
        help="times that a task from elsewhere is run, its preprocessors seeded anew "
        "(default: %(default)s)",
    )
    add(
        "--task_feature_lengths",
        type=parse_lengths,
        metavar="NAME=LENGTH,…",
        help="sequence lengths for the preprocessors of a task from elsewhere: "
        "inputs=512,targets=128",
    )
    data_options.add_arguments(parser)


def parse_lengths(text: str) -> dict[str, int]:
    """Reads `NAME=LENGTH,…`.

    >>> parse_lengths("inputs=512,targets=128")
    {'inputs': 512, 'targets': 128}
    """
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(name and length.isdecimal() and int(length) for name, _, length in pairs):
        raise argparse.ArgumentTypeError(
            f"expected NAME=LENGTH,… with lengths of 1 or more, got {text!r}"
        )
    return {name: int(length) for name, _, length in pairs}


def run(args: argparse.Namespace) -> None:
    """Prepares the mixtures one after the other."""
    data_options.configure(args)
    from codet5p_jax.data.prepare import prepare

    for mixture in args.mixture:
        summary = prepare(
            mixture,
            args.cache_dir,
            args.splits.split(",") if args.splits else None,
            epochs=args.epochs,
            sequence_length=args.task_feature_lengths,
            rebuild=args.rebuild,
        )
        print(f"{mixture} is ready in {summary.cache_dir}")


def missing(mixtures: Iterable[str], cache_dir: str) -> list[str]:
    """Those of the mixtures that the cache has not, or not usable."""
    from codet5p_jax.data.cache import CacheError, open_mixture

    absent = []
    for mixture in dict.fromkeys(mixtures):
        try:
            open_mixture(cache_dir, mixture, "train")
        except CacheError:
            absent.append(mixture)
    return absent


def ensure_prepared(
    mixtures: Iterable[str],
    cache_dir: str,
    args: argparse.Namespace,
    *,
    prepare: bool = True,
    lengths: Mapping[str, int] | None = None,
) -> None:
    """Prepares the mixtures that are not in the cache.

    Another process does it, so that this one, which is to train, never loads TensorFlow.

    Args:
      mixtures: their names.
      cache_dir: of the token cache.
      args: with the options of `data_options`.
      prepare: whether to, or to insist that they are there.
      lengths: of features, for the preprocessors of tasks from elsewhere.

    Raises:
      CacheError: one is missing and `prepare` is off, or cannot be opened.
      SystemExit: preparing failed; the other process has said why, and this is its exit code.
      ChildProcessError: it was killed before it could.
    """
    from codet5p_jax.data.cache import MIXTURES, CacheError, open_mixture

    for mixture in dict.fromkeys(mixtures):
        try:
            open_mixture(cache_dir, mixture, "train")
        except CacheError as error:
            if not prepare:
                raise
            # What to do is done here, and a near name is looked for among registered ones there.
            absent = not (Path(cache_dir) / MIXTURES / f"{mixture}.json").exists()
            why = f"mixture {mixture!r} is not prepared in {cache_dir}" if absent else error
            print(f"{why}: preparing it", file=sys.stderr, flush=True)
            flags = [f"--cache_dir={cache_dir}", *data_options.forward(args)]
            if lengths:
                listed = ",".join(f"{name}={length}" for name, length in lengths.items())
                flags.append(f"--task_feature_lengths={listed}")
            code = child.codet5p("prepare", mixture, *flags)
            if code < 0:
                raise ChildProcessError(
                    f"preparing {mixture} in {cache_dir} was ended by signal {-code}"
                ) from error
            if code:
                raise SystemExit(code) from error
