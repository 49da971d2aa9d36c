"""What `inspect-data` shows of a mixture."""

import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.data.cache import open_mixture
from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.data.inspect import decoder_of, inspect, used
from codet5p_jax.data.loader import DataError, Loader
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.objectives.matching import decoder_input
from codet5p_jax.objectives.seq2seq import Seq2Seq
from codet5p_jax.objectives.text_code_pairs import TextCodePairs
from tests.data.tiny import SPECIAL, TinyObjective, make_mixture


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    tasks = {"a": ("tiny", 3.0, 20), "b": ("tiny", 1.0, 10)}
    return make_mixture(tmp_path_factory.mktemp("cache"), tasks)


def test_rows_lengths_padding_and_examples_are_shown(mixture):
    """Lengths alternate between 2 and 3 of 4 positions, so padding is 25 to 50 %."""
    lines = list(inspect(mixture, {"tiny": TinyObjective()}, 5, examples=1))
    assert lines[0] == "mix/train: vocabulary 100, batch 5"
    assert "== tiny: 5 rows of each batch" in lines
    assert "   task a, rate 3, 20 examples" in lines
    assert "   task b, rate 1, 10 examples" in lines
    (tokens,) = (line for line in lines if line.startswith("   x_tokens"))
    assert "int32 [4], used: p50" in tokens
    assert "max 3, full 0%" in tokens
    assert 25 <= float(tokens.rpartition("padding ")[2].rstrip("%")) <= 50
    assert sum(line.startswith("-- example") for line in lines) == 1
    (shown,) = (line for line in lines if line.startswith("[x_tokens"))
    assert shown.split("] ")[1].split()[1] == "0"  # no tokenizer in this cache: ids as they are


def test_long_arrays_are_cut(mixture):
    lines = inspect(mixture, {"tiny": TinyObjective()}, 5, characters=1)
    assert any(line.endswith("characters more") for line in lines)


def test_settings_that_do_not_fit_are_the_loaders_errors(mixture):
    with pytest.raises(DataError, match="needs the objectives tiny"):
        list(inspect(mixture, {}, 5))


def test_positions_in_use_are_those_of_segments_or_weights():
    arrays = {
        "decoder_targets": np.array([[5, 6, 0]]),
        "decoder_weights": np.array([[0.0, 1.0, 0.0]], np.float32),
        "text_tokens": np.array([[5, 6, 0]]),
        "text_segments": np.array([[1, 2, 0]]),
        "pair_id": np.array([7]),
    }
    assert used(arrays, "decoder_targets").tolist() == [[False, True, False]]
    assert used(arrays, "text_tokens").tolist() == [[True, True, False]]
    assert used(arrays, "pair_id") is None
    assert used(arrays, "text_segments") is None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Text-code pairs, with the tokenizer that shows them."""
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = train_tokenizer(["def f(x):"], 400, folder / "tokenizer")
    with CacheWriter(folder, "pairs", "train", {"source": "pairs"}) as writer:
        for i in range(4):
            pair = {"text": f"number {i}", "code": f"f({i})"}
            writer.write({k: np.array(tokenizer.encode(x), np.int32) for k, x in pair.items()})
    write_mixture(
        folder,
        "pairs",
        [("pairs", "text_code_pairs", 1.0)],
        special=tokenizer.special,
        vocab_size=tokenizer.vocab_size,
        tokenizer_digest="digest",
        save_tokenizer=tokenizer.save,
    )
    return open_mixture(folder, "pairs", "train")


def test_what_the_matching_decoder_reads_is_shown(pairs):
    objective = TextCodePairs(text_length=16, code_length=16)
    lines = list(inspect(pairs, {"text_code_pairs": objective}, 4))
    shown = [line.partition("] ")[2] for line in lines if line.startswith("[matching decoder, ")]
    batch = Loader(pairs, {"text_code_pairs": objective}, 4, 0).batch_at(0)["text_code_pairs"]
    tokens, enc = jnp.asarray(batch["code_tokens"]), jnp.asarray(batch["enc_token"])
    read = np.asarray(decoder_input(tokens, enc))
    used_ids = [ids[mask > 0] for ids, mask in zip(read, batch["code_segments"], strict=True)]
    decode = decoder_of(pairs)
    assert shown == [decode(ids.tolist()) for ids in used_ids[:2]]
    assert all(text.startswith("[ENC]f(") and text.endswith("</s>") for text in shown)
    codes = [line.partition("] ")[2] for line in lines if line.startswith("[code_tokens, ")]
    assert [text.replace("<s>", "[ENC]") for text in codes] == shown

    without = TextCodePairs(text_length=16, code_length=16, matching=False)
    lines = inspect(pairs, {"text_code_pairs": without}, 4)
    assert not any("matching decoder" in line for line in lines)


def prompted(folder, sizes):
    """Examples of so many tokens of a prompt and of targets."""
    with CacheWriter(folder, "chats", "train", {"source": "chats"}) as writer:
        for n, m in sizes:
            inputs, targets = (np.arange(5, 5 + k, dtype=np.int32) for k in (n, m))
            writer.write({"inputs": inputs, "targets": targets})
    write_mixture(
        folder,
        "chats",
        [("chats", "seq2seq", 1.0)],
        special=SPECIAL,
        vocab_size=100,
        tokenizer_digest="none",
        save_tokenizer=lambda folder: None,
    )
    return open_mixture(folder, "chats", "train")


def test_what_is_cut_is_counted(tmp_path):
    mixture = prompted(tmp_path, [(3, 2), (5, 2), (8, 2), (9, 1), (5, 5)])
    objective = Seq2Seq(inputs_length=4, targets_length=8, prompt_to_decoder=True)
    lines = list(inspect(mixture, {"seq2seq": objective}, 5))
    assert "   of 5: inputs cut in 4, targets in 3; 2 without a loss" in lines


def test_prompts_that_fill_every_row_are_an_error(tmp_path):
    mixture = prompted(tmp_path, [(8, 2), (9, 1), (30, 2)])
    objective = Seq2Seq(inputs_length=4, targets_length=8, prompt_to_decoder=True)
    with pytest.raises(DataError, match=r"'chats', split 'train': none of its 3 .* targets_length"):
        Loader(mixture, {"seq2seq": objective}, 3, 0)
    longer = Seq2Seq(inputs_length=4, targets_length=10, prompt_to_decoder=True)
    batch = Loader(mixture, {"seq2seq": longer}, 3, 0).batch_at(0)["seq2seq"]
    assert sorted(batch["decoder_weights"].sum(axis=1)) == [0, 1, 2]
