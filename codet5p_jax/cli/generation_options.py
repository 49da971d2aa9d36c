"""Options that the commands share which write text, and what they load."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codet5p_jax.cli.arguments import natural, positive, seed, share

if TYPE_CHECKING:
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.decoding.prompts import Prompt
    from codet5p_jax.decoding.writer import Writer
    from codet5p_jax.models.configs import ModelConfig

CHUNK = 16  # steps between two looks at what was written


def add_model(parser: argparse.ArgumentParser, default: str = "quickstart_run/stage2") -> None:
    """Adds the options that name a model."""
    parser.add_argument(
        "--model_dir",
        type=Path,
        default=Path(default),
        help="model directory, or one checkpoint in it (default: %(default)s); `codet5p convert "
        "import` makes one of a Hugging Face folder",
    )


def add_arguments(parser: argparse.ArgumentParser, *, outputs_length: int = 128) -> None:
    """Adds the options of the model, of lengths and of how tokens are chosen."""
    add_model(parser)
    lengths = parser.add_argument_group("lengths, in tokens")
    lengths.add_argument(
        "--inputs_length",
        type=positive,
        default=512,
        help="of a prompt at most, and as many as the network has positions for; more are cut "
        "(default: 512)",
    )
    lengths.add_argument(
        "--max_length",
        type=positive,
        default=outputs_length,
        help="written at most (default: %(default)s)",
    )
    lengths.add_argument("--min_length", type=natural, default=0, help="written at least")
    how = parser.add_argument_group(
        "how tokens are chosen (the most likely one, unless these say otherwise)"
    )
    how.add_argument(
        "--temperature", type=_number(0.0), default=0.0, help="sample from probabilities^(1/T)"
    )
    how.add_argument("--top_k", type=natural, default=0, help="among the K most likely")
    how.add_argument("--top_p", type=share, default=1.0, help="among those that add up to P")
    how.add_argument("--min_p", type=share, default=0.0, help="with P times the highest at least")
    how.add_argument(
        "--repetition_penalty",
        type=_number(1e-3),
        default=1.0,
        help="makes tokens that were read or written less likely (1: off)",
    )
    how.add_argument("--samples", type=positive, default=1, help="texts drawn for each prompt")
    how.add_argument("--seed", type=seed, default=0, help="of what is drawn (default: 0)")
    how.add_argument("--beams", type=positive, default=1, help="search with N beams instead")
    how.add_argument(
        "--length_penalty",
        type=_number(float("-inf")),
        help="of beams: above 0 favours longer texts (default: 1)",
    )
    how.add_argument("--nbest", type=positive, default=1, help="of beams: the N best texts")
    how.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end before this text; may be given several times; \n is a line break",
    )


def _number(least: float) -> Any:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value and math.isfinite(value)):
            wanted = "a number" if math.isinf(least) else f"a number of {least:g} or more"
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
        return value

    return number


def stop_texts(args: argparse.Namespace) -> list[str]:
    r"""The texts of --stop, with `\n` and `\t` read as in Python."""
    return [text.replace("\\n", "\n").replace("\\t", "\t") for text in args.stop]


def open_writer(
    args: argparse.Namespace,
    *,
    batch_size: int = 1,
    stops: Sequence[str] = (),
    divided: bool = False,
) -> "tuple[Writer, Tokenizer]":
    """Loads the model onto one device, or divides it and its batches over all there are. The
    options are checked first.

    Raises:
      ValueError: options that do not go together, or a model that cannot write.
      FileNotFoundError: there is no such model.
    """
    from codet5p_jax.decoding.beam import BeamSearch
    from codet5p_jax.decoding.sampling import Sampling

    shared = dict(
        max_length=args.max_length,
        min_length=args.min_length,
        repetition_penalty=args.repetition_penalty,
    )
    draws = args.temperature > 0
    if args.beams == 1 and args.nbest > 1:
        raise ValueError(f"--nbest={args.nbest} needs as many --beams; or take --samples")
    if args.beams == 1 and args.length_penalty is not None:
        raise ValueError(
            f"--length_penalty={args.length_penalty:g} is of beam search: pass --beams as well"
        )
    if args.beams > 1 and (draws or args.samples > 1):
        raise ValueError("--beams search for the best text, --temperature draws one: pass one only")
    if not draws and (args.top_k or args.top_p < 1 or args.min_p or args.samples > 1):
        raise ValueError(
            "--top_k, --top_p, --min_p and --samples are about drawing: pass --temperature as well"
        )
    if args.beams > 1:
        how: Any = BeamSearch(
            **shared,
            beams=args.beams,
            outputs=args.nbest,
            length_penalty=1.0 if args.length_penalty is None else args.length_penalty,
        )
    else:
        how = Sampling(
            **shared,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            samples=args.samples,
        )
    if not args.model_dir.is_dir():
        raise FileNotFoundError(
            f"no model directory at {args.model_dir}; pass --model_dir, or make one with "
            "`codet5p quickstart`"
        )
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.decoding.stop import stop_table
    from codet5p_jax.decoding.writer import Writer
    from codet5p_jax.models.codet5p import CodeT5p
    from codet5p_jax.sharding import all_devices
    from codet5p_jax.training.stored_weights import load_params, with_ends

    mesh = all_devices(batch_size) if divided else None
    params, config, folder = load_params(args.model_dir, mesh)
    tokenizer = Tokenizer.load(folder)
    table = stop_table(stops, tokenizer.token_bytes, config.vocab_size) if stops else None
    # Layers apart: a little more memory, less work for each token.
    model = CodeT5p(dataclasses.replace(config, scan_layers=False))
    writer = Writer(
        model,
        params,
        with_ends(args.model_dir, tokenizer.special),
        how,
        batch_size=batch_size,
        stop_table=table,
        mesh=mesh,
    )
    return writer, tokenizer


def inputs_length(args: argparse.Namespace, config: "ModelConfig", forced: int = 0) -> int:
    """--inputs_length, or what the positions of the network leave of it where the decoder begins
    with `forced` tokens and writes --max_length.

    Raises:
      ValueError: they leave nothing.
    """
    from codet5p_jax.decoding.prompts import room

    encoder, decoder = room(config, args.max_length)
    limits = [args.inputs_length, *([] if encoder is None else [encoder])]
    if decoder is not None:
        reads = config.prompt_to_decoder or not config.encoder.num_layers
        if decoder - forced < (3 if reads else 0):  # as many as a framed prompt has at least
            raise ValueError(
                f"--max_length={args.max_length} leaves no room in the decoder's "
                f"{config.decoder.max_positions} positions for what it reads before; lower it"
            )
        limits += [decoder - forced] if reads else []
    return min(limits)


def prompts_of(
    texts: Sequence[str],
    kind: str,
    writer: "Writer",
    tokenizer: "Tokenizer",
    args: argparse.Namespace,
    prefix: str = "",
) -> "list[Prompt]":
    """Prompts of `inputs_length` tokens at most. A note on stderr says where the network has fewer
    positions than --inputs_length asks for, and a prompt loses something by it."""
    from codet5p_jax.decoding.prompts import make_prompt

    config = writer.model.config
    length = inputs_length(args, config, 1 + len(tokenizer.encode(prefix)))

    def made(length: int) -> "list[Prompt]":
        return [make_prompt(text, kind, tokenizer, length, config, prefix) for text in texts]

    prompts = made(length)
    if length < args.inputs_length:
        whole = made(args.inputs_length)
        sizes = [[sum(map(len, prompt)) for prompt in each] for each in (prompts, whole)]
        cut = sum(ours < theirs for ours, theirs in zip(*sizes, strict=True))
        if cut:
            print(
                f"{cut} of {len(prompts)} prompts are cut to {length} tokens: the network has no "
                f"positions for more beside --max_length={args.max_length}",
                file=sys.stderr,
            )
    return prompts


def tell(
    writer: "Writer", tokenizer: "Tokenizer", prompt: "Prompt", stops: Sequence[str], seed: int
) -> str:
    """Writes a text to stdout while it comes, up to the first of the stop texts; returns it.

    What may yet turn out to be the beginning of a stop text, or of a character of several bytes, is
    held back.
    """
    import jax

    from codet5p_jax.decoding.stop import cut, ends_inside

    ids: list[int] = []
    text, told = "", 0
    for tokens in writer.stream(prompt, jax.random.key(seed), CHUNK):
        ids += tokens.tolist()
        text = cut(tokenizer.decode(ids), stops)
        safe = len(text.rstrip("\ufffd")) - ends_inside(text.rstrip("\ufffd"), stops)
        if safe > told:
            print(text[told:safe], end="", flush=True)
            told = safe
    print(text[told:])
    sys.stdout.flush()
    return text


def tell_or_list(
    writer: "Writer",
    tokenizer: "Tokenizer",
    prompt: "Prompt",
    stops: Sequence[str],
    args: argparse.Namespace,
) -> None:
    """Writes the text of a prompt to stdout while it comes; several, or of beams, at the end, with
    a form feed between them."""
    import jax

    if args.samples == args.beams == 1:
        tell(writer, tokenizer, prompt, stops, args.seed)
        return
    for _, rows in writer.write([prompt], jax.random.key(args.seed)):
        print("\n\f\n".join(texts_of(tokenizer, rows, stops)))


def texts_of(tokenizer: "Tokenizer", rows: Sequence[Any], stops: Sequence[str]) -> list[str]:
    """The texts of rows of tokens, before the first of the stop texts."""
    from codet5p_jax.decoding.stop import cut

    return [cut(tokenizer.decode(row), stops) for row in rows]
