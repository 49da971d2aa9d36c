r"""Continues a file after one of its lines, with what is above it.

    codet5p complete --model_dir=RUN src/dates.py:12
    codet5p complete --model_dir=RUN src/dates.py:12 --stop='\ndef' --temperature=0.2 --top_p=0.95

The network reads `[CLM]` and as many tokens above as --inputs_length has room for (the causal
language model of pretraining); what it writes appears while it is written.
"""

import argparse
from pathlib import Path

from codet5p_jax.cli import generation_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p complete`."""
    parser.add_argument("place", metavar="FILE:LINE", help="lines count from 1")
    generation_options.add_arguments(parser)
    parser.set_defaults(model_dir=Path("quickstart_run/stage1"))


def run(args: argparse.Namespace) -> int:
    """Prints the continuation; returns the exit code."""
    beginning = _beginning(args.place)
    stops = generation_options.stop_texts(args)
    writer, tokenizer = generation_options.open_writer(args, stops=stops)
    (prompt,) = generation_options.prompts_of([beginning], "completion", writer, tokenizer, args)
    generation_options.tell_or_list(writer, tokenizer, prompt, stops, args)
    return 0


def _beginning(place: str) -> str:
    """The file down to the line, without its line break: tokens join that with indentation."""
    name, _, number = place.rpartition(":")
    if not name or not number.isdecimal():
        raise ValueError(f"expected FILE:LINE such as src/dates.py:12, found {place!r}")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    if not 1 <= int(number) <= len(lines):
        raise ValueError(f"{path} has lines 1 to {len(lines)}, found line {number}")
    return "\n".join(lines[: int(number)])
