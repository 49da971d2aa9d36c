"""`codet5p search --index_of`: an index of a source tree, from files to answers."""

import json
import shutil

import jax
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.evaluation import search
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import flatten, init_params
from codet5p_jax.training import stored_weights
from codet5p_jax.training.model_dir import ModelDir, config_to_json
from codet5p_jax.training.stored_weights import write_weights

PYTHON = '''
def parse_date(text):
    """Turn a string into a date."""
    return strptime(text)

def add(a, b):
    return a + b
'''
GO = "package dates\n\nfunc Later(a, b int) bool {\n\treturn a > b\n}\n"


def store(folder, seed=0, **changes):
    """Makes a model directory."""
    directory = ModelDir(folder)
    train_tokenizer([PYTHON, GO], 420, directory.tokenizer)
    config = t5(
        **dict(vocab_size=420, d_model=16, num_heads=2, head_dim=8, d_ff=32),
        **dict(num_encoder_layers=1, num_decoder_layers=1),
        **{"embed_dim": 8, "matching_head": True, **changes},
    )
    directory.config.write_text(json.dumps(config_to_json(config)))
    directory.checkpoints.mkdir()
    params = init_params(CodeT5p(config).specs, jax.random.key(seed))
    arrays = ((path, np.asarray(array)) for path, array in flatten(params))
    write_weights(directory.checkpoints / "0", arrays, {"step": 0})
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return store(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "go").mkdir(parents=True)
    (root / "dates.py").write_text(PYTHON)
    (root / "go" / "later.go").write_text(GO)
    (root / "latin.c").write_bytes(b"// caf\xe9\n")
    (root / "notes.txt").write_text("not code")
    return root


@pytest.fixture
def codet5p(capsys):
    """Runs `codet5p search`; returns what it printed, and told."""

    def run(*options, fails=False):
        code = main(["search", *map(str, options)])
        out, err = capsys.readouterr()
        assert (code != 0) == fails, err
        return out, err

    return run


LENGTHS = ("--text_length=16", "--code_length=64")


def test_from_a_tree_to_answers(codet5p, tree, model_dir, tmp_path, monkeypatch):
    index = tmp_path / "made" / "tree.index"
    _, told = codet5p(
        f"--index_of={tree}", f"--index={index}", f"--model_dir={model_dir}", *LENGTHS
    )
    assert "1 of 3 files are left out" in told
    assert "3 functions and runs of lines of 3 files, 3 of them embedded now" in told
    assert [path.name for path in index.parent.iterdir()] == ["tree.index"]

    out, _ = codet5p(f"--index={index}", "--mode=embedding", "parse a date")  # the index's model
    for place in ("dates.py:2  parse_date", "dates.py:6  add", "go/later.go:1"):
        assert f"{tree}/{place}\n" in out
    assert "package dates\n" in out
    monkeypatch.chdir(tree.parent)
    out, _ = codet5p(f"--index={index}", "--mode=bm25", "--k=1", "later")
    assert "  tree/go/later.go:1\n" in out
    out, _ = codet5p(f"--index={index}", "--rerank", "--json", "parse a date")
    (line,) = out.splitlines()
    assert {a["file"] for a in json.loads(line)["answers"]} == {"tree/dates.py", "tree/go/later.go"}


def test_what_is_embedded_on_eight_devices_is_what_one_embeds(codet5p, tree, model_dir, tmp_path):
    index = tmp_path / "index"
    codet5p(f"--index_of={tree}", f"--index={index}", f"--model_dir={model_dir}", *LENGTHS)
    params, config, folder = stored_weights.load_params(model_dir)
    tokenizer = Tokenizer.load(folder)
    encoder = PairEncoder(
        CodeT5p(config), params, tokenizer.special, text_length=16, code_length=64
    )
    made = search.load(index)
    codes = [tokenizer.encode(document.code) for document in made.documents]
    np.testing.assert_allclose(made.embeddings, encoder.embed_codes(codes), atol=1e-6)
    assert (made.text_length, made.code_length, made.rerank_weight) == (16, 64, 1.0)


def test_only_what_changed_is_embedded_again(codet5p, tree, model_dir, tmp_path, monkeypatch):
    make = (f"--index_of={tree}", f"--index={tmp_path / 'index'}")
    codet5p(*make, f"--model_dir={model_dir}", *LENGTHS)
    before = search.load(tmp_path / "index")
    (tree / "go" / "later.go").unlink()
    more = PYTHON.replace("a + b", "a - 2 * b")
    (tree / "dates.py").write_text(f"# A line more.\n{more}")
    _, told = codet5p(*make)  # model and lengths of the index
    assert "2 functions and runs of lines of 2 files, 1 of them embedded now" in told
    after = search.load(tmp_path / "index")
    assert [(d.name, d.line) for d in after.documents] == [("parse_date", 3), ("add", 7)]
    np.testing.assert_array_equal(after.embeddings[0], before.embeddings[0])
    assert np.abs(after.embeddings[1] - before.embeddings[1]).max() > 1e-3
    assert after.words.scores("later").max() == 0

    def never(*_):
        raise AssertionError("weights were read though nothing changed")

    monkeypatch.setattr(stored_weights, "load_params", never)
    _, told = codet5p(*make)
    assert " 0 of them embedded now" in told
    np.testing.assert_array_equal(search.load(tmp_path / "index").embeddings, after.embeddings)


def test_another_model_is_refused(codet5p, tree, model_dir, tmp_path):
    index, other = tmp_path / "index", store(tmp_path / "other", seed=1)
    make = (f"--index_of={tree}", f"--index={index}")
    codet5p(*make, f"--model_dir={model_dir}", *LENGTHS)
    ask = (f"--index={index}", "--mode=embedding", "parse a date")
    _, told = codet5p(*ask, f"--model_dir={other}", fails=True)
    assert "other weights or another tokenizer" in told
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    assert codet5p(*ask, f"--model_dir={copy}") == codet5p(*ask)
    _, told = codet5p(*make, f"--model_dir={other}")
    assert "another model" in told
    assert " 3 of them embedded now" in told
    (other / "tokenizer" / "roles.json").unlink()
    train_tokenizer([GO], 400, other / "tokenizer")
    assert "another tokenizer" in codet5p(*ask, fails=True)[1]


def test_mistakes_are_explained(codet5p, tree, model_dir, tmp_path):
    index = tmp_path / "index"
    empty, blank = tmp_path / "empty", tmp_path / "blank"
    for folder in (empty, blank):
        folder.mkdir()
    (blank / "a.py").write_text("\n\n")
    headless = store(tmp_path / "headless", embed_dim=None, matching_head=False)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"{}")
    cases = [
        ((f"--index_of={tmp_path}/none", f"--index={index}"), "does not exist"),
        ((f"--index_of={empty}", f"--index={index}"), "found no files of c, cpp"),
        ((f"--index_of={blank}", f"--index={index}"), "found no code"),
        ((f"--index_of={tree}",), "needs --index"),
        ((f"--index_of={tree}", f"--index={index}", "x"), "found a query"),
        ((f"--index_of={tree}", f"--index={weights}"), "no search index or damaged"),
        ((f"--index_of={tree}", f"--index={index}", "--batch_size=3"), "does not divide over 8"),
        ((f"--index={index}", "x"), "--index_of TREE --index FILE` makes one"),
        ((f"--index={index}", "--code_length=9", "x"), "set with --index_of"),
    ]
    for options, message in cases:
        assert message in codet5p(*options, f"--model_dir={model_dir}", fails=True)[1]
    make = (f"--index_of={tree}", f"--index={index}")
    assert "no embedding head" in codet5p(*make, f"--model_dir={headless}", fails=True)[1]
    assert weights.read_bytes() == b"{}"
    assert not index.exists()
    codet5p(*make, f"--model_dir={model_dir}", *LENGTHS)
    assert "is the index of" in codet5p(f"--index_of={blank}", f"--index={index}", fails=True)[1]


def test_reranking_needs_the_matching_head(codet5p, tree, tmp_path):
    folder = store(tmp_path / "plain", matching_head=False)
    codet5p(f"--index_of={tree}", f"--index={tmp_path / 'i'}", f"--model_dir={folder}", *LENGTHS)
    assert (
        "needs a model with a matching head"
        in codet5p(f"--index={tmp_path / 'i'}", "--rerank", "x", fails=True)[1]
    )
