"""Search over functions by meaning, by words, or both: an index in one file, and queries on it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from codet5p_jax.evaluation import bm25, retrieval
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.evaluation.faiss_index import Nearest
from codet5p_jax.files import new_file
from codet5p_jax.objectives.text_code_pairs import TextCodePairs

FILE_NAME = "search_index.safetensors"
FORMAT = "1"
RERANKED = 32  # candidates that the matching head reads, as in the released evaluation script

Mode = Literal["fused", "embedding", "bm25"]
Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Document:
    """A function as it is shown: where it is, its signature, the first line of its docstring. A run
    of lines has no name, and its first line for a signature."""

    module: str
    name: str
    line: int
    signature: str
    summary: str
    code: str


@dataclass(frozen=True)
class SearchIndex:
    """Everything that answering needs besides the model.

    Attributes:
      documents: what is shown.
      embeddings: unit vectors of the functions.
      words: BM25 over the same functions.
      rerank_weight: trust in the matching head, see `retrieval.rerank`.
      fusion_weight: share of the embedding in fused scores, see `retrieval.fuse`.
      text_length, code_length: tokens that the model was trained to read.
      temperature_bounds: of the contrastive temperature in training.
      model: which one embedded the functions; what other embeddings cannot be compared with.
      root: folder that the modules are files below; "": they are names of modules.
    """

    documents: list[Document]
    embeddings: Float32[np.ndarray, "documents E"]
    words: bm25.BM25
    fusion_weight: float
    rerank_weight: float
    text_length: int
    code_length: int
    temperature_bounds: tuple[float, float] = TextCodePairs.temperature_bounds
    model: Mapping[str, str] = field(default_factory=dict)
    root: str = ""


@dataclass(frozen=True)
class Hit:
    """One answer; scores of different modes are not comparable."""

    rank: int
    score: float
    document: Document


def search(
    index: SearchIndex,
    query: str,
    *,
    k: int = 5,
    mode: Mode = "fused",
    rerank: bool = False,
    encoder: PairEncoder | None = None,
    tokenize: Tokenize | None = None,
    nearest: Nearest | None = None,
) -> list[Hit]:
    """The k best functions for a query, best first; with "bm25" only those that share a word.

    Args:
      index: from `load`.
      query: what the function should do, in words.
      k: answers at most.
      mode: "embedding", "bm25", or "fused".
      rerank: let the matching head order the first 32 of that mode: its log-odds, weighted, are
        added to the cosines. An index whose `rerank_weight` is 0 keeps the order of the mode.
      encoder, tokenize: the model; needed unless the mode is "bm25" without reranking.
      nearest: of `faiss_index.open_index`, instead of a product with every embedding; for
        "embedding", as the other modes need all scores.
    """
    if not query.strip():
        raise ValueError("the query is empty; say in words what the function should do")
    if nearest is not None and mode != "embedding":
        raise ValueError(f"FAISS compares embeddings: expected mode 'embedding', found {mode!r}")
    lexical = index.words.scores(query)[None]
    # Without a word in common BM25 knows nothing of a function, and its place would be chance.
    sharing = np.where(lexical > 0, lexical, -np.inf)
    rerank = rerank and index.rerank_weight > 0
    if mode == "bm25" and not (rerank and np.isfinite(sharing).any()):
        return _hits(index, sharing, k)
    if encoder is None or tokenize is None:
        raise ValueError(
            f"mode {mode!r} with rerank={rerank} needs the model; mode 'bm25' does not"
        )
    text = tokenize(query)
    query_1E = encoder.embed_texts([text])
    if nearest is None:
        cosines = query_1E @ index.embeddings.T
    else:
        cosines = _only_nearest(query_1E, nearest, max(k, RERANKED), len(index.documents))
    if mode == "fused":
        scores = retrieval.fuse(cosines, lexical, index.fusion_weight)
    else:
        scores = sharing if mode == "bm25" else cosines
    if rerank:
        best = retrieval.top(scores, RERANKED)
        best = best[:, np.isfinite(scores[0, best[0]])]
        codes = [tokenize(index.documents[column].code) for column in best[0]]
        pairs = np.stack([np.zeros(len(codes), np.int64), np.arange(len(codes))], axis=1)
        logits, tau = encoder.match([text], codes, pairs), encoder.temperature
        judged = retrieval.log_posterior(cosines[0, best[0]], logits, tau, index.rerank_weight)
        cosines[0, best[0]] = tau * judged
        if mode == "fused":
            everything = retrieval.fuse(cosines, lexical, index.fusion_weight)
        else:
            everything = cosines
        scores = np.full_like(everything, -np.inf)
        scores[0, best] = everything[0, best]
    return _hits(index, scores, k)


def _only_nearest(
    query_1E: Float32[np.ndarray, "1 E"], nearest: Nearest, k: int, documents: int
) -> Float32[np.ndarray, "1 documents"]:
    """Cosines of the k nearest, and -inf of all others."""
    found, columns = nearest(query_1E, min(k, documents))
    there = columns[0] >= 0
    cosines = np.full((1, documents), -np.inf, np.float32)
    cosines[0, columns[0, there]] = found[0, there]
    return cosines


def _hits(index: SearchIndex, scores: retrieval.Scores, k: int) -> list[Hit]:
    """Of the k best, those whose score is not -inf."""
    columns = [column for column in retrieval.top(scores, k)[0] if scores[0, column] > -np.inf]
    return [
        Hit(rank, float(scores[0, column]), index.documents[column])
        for rank, column in enumerate(columns, start=1)
    ]


def index_file(place: Path) -> Path:
    """The file of an index, given that or the model directory that it is in."""
    return place / FILE_NAME if place.is_dir() else place


def save(index: SearchIndex, place: Path) -> Path:
    """Writes the index to `index_file(place)`, where it appears at once, and returns that."""
    path = index_file(place)
    with new_file(path) as partial:
        save_file(
            {
                "embeddings": np.ascontiguousarray(index.embeddings),
                "bm25_starts": index.words.starts,
                "bm25_documents": index.words.documents,
                "bm25_impacts": index.words.impacts,
                "bm25_vocabulary": _json_bytes(list(index.words.vocabulary)),
                "documents": _json_bytes([asdict(document) for document in index.documents]),
            },
            partial,
            metadata={
                "format": FORMAT,
                "fusion_weight": repr(index.fusion_weight),
                "rerank_weight": repr(index.rerank_weight),
                "text_length": str(index.text_length),
                "code_length": str(index.code_length),
                "temperature_bounds": json.dumps(index.temperature_bounds),
                "model": json.dumps(dict(index.model)),
                "root": index.root,
            },
        )
        partial.chmod(0o644)  # safetensors makes files that only their owner can read
    return path


def load(place: Path) -> SearchIndex:
    """Reads the index at `index_file(place)`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it was cut short, is something else, or another version of the program wrote it.
    """
    path = index_file(place)
    if not path.is_file():
        what = (
            f"{place} has no search index ({FILE_NAME})" if place.is_dir() else f"no index {path}"
        )
        raise FileNotFoundError(f"{what}; `codet5p search --index_of TREE --index FILE` makes one")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no search index or damaged ({error}); build the index again, under another "
            "name"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no search index of this version: format {metadata.get('format')!r}, "
            f"expected {FORMAT!r}; build the index again, under another name"
        )
    documents = [Document(**fields) for fields in _from_json_bytes(arrays["documents"])]
    vocabulary = _from_json_bytes(arrays["bm25_vocabulary"])
    words = bm25.BM25(
        {word: row for row, word in enumerate(vocabulary)},
        arrays["bm25_starts"],
        arrays["bm25_documents"],
        arrays["bm25_impacts"],
        len(documents),
    )
    bounds = TextCodePairs.temperature_bounds  # of indices that do not record them
    if "temperature_bounds" in metadata:
        bounds = tuple(json.loads(metadata["temperature_bounds"]))
    return SearchIndex(
        documents,
        arrays["embeddings"],
        words,
        float(metadata["fusion_weight"]),
        float(metadata["rerank_weight"]),
        int(metadata["text_length"]),
        int(metadata["code_length"]),
        bounds,
        json.loads(metadata.get("model", "{}")),
        metadata.get("root", ""),
    )


def _json_bytes(value: list) -> np.ndarray:
    # surrogatepass: source files may hold lone surrogates in literals.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _from_json_bytes(array: np.ndarray) -> list:
    return json.loads(array.tobytes().decode("utf-8", "surrogatepass"))
