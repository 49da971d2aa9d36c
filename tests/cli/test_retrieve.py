"""`codet5p retrieve` with a random model: what it writes, and what fine-tuning reads of that."""

import fcntl
import gzip
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.corpora.finetuning.retrieved import code_base, retrieved
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.evaluation.metrics.bleu import corpus_bleu
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import flatten, init_params
from codet5p_jax.training.model_dir import ModelDir, config_to_json
from codet5p_jax.training.stored_weights import write_weights

DATA = Path(__file__).parents[2] / "../shared/data"
REAL = DATA / "summarization/python_docstring_valid.jsonl.gz"

CODES = [f"int f{i} ( int x ) {{ return x {sign} {i} ; }}" for i, sign in enumerate("+-*/%&|")]
TEXTS = [
    f"{verb} {i}" for i, verb in enumerate(("add", "take", "times", "by", "rest", "and", "or"))
]


def records(codes, texts):
    pairs = zip(codes, texts, strict=True)
    rows = ({"code_tokens": c.split(), "docstring_tokens": t.split()} for c, t in pairs)
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data/summarization/java"
    folder.mkdir(parents=True)
    # The first is there twice, and the test has one that is trained on.
    (folder / "train.jsonl").write_text(records([CODES[0], *CODES[:5]], [TEXTS[5], *TEXTS[:5]]))
    (folder / "valid.jsonl").write_text(records(CODES[5:6], TEXTS[5:6]))
    (folder / "test.jsonl").write_text(records(CODES[3:7:3], TEXTS[3:7:3]))
    return tmp_path / "data"


def write_model(folder, texts, **sizes):
    """A model directory with random weights; its tokenizer, network and weights."""
    directory = ModelDir(folder)
    tokenizer = train_tokenizer(texts, 400, directory.tokenizer)
    shape = dict(vocab_size=400, d_model=16, num_heads=2, head_dim=8, d_ff=32, embed_dim=8)
    network = CodeT5p(t5(**{**shape, **sizes}, num_encoder_layers=1))
    params = init_params(network.specs, jax.random.key(1))
    meta = {"step": 0, "model": config_to_json(network.config)}
    directory.config.write_text(json.dumps(meta["model"]))
    directory.checkpoints.mkdir()
    arrays = ((path, np.asarray(array)) for path, array in flatten(params))
    write_weights(directory.checkpoints / "0", arrays, meta)
    return folder, tokenizer, network, params


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), [*CODES, *TEXTS], num_decoder_layers=0)


@pytest.fixture
def retrieve(model, data, capsys):
    """Runs the command; returns the folder, or what it says of a mistake."""

    def run(*options, fails=0):
        given = [f"--model_dir={model[0]}", f"--finetune_dir={data}", "--language", "java"]
        assert main(["retrieve", *given, "--batch_size=8", *options]) == fails
        return capsys.readouterr().err if fails else data / "retrieve_generate/java"

    return run


def test_the_nearest_code_of_every_text(retrieve, data, model):
    folder = retrieve("--codes=2", "--text_length=16", "--code_length=32")
    _, tokenizer, network, params = model
    encoder = PairEncoder(network, params, tokenizer.special, text_length=16, code_length=32)
    base = code_base(data / "summarization", "java")
    assert [*base.values()] == CODES[:5]
    assert [*base] == [f"train.jsonl_{i}" for i in (0, 2, 3, 4, 5)]
    codes_NE = encoder.embed_codes([tokenizer.encode(code) for code in CODES[:5]])
    for split, texts in (
        ("train", [TEXTS[5], *TEXTS[:5]]),
        ("valid", TEXTS[5:6]),
        ("test", TEXTS[3:7:3]),
    ):
        cosines = encoder.embed_texts([tokenizer.encode(text) for text in texts]) @ codes_NE.T
        found = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        assert [record["question"] for record in found] == texts
        for record, row in zip(found, cosines, strict=True):
            scores = [context["score"] for context in record["ctxs"]]
            assert scores == pytest.approx(sorted(row, reverse=True)[:3], abs=1e-5)
            for context in record["ctxs"]:
                assert base[context["id"]] == context["text"]
                assert row[CODES.index(context["text"])] == pytest.approx(
                    context["score"], abs=1e-5
                )
    assert sorted(path.name for path in folder.iterdir()) == [
        "test.jsonl",
        "train.jsonl",
        "valid.jsonl",
    ]
    examples = [*retrieved(folder, "train", codes=2)]
    assert [example["target"] for example in examples] == [CODES[0], *CODES[:5]]
    for example in examples:
        text, *codes = example["source"].split("\n")
        assert text in TEXTS
        assert len({*codes}) == 2
        assert {*codes} < {*CODES[:5]} - {example["target"]}
    with pytest.raises(
        ValueError, match=r"expected 4 of `ctxs` besides the answer, got [23]; retr"
    ):
        [*retrieved(folder, "train", codes=4)]


def test_another_code_base(retrieve, data):
    base = data / "summarization/java/codebase.jsonl"
    base.write_text(json.dumps({"function_tokens": ["int", "g;"]}) + "\n")
    folder = retrieve("--splits=test")
    for line in (folder / "test.jsonl").read_text().splitlines():
        assert [c["id"] for c in json.loads(line)["ctxs"]] == ["codebase.jsonl_0"]
    assert not (folder / "train.jsonl").exists()


def test_what_is_there_is_not_written_over(retrieve):
    file = retrieve("--splits=validation") / "valid.jsonl"
    before = file.read_bytes()
    said = retrieve(fails=3)
    assert f"{file}: there already; leave these out of --splits" in said
    file.write_text("")
    retrieve("--rebuild")
    assert file.read_bytes() == before


def test_one_at_a_time(retrieve, data):
    retrieve("--splits=test")
    with (data / "retrieve_generate/.java.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process writes " in retrieve("--rebuild", fails=1)


def test_interrupted(retrieve, data, monkeypatch):
    """What is complete stays, and nothing else is left."""
    from codet5p_jax.evaluation.code_search import CodeSearch

    nearest, asked = CodeSearch.nearest, []

    def fails_at_the_second(self, texts, k, said):
        asked.append(said)
        places, cosines = nearest(self, texts, k, said)
        return (places, cosines) if len(asked) < 2 else (places + 99, cosines)

    monkeypatch.setattr(CodeSearch, "nearest", fails_at_the_second)
    retrieve(fails=1)
    assert asked == ["train", "validation"]
    folder = data / "retrieve_generate/java"
    assert [path.name for path in folder.iterdir()] == ["train.jsonl"]
    monkeypatch.setattr(CodeSearch, "nearest", nearest)
    retrieve("--splits=validation,test")
    assert len([*folder.iterdir()]) == 3


def test_mistakes(retrieve, data, tmp_path):
    unknown = retrieve("--splits=dev", fails=1)
    assert "expected a split among train, validation, test, got 'dev'" in unknown
    sizes = dict(num_decoder_layers=1, embed_dim=None)
    folder, *_ = write_model(tmp_path / "model", [*CODES, *TEXTS], **sizes)
    assert "no embedding head" in retrieve(f"--model_dir={folder}", fails=1)
    (data / "summarization/java/valid.jsonl").unlink()
    assert "finetune_dir: expected java/valid.jsonl" in retrieve(fails=1)


@pytest.mark.parametrize("end", ["jsonl", "json"])
def test_files_of_redcoders_retriever(end, tmp_path):
    """A list, its candidates with the text after them, scores as text."""
    context = {"id": "java_dedupe_definitions_v2.pkl_7", "title": None, "score": "80.1"}
    found = [
        {
            "question": "Adds one .",
            "answers": "int f ( ) ;",
            "ctxs": [
                {**context, "has_answer": False, "text": text}
                for text in ("int  f ( ) ; _NL_ Adds .", "int g ( ) ; _NL_ Goes .", "int h ( ) ;")
            ],
        }
    ]
    text = json.dumps(found) if end == "json" else json.dumps(found[0])
    (tmp_path / f"test.{end}").write_text(text)
    (example,) = retrieved(tmp_path, "test", codes=2)
    assert example["source"].split("\n") == ["Adds one .", "int g ( ) ;", "int h ( ) ;"]
    assert example["target"] == "int f ( ) ;"
    assert np.all([isinstance(value, str) for value in example.values()])


@pytest.mark.skipif(not REAL.exists(), reason=f"needs real functions with docstrings in {REAL}")
def test_from_real_records_to_a_table(tmp_path):
    """What is found for docstrings of Python, and written with it, scored."""
    with gzip.open(REAL, "rt") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 200)]
    rows = [row for row in rows if row["docstring"].strip() and len(row["code"]) < 150][:18]
    codes, texts = ([" ".join(row[name].split()) for row in rows] for name in ("code", "docstring"))
    folder = tmp_path / "data/summarization/python"
    folder.mkdir(parents=True)
    for split, some in (("train", slice(0, 12)), ("valid", slice(12, 14)), ("test", slice(14, 18))):
        (folder / f"{split}.jsonl").write_text(records(codes[some], texts[some]))
    model, *_ = write_model(tmp_path / "model", [*codes, *texts], num_decoder_layers=1)
    given = f"--finetune_dir={tmp_path / 'data'}"
    command = ["retrieve", f"--model_dir={model}", given, "--language", "python", "--codes=5"]
    assert main(command) == 0
    names = ("nearest_python", "retrieve_generate_python_5")
    command = ["evaluate", f"--benchmark={','.join(names)}", f"--checkpoint={model}", given]
    assert main([*command, f"--out={tmp_path}", "--max_tokens=2", "--beams=1"]) == 0
    found = {name: json.loads((tmp_path / name / "scores.json").read_text()) for name in names}
    assert {one["problems"] for one in found.values()} == {4}
    nearest = [
        json.loads(line)["prediction"]
        for line in (tmp_path / "nearest_python/predictions.jsonl").read_text().splitlines()
    ]
    for example, code in zip(
        retrieved(tmp_path / "data/retrieve_generate/python", "test"), nearest, strict=True
    ):
        assert example["source"].split("\n")[1] == code
    best = found["nearest_python"]["scores"]
    assert best["bleu"] == corpus_bleu(codes[14:], nearest).score > 0
    assert best["exact_match"] == 0
    table = (tmp_path / "table.md").read_text()
    assert "27.30 (220M, retrieval only)" in table
    assert "30.52 (220M, fine-tuned)" in table
