"""Tokenizer files that are not what their names say are refused before anything is copied."""

import json

import pytest

from codet5p_jax.interop.token_ids import TokenIds
from codet5p_jax.interop.tokenizer_files import copy_tokenizer, export_tokenizer, token_ids

ROLES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "decoder_start": "<pad>"}
VOCAB = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 4}
ADDED = [{"id": 5, "content": "[ENC]", "special": True}]
FILES = {
    "tokenizer.json": {"model": {"type": "BPE", "vocab": VOCAB}, "added_tokens": ADDED},
    "roles.json": ROLES,
    "vocab.json": VOCAB,
    "added_tokens.json": {"[ENC]": 5},
    "tokenizer_config.json": {"added_tokens_decoder": {"5": {"content": "[ENC]"}}},
    "special_tokens_map.json": {"pad_token": "<pad>"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "theirs").mkdir()
    for name, values in FILES.items():
        (tmp_path / "theirs" / name).write_text(json.dumps(values))
    return tmp_path / "theirs"


def test_sound_files_are_copied_and_read(folder, tmp_path):
    assert copy_tokenizer(folder, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == set(FILES)
    assert token_ids(tmp_path / "copy") == TokenIds(pad=0, bos=1, eos=2, decoder_start=0)
    export_tokenizer(folder, tmp_path / "fewer", rows=5)
    assert json.loads((tmp_path / "fewer/added_tokens.json").read_text()) == {}


@pytest.mark.parametrize(("rows", "sentinels"), [(108, 100), (8, 0)])
def test_a_bare_vocabulary_of_codet5_becomes_readable(tmp_path, rows, sentinels):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "theirs").mkdir()
    vocab = VOCAB | {"b": 5, "ab": 6, "<mask>": 7}
    (tmp_path / "theirs/vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "theirs/merges.txt").write_text("#version: 0.2\na b\n")
    export_tokenizer(tmp_path / "theirs", tmp_path / "ours", rows)
    (tmp_path / "ours/config.json").write_text('{"model_type": "t5"}')
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert read("aba<s>")["input_ids"] == [1, 6, 4, 1, 2]
    assert (read.pad_token_id, read.eos_token_id) == (0, 2)
    if sentinels:
        assert read.convert_tokens_to_ids(["<extra_id_99>", "<extra_id_0>"]) == [8, 107]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("tokenizer.json", [1], "an object with the vocabulary"),
        ("tokenizer.json", {}, "an object with the vocabulary"),
        ("tokenizer.json", {"model": 1}, "an object with the vocabulary"),
        ("tokenizer.json", {"model": {"vocab": {"a": "0"}}}, "an object with the vocabulary"),
        ("tokenizer.json", {"model": {"vocab": [["a"]]}}, "an object with the vocabulary"),
        ("tokenizer.json", {"model": {}, "added_tokens": [{"id": 1}]}, "each with content and id"),
        ("tokenizer.json", {"model": {}, "added_tokens": None}, "each with content and id"),
        ("roles.json", {}, "a token each as pad, bos, eos, unk, decoder_start"),
        ("roles.json", ROLES | {"eos": 2}, "a token each as pad"),
        ("roles.json", ROLES | {"sentinels": "x"}, "a token each as pad"),
        ("vocab.json", {"a": 1.5}, "ids by token"),
        ("vocab.json", {"a": -1}, "ids by token"),
        ("vocab.json", 7, "ids by token"),
        ("added_tokens.json", 5, "ids by token"),
        ("tokenizer_config.json", [], "tokens by id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "by id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}, "tokens by id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1" * 5_000: {"content": "a"}}}, "id"),
        ("special_tokens_map.json", "x", "a JSON object"),
    ],
)
def test_other_forms_are_named(folder, tmp_path, name, values, expected):
    (folder / name).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"{name}: expected .*{expected}"):
        copy_tokenizer(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_roles_name_tokens_of_the_vocabulary(folder):
    (folder / "roles.json").write_text(json.dumps(ROLES | {"eos": "<end>"}))
    with pytest.raises(ValueError, match=r"roles.json: '<end>' is not in the vocabulary"):
        token_ids(folder)


def test_what_is_no_file_is_not_passed_over(folder, tmp_path):
    (folder / "merges.txt").mkdir()
    with pytest.raises(ValueError, match=r"merges.txt: expected a file, found a folder"):
        copy_tokenizer(folder, tmp_path / "copy")
    (folder / "merges.txt").rmdir()
    (folder / "merges.txt").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"merges.txt: .* found a link that leads nowhere"):
        copy_tokenizer(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
