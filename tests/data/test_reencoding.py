"""An encoder with a tokenizer of its own reads the same text, in its own ids."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codet5p_jax.data.loader import DataError
from codet5p_jax.data.reencoding import Reencoded
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.objectives import DecoderCLM, Seq2Seq, Seq2SeqCLM, SpanDenoising, TextCodePairs

TEXTS = ["def add(a, b):\n    return a + b\n", "for x in range(10): print(x, 'é')\n"] * 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(TEXTS, 400, root / "theirs", num_sentinels=20)
    train_tokenizer(TEXTS[1::2], 290, root / "own", num_sentinels=10)
    return root / "theirs", root / "own"


@pytest.fixture(scope="module")
def tokenizers(folders):
    return tuple(Tokenizer.load(folder) for folder in folders)


def pieces(ids, tokenizer):
    """Text and roles of special tokens, in order."""
    special = tokenizer.special
    roles = {special.bos: "bos", special.eos: "eos", special.unk: "unk"}
    roles |= {id: f"sentinel {i}" for i, id in enumerate(special.sentinels)}
    out = [b""]
    for id in ids.tolist():
        if id in roles:
            out += [roles[id], b""]
        else:
            out[-1] += tokenizer.decode_bytes([id])
    return [piece for piece in out if piece != b""]


def example_of(text, tokenizer):
    ids = np.array(tokenizer.encode(text), np.int32)
    return {"tokens": ids, "word_starts": np.arange(len(ids)) % 2 == 0}


def both(objective, example, folders, tokenizers, seed=0):
    plain = objective.features(example, np.random.default_rng(seed), tokenizers[0].special)
    half = Reencoded(objective, *folders)
    row = half.features(example, np.random.default_rng(seed), tokenizers[0].special)
    assert {k: (v.shape, v.dtype) for k, v in row.items()} == {
        k: (v.shape, v.dtype) for k, v in plain.items()
    }
    return plain, row


def read_by_encoder(row):
    return row["encoder_tokens"][row["encoder_segments"] > 0]


OBJECTIVES = [
    SpanDenoising(inputs_length=200, targets_length=100, max_spans=10),
    Seq2SeqCLM(inputs_length=300, targets_length=100),
    DecoderCLM(targets_length=90),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@settings(max_examples=25, deadline=None)
@given(text=st.text(min_size=1, max_size=60), seed=st.integers(0, 99))
def test_the_encoder_reads_the_same_text(objective, folders, tokenizers, text, seed):
    theirs, own = tokenizers
    plain, row = both(objective, example_of(text, theirs), folders, tokenizers, seed)
    for name in plain:
        if name.startswith("decoder_"):
            np.testing.assert_array_equal(row[name], plain[name])
    assert pieces(read_by_encoder(row), own) == pieces(read_by_encoder(plain), theirs)
    assert (row["encoder_tokens"][row["encoder_segments"] == 0] == own.special.pad).all()


def test_finished_inputs_keep_the_roles_of_their_tokens(folders, tokenizers):
    theirs, own = tokenizers
    special = theirs.special
    inputs = np.array([special.bos, *theirs.encode("print(x)"), special.eos], np.int64)
    example = {"inputs": inputs, "targets": inputs}
    objective = Seq2Seq(inputs_length=30, targets_length=40, prompt_to_decoder=True)
    plain, row = both(objective, example, folders, tokenizers)
    assert pieces(read_by_encoder(row), own) == ["bos", b"print(x)", "eos"]
    for name in ("decoder_tokens", "decoder_targets", "decoder_weights"):
        np.testing.assert_array_equal(row[name], plain[name])


def test_what_is_too_long_is_cut_where_the_objective_cuts(folders, tokenizers):
    theirs, own = tokenizers
    text = "abcdefghijklmnopqrstuvwxyz" * 4  # of single bytes to the encoder
    clm = Seq2SeqCLM(inputs_length=12, targets_length=20, min_pivot=0.5, max_pivot=0.5)
    plain, row = both(clm, example_of(text, theirs), folders, tokenizers)
    whole = pieces(read_by_encoder(plain), theirs)[-1]
    first, kept = pieces(read_by_encoder(row), own)
    assert first == "unk"
    assert len(read_by_encoder(row)) == 12
    assert whole.endswith(kept)
    example = {
        "inputs": np.array(theirs.encode("def return" * 9)),
        "targets": np.zeros(1, np.int64),
    }
    _, row = both(Seq2Seq(inputs_length=7, targets_length=2), example, folders, tokenizers)
    assert ("def return" * 9).encode().startswith(pieces(read_by_encoder(row), own)[0])


def test_it_travels_to_another_process(folders, tokenizers):
    half = Reencoded(OBJECTIVES[1], *folders)
    example = example_of(TEXTS[0], tokenizers[0])
    row = half.features(example, np.random.default_rng(1), tokenizers[0].special)
    again = pickle.loads(pickle.dumps(half))
    other = again.features(example, np.random.default_rng(1), tokenizers[0].special)
    for name in row:
        np.testing.assert_array_equal(row[name], other[name])


def test_pairs_need_one_tokenizer(folders):
    with pytest.raises(DataError, match=r"TextCodePairs needs one tokenizer .*own"):
        Reencoded(TextCodePairs(), *folders)
