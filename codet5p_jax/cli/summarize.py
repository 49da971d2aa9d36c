"""Says in words what code does: of a Python file every function, of another file all of it.

    codet5p summarize --model_dir=RUN src/dates.py
    codet5p summarize --model_dir=RUN src/dates.py --function parse_date

The network reads `<s> code </s>` and its decoder starts with [TDEC] (stage 2).
"""

import argparse
from pathlib import Path

from codet5p_jax.cli import generation_options
from codet5p_jax.cli.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p summarize`."""
    parser.add_argument("file", type=Path, help="what to summarise")
    parser.add_argument("--function", help="this function alone, by its name in the file")
    parser.add_argument(
        "--batch_size", type=positive, default=8, help="functions at a time (default: %(default)s)"
    )
    generation_options.add_arguments(parser, outputs_length=64)


def run(args: argparse.Namespace) -> int:
    """Prints the summaries, as batches are done; returns the exit code."""
    places, codes = _codes(args.file, args.function)
    import jax

    stops = generation_options.stop_texts(args)
    writer, tokenizer = generation_options.open_writer(
        args, batch_size=min(args.batch_size, len(codes)), stops=stops
    )
    prompts = generation_options.prompts_of(codes, "description", writer, tokenizer, args)
    for place, rows in writer.write(prompts, jax.random.key(args.seed)):
        for text in generation_options.texts_of(tokenizer, rows, stops):
            print(f"{places[place]}  {' '.join(text.split())}", flush=True)
    return 0


def _codes(file: Path, function: str | None) -> tuple[list[str], list[str]]:
    """What is summarised, as `file:line  name`, and its code."""
    from codet5p_jax.data.corpora.python_functions import functions

    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    found = []
    if file.suffix == ".py":
        try:
            found = list(functions(text))
        except SyntaxError as error:
            raise ValueError(f"{file} is not Python of this interpreter: {error}") from error
    if function is not None:
        names = [f.qualname for f in found]
        found = [f for f in found if f.qualname == function]
        if not found:
            raise ValueError(
                f"{file} has no function {function!r}; it has {', '.join(names) or 'none'}"
            )
    if not found:
        if not text.strip():
            raise ValueError(f"{file} is empty")
        return [str(file)], [text]
    return [f"{file}:{f.line}  {f.qualname}" for f in found], [f.code for f in found]
