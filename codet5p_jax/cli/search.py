"""Finds functions by what they do: by meaning (embedding), by words (BM25), or both fused."""

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from codet5p_jax.cli.arguments import positive
from codet5p_jax.cli.errors import ConfigError

if TYPE_CHECKING:
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder
    from codet5p_jax.evaluation.search import Hit, SearchIndex


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p search`."""
    parser.add_argument("query", nargs="+", help='what it should do: "parse a date string"')
    parser.add_argument(
        "--model_dir",
        type=Path,
        default=Path("quickstart_run/stage2"),
        help="model directory with a search index (default: %(default)s)",
    )
    parser.add_argument("--k", type=positive, default=5, help="answers (default: %(default)s)")
    parser.add_argument(
        "--mode",
        choices=("fused", "embedding", "bm25"),
        default="fused",
        help="how functions are compared with the query (default: %(default)s)",
    )
    parser.add_argument(
        "--rerank", action="store_true", help="let the matching head order the first 32"
    )
    parser.add_argument(
        "--faiss",
        nargs="?",
        const="Flat",
        metavar="KIND",
        help="compare embeddings with FAISS, in an index of a kind that faiss.index_factory knows: "
        "Flat is exact, HNSW32 is approximate and kept beside the search index (default: none; "
        "without KIND: Flat)",
    )
    parser.add_argument(
        "--faiss_search",
        default="",
        metavar="NAME=VALUE,…",
        help="parameters of its search: efSearch=64 of HNSW32, nprobe=16 of IVF1024,Flat",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the answers; returns the exit code."""
    from codet5p_jax.evaluation import faiss_index, search

    if args.faiss is not None:
        if args.mode != "embedding":
            raise ConfigError(f"--faiss needs --mode=embedding, found --mode={args.mode}")
        faiss_index.check_installed()
    if not args.model_dir.is_dir():
        raise FileNotFoundError(
            f"no model directory at {args.model_dir}; pass --model_dir, or make one with "
            "`codet5p quickstart`"
        )
    index = search.load(args.model_dir)
    if args.rerank and not index.rerank_weight:
        print(
            "the matching head of this model did not order functions better than the embedding on "
            "validation modules; --rerank changes nothing",
            file=sys.stderr,
        )
        args.rerank = False
    nearest = None
    if args.faiss is not None:
        nearest = faiss_index.open_index(
            index.embeddings, args.faiss, args.faiss_search, folder=args.model_dir
        )
    encoder, tokenizer = None, None
    if args.mode != "bm25" or args.rerank:
        encoder, tokenizer = _load_model(args.model_dir, index, args.rerank)
    hits = search.search(
        index,
        " ".join(args.query),
        k=args.k,
        mode=args.mode,
        rerank=args.rerank,
        encoder=encoder,
        tokenize=None if tokenizer is None else tokenizer.encode,
        nearest=nearest,
    )
    if not hits:
        print(
            "no function has a word of the query; --mode embedding compares meanings",
            file=sys.stderr,
        )
    _print(hits)
    return 0


def _load_model(
    model_dir: Path, index: "SearchIndex", rerank: bool
) -> tuple["PairEncoder", "Tokenizer"]:
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder
    from codet5p_jax.evaluation.search import RERANKED
    from codet5p_jax.models.codet5p import CodeT5p
    from codet5p_jax.training.stored_weights import load_params

    params, config, folder = load_params(model_dir)
    tokenizer = Tokenizer.load(folder)
    encoder = PairEncoder(
        CodeT5p(config),
        params,
        tokenizer.special,
        text_length=index.text_length,
        code_length=index.code_length,
        batch_size=RERANKED if rerank else 1,
        shortest=index.code_length,
        temperature_bounds=index.temperature_bounds,
    )
    return encoder, tokenizer


def _print(hits: list["Hit"]) -> None:
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    for hit in hits:
        d = hit.document
        print(f"{hit.rank:2}  {hit.score:7.3f}  {bold}{d.module}:{d.line}{plain}  {d.name}")
        print(f"             {d.signature}")
        if d.summary:
            print(f"             {dim}{textwrap.shorten(d.summary, 100)}{plain}")
