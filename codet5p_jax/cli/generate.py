r"""Writes from a prompt: an argument, a file, or standard input.

    codet5p generate --model_dir=RUN "translate this"
    codet5p generate --model_dir=RUN --kind=code "parse a date string"
    codet5p generate --model_dir=RUN --kind=completion --stop='\ndef' --file=begun.py
    codet5p generate --model_dir=RUN --lines --file=prompts.txt --temperature=0.8 --samples=10

A single text appears while it is written. With --lines every line that is not blank is a prompt,
and a line of JSON is written for each, in the order in which they are done:
{"line": 1, "prompt": ..., "texts": [...]}. Batches of lines are divided over all devices.
"""

import argparse
import json
import sys
from pathlib import Path

from codet5p_jax.cli import generation_options
from codet5p_jax.cli.arguments import positive
from codet5p_jax.cli.texts import lines_of, read_text

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
    parser.add_argument(
        "--lines", action="store_true", help="every line that is not blank is a prompt"
    )
    parser.add_argument(
        "--batch_size", type=positive, default=8, help="prompts at a time (default: %(default)s)"
    )
    generation_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what is written; returns the exit code."""
    prompts = _prompts(args)
    stops = generation_options.stop_texts(args)
    writer, tokenizer = generation_options.open_writer(
        args,
        batch_size=args.batch_size if args.lines else 1,
        stops=stops,
        divided=args.lines,
    )
    texts = list(prompts.values())
    made = generation_options.prompts_of(texts, args.kind, writer, tokenizer, args, args.prefix)
    if not args.lines:
        print(args.prefix, end="", flush=True)
        generation_options.tell_or_list(writer, tokenizer, made[0], stops, args)
        return 0
    import jax

    lines = list(prompts)
    for place, rows in writer.write(made, jax.random.key(args.seed)):
        written = generation_options.texts_of(tokenizer, rows, stops)
        record = {
            "line": lines[place],
            "prompt": texts[place],
            "texts": [args.prefix + text for text in written],
        }
        print(json.dumps(record, ensure_ascii=False), flush=True)
    return 0


def _prompts(args: argparse.Namespace) -> dict[int, str]:
    """By line, from 1."""
    if args.prompt is not None and args.file is not None:
        raise ValueError("found a prompt and --file; pass one of them")
    text = args.prompt
    if args.file is not None:
        text = read_text(args.file)
    elif text is None:
        if sys.stdin.isatty():
            print("the prompt, ended by Ctrl-D:", file=sys.stderr)
        text = sys.stdin.read()
    lines = lines_of(text) if args.lines else [text]
    prompts = {line: prompt for line, prompt in enumerate(lines, start=1) if prompt.strip()}
    if not prompts:
        raise ValueError("the prompt is empty")
    return prompts
