"""`codet5p search --index_of`: an index of a source tree, made anew or brought up to date."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codet5p_jax.files import check_file

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.documents import Indexed
    from codet5p_jax.evaluation.search import SearchIndex
    from codet5p_jax.models.configs import ModelConfig

FUSION_WEIGHT = 0.5  # nobody has asked queries with known answers, as the quickstart does
CHUNK = 4096  # documents whose tokens are in memory at a time


def make(args: argparse.Namespace, default_model: Path) -> int:
    """Writes the index; returns the exit code.

    What the index has already, of the same model and lengths, is not embedded again.

    Args:
      args: of `codet5p search`.
      default_model: where neither the options nor the index name a model.

    Raises:
      FileNotFoundError: there is no such tree, nothing in it that can be searched, or no model.
      ValueError: the model has no embedding head, or the file is no index of this tree.
    """
    from codet5p_jax.data.corpora.malformed import Malformed
    from codet5p_jax.data.corpora.source_tree import source_files
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation import bm25, search
    from codet5p_jax.sharding import all_devices
    from codet5p_jax.training.checkpoint_files import model_dir_of
    from codet5p_jax.training.model_dir import load_config

    start = time.monotonic()
    malformed = Malformed(max_malformed_share=1.0)
    files = source_files(args.index_of, malformed=malformed, setting="--index_of")
    root, old = str(args.index_of.resolve()), None
    if check_file(search.index_file(args.index)):
        old = search.load(args.index)
        if old.root != root:
            raise ValueError(
                f"{args.index} is the index of {old.root or 'a model directory'}, not of {root}; "
                "pass another --index"
            )
    model_dir = model_dir_for(args, old, default_model)
    directory = model_dir_of(model_dir)
    config, tokenizer = load_config(directory.root), Tokenizer.load(directory.tokenizer)
    text_length, code_length = _lengths(args, old, config)
    mesh = all_devices(args.batch_size)
    model = {"model_dir": str(model_dir.resolve()), **identity(model_dir, tokenizer)}
    if old is not None and (not same_model(old, model) or old.code_length != code_length):
        print(
            f"{args.index} was made with another model or --code_length: everything is embedded "
            "again",
            file=sys.stderr,
        )
        old = None
    documents = _read(files, tokenizer, code_length)
    if malformed.count:
        print(
            f"{malformed.count} of {malformed.seen} files are left out: no UTF-8, or unreadable",
            file=sys.stderr,
        )
    if not documents:
        raise FileNotFoundError(f"--index_of: found no code in the files of {args.index_of}")
    codes = [each.document.code for each in documents]
    embeddings, embedded = _embeddings(
        codes, old, lambda new: _embed(new, model_dir, args.batch_size, code_length, mesh)
    )
    index = search.SearchIndex(
        documents=[each.document for each in documents],
        embeddings=embeddings,
        words=bm25.build(each.words for each in documents),
        fusion_weight=FUSION_WEIGHT,
        rerank_weight=float(config.matching_head and tokenizer.special.enc is not None),
        text_length=text_length,
        code_length=code_length,
        model=model,
        root=root,
    )
    args.index.parent.mkdir(parents=True, exist_ok=True)
    path = search.save(index, args.index)
    print(
        f"{path}: {len(documents):,} functions and runs of lines of {malformed.seen:,} files, "
        f"{embedded:,} of them embedded now, in {time.monotonic() - start:.1f} s",
        file=sys.stderr,
    )
    return 0


def model_dir_for(
    args: argparse.Namespace, index: "SearchIndex | None", default_model: Path
) -> Path:
    """The model of the options, else of the index, else the default.

    Raises:
      FileNotFoundError: it is not there.
    """
    named = index.model.get("model_dir") if index is not None else None
    model_dir = args.model_dir or (Path(named) if named else default_model)
    if not model_dir.is_dir():
        raise FileNotFoundError(
            f"no model directory at {model_dir}; pass --model_dir, or make one with "
            "`codet5p quickstart`"
        )
    return model_dir


def identity(model_dir: Path, tokenizer: "Tokenizer") -> dict[str, str]:
    """Which weights and vocabulary: the same wherever a model directory is copied to."""
    from codet5p_jax.training.checkpoint_files import checkpoint_path, fingerprint

    weights = fingerprint(checkpoint_path(model_dir))
    return {"weights": weights, "tokenizer": tokenizer.fingerprint}


def same_model(index: "SearchIndex", found: dict[str, str]) -> bool:
    """Whether what a model embeds can be compared with the index, wherever the model is."""
    return all(index.model.get(part) == found[part] for part in ("weights", "tokenizer"))


def _lengths(
    args: argparse.Namespace, old: "SearchIndex | None", config: "ModelConfig"
) -> tuple[int, int]:
    """Of texts and code: as asked for, as the index has it, or as in pretraining (paper §4)."""
    from codet5p_jax.objectives.text_code_pairs import TextCodePairs

    if config.embed_dim is None:
        raise ValueError(
            "the model has no embedding head (ModelConfig.embed_dim, stage 2); pass --model_dir "
            "with one that has"
        )
    found, limit = [], config.encoder.max_positions
    for name in ("text_length", "code_length"):
        length = getattr(args, name) or getattr(old or TextCodePairs, name)
        if limit is not None and length > limit:
            raise ValueError(
                f"--{name}={length} is more than the network's {limit} positions; lower it"
            )
        found.append(length)
    return found[0], found[1]


def _read(files: Any, tokenizer: "Tokenizer", code_length: int) -> "list[Indexed]":
    from codet5p_jax.evaluation.documents import source_documents
    from codet5p_jax.evaluation.progress import progress_bar

    def count(lines: Any) -> list[int]:
        return [len(ids) for ids in tokenizer.encode_batch(lines)]

    with progress_bar("files", None) as done:

        def told() -> Any:
            for file in files:
                yield file
                done(1)

        return list(source_documents(told(), count, code_length - 2))  # <s> and </s>


def _embeddings(
    codes: list[str], old: "SearchIndex | None", embed: "Callable[[list[str]], np.ndarray]"
) -> "tuple[np.ndarray, int]":
    """A row for each, and how many of them the index did not have. Without such no weights are
    read."""
    import numpy as np

    known = {} if old is None else {d.code: row for row, d in enumerate(old.documents)}
    new = [place for place, code in enumerate(codes) if code not in known]
    kept = [place for place, code in enumerate(codes) if code in known]
    parts = []
    if old is not None:
        parts.append(old.embeddings[[known[codes[place]] for place in kept]])
    if new:
        parts.append(embed([codes[place] for place in new]))
    rows = np.concatenate(parts)
    embeddings = np.empty_like(rows)
    embeddings[[*kept, *new]] = rows
    return embeddings, len(new)


def _embed(
    codes: list[str], model_dir: Path, batch_size: int, code_length: int, mesh: "Mesh | None"
) -> "np.ndarray":
    import numpy as np

    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.encoder import PairEncoder
    from codet5p_jax.evaluation.progress import progress_bar
    from codet5p_jax.models.codet5p import CodeT5p
    from codet5p_jax.training.stored_weights import load_params

    params, config, folder = load_params(model_dir, mesh)
    tokenizer = Tokenizer.load(folder)
    with progress_bar("functions and runs of lines", len(codes)) as done:
        encoder = PairEncoder(
            CodeT5p(config),
            params,
            tokenizer.special,
            text_length=code_length,
            code_length=code_length,
            batch_size=batch_size,
            progress=done,
            mesh=mesh,
        )
        chunks = (codes[i : i + CHUNK] for i in range(0, len(codes), CHUNK))
        return np.concatenate([encoder.embed_codes(tokenizer.encode_batch(c)) for c in chunks])
