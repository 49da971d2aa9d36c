"""Indices of FAISS: exact, approximate, kept, and what is said where there is none."""

import sys

import numpy as np
import pytest

from codet5p_jax.evaluation.faiss_index import check_installed, open_index


@pytest.fixture
def vectors():
    pytest.importorskip("faiss")
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_flat_is_exact_and_leaves_no_file(vectors, tmp_path):
    products, rows = open_index(vectors, beside=tmp_path / "index")(vectors[:50], 7)
    whole = vectors[:50] @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-whole, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(products, np.take_along_axis(whole, rows, axis=1), atol=1e-6)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", ["HNSW32", "IVF4,Flat"])
def test_others_are_kept(kind, vectors, tmp_path):
    asked = vectors[:50]
    first = open_index(vectors, kind, beside=tmp_path / "index")(asked, 3)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = open_index(vectors, kind, beside=tmp_path / "index")(asked, 3)
    np.testing.assert_array_equal(first, again)
    assert file.stat().st_mtime_ns == written
    assert np.mean(first[1][:, 0] == np.arange(50)) > 0.9
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged; remove it"):
        open_index(vectors, kind, beside=tmp_path / "index")
    open_index(vectors[::-1].copy(), kind, beside=tmp_path / "index")
    (other,) = tmp_path.iterdir()
    assert other != file


def test_indices_of_one_folder_keep_theirs(vectors, tmp_path):
    for name in ("one.index", "[two].index"):
        open_index(vectors, "HNSW8", beside=tmp_path / name)
    open_index(vectors[::-1].copy(), "HNSW8", beside=tmp_path / "[two].index")
    names = sorted(path.name.split(".")[0] for path in tmp_path.iterdir())
    assert names == ["[two]", "one"]


def test_parameters_of_the_search(vectors, tmp_path):
    def found(parameters):
        return open_index(vectors, "IVF16,Flat", parameters, beside=tmp_path / "index")(vectors, 5)[
            1
        ]

    exact = open_index(vectors, beside=tmp_path / "index")(vectors, 5)[1]
    np.testing.assert_array_equal(found("nprobe=16"), exact)
    assert not np.array_equal(found("nprobe=1"), exact)
    with pytest.raises(ValueError, match=r"such as efSearch=64 of HNSW32 .*found 'depth=3'"):
        found("depth=3")


@pytest.mark.parametrize("kind", ["Tree", "IVF1024,Flat"])
def test_what_faiss_cannot_make(kind, vectors, tmp_path):
    with pytest.raises(ValueError, match=f"faiss makes of 300 vectors of 8, .* found '{kind}'"):
        open_index(vectors, kind, beside=tmp_path / "index")
    assert [*tmp_path.iterdir()] == []


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"--faiss needs `pip install codet5p_jax\[faiss\]`"):
        check_installed()
