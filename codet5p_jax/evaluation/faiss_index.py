"""Embeddings in an index of FAISS: exact, or approximate and faster where they are many. What takes
long to build is kept beside the search index."""

import glob
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from codet5p_jax.files import new_file

EXACT = "Flat"
Nearest = Callable[
    [Float32[np.ndarray, "queries E"], int],
    tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]],
]


def check_installed() -> None:
    """Raises ImportError, with what to install, where FAISS is missing."""
    try:
        import faiss  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("--faiss needs `pip install codet5p_jax[faiss]`") from error


def open_index(
    embeddings: Float32[np.ndarray, "documents E"],
    kind: str = EXACT,
    parameters: str = "",
    *,
    beside: Path,
) -> Nearest:
    """(vectors, k) -> products and rows of the k nearest by inner product, best first; rows of -1
    where an approximate index found fewer.

    Args:
      embeddings: unit vectors.
      kind: in the words of `faiss.index_factory`: "Flat" is exact, "HNSW32" and "IVF1024,Flat" are
        approximate.
      parameters: of the search, in those of `faiss.ParameterSpace`: "efSearch=64", "nprobe=16".
      beside: the search index, next to which one that is not exact is kept.

    Raises:
      ImportError: FAISS is missing.
      ValueError: it does not know the kind or the parameters, or a file is damaged.
    """
    check_installed()
    import faiss  # pyright: ignore[reportMissingImports]

    build = _build if kind == EXACT else partial(_kept, beside)
    index = build(faiss, embeddings, kind)
    if parameters:
        try:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as error:
            raise ValueError(
                f"expected parameters that faiss has for {kind!r}, such as efSearch=64 of HNSW32 "
                f"or nprobe=16 of IVF1024,Flat, found {parameters!r}"
            ) from error
    return index.search


def _kept(beside: Path, faiss: Any, embeddings: np.ndarray, kind: str) -> Any:
    """As it was kept, or else built; then those of other embeddings go."""
    own = f"{beside.name}.{_digest(embeddings.tobytes())}."
    path = beside.with_name(f"{own}{_digest(kind.encode())}.faiss")
    if path.exists():
        return _read(faiss, path)
    index = _build(faiss, embeddings, kind)
    with new_file(path) as file:
        faiss.write_index(index, str(file))
    digest = "[0-9a-f]" * 16
    for other in beside.parent.glob(f"{glob.escape(beside.name)}.{digest}.{digest}.faiss"):
        if not other.name.startswith(own):
            other.unlink()
    return index


def _build(faiss: Any, embeddings: np.ndarray, kind: str) -> Any:
    try:
        index = faiss.index_factory(embeddings.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        index.train(embeddings)
        index.add(embeddings)
    except RuntimeError as error:
        raise ValueError(
            f"expected a kind of index that faiss makes of {len(embeddings):,} vectors of "
            f"{embeddings.shape[1]}, such as Flat or HNSW32, found {kind!r}: "
            f"{str(error).rsplit(': ', 1)[-1]}"
        ) from error
    return index


def _read(faiss: Any, path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged; remove it, and it is built again") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
