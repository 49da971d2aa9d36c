import pickle

import numpy as np
import pytest
import tensorflow as tf

from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.data.vocab import CodeVocabulary

TEXTS = ["def f(x):\n    return x\n"] * 3
NASTY = ["", "\ta\r\n\0🎉 </s><extra_id_0>", "def f(x):\n  return x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    train_tokenizer(TEXTS, 400, folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(folder):
    return CodeVocabulary(folder)


def locate():
    raise LookupError("tokenizer is not set")


def test_ids_are_the_tokenizers(vocabulary, folder):
    special = Tokenizer.load(folder).special
    assert vocabulary.special == special
    assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id) == (
        0, 1, 2, 3,
    )  # fmt: skip
    assert vocabulary.extra_ids == 100
    assert vocabulary.vocab_size == Tokenizer.load(folder).vocab_size
    assert vocabulary.fingerprint == Tokenizer.load(folder).fingerprint


@pytest.mark.parametrize("text", NASTY)
def test_python_round_trip(vocabulary, text):
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_decode_stops_at_eos_and_hides_special_tokens(vocabulary):
    a, b = vocabulary.encode("a"), vocabulary.encode("b")
    ids = [vocabulary.bos_id, *a, vocabulary.special.sentinels[0], vocabulary.eos_id, *b]
    assert vocabulary.decode(ids) == "a"
    assert vocabulary.decode_tf(tf.constant(ids)).numpy() == b"a"


def test_tf_agrees_with_python_inside_a_dataset(vocabulary):
    dataset = tf.data.Dataset.from_tensor_slices(NASTY)
    encoded = dataset.map(vocabulary.encode_tf)
    assert encoded.element_spec == tf.TensorSpec([None], tf.int32)
    for ids, text in zip(encoded.as_numpy_iterator(), NASTY, strict=True):
        assert ids.tolist() == vocabulary.encode(text)
    decoded = list(encoded.map(vocabulary.decode_tf).as_numpy_iterator())
    assert decoded == [text.encode() for text in NASTY]


def test_decode_tf_of_a_batch(vocabulary):
    rows = [vocabulary.encode(text) for text in ("ab", "x")]
    batch = tf.ragged.constant(rows).to_tensor(vocabulary.pad_id)
    assert vocabulary.decode_tf(batch).numpy().tolist() == [b"ab", b"x"]
    assert vocabulary.decode_tf(tf.zeros((2, 3), tf.int32)).numpy().tolist() == [b"", b""]


def test_words_in_a_dataset(vocabulary):
    dataset = tf.data.Dataset.from_tensors("if x: y").map(vocabulary.encode_words_tf)
    assert dataset.element_spec == (tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.bool))
    ids, starts = next(dataset.as_numpy_iterator())
    expected = vocabulary.tokenizer.encode_words("if x: y")
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(starts, expected[1])
    assert starts.sum() == 3


def test_nothing_is_read_before_use():
    vocabulary = CodeVocabulary(locate)
    assert vocabulary == CodeVocabulary(locate)
    assert vocabulary != CodeVocabulary(locate, prefixes=True)
    assert len({vocabulary, CodeVocabulary(locate)}) == 1
    with pytest.raises(LookupError, match="tokenizer is not set"):
        vocabulary.encode("x")


def test_pickles_by_path(vocabulary, folder):
    located = CodeVocabulary(lambda: str(folder))  # itself not picklable
    again = pickle.loads(pickle.dumps(located))
    assert again.path == str(folder)
    assert again.encode("def f") == vocabulary.encode("def f")


def test_a_new_tokenizer_at_the_same_path_is_noticed(tmp_path):
    train_tokenizer(TEXTS, 370, tmp_path)
    vocabulary = CodeVocabulary(tmp_path)
    before = vocabulary.fingerprint
    train_tokenizer(TEXTS, 400, tmp_path)
    assert vocabulary.fingerprint != before


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_file_rewritten_in_place_is_noticed(tmp_path, name):
    train_tokenizer(TEXTS, 370, tmp_path / "other")
    train_tokenizer(TEXTS, 400, tmp_path / "used")
    vocabulary = CodeVocabulary(tmp_path / "used" / name)
    before, folder = vocabulary.fingerprint, (tmp_path / "used").stat().st_mtime_ns
    for file in ("tokenizer.json", "roles.json"):  # truncates and writes: the folder is not touched
        (tmp_path / "used" / file).write_bytes((tmp_path / "other" / file).read_bytes())
    assert (tmp_path / "used").stat().st_mtime_ns == folder
    assert vocabulary.fingerprint != before
    assert vocabulary.fingerprint == CodeVocabulary(tmp_path / "other").fingerprint


def test_prefixes_are_appended_on_request(folder, tmp_path):
    import json

    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    roles = json.loads((folder / "roles.json").read_text("utf-8"))
    prefixes = {"[ENC]", "[TDEC]", "[CDEC]"}
    spec["model"]["vocab"] = {t: i for t, i in spec["model"]["vocab"].items() if t not in prefixes}
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in prefixes]
    roles["append"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    (tmp_path / "roles.json").write_text(json.dumps(roles), "utf-8")
    plain, stage2 = CodeVocabulary(tmp_path), CodeVocabulary(tmp_path, prefixes=True)
    assert plain.special.enc is None
    assert stage2.vocab_size == plain.vocab_size + 3
    assert stage2.special.enc == plain.vocab_size
    assert stage2.special == CodeVocabulary(folder).special
