"""The commands that write, and `embed`, on a random model."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
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


@pytest.fixture(scope="module")
def few_positions(weights, tmp_path_factory):
    """A model directory whose network has 60 learned positions in either tower, and whose decoder
    reads the prompt as well."""
    folder, (_, config, tokenizer) = weights
    folder = tmp_path_factory.mktemp("positions")
    shutil.copytree(tokenizer, folder / "tokenizer")
    towers = {
        tower: dataclasses.replace(getattr(config, tower), position="learned", max_positions=60)
        for tower in ("encoder", "decoder")
    }
    config = dataclasses.replace(config, prompt_to_decoder=True, **towers)
    params = init_params(CodeT5p(config).specs, jax.random.key(0))
    params["lm_head"] = params["lm_head"].at[:4].mul(0.0).at[310:].mul(0.0)
    store(folder, config, params)
    return folder


@pytest.fixture
def told(monkeypatch, capsys):
    """Runs a command; returns its exit code and what it printed on both streams."""

    def run(*command, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main(list(map(str, command)))
        return code, *capsys.readouterr()

    return run


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


def test_generate_lines_and_samples(codet5p, tmp_path):
    options = ("--lines", "--temperature=1", "--samples=2", *SHORT)
    lines = codet5p("generate", *options, stdin="add\nparse a date\n").splitlines()
    records = sorted(map(json.loads, lines), key=lambda record: record["line"])
    assert [r["prompt"] for r in records] == ["add", "parse a date"]
    assert all(len(set(r["texts"])) == 2 for r in records)
    # Lines as the file has them: blank ones are counted, and form feeds do not end any.
    (tmp_path / "lines").write_bytes(b"add\n\n  \nparse\fa date\r\n")
    greedy = codet5p("generate", "--lines", f"--file={tmp_path / 'lines'}", *SHORT)
    records = map(json.loads, greedy.splitlines())
    assert [(r["line"], r["prompt"]) for r in records] == [(1, "add"), (4, "parse\fa date")]
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
        (("--lines", " \n\n"), "the prompt is empty"),
        (("x", "--length_penalty=2"), "pass --beams as well"),
        (("x", "--beams=2", "--length_penalty=1e3"), "length_penalty = 1000.0 is out of range"),
        (("x", "--beams=2", "--length_penalty=-9"), "length_penalty = -9.0 is out of range"),
        (("x", "--lines", "--batch_size=3"), "of size 3 does not divide over 8 devices"),
        (("x", "--kind=completion", "--inputs_length=1"), "no room"),
    ],
)
def test_options_that_do_not_go_together(codet5p, options, message):
    assert message in codet5p("generate", *options, fails=True)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x"])
def test_a_length_penalty_is_a_number(codet5p, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        codet5p("generate", "x", "--beams=2", f"--length_penalty={value}")
    assert f"--length_penalty: expected a number, got {value}" in capsys.readouterr().err


def test_prompts_are_cut_to_the_positions_of_the_network(told, few_positions, tmp_path):
    """With a note; what was cut is what a shorter --inputs_length would have cut."""
    model = f"--model_dir={few_positions}"
    long = "parse a date " * 40
    code, text, note = told("generate", model, long, "--max_length=20")
    assert code == 0
    assert note.startswith("1 of 1 prompts are cut to 39 tokens")
    assert "--max_length=20" in note
    short = told("generate", model, long, "--max_length=20", "--inputs_length=39")
    assert short == (0, text, "")
    assert told("generate", model, "add", "--max_length=20")[2] == ""
    _, _, note = told("generate", model, long, "--max_length=20", "--prefix=def")
    prefix = Tokenizer.load(few_positions / "tokenizer").encode("def")
    assert f"cut to {39 - len(prefix)} tokens" in note
    (tmp_path / "m.py").write_text(long)
    code, _, note = told("complete", model, f"{tmp_path / 'm.py'}:1", "--max_length=20")
    assert code == 0
    assert "cut to 39 tokens" in note
    code, _, error = told("generate", model, "add", "--max_length=58")
    assert code == 1
    assert "--max_length=58 leaves no room in the decoder's 60 positions" in error
    code, out, note = told("embed", model, long)
    assert code == 0
    assert "cut to the 60 tokens" in note
    assert told("embed", model, long, "--inputs_length=60") == (0, out, "")


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
    assert "one answer" in codet5p("chat", "--beams=2", fails=True)


def test_a_chat_leaves_out_its_first_turns(weights, told, tmp_path):
    """And goes on after an instruction that is too long by itself."""
    templates = tmp_path / "templates.json"
    templates.write_text(
        json.dumps({"without_input": "{instruction}", "next_turn": "{instruction}{response}{next}"})
    )
    chat = ("chat", f"--model_dir={weights[0]}", "--max_length=4", f"--templates={templates}")
    _, alone, _ = told(*chat, stdin="date date date\n")
    code, both, note = told(*chat, "--inputs_length=20", stdin="add\ndate date date\n")
    assert code == 0
    assert both.endswith(alone)
    assert note == (
        "left out the first 1 of 1 turns: with them this is longer than --inputs_length=20\n"
    )
    code, out, note = told(*chat, "--inputs_length=20", stdin=f"{'b' * 30}\nadd\n")
    assert code == 1
    assert "not answered: this alone is longer than --inputs_length=20" in note
    assert out == told(*chat, stdin="add\n")[1]


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
    (tmp_path / "g").write_bytes(b"add\nparse a date\r\n")
    lines = codet5p("embed", "--lines", "--file", str(tmp_path / "g")).splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["file"], r["line"]) for r in records] == [(str(tmp_path / "g"), n) for n in (1, 2)]
    np.testing.assert_allclose([r["embedding"] for r in records], vectors, rtol=1e-5)
    assert "is empty: line 2" in codet5p("embed", "--lines", stdin="add\n\nb\n", fails=True)
    assert "no such file" in codet5p("embed", "--file", str(tmp_path / "h"), fails=True)
    assert "end in .npy" in codet5p("embed", "x", "--output=v.txt", fails=True)
    assert "is empty" in codet5p("embed", "", fails=True)
