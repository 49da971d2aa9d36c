"""Embeds texts or code: unit vectors whose products say how alike two meanings are.

    codet5p embed --model_dir=RUN "parse a date string"
    codet5p embed --model_dir=RUN --file src/dates.py src/paths.py --output=vectors.npy
    codet5p embed --model_dir=RUN --lines < queries.txt

Without --output a line of JSON is printed for each: {"text" or "file": ..., "embedding": [...]}, of
the lines of files {"file": ..., "line": 1, "embedding": [...]}. A blank line is an error, so that
rows of --output are lines of the input. Batches of several texts are divided over all devices.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from codet5p_jax.cli.arguments import positive
from codet5p_jax.cli.generation_options import add_model
from codet5p_jax.cli.texts import lines_of, read_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p embed`."""
    parser.add_argument("text", nargs="*", help="what to embed; none: standard input")
    parser.add_argument(
        "--file",
        type=Path,
        nargs="+",
        help="files, each as a whole, or with --lines by line",
    )
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
    named = list(_texts(args))
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
    tokens = [tokenizer.encode(text) for _, text in named]
    length = min(args.inputs_length, config.encoder.max_positions or args.inputs_length)
    if length < args.inputs_length and any(len(ids) + 2 > length for ids in tokens):
        print(
            f"texts are cut to the {length} tokens that the network has positions for",
            file=sys.stderr,
        )
    encoder = PairEncoder(
        CodeT5p(config),
        params,
        tokenizer.special,
        text_length=length,
        code_length=length,
        batch_size=args.batch_size if mesh else min(args.batch_size, len(named)),
        mesh=mesh,
    )
    vectors = encoder.embed_texts(tokens)
    if args.output is not None:
        np.save(args.output, vectors)
        return 0
    for (name, _), vector in zip(named, vectors.tolist(), strict=True):
        print(json.dumps({**name, "embedding": vector}, ensure_ascii=False))
    return 0


def _texts(args: argparse.Namespace) -> Iterator[tuple[dict[str, str | int], str]]:
    """What is embedded, and how it is named."""
    found: list[tuple[dict[str, str | int], str]] = []
    for path in args.file or ():
        found.append(({"file": str(path)}, read_text(path)))
    if not args.file:
        found = [({"text": text}, text) for text in args.text or [sys.stdin.read()]]
    for name, text in found:
        where = f" {name['file']}" if args.file else ""
        if not text.strip():
            raise ValueError(f"a text to embed is empty{where}")
        if not args.lines:
            yield name, text
            continue
        for number, line in enumerate(lines_of(text), start=1):
            if not line.strip():
                raise ValueError(f"a text to embed is empty: line {number}{where and ' of'}{where}")
            yield ({**name, "line": number} if args.file else {"text": line}), line
