"""Embeds texts or code: unit vectors whose products say how alike two meanings are.

    codet5p embed --model_dir=RUN "parse a date string"
    codet5p embed --model_dir=RUN --file src/dates.py src/paths.py --output=vectors.npy
    codet5p embed --model_dir=RUN --lines < queries.txt

Without --output a line of JSON is printed for each: {"text" or "file": ..., "embedding": [...]}.
Batches of several texts are divided over all devices.
"""

import argparse
import json
import sys
from pathlib import Path

from codet5p_jax.cli.arguments import positive
from codet5p_jax.cli.generation_options import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p embed`."""
    parser.add_argument("text", nargs="*", help="what to embed; none: standard input")
    parser.add_argument("--file", type=Path, nargs="+", help="files, each embedded as a whole")
    parser.add_argument("--lines", action="store_true", help="each line of the input by itself")
    parser.add_argument("--output", type=Path, help="a .npy file, fp32 [texts, width]")
    parser.add_argument(
        "--inputs_length",
        type=positive,
        default=512,
        help="tokens of a text at most, <s> and </s> included; more are cut (default: 512)",
    )
    parser.add_argument(
        "--batch_size", type=positive, default=16, help="texts at a time (default: %(default)s)"
    )
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Prints or saves the vectors; returns the exit code."""
    if args.text and args.file:
        raise ValueError("found texts and --file; pass one of them")
    if args.output is not None and args.output.suffix != ".npy":
        raise ValueError(f"expected --output to end in .npy, found {args.output}")
    if args.file:
        named = [("file", str(path), _read(path)) for path in args.file]
    else:
        texts = args.text or [sys.stdin.read()]
        texts = [line for text in texts for line in text.splitlines()] if args.lines else texts
        named = [("text", text, text) for text in texts]
    if not all(text.strip() for *_, text in named):
        raise ValueError("a text to embed is empty")
    if not args.model_dir.is_dir():
        raise FileNotFoundError(f"no model directory at {args.model_dir}; pass --model_dir")
    import numpy as np

    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder
    from codet5p_jax.models.codet5p import CodeT5p
    from codet5p_jax.sharding import all_devices
    from codet5p_jax.training.stored_weights import load_params

    mesh = all_devices(args.batch_size) if len(named) > 1 else None
    params, config, folder = load_params(args.model_dir, mesh)
    tokenizer = Tokenizer.load(folder)
    encoder = PairEncoder(
        CodeT5p(config),
        params,
        tokenizer.special,
        text_length=args.inputs_length,
        code_length=args.inputs_length,
        batch_size=args.batch_size if mesh else min(args.batch_size, len(named)),
        mesh=mesh,
    )
    vectors = encoder.embed_texts([tokenizer.encode(text) for *_, text in named])
    if args.output is not None:
        np.save(args.output, vectors)
        return 0
    for (kind, name, _), vector in zip(named, vectors.tolist(), strict=True):
        print(json.dumps({kind: name, "embedding": vector}, ensure_ascii=False))
    return 0


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return path.read_text(encoding="utf-8", errors="surrogateescape")
