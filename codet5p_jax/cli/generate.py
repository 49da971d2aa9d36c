r"""Writes from a prompt: an argument, a file, or standard input.

    codet5p generate --model_dir=RUN "translate this"
    codet5p generate --model_dir=RUN --kind=code "parse a date string"
    codet5p generate --model_dir=RUN --kind=completion --stop='\ndef' --file=begun.py
    codet5p generate --model_dir=RUN --lines --file=prompts.txt --temperature=0.8 --samples=10

A single text appears while it is written. With --lines every line is a prompt, and a line of JSON
is written for each, in the order in which they are done:
{"line": 1, "prompt": ..., "texts": [...]}. Batches of lines are divided over all devices.
"""

import argparse
import json
import sys
from pathlib import Path

from codet5p_jax.cli import generation_options
from codet5p_jax.cli.arguments import positive

KINDS = ("plain", "framed", "completion", "description", "code")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p generate`."""
    parser.add_argument("prompt", nargs="?", help="what to write from; none: standard input")
    parser.add_argument("--file", type=Path, help="a file with the prompt, instead")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="framed",
        help="what the network is given: the text alone; <s> text </s> (default); [CLM] text, to "
        "be continued; code, to be described after [TDEC]; a description, to be coded after [CDEC]",
    )
    parser.add_argument("--prefix", default="", help="what the text has to begin with")
    parser.add_argument("--lines", action="store_true", help="every line is a prompt")
    parser.add_argument(
        "--batch_size", type=positive, default=8, help="prompts at a time (default: %(default)s)"
    )
    generation_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what is written; returns the exit code."""
    prompts = _prompts(args)
    from codet5p_jax.decoding.prompts import make_prompt

    stops = generation_options.stop_texts(args)
    writer, tokenizer = generation_options.open_writer(
        args,
        batch_size=args.batch_size if args.lines else 1,
        stops=stops,
        divided=args.lines,
    )
    made = [
        make_prompt(
            text, args.kind, tokenizer, args.inputs_length, writer.model.config, args.prefix
        )
        for text in prompts
    ]
    if not args.lines:
        print(args.prefix, end="", flush=True)
        generation_options.tell_or_list(writer, tokenizer, made[0], stops, args)
        return 0
    import jax

    for place, rows in writer.write(made, jax.random.key(args.seed)):
        texts = generation_options.texts_of(tokenizer, rows, stops)
        record = {
            "line": place + 1,
            "prompt": prompts[place],
            "texts": [args.prefix + text for text in texts],
        }
        print(json.dumps(record, ensure_ascii=False), flush=True)
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompt is not None and args.file is not None:
        raise ValueError("found a prompt and --file; pass one of them")
    text = args.prompt
    if args.file is not None:
        text = args.file.read_text(encoding="utf-8", errors="surrogateescape")
    elif text is None:
        if sys.stdin.isatty():
            print("the prompt, ended by Ctrl-D:", file=sys.stderr)
        text = sys.stdin.read()
    prompts = text.splitlines() if args.lines else [text]
    if not any(prompt.strip() for prompt in prompts):
        raise ValueError("the prompt is empty")
    return prompts
