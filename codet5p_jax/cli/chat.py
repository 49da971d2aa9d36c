"""Talks with a model that was tuned on instructions.

    codet5p chat --model_dir=RUN --temperature=0.2 --top_p=0.95

Each line is an instruction; what was said before goes along, as in tuning on chats, without the
first turns where all of them are longer than --inputs_length. `/new` forgets it, `/end` or Ctrl-D
ends. Where instructions come from a pipe, only the answers are printed, and the exit code is 1 if
one had no answer because it was too long by itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codet5p_jax.cli import generation_options

if TYPE_CHECKING:
    from codet5p_jax.data.corpora.instructions import Templates


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
    config = writer.model.config
    length = generation_options.inputs_length(args, config, forced=1)
    limit = f"--inputs_length={length}"
    if length < args.inputs_length:
        limit = (
            f"{length} tokens, which the network has positions for beside "
            f"--max_length={args.max_length}"
        )
    asks, unanswered = sys.stdin.isatty(), 0
    turns: list[tuple[str, str]] = []
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        said = line.strip()
        if not line or said == "/end":
            return int(unanswered > 0 and not asks)
        if said == "/new":
            turns = []
        if not said or said == "/new":
            continue
        for dropped in range(len(turns) + 1):
            text = _text(templates, turns[dropped:], said)
            if len(tokenizer.encode(text)) <= length:
                break
        else:
            unanswered += 1
            print(f"not answered: this alone is longer than {limit}", file=sys.stderr)
            continue
        if dropped:
            print(
                f"left out the first {dropped} of {len(turns)} turns: with them this is longer "
                f"than {limit}",
                file=sys.stderr,
            )
            turns = turns[dropped:]
        prompt = make_prompt(text, "plain", tokenizer, length, config)
        response = generation_options.tell(writer, tokenizer, prompt, stops, args.seed)
        turns.append((said, response))


def _text(templates: "Templates", turns: Sequence[tuple[str, str]], said: str) -> str:
    """The prompt of an instruction after turns of instructions and responses."""
    instruction, response = "", ""
    for number, (one, answer) in enumerate([*turns, (said, "")]):
        if number:
            one = templates.next_turn.format(instruction=instruction, response=response, next=one)
        instruction, response = one, answer
    return templates.prompt(instruction)
