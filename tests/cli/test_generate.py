"""The commands that write, and `embed`, on a random model."""

import io
import json

import jax
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import flatten, init_params
from codet5p_jax.training import stored_weights
from codet5p_jax.training.model_dir import ModelDir, config_to_json
from codet5p_jax.training.stored_weights import write_weights

MODULE = '''
def parse_date(text):
    """Turn a string into a date."""
    return strptime(text)

def add(a, b):
    return a + b
'''


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer([MODULE], 420, folder / "tokenizer")
    config = t5(
        **dict(vocab_size=420, d_model=16, num_heads=2, head_dim=8, d_ff=32, embed_dim=8),
        **dict(num_encoder_layers=1, num_decoder_layers=1, tie_embeddings=False),
    )
    params = init_params(CodeT5p(config).specs, jax.random.key(0))
    # Text, rather than special tokens.
    params["lm_head"] = params["lm_head"].at[:4].mul(0.0).at[310:].mul(0.0)
    store(folder, config, params)
    return folder, (params, config, folder / "tokenizer")


def store(folder, config, params):
    """Makes a model directory of a folder with a tokenizer."""
    directory = ModelDir(folder)
    directory.config.write_text(json.dumps(config_to_json(config)))
    directory.checkpoints.mkdir()
    arrays = ((path, np.asarray(array)) for path, array in flatten(params))
    write_weights(directory.checkpoints / "0", arrays, {"step": 0})


@pytest.fixture
def codet5p(weights, monkeypatch, capsys):
    """Runs a command with the model; returns what it printed."""
    folder, loaded = weights
    monkeypatch.setattr(stored_weights, "load_params", lambda path, mesh=None: loaded)

    def run(command, *options, stdin="", fails=False):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([command, f"--model_dir={folder}", *options])
        out, err = capsys.readouterr()
        assert (code != 0) == fails, err
        return err if fails else out

    return run


SHORT = ("--max_length=20", "--inputs_length=40")


def test_generate_from_everywhere(codet5p, tmp_path):
    text = codet5p("generate", "add two numbers", *SHORT)
    assert len(text) > 5
    assert codet5p("generate", *SHORT, stdin="add two numbers") == text
    (tmp_path / "p").write_text("add two numbers")
    assert codet5p("generate", f"--file={tmp_path / 'p'}", *SHORT) == text
    assert codet5p("generate", "add two numbers", *SHORT, "--kind=plain") != text
    begun = codet5p("generate", "add two numbers", *SHORT, "--prefix=def add(")
    assert begun.startswith("def add(")
    stop = text[3:5]
    stopped = codet5p("generate", "add two numbers", *SHORT, f"--stop={stop}")
    assert stopped == text[: text.index(stop)] + "\n"


def test_generate_lines_and_samples(codet5p):
    options = ("--lines", "--temperature=1", "--samples=2", *SHORT)
    lines = codet5p("generate", *options, stdin="add\nparse a date\n").splitlines()
    records = sorted(map(json.loads, lines), key=lambda record: record["line"])
    assert [r["prompt"] for r in records] == ["add", "parse a date"]
    assert all(len(set(r["texts"])) == 2 for r in records)
    best = codet5p("generate", "add", "--beams=3", "--nbest=2", *SHORT)
    assert len(best.split("\n\f\n")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("x", "--top_p=0.9"), "pass --temperature as well"),
        (("x", "--beams=2", "--temperature=1"), "pass one only"),
        (("x", "--nbest=2"), "needs as many --beams"),
        (("x", "--file=y"), "pass one of them"),
        ((), "the prompt is empty"),
        (("x", "--lines", "--batch_size=3"), "of size 3 does not divide over 8 devices"),
        (("x", "--kind=completion", "--inputs_length=1"), "no room"),
    ],
)
def test_options_that_do_not_go_together(codet5p, options, message):
    assert message in codet5p("generate", *options, fails=True)


def test_complete(codet5p, tmp_path):
    file = tmp_path / "m.py"
    file.write_text(MODULE)
    whole = codet5p("complete", f"{file}:2", *SHORT)
    assert len(whole) > 5
    beginning = MODULE[: MODULE.index("\n    ")]
    same = codet5p("generate", beginning, "--kind=completion", *SHORT)
    assert same == whole
    assert "lines 1 to 8" in codet5p("complete", f"{file}:9", fails=True)
    assert "expected FILE:LINE" in codet5p("complete", str(file), fails=True)
    assert "no such file" in codet5p("complete", f"{file}x:1", fails=True)


def test_summarize(codet5p, tmp_path):
    file = tmp_path / "m.py"
    file.write_text(MODULE)
    lines = codet5p("summarize", str(file), *SHORT).splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        [f"{file}:2", "parse_date"],
        [f"{file}:6", "add"],
    ]
    assert codet5p("summarize", str(file), "--function=add", *SHORT) == lines[1] + "\n"
    assert "it has parse_date, add" in codet5p("summarize", str(file), "--function=b", fails=True)
    other = tmp_path / "m.js"
    other.write_text("f = 1")
    assert codet5p("summarize", str(other), *SHORT).startswith(f"{other}  ")


def test_chat_remembers(codet5p):
    options = ("--max_length=6", "--inputs_length=300")
    one = codet5p("chat", *options, stdin="add\n")
    again = codet5p("chat", *options, stdin="add\n\n/new\nadd\n/end\nnever\n")
    assert again == one * 2
    both = codet5p("chat", *options, stdin="add\nsubtract\n")
    assert both.startswith(one)
    assert both != one + codet5p("chat", *options, stdin="subtract\n")
    assert "longer than 20 tokens" in codet5p(
        "chat", "--inputs_length=20", stdin="add\n", fails=True
    )
    assert "one answer" in codet5p("chat", "--beams=2", fails=True)


def test_embed(codet5p, tmp_path):
    lines = codet5p("embed", "--lines", stdin="add\nparse a date\n").splitlines()
    vectors = np.array([json.loads(line)["embedding"] for line in lines], np.float32)
    assert vectors.shape == (2, 8)
    np.testing.assert_allclose((vectors**2).sum(1), 1, rtol=1e-5)
    (tmp_path / "f").write_text("parse a date")
    codet5p("embed", f"--output={tmp_path / 'v.npy'}", "--file", str(tmp_path / "f"))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), vectors[1:], rtol=1e-5)
    one = json.loads(codet5p("embed", "add"))["embedding"]  # on one device
    np.testing.assert_allclose(one, vectors[0], atol=1e-6)
    assert "of size 3 does not divide over 8 devices" in codet5p(
        "embed", "a", "b", "--batch_size=3", fails=True
    )
    assert "end in .npy" in codet5p("embed", "x", "--output=v.txt", fails=True)
    assert "is empty" in codet5p("embed", "", fails=True)
