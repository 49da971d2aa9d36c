"""Joins an encoder and a decoder that exist, through new cross-attention, into a model directory.

  codet5p compose --encoder=hf:codegen-350M-mono --decoder=hf:codegen-2B-mono \\
    --cross_attention_layers=last:1 --out=COMPOSED

Then train it with the decoder frozen; docs/frozen_llm.md shows how.
"""

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p compose`."""
    for name, what in (
        ("encoder", "its encoder, or a decoder-only model that becomes bidirectional"),
        ("decoder", "its decoder"),
    ):
        parser.add_argument(
            f"--{name}",
            required=True,
            metavar="hf:FOLDER|MODEL_DIR",
            help=f"a Hugging Face folder or a model directory: {what}",
        )
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL_DIR", help="is made")
    parser.add_argument(
        "--cross_attention_layers",
        default="last:1",
        metavar="LAYERS",
        help="of the decoder: all, last:N, every:N or indices as 0,5 (default: %(default)s)",
    )
    parser.add_argument(
        "--cross_attention",
        choices=("parallel", "sequential"),
        help="beside self-attention, or after it with a norm of its own (default: as the layers "
        "of the decoder are)",
    )
    parser.add_argument(
        "--cross_attention_init",
        choices=("zero", "random"),
        default="random",
        help="of its output projection; zero: the model starts out as the decoder alone; random: "
        "as CodeT5+ (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of new weights")


def run(args: argparse.Namespace) -> None:
    """Composes."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # one parameter at a time, on the host
    from codet5p_jax.training.composition import compose

    compose(
        args.encoder,
        args.decoder,
        args.out,
        layers=args.cross_attention_layers,
        parallel=None if args.cross_attention is None else args.cross_attention == "parallel",
        zero_init=args.cross_attention_init == "zero",
        seed=args.seed,
    )
