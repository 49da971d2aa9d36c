"""Finds functions by what they do: by meaning (embedding), by words (BM25), or both fused.

    codet5p search --index_of=src --index=src.index --model_dir=RUN   # again after changes
    codet5p search --index=src.index "parse a date string" "join two paths"
    codet5p search --index=src.index --json < queries.txt

Without --index the index is the one that `codet5p quickstart` left in its model directory. Queries
are arguments, or lines of standard input, which are answered one by one.
"""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from codet5p_jax.cli import search_index
from codet5p_jax.cli.arguments import positive, share
from codet5p_jax.cli.errors import ConfigError

if TYPE_CHECKING:
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder
    from codet5p_jax.evaluation.search import Document, Hit, SearchIndex

DEFAULT_MODEL = Path("quickstart_run/stage2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p search`."""
    parser.add_argument(
        "query", nargs="*", help='what it should do: "parse a date string"; none: standard input'
    )
    parser.add_argument(
        "--index", type=Path, metavar="FILE", help="an index (default: that in the model directory)"
    )
    parser.add_argument(
        "--model_dir",
        type=Path,
        help=f"model directory, or a checkpoint in it (default: of the index, or {DEFAULT_MODEL})",
    )
    parser.add_argument("--k", type=positive, default=5, help="answers (default: %(default)s)")
    parser.add_argument(
        "--mode",
        choices=("fused", "embedding", "bm25"),
        default="fused",
        help="how functions are compared with the query (default: %(default)s)",
    )
    parser.add_argument(
        "--fusion_weight",
        type=share,
        help="share of the embedding in fused scores (default: the index's; of a tree "
        f"{search_index.FUSION_WEIGHT})",
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
        "without KIND: Flat). A query goes before it, or KIND after `=`",
    )
    parser.add_argument(
        "--faiss_search",
        default="",
        metavar="NAME=VALUE,…",
        help="parameters of its search: efSearch=64 of HNSW32, nprobe=16 of IVF1024,Flat",
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each query")
    make = parser.add_argument_group("making an index")
    make.add_argument(
        "--index_of",
        type=Path,
        metavar="TREE",
        help="write --index of the source files below this folder, or bring it up to date; what "
        "it has already is not embedded again",
    )
    make.add_argument(
        "--batch_size",
        type=positive,
        default=32,
        help="functions at a time, divided over all devices (default: %(default)s)",
    )
    make.add_argument(
        "--text_length", type=positive, help="tokens of a query at most (default: 128)"
    )
    make.add_argument(
        "--code_length",
        type=positive,
        help="tokens of a function or a run of lines at most (default: 420)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the answers; returns the exit code."""
    if args.index_of is not None:
        if args.query or args.index is None:
            found = "a query" if args.query else "no --index"
            raise ValueError(f"--index_of needs --index, the file to write, and found {found}")
        return search_index.make(args, DEFAULT_MODEL)
    if args.text_length or args.code_length:
        raise ValueError("--text_length and --code_length are set with --index_of")
    import dataclasses

    from codet5p_jax.evaluation import faiss_index, search

    if args.faiss_search and args.faiss is None:
        raise ConfigError("--faiss_search is of --faiss; pass both, or neither")
    if args.faiss is not None:
        if args.mode != "embedding":
            raise ConfigError(f"--faiss needs --mode=embedding, found --mode={args.mode}")
        faiss_index.check_installed()
    place = args.index or search_index.model_dir_for(args, None, DEFAULT_MODEL)
    index = search.load(place)
    if args.fusion_weight is not None:
        index = dataclasses.replace(index, fusion_weight=args.fusion_weight)
    if args.rerank and not index.rerank_weight:
        if index.root:
            raise ValueError(
                "--rerank needs a model with a matching head and a vocabulary with [ENC] (stage 2),"
                " and the index was made with another; leave it out"
            )
        print(
            "the matching head of this model did not order functions better than the embedding on "
            "validation modules; --rerank changes nothing",
            file=sys.stderr,
        )
        args.rerank = False
    nearest = None
    if args.faiss is not None:
        nearest = faiss_index.open_index(
            index.embeddings, args.faiss, args.faiss_search, beside=search.index_file(place)
        )
    encoder, tokenizer = None, None
    if args.mode != "bm25" or args.rerank:
        encoder, tokenizer = _load_model(args, index)
    alone = len(args.query) == 1
    for query in _queries(args.query):
        hits = search.search(
            index,
            query,
            k=args.k,
            mode=args.mode,
            rerank=args.rerank,
            encoder=encoder,
            tokenize=None if tokenizer is None else tokenizer.encode,
            nearest=nearest,
        )
        if args.json:
            answers = [_record(hit, index.root) for hit in hits]
            print(json.dumps({"query": query, "answers": answers}), flush=True)
            continue
        if not alone:
            print(f"# {query}")
        if not hits:
            print(
                "no function has a word of the query; --mode embedding compares meanings",
                file=sys.stderr,
            )
        _print(hits, index.root)
    return 0


def _queries(given: list[str]) -> Iterator[str]:
    """The arguments, else lines of standard input that are not blank, as they come."""
    yield from given
    asks, some = sys.stdin.isatty(), bool(given)
    while not given:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        if line.strip():
            some = True
            yield line.strip()
    if not some and not asks:
        raise ValueError("found no query: expected arguments, or lines of standard input")


def _load_model(
    args: argparse.Namespace, index: "SearchIndex"
) -> tuple["PairEncoder", "Tokenizer"]:
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder
    from codet5p_jax.evaluation.search import RERANKED
    from codet5p_jax.models.codet5p import CodeT5p
    from codet5p_jax.training.checkpoint_files import model_dir_of
    from codet5p_jax.training.stored_weights import load_params

    model_dir = search_index.model_dir_for(args, index, DEFAULT_MODEL)
    tokenizer = Tokenizer.load(model_dir_of(model_dir).tokenizer)
    if index.model and not search_index.same_model(
        index, search_index.identity(model_dir, tokenizer)
    ):
        raise ValueError(
            f"the index was made with other weights or another tokenizer than {model_dir} has, and "
            "their embeddings cannot be compared; pass --model_dir with the model that made it, or "
            "make it again with --index_of"
        )
    params, config, _ = load_params(model_dir)
    encoder = PairEncoder(
        CodeT5p(config),
        params,
        tokenizer.special,
        text_length=index.text_length,
        code_length=index.code_length,
        batch_size=RERANKED if args.rerank else 1,
        shortest=index.code_length,
        temperature_bounds=index.temperature_bounds,
    )
    return encoder, tokenizer


def _file(document: "Document", root: str) -> str:
    """Where a terminal or an editor finds it: from here, where it is below."""
    if not root:
        return document.module
    path = Path(root, document.module)
    return str(path.relative_to(os.getcwd()) if path.is_relative_to(os.getcwd()) else path)


def _record(hit: "Hit", root: str) -> dict[str, str | int | float]:
    d = hit.document
    where = {"file" if root else "module": _file(d, root), "line": d.line, "name": d.name}
    about = {"signature": d.signature, "summary": d.summary}
    return {"rank": hit.rank, "score": hit.score, **where, **about}


def _print(hits: list["Hit"], root: str) -> None:
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    for hit in hits:
        d = hit.document
        where = f"{hit.rank:2}  {hit.score:7.3f}  {bold}{_file(d, root)}:{d.line}{plain}"
        print(f"{where}  {d.name}".rstrip())
        print(f"             {d.signature}")
        if d.summary:
            print(f"             {dim}{textwrap.shorten(d.summary, 100)}{plain}")
    sys.stdout.flush()
