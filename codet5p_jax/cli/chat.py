"""Talks with a model that was tuned on instructions.

    codet5p chat --model_dir=RUN --temperature=0.2 --top_p=0.95

Each line is an instruction; what was said before goes along, as in tuning on chats. `/new` forgets
it, `/end` or Ctrl-D ends. Where instructions come from a pipe, only the answers are printed.
"""

import argparse
import sys
from pathlib import Path

from codet5p_jax.cli import generation_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p chat`."""
    parser.add_argument(
        "--templates",
        type=Path,
        help="JSON file of prompts, as in tuning (default: those of InstructCodeT5+)",
    )
    generation_options.add_arguments(parser, outputs_length=256)


def run(args: argparse.Namespace) -> int:
    """Answers until there are no more lines; returns the exit code."""
    from codet5p_jax.data.corpora.instructions import Templates
    from codet5p_jax.decoding.prompts import make_prompt

    if args.beams > 1 or args.samples > 1:
        raise ValueError("a chat has one answer to each line; leave out --beams and --samples")
    templates = Templates() if args.templates is None else Templates.from_file(args.templates)
    stops = generation_options.stop_texts(args)
    writer, tokenizer = generation_options.open_writer(args, stops=stops)
    asks = sys.stdin.isatty()
    instruction, response = "", ""
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        said = line.strip()
        if not line or said == "/end":
            return 0
        if said == "/new":
            instruction = ""
        if not said or said == "/new":
            continue
        if instruction:
            instruction = templates.next_turn.format(
                instruction=instruction, response=response, next=said
            )
        else:
            instruction = said
        text = templates.prompt(instruction)
        prompt = make_prompt(text, "plain", tokenizer, args.inputs_length, writer.model.config)
        if len(tokenizer.encode(text)) > args.inputs_length:
            print(
                f"what was said is longer than {args.inputs_length} tokens; /new starts anew, "
                "--inputs_length takes more",
                file=sys.stderr,
            )
            return 1
        response = generation_options.tell(writer, tokenizer, prompt, stops, args.seed)
