"""Finds code for the texts of a data set, for a model to read as it writes (docs/finetuning.md).

    codet5p retrieve --model_dir=RUN --finetune_dir=DATA --language java

For every text of DATA/summarization/LANGUAGE/{train,valid,test}.jsonl, the nearest code by the
model's embeddings is written to DATA/retrieve_generate/LANGUAGE/{train,valid,test}.jsonl. What is
searched is DATA/summarization/LANGUAGE/codebase.jsonl, or else the code to train on.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from codet5p_jax.cli import data_options
from codet5p_jax.cli.arguments import positive
from codet5p_jax.cli.errors import ConfigError, configuration
from codet5p_jax.data.corpora.codesearchnet import SPLITS as NAMES
from codet5p_jax.data.corpora.finetuning import retrieved, summarization
from codet5p_jax.data.corpora.finetuning.files import SPLITS
from codet5p_jax.files import lock, new_file

if TYPE_CHECKING:
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder

SOURCE, TARGET = "summarization", "retrieve_generate"


class _Work(NamedTuple):
    """What is to be done for one language: code by name, (text, code to write) by split."""

    language: str
    base: dict[str, str]
    pairs: dict[str, list[tuple[str, str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p retrieve`."""
    add = parser.add_argument
    add("--model_dir", type=Path, required=True, help="model directory, or a checkpoint in it")
    add("--finetune_dir", type=Path, help="folder with a folder for each benchmark")
    add(
        "--language",
        nargs="+",
        choices=retrieved.LANGUAGES,
        default=retrieved.LANGUAGES,
        help="(default: both)",
    )
    add("--splits", metavar="SPLIT,…", default=",".join(SPLITS), help="(default: %(default)s)")
    add(
        "--codes",
        type=positive,
        default=max(retrieved.CODES),
        help="for each text, besides the one to write (default: %(default)s)",
    )
    add("--text_length", type=positive, default=64, help="tokens read (default: %(default)s)")
    add("--code_length", type=positive, default=360, help="tokens read (default: %(default)s)")
    add(
        "--batch_size",
        type=positive,
        default=64,
        help="rows of a compiled call, divided over all devices (default: %(default)s)",
    )
    add("--rebuild", action="store_true", help="write files that exist anew")


def run(args: argparse.Namespace) -> None:
    """Checks everything, then embeds, searches and writes, a split at a time."""
    root = data_options.finetune_folder(args, "summarization/ in it")
    splits = args.splits.split(",")
    with ExitStack() as stack:
        for language in args.language:
            folder = root / TARGET / language
            folder.mkdir(parents=True, exist_ok=True)
            # Beside the folder, all of whose files count as data.
            file = stack.enter_context(folder.with_name(f".{language}.lock").open("a"))
            lock(file, f"another process writes {folder}; wait until it has ended")
        if not args.rebuild:
            _check_new(root, args.language, splits)
        _retrieve(args, root, [_read(root, language, splits) for language in args.language])


def _retrieve(args: argparse.Namespace, root: Path, works: list[_Work]) -> None:
    from codet5p_jax.evaluation.code_search import CodeSearch

    encoder, tokenizer = _model(args)
    for work in works:
        search = CodeSearch(encoder, tokenizer, [*work.base.values()], work.language)
        folder = root / TARGET / work.language
        for split, pairs in work.pairs.items():
            # One more: the code to write may be in the code base.
            found, cosines = search.nearest([text for text, _ in pairs], args.codes + 1, split)
            path = folder / f"{NAMES[split]}.jsonl"
            with new_file(path) as partial, open(partial, "w") as file:
                names, codes = [*work.base], [*work.base.values()]
                for (text, code), row, scores in zip(pairs, found, cosines, strict=True):
                    contexts = [
                        {"id": names[place], "text": codes[place], "score": round(float(score), 6)}
                        for place, score in zip(row, scores, strict=True)
                    ]
                    record = {"question": text, "answers": code, "ctxs": contexts}
                    file.write(json.dumps(record) + "\n")
            print(f"{path}: {len(pairs):,} texts, out of {len(work.base):,} codes")


def _check_new(root: Path, languages: list[str], splits: list[str]) -> None:
    found = [
        path
        for language in languages
        for split in splits
        if (path := retrieved.existing(root / TARGET / language, split))
    ]
    if found:
        raise ConfigError(
            f"{', '.join(map(str, found))}: there already; leave these out of --splits or "
            "--language, or pass --rebuild"
        )


def _read(root: Path, language: str, splits: list[str]) -> _Work:
    folder = root / SOURCE
    pairs = {
        split: [
            (example["source"], example["target"])
            for example in summarization.programs(folder, language, split, setting="finetune_dir")
        ]
        for split in splits
    }
    return _Work(language, retrieved.code_base(folder, language, setting="finetune_dir"), pairs)


def _model(args: argparse.Namespace) -> "tuple[PairEncoder, Tokenizer]":
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder
    from codet5p_jax.models.codet5p import CodeT5p
    from codet5p_jax.sharding import all_devices
    from codet5p_jax.training.stored_weights import load_params

    with configuration():
        mesh = all_devices(args.batch_size)
    params, config, folder = load_params(args.model_dir, mesh)
    tokenizer = Tokenizer.load(folder)
    encoder = PairEncoder(
        CodeT5p(config),
        params,
        tokenizer.special,
        text_length=args.text_length,
        code_length=args.code_length,
        batch_size=args.batch_size,
        mesh=mesh,
    )
    return encoder, tokenizer
