"""`codet5p search` on a model directory with a random model."""

import io
import json
import subprocess
import sys

import jax
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.evaluation import bm25, search
from codet5p_jax.evaluation.documents import python_documents
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import init_params
from codet5p_jax.training import stored_weights

MODULE = '''
def parse_date(text):
    """Turn a string into a date."""
    return strptime(text)

def add(a, b):
    return a + b
'''


@pytest.fixture(scope="module")
def model():
    config = t5(
        vocab_size=420,
        d_model=16,
        num_heads=2,
        head_dim=8,
        d_ff=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        embed_dim=8,
        matching_head=True,
    )
    return CodeT5p(config)


@pytest.fixture(scope="module")
def model_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([MODULE], 420, folder / "tokenizer")
    params = init_params(model.specs, jax.random.key(0))
    encoder = PairEncoder(model, params, tokenizer.special, text_length=16, code_length=64)
    documents = list(python_documents([{"module": "dates", "code": MODULE}]))
    index = search.SearchIndex(
        documents=[each.document for each in documents],
        embeddings=encoder.embed_codes([tokenizer.encode(d.document.code) for d in documents]),
        words=bm25.build(each.words for each in documents),
        fusion_weight=0.1,
        rerank_weight=1.0,
        text_length=16,
        code_length=64,
    )
    search.save(index, folder)
    return folder


@pytest.fixture
def loaded(monkeypatch, model, model_dir):
    """Random weights instead of a checkpoint."""
    params = init_params(model.specs, jax.random.key(0))
    monkeypatch.setattr(
        stored_weights, "load_params", lambda path: (params, model.config, model_dir / "tokenizer")
    )


@pytest.mark.parametrize("options", [[], ["--mode", "embedding"], ["--rerank"]])
def test_answers_with_the_model(loaded, model_dir, capsys, options):
    assert main(["search", "--model_dir", str(model_dir), "parse a date", *options]) == 0
    out = capsys.readouterr().out
    assert "dates:2  parse_date" in out
    assert "def parse_date(text)" in out
    assert "Turn a string into a date." in out
    assert "dates:6  add" in out


def test_answers_with_faiss(loaded, model_dir, capsys):
    pytest.importorskip("faiss")
    ask = ["search", "--model_dir", str(model_dir), "parse a date", "--mode", "embedding"]
    assert main(ask) == 0
    wanted = capsys.readouterr().out
    for options in (["--faiss"], ["--faiss=HNSW32", "--faiss_search=efSearch=64"]):
        assert main([*ask, *options]) == 0
        assert capsys.readouterr().out == wanted
    for path in model_dir.glob("*.faiss"):
        path.unlink()


def test_faiss_has_to_be_there_and_compares_embeddings(model_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    ask = ["search", "--model_dir", str(model_dir), "parse a date", "--faiss"]
    assert main(ask) == 3
    assert "--faiss needs --mode=embedding, found --mode=fused" in capsys.readouterr().err
    assert main([*ask[:-1], "--faiss_search=efSearch=9"]) == 3
    assert "--faiss_search is of --faiss" in capsys.readouterr().err
    assert main([*ask, "--mode=embedding"]) == 1
    assert "--faiss needs `pip install codet5p_jax[faiss]`" in capsys.readouterr().err


def test_many_queries(loaded, model_dir, capsys, monkeypatch):
    """Of arguments and of lines, as one by one."""
    command = ["search", "--model_dir", str(model_dir)]
    alone = []
    for query in ("parse a date", "add numbers"):
        assert main([*command, query]) == 0
        alone.append(f"# {query}\n" + capsys.readouterr().out)
    assert main([*command, "parse a date", "add numbers"]) == 0
    assert capsys.readouterr().out == "".join(alone)
    monkeypatch.setattr("sys.stdin", io.StringIO("parse a date\n\n  add numbers\n"))
    assert main(command) == 0
    assert capsys.readouterr().out == "".join(alone)
    assert main([*command, "--json", "--k=1", "parse a date"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["query"] == "parse a date"
    (best,) = found["answers"]
    assert (best["rank"], best["module"], best["line"]) == (1, "dates", 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(command) == 1
    assert "found no query" in capsys.readouterr().err


def test_bm25_without_a_checkpoint(model_dir, capsys):
    options = ["--model_dir", str(model_dir), "--mode", "bm25", "--k", "1"]
    assert main(["search", "turn text into a date", *options]) == 0
    (first, *_) = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "1"
    assert first.endswith("dates:2  parse_date")


def test_bm25_says_that_no_word_is_shared(model_dir, capsys):
    assert main(["search", "zebra", "--model_dir", str(model_dir), "--mode", "bm25"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("no function has a word of the query; --mode embedding")


def test_mistakes_are_one_line(model_dir, tmp_path, capsys):
    cases = [
        (["--model_dir", str(tmp_path / "nowhere")], "codet5p quickstart"),
        (["--model_dir", str(tmp_path)], "no search index"),
    ]
    for options, message in cases:
        assert main(["search", "x", *options]) == 1
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
    with pytest.raises(SystemExit, match="2"):  # wrong usage
        main(["search", "x", "--model_dir", str(model_dir), "--k", "0"])
    assert "argument --k: expected an integer of 1 or more, got '0'" in capsys.readouterr().err


def test_imports_nothing_heavy(model_dir):
    code = (
        "import json, sys\n"
        "from codet5p_jax.cli.main import main\n"
        f"main(['search', '--model_dir', {str(model_dir)!r}, '--mode', 'bm25', 'date'])\n"
        "import codet5p_jax.training.checkpoints\n"
        "heavy = {'tensorflow', 'seqio', 'torch', 'transformers', 'grain', 'gin'}\n"
        "print(json.dumps(sorted(heavy & sys.modules.keys())))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
