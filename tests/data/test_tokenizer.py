import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.data.roles import CODEGEN, CODET5, PREFIXES, Roles, codet5_roles
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer

CODET5_FILES = Path(__file__).parents[2] / "../shared/data/tokenizers/codet5"
TEXTS = ["def add(a, b):\n    return a + b\n", "class A:\n\tx = 1\r\n", "for i in range(10): pass"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 3, 500, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def codet5():
    if not CODET5_FILES.is_dir():
        pytest.skip(f"needs CodeT5's vocab.json and merges.txt in {CODET5_FILES}")
    return Tokenizer.load(CODET5_FILES, CODET5)


def write_vocab(folder, vocab, merges=(), **files):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def codet5_style_vocab(tokenizer):
    """Vocabulary and merges as in CodeT5's files: neither sentinels nor prefixes."""
    spec = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))
    special = {*codet5_roles().sentinels, *PREFIXES}
    vocab = {t: i for t, i in spec["model"]["vocab"].items() if t not in special}
    return vocab, [" ".join(pair) for pair in spec["model"]["merges"]]


# Layout


def test_trained_layout_is_codet5s(tokenizer):
    n = tokenizer.vocab_size
    special = tokenizer.special
    assert (special.pad, special.bos, special.eos, special.unk, special.decoder_start) == (
        0, 1, 2, 3, 0,
    )  # fmt: skip
    assert tokenizer.token_to_id("<mask>") == 4
    assert special.sentinels == tuple(range(n - 4, n - 104, -1))
    assert (special.enc, special.tdec, special.cdec) == (n - 3, n - 2, n - 1)


def test_training_is_deterministic(tmp_path, folder):
    train_tokenizer(TEXTS * 3, 500, tmp_path)
    for name in ("tokenizer.json", "roles.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_training_refuses_a_vocabulary_without_room_for_bytes(tmp_path):
    with pytest.raises(ValueError, match="vocab_size of at least 364"):
        train_tokenizer(TEXTS, 300, tmp_path)


def test_save_and_load_keep_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.special == tokenizer.special
        assert again.roles == tokenizer.roles
    assert not list(tmp_path.glob(".*"))


def test_saved_file_is_an_ordinary_tokenizer(folder, tokenizer):
    import tokenizers

    other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert other.get_vocab_size() == tokenizer.vocab_size
    assert other.encode("def f").ids == [1, *tokenizer.encode("def f"), 2]
    assert other.encode("<extra_id_0>").ids == [1, tokenizer.special.sentinels[0], 2]


def test_fingerprint_depends_on_merges_and_roles(tokenizer, tmp_path):
    other = train_tokenizer(TEXTS, 420, tmp_path)
    assert other.fingerprint != tokenizer.fingerprint
    moved = Tokenizer(tokenizer._spec, replace(tokenizer.roles, decoder_start="</s>"))
    assert moved.fingerprint != tokenizer.fingerprint


# Round trips


@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.encode_batch([text, text]) == [ids, ids]


@given(data=st.binary())
def test_any_bytes_come_back(tokenizer, data):
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    text = data.decode("utf-8", "surrogateescape")
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode_batch([data, "x"]) == [ids, tokenizer.encode("x")]
    assert tokenizer.decode(ids, errors="surrogateescape") == text


@pytest.mark.parametrize(
    "text", ["\ta\t\tb", "a\r\nb\r\n", "🎉 naïve 数", "\0", " ", "", "  x  ", "\ufeffx", "\u2028"]
)
def test_notorious_texts_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(ValueError, match="surrogateescape"):
        tokenizer.encode("a\ud800b")


SPECIAL_TEXT = st.lists(
    st.sampled_from(["<s>", "</s>", "<pad>", "<mask>", "<extra_id_0>", "[ENC]", " ", "x", "\n"])
).map("".join)


@given(text=SPECIAL_TEXT)
def test_special_strings_in_text_stay_text(tokenizer, text):
    special = {v for v in vars(tokenizer.special).values() if isinstance(v, int)}
    special |= {*tokenizer.special.sentinels, tokenizer.token_to_id("<mask>")}
    ids = tokenizer.encode(text)
    assert special.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


def test_decode_shows_or_skips_special_tokens(tokenizer):
    special = tokenizer.special
    ids = [special.bos, *tokenizer.encode("a"), special.sentinels[1], special.eos, special.pad]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special=False) == "<s>a<extra_id_1></s><pad>"
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_decode_of_cut_characters_is_printable(tokenizer):
    assert tokenizer.decode(tokenizer.encode("数")[:1]) == "\ufffd"


# Words


def test_word_starts_example(tokenizer):
    text = "if  f(x):\n    return y \n"
    ids, starts = tokenizer.encode_words(text)
    assert ids.dtype == np.int32
    assert starts.dtype == bool
    words = [b""]
    for i, start in zip(ids, starts, strict=True):
        words += [b""] if start else []
        words[-1] += tokenizer.decode_bytes([i])
    assert words[1:] == [b"if", b"  f(x):", b"\n    return", b" y", b" \n"]


@given(text=st.text(alphabet="ab( \t\n\r数"))
def test_words_are_runs_of_non_whitespace(tokenizer, text):
    ids, starts = tokenizer.encode_words(text)
    words: list[bytes] = []
    for i, start in zip(ids, starts, strict=True):
        words += [b""] if start else []
        words[-1] += tokenizer.decode_bytes([i])
    assert b"".join(words) == text.encode()
    # Each holds one run of non-whitespace, at its end; only the last may be whitespace alone.
    assert [w.strip() for w in words if w.strip()] == text.encode().split()
    assert all(w.strip() for w in words[:-1])
    assert all(w == w.rstrip() for w in words[:-1])


# Files and roles


def test_vocab_and_merges_with_appended_sentinels(folder, tokenizer, tmp_path):
    vocab, merges = codet5_style_vocab(folder)
    loaded = Tokenizer.load(write_vocab(tmp_path, vocab, merges), codet5_roles())
    assert loaded.vocab_size == tokenizer.vocab_size - 3
    assert loaded.special.sentinels == tokenizer.special.sentinels
    assert loaded.special.enc is None
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert loaded.with_prefixes().special == tokenizer.special
    assert tokenizer.with_prefixes() is tokenizer


def test_side_files_give_added_tokens(folder, tmp_path):
    vocab, merges = codet5_style_vocab(folder)
    n = len(vocab)
    sentinels = codet5_roles().sentinels[::-1]
    loaded = Tokenizer.load(
        write_vocab(
            tmp_path,
            vocab,
            merges,
            added_tokens={"  \t  ": n, "[ENC]": n + 101},
            special_tokens_map={"additional_special_tokens": ["[ENC]", {"content": "<new>"}]},
            tokenizer_config={
                "added_tokens_decoder": {
                    str(n + 1 + i): {"content": token, "special": True}
                    for i, token in enumerate(sentinels)
                }
            },
        ),
        codet5_roles(),
    )
    assert loaded.special.enc == n + 101
    assert loaded.special.sentinels[0] == n + 100
    assert loaded.token_to_id("<new>") == n + 102
    # A token that is added but not special is text, as CodeGen's runs of spaces are.
    assert loaded.encode("a  \t  b") == [*loaded.encode("a"), n, *loaded.encode("b")]
    assert loaded.decode(loaded.encode("a  \t  b")) == "a  \t  b"
    assert loaded.decode(loaded.encode("<new>")) == "<new>"


def test_missing_files_and_roles(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"vocab\.json with merges\.txt"):
        Tokenizer.load(tmp_path / "nowhere")
    vocab, merges = codet5_style_vocab(folder)
    renamed = {("<PAD>" if t == "<pad>" else t): i for t, i in vocab.items()}
    with pytest.raises(ValueError, match=r"no roles\.json"):
        Tokenizer.load(write_vocab(tmp_path, renamed, merges))
    with pytest.raises(ValueError, match="has no '<pad>'"):
        Tokenizer.load(tmp_path, codet5_roles())


def test_damaged_roles_file(tmp_path, folder):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "roles.json").write_text('{"padding": "<pad>"}')
    with pytest.raises(ValueError, match=r"roles\.json: expected a JSON object with fields among"):
        Tokenizer.load(tmp_path)
    assert Roles.from_file(folder / "roles.json").sentinels[0] == "<extra_id_0>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"tokenizer\.json, line 1, column \d+: expected JSON, found .* copied again"),
        (b"", r"tokenizer\.json, line 1, column 1: expected JSON"),
        (b'{\n "model":\n', r"tokenizer\.json, line 3, column 1: expected JSON"),
        (b"\xff{", r"tokenizer\.json: expected JSON in UTF-8"),
        (b"[]", r"tokenizer\.json: expected a JSON object, found list"),
        (
            b'{"model": {"type": "BPE"}}',
            r"tokenizer\.json: .* model that has a vocab; found .* model",
        ),
    ],
)
def test_damaged_tokenizer_file(tmp_path, folder, content, message):
    if content is None:  # cut off
        whole = (folder / "tokenizer.json").read_bytes()
        content = whole[: len(whole) // 2]
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_damaged_files_of_the_older_format(tmp_path, folder):
    vocab, merges = codet5_style_vocab(folder)
    write_vocab(tmp_path, vocab, [*merges, "one two three"])
    with pytest.raises(ValueError, match=r"merges\.txt: expected .* merges of two tokens a line"):
        Tokenizer.load(tmp_path)
    whole = (tmp_path / "vocab.json").read_text("utf-8")
    (tmp_path / "vocab.json").write_text(whole[:-9], "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json, line 1, column \d+: expected JSON"):
        Tokenizer.load(tmp_path)
    write_vocab(tmp_path, vocab, merges)
    (tmp_path / "added_tokens.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"added_tokens\.json, line 1"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "expected no normalizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "byte-level BPE"),
        ({"added_tokens": [{"content": "<s>", "id": 9, "special": True}]}, "has id 1"),
    ],
)
def test_inexact_tokenizers_are_refused(folder, change, message):
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8")) | change
    with pytest.raises(ValueError, match=message):
        Tokenizer(spec, codet5_roles())


def test_missing_bytes_are_refused(folder, tmp_path):
    vocab, _ = codet5_style_vocab(folder)
    del vocab["Ġ"]
    with pytest.raises(ValueError, match="no token for byte 0x20"):
        Tokenizer.load(write_vocab(tmp_path, vocab), codet5_roles())


def test_merges_that_build_a_special_token_are_refused(folder):
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocab = dict(spec["model"]["vocab"])
    vocab.update({"Q": vocab["Q"], "QQ": len(vocab)})
    spec["model"] = {**spec["model"], "vocab": vocab, "merges": [["Q", "Q"]]}
    with pytest.raises(ValueError, match="build the special token 'QQ' from plain text"):
        Tokenizer(spec, replace(codet5_roles(), others=("<mask>", "QQ")))


# The real layouts


def test_codet5_ids(codet5):
    special = codet5.special
    assert codet5.vocab_size == 32_100
    assert (special.pad, special.bos, special.eos, special.unk) == (0, 1, 2, 3)
    assert special.sentinels == tuple(range(32_099, 31_999, -1))
    assert (special.enc, special.tdec, special.cdec) == (None, None, None)
    stage2 = codet5.with_prefixes()
    assert (stage2.vocab_size, stage2.special.enc, stage2.special.cdec) == (32_103, 32_100, 32_102)


def test_codet5_round_trip(codet5):
    for text in ["\ta\r\n\0🎉 </s>", "<extra_id_0>", "\xa0x"]:
        assert codet5.decode(codet5.encode(text)) == text


def test_codet5_preset_is_guessed_and_asserted(codet5, tmp_path):
    assert Tokenizer.load(CODET5_FILES).fingerprint == codet5.fingerprint
    vocab = json.loads((CODET5_FILES / "vocab.json").read_text("utf-8"))
    vocab["<s>"], vocab["</s>"] = 2, 1
    write_vocab(tmp_path, vocab)
    shutil.copy(CODET5_FILES / "merges.txt", tmp_path)
    with pytest.raises(ValueError, match="'<s>' is 2, expected 1"):
        Tokenizer.load(tmp_path, CODET5)


def test_codegen_preset(folder, tmp_path):
    vocab, merges = codet5_style_vocab(folder)
    ordinary = [t for t in vocab if t not in ("<pad>", "<s>", "</s>", "<unk>", "<mask>")]
    filler = [f"filler{i}" for i in range(50_256 - len(ordinary))]
    ids = {token: i for i, token in enumerate([*ordinary, *filler, "<|endoftext|>"])}
    spaces = {" " * n: 50_257 + i for i, n in enumerate(range(31, 1, -1))}
    write_vocab(tmp_path, ids, merges, added_tokens=spaces)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.roles == CODEGEN
    assert {loaded.special.pad, loaded.special.bos, loaded.special.eos, loaded.special.unk} == {
        50_256
    }
    assert loaded.special.sentinels == ()
    assert loaded.vocab_size == 50_287
    assert 50_257 + 31 - 4 in loaded.encode("x\n    return")
    assert loaded.decode(loaded.encode("x\n     y<|endoftext|>")) == "x\n     y<|endoftext|>"
    assert 50_256 not in loaded.encode("<|endoftext|>")
    del ids["filler9"]
    ids["<|endoftext|>"] = 0
    with pytest.raises(ValueError, match=r"'<\|endoftext\|>' is 0, expected 50256"):
        Tokenizer.load(write_vocab(tmp_path, ids | {ordinary[0]: 50_256}, merges))
