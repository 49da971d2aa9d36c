import dataclasses

import numpy as np
import pytest

from codet5p_jax.objectives import CodeToText, Seq2Seq, TextToCode
from tests.objectives.helpers import labels, real

PAIR = {"text": np.array([10, 11], np.int32), "code": np.array([20, 21, 22], np.int32)}
EMPTY = np.zeros(0, np.int32)


def test_text_to_code_starts_with_cdec_as_a_label(special, rng):
    row = TextToCode().features(PAIR, rng, special)
    assert real(row, "encoder") == [special.bos, 10, 11, special.eos]
    assert labels(row) == [special.cdec, 20, 21, 22, special.eos]
    assert real(row, "decoder") == [special.decoder_start, special.cdec, 20, 21, 22]
    assert row["decoder_weights"].sum() == 5
    assert (len(row["encoder_tokens"]), len(row["decoder_tokens"])) == (128, 420)


def test_code_to_text_starts_with_tdec_as_a_label(special, rng):
    row = CodeToText().features(PAIR, rng, special)
    assert real(row, "encoder") == [special.bos, 20, 21, 22, special.eos]
    assert labels(row) == [special.tdec, 10, 11, special.eos]
    assert (len(row["encoder_tokens"]), len(row["decoder_tokens"])) == (420, 128)


def test_prefix_can_be_fed_without_being_learnt(special, rng):
    learnt = TextToCode().features(PAIR, rng, special)
    fed = TextToCode(prefix_is_label=False).features(PAIR, rng, special)
    assert learnt["decoder_weights"][:6].tolist() == [1, 1, 1, 1, 1, 0]
    assert fed["decoder_weights"][:6].tolist() == [0, 1, 1, 1, 1, 0]
    assert np.array_equal(learnt["decoder_tokens"], fed["decoder_tokens"])


def test_a_cut_source_keeps_its_end_and_a_cut_target_does_not(special, rng):
    row = TextToCode(inputs_length=3, targets_length=3).features(PAIR, rng, special)
    assert real(row, "encoder") == [special.bos, 10, special.eos]
    assert labels(row) == [special.cdec, 20, 21]


def test_empty_sides(special, rng):
    row = CodeToText().features({"text": EMPTY, "code": EMPTY}, rng, special)
    assert real(row, "encoder") == [special.bos, special.eos]
    assert labels(row) == [special.tdec, special.eos]


def test_a_vocabulary_without_the_prefix_is_refused(special, rng):
    with pytest.raises(ValueError, match=r"text_to_code needs a vocabulary with \[CDEC\]"):
        TextToCode().features(PAIR, rng, dataclasses.replace(special, cdec=None))


def test_a_length_without_room_for_the_wrapping_is_refused(special, rng):
    with pytest.raises(ValueError, match="a length of 1 has no room for <s> and </s>"):
        TextToCode(inputs_length=1).features(PAIR, rng, special)


def test_seq2seq_leaves_the_task_as_it_is(special, rng):
    example = {"inputs": np.array([5, 6, 7]), "targets": np.array([8, 9, 1], np.int64)}
    row = Seq2Seq(inputs_length=2, targets_length=5).features(example, rng, special)
    assert real(row, "encoder") == [5, 6]
    assert labels(row) == [8, 9, 1]
    assert row["decoder_tokens"].tolist() == [special.decoder_start, 8, 9, 0, 0]
    assert row["decoder_tokens"].dtype == np.int32


def test_seq2seq_without_targets_has_no_weight(special, rng):
    example = {"inputs": np.array([5]), "targets": EMPTY}
    row = Seq2Seq(inputs_length=2, targets_length=2).features(example, rng, special)
    assert row["decoder_weights"].tolist() == [0, 0]
    assert row["decoder_segments"].tolist() == [0, 0]
