"""Joins an encoder and a decoder that exist, through new cross-attention, into a model directory.

  codet5p compose --encoder=hf:codegen-350M-mono --decoder=hf:codegen-2B-mono \\
    --cross_attention_layers=last:1 --out=COMPOSED

The same from gin, in a file of its own or in that of a run:

  codet5p compose --gin_file=mine.gin --gin.composition.compose.model_dir="'COMPOSED'"

Then train it with the decoder frozen; docs/frozen_llm.md shows how. Afterwards,

  codet5p compose --verify=RUN --decoder=hf:codegen-2B-mono

tells whether the decoder is still, bit for bit, the one it was, in the dtype that the run keeps it.
"""

import argparse
import os
from typing import Any

from codet5p_jax.cli import gin_flags
from codet5p_jax.cli.arguments import seed
from codet5p_jax.cli.errors import ConfigError

IMPORTS = """
from __gin__ import dynamic_registration
from codet5p_jax.training import composition
"""
# The option for an argument of `compose`, and the value of the argument for that of the option.
CROSS_ATTENTION = {"parallel": True, "sequential": False}
CROSS_ATTENTION_INIT = {"zero": True, "random": False}
REQUIRED = {"encoder": "--encoder", "decoder": "--decoder", "model_dir": "--out"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p compose`."""
    for name, what in (
        ("encoder", "its encoder, or a decoder-only model that becomes bidirectional"),
        ("decoder", "its decoder"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="hf:FOLDER|MODEL_DIR",
            help=f"a Hugging Face folder or a model directory: {what}",
        )
    parser.add_argument("--out", metavar="MODEL_DIR", help="is made (model_dir in gin)")
    parser.add_argument(
        "--cross_attention_layers",
        metavar="LAYERS",
        help="of the decoder: all, last:N, every:N or indices as 0,5 (default: last:1; layers in "
        "gin)",
    )
    parser.add_argument(
        "--cross_attention",
        choices=CROSS_ATTENTION,
        help="beside self-attention, or after it with a norm of its own (default: as the layers "
        "of the decoder are; parallel in gin)",
    )
    parser.add_argument(
        "--cross_attention_init",
        choices=CROSS_ATTENTION_INIT,
        help="of its output projection; zero: the model starts out as the decoder alone; random: "
        "as CodeT5+ (default: random; zero_init in gin)",
    )
    parser.add_argument(
        "--verify",
        metavar="MODEL_DIR",
        help="make nothing, but compare the decoder of this model, bit for bit, with --decoder",
    )
    parser.add_argument("--seed", type=seed, help="of new weights (default: 0)")
    gin_flags.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Composes, or compares; returns the exit code."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # one parameter at a time, on the host
    from codet5p_jax.cli import gin_config
    from codet5p_jax.training.composition import compose

    options = _options(args)
    if args.verify is not None:
        if set(options) != {"decoder"} or args.gin_file or args.gin_bindings:
            raise ConfigError("--verify=MODEL_DIR takes --decoder, and nothing else")
        return _verify(args.verify, args.decoder)
    if not (args.gin_file or args.gin_bindings):
        missing = [option for name, option in REQUIRED.items() if name not in options]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} missing; give options, or --gin_file with "
                "composition.compose.encoder, .decoder and .model_dir"
            )
    args.gin_bindings = [
        *(f"composition.compose.{name}={value!r}" for name, value in options.items()),
        *args.gin_bindings,
    ]
    compose(**gin_config.load_flags(compose, args, imports=IMPORTS).arguments)
    return 0


def _verify(model_dir: str, decoder: str) -> int:
    from codet5p_jax.training.composition import compare_decoder

    same, others, cast = compare_decoder(model_dir, decoder)
    for name in others:
        print(f"DIFFERS  {name}")
    if cast:
        print(f"note: {len(cast)} dtypes differ, theirs are cast to that here; {cast[0]}")
    total = len(same) + len(others)
    print(
        f"{len(same)} of {total} parameters of the decoder of {model_dir} are those of {decoder}, "
        f"bit for bit{' in the dtype they have here' if cast else ''}"
    )
    return 1 if others else 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `compose` that options were given for."""
    given = {
        "encoder": args.encoder,
        "decoder": args.decoder,
        "model_dir": args.out,
        "layers": args.cross_attention_layers,
        "parallel": CROSS_ATTENTION.get(args.cross_attention),
        "zero_init": CROSS_ATTENTION_INIT.get(args.cross_attention_init),
        "seed": args.seed,
    }
    return {name: value for name, value in given.items() if value is not None}
