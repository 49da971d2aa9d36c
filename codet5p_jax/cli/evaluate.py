"""A model on benchmarks; or its losses on a held-out split, and what it loses without its source.

  codet5p evaluate --benchmark=humaneval,mbpp --checkpoint=MODEL_DIR --finetune_dir=DATA --out=OUT
  codet5p evaluate --benchmark=defect --predictions=FILE --finetune_dir=DATA --out=OUT
  codet5p evaluate --benchmark=list

  codet5p evaluate --gin_file=RUN/operative_config.gin
  codet5p evaluate --gin_file=runs/quickstart_frozen_llm.gin --split=test \\
    --gin.MODEL_DIR="'RUN'" --gin.CACHE_DIR="'CACHE'" --sources=own,other,none,prompt

The gin file says on what and with which objectives; MODEL_DIR may be another run's. Its mixtures
are in CACHE_DIR already. All sources are judged on the same targets.
"""

import argparse

from codet5p_jax.cli import evaluate_benchmarks, gin_flags
from codet5p_jax.cli.arguments import positive
from codet5p_jax.cli.errors import ConfigError

SOURCES = ("own", "other", "none", "prompt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p evaluate`."""
    evaluate_benchmarks.add_arguments(parser)
    gin_flags.add_arguments(parser)
    parser.add_argument(
        "--split", help="default: that of the run's evaluations; of benchmarks, their own"
    )
    parser.add_argument("--batches", type=positive, help="at most so many (default: all)")
    parser.add_argument(
        "--sources",
        type=parse_sources,
        default=("own",),
        metavar="SOURCE,…",
        help="what is read besides the targets before: own, by the encoder; other, that of another "
        "row; none, cross-attention is bypassed; prompt, the prefix of seq2seq_clm by the decoder "
        "alone (default: own)",
    )


def parse_sources(text: str) -> tuple[str, ...]:
    """Reads `SOURCE,…`.

    >>> parse_sources("own,none")
    ('own', 'none')
    """
    sources = tuple(text.split(","))
    for source in sources:
        if source not in SOURCES:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(SOURCES)}, got {source!r}"
            )
    return sources


def run(args: argparse.Namespace) -> None:
    """Prints a table of benchmarks, or a line of losses for each source."""
    if args.benchmark:
        return evaluate_benchmarks.run(args)
    if not args.gin_file:
        raise ConfigError(
            "--gin_file is missing, such as --gin_file=RUN/operative_config.gin; or --benchmark"
        )
    from dataclasses import replace

    from codet5p_jax.cli import gin_config
    from codet5p_jax.training.evaluate import Evaluation
    from codet5p_jax.training.sources import SOURCES as NAMES
    from codet5p_jax.training.sources import evaluate
    from codet5p_jax.training.train import train

    unused = {"INITIAL_CHECKPOINT_PATH": gin_config.PATHS["INITIAL_CHECKPOINT_PATH"]}
    config = gin_config.load_flags(train, args, placeholders=unused)
    arguments = config.arguments_of(evaluate)
    evaluation = arguments.get("evaluation", Evaluation())
    split = args.split or evaluation.split
    arguments["evaluation"] = replace(evaluation, split=split, batches=args.batches)
    names = [name for objective in arguments["objectives"] for name in objective.losses]
    print(f"{f'losses, split {split}':<44}" + "".join(f"{n:>16}" for n in names), flush=True)
    for source, means in evaluate(**arguments, sources=args.sources):
        losses = (f"{means[f'{n}/loss']:.4f}" if f"{n}/loss" in means else "-" for n in names)
        print(f"{NAMES[source]:<44}" + "".join(f"{loss:>16}" for loss in losses), flush=True)
