"""The task `instruct`, token for token as the published script prepares its examples."""

import json
from dataclasses import replace

import numpy as np
import pytest
import seqio
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from codet5p_jax.data.fingerprint import digest
from codet5p_jax.data.roles import CODEGEN
from codet5p_jax.data.seqio_tasks import cached_examples
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.objectives import Seq2Seq
from codet5p_jax.tasks import instruct, settings

END = "<|endoftext|>"
LONG = "sort the list of numbers " * 40
ROWS = [
    {"instruction": "sort the list", "input": "[3, 1]", "output": "[1, 3]"},
    {"instruction": "sort the list", "input": "", "output": '"a" "b"'},  # `:"` is one token
    {"instruction": "sort the list", "input": "", "output": "\ndef f(x):\n    return x\n"},
    {"instruction": "sort {the} list", "input": "", "output": " numbers"},
    {"instruction": "sort the list", "input": "", "output": LONG},  # no end
    {"instruction": LONG, "input": "", "output": "[1, 3]"},  # no response
    {"instruction": "sort", "input": LONG, "output": '"a"'},
]


@pytest.fixture(scope="module")
def codegen(tmp_path_factory):
    """A folder with a tokenizer like CodeGen's: one special token, for every role."""
    folder = tmp_path_factory.mktemp("codegen")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(['### Response:"a"', *map(json.dumps, ROWS)] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "roles.json").write_text(json.dumps(replace(CODEGEN, ids={}).to_json()))
    return folder


@pytest.fixture
def alpaca(tmp_path):
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca/code_alpaca_20k.json").write_text(json.dumps(ROWS))
    return tmp_path / "alpaca"


def published(row, folder, length):
    """An example as the script of InstructCodeT5+ makes it, written anew from its description.

    All of it is padded with the end token; labels are -100 where there is no loss.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=end, pad_token=END, length=length)

    parts = ["Below is an instruction that describes a task."]
    if row["input"]:
        parts = [
            "Below is an instruction that describes a task, "
            "paired with an input that provides further context."
        ]
    parts[0] += " Write a response that appropriately completes the request."
    parts.append("### Instruction:\n" + row["instruction"])
    if row["input"]:
        parts.append("### Input:\n" + row["input"])
    source = "\n\n".join([*parts, "### Response:"])

    encoder = tokenizer.encode(source)
    target = tokenizer.encode(source + row["output"] + END)
    prompt = (*encoder.ids, end).index(end)  # all of it where it fills the length
    complete = end in target.ids[prompt:]
    last = target.ids.index(end, prompt) if complete else length
    return {
        "input_ids": encoder.ids,
        "attention_mask": encoder.attention_mask,
        "decoder_input_ids": [end, *target.ids[:-1]],
        "decoder_attention_mask": target.attention_mask,
        "labels": [t if prompt <= i <= last else -100 for i, t in enumerate(target.ids)],
    }


@pytest.mark.parametrize("length", [64, 128, 512])
def test_rows_are_those_of_the_published_script(codegen, alpaca, length):
    settings.configure(tokenizer=codegen, instruct_dir=alpaca, instruct_held_out=0.0)
    special = Tokenizer.load(codegen).special
    assert special.pad == special.eos == special.decoder_start == 0
    objective = Seq2Seq(inputs_length=length, targets_length=length, prompt_to_decoder=True)
    examples = list(cached_examples(seqio.TaskRegistry.get("instruct"), "train"))
    assert len(examples) == len(ROWS)
    spanning = 0
    for row, example in zip(ROWS, examples, strict=True):
        both, prompt = example["inputs_and_targets"], example["inputs"]
        spanning += not np.array_equal(both[: len(prompt)], prompt)
        found = objective.features(example, np.random.default_rng(0), special)
        weights = found["decoder_weights"]
        assert {
            "input_ids": found["encoder_tokens"].tolist(),
            "attention_mask": found["encoder_segments"].tolist(),
            "decoder_input_ids": found["decoder_tokens"].tolist(),
            "decoder_attention_mask": found["decoder_segments"].tolist(),
            "labels": np.where(weights > 0, found["decoder_targets"], -100).tolist(),
        } == published(row, codegen, length)
    assert spanning == 2  # of the rows, two have a token that spans prompt and response


def test_without_the_prompt_the_decoder_reads_all_of_the_response(codegen, alpaca):
    settings.configure(tokenizer=codegen, instruct_dir=alpaca, instruct_held_out=0.0)
    tokenizer = Tokenizer.load(codegen)
    for row, example in zip(
        ROWS, cached_examples(seqio.TaskRegistry.get("instruct"), "train"), strict=True
    ):
        features = Seq2Seq().features(example, np.random.default_rng(0), tokenizer.special)
        targets = features["decoder_targets"][features["decoder_weights"] > 0]
        assert tokenizer.decode(targets, skip_special=False) == row["output"] + END


def test_text_never_ends_a_response(codegen, alpaca):
    """Unlike in the script, where the name of the end token in a text is that token."""
    settings.configure(tokenizer=codegen, instruct_dir=alpaca, instruct_held_out=0.0)
    row = {"instruction": f"print {END}", "input": "", "output": f"print('{END}')"}
    (alpaca / "code_alpaca_20k.json").write_text(json.dumps([row]))
    (example,) = cached_examples(seqio.TaskRegistry.get("instruct"), "train")
    end = Tokenizer.load(codegen).special.eos
    assert np.flatnonzero(example["targets"] == end).tolist() == [len(example["targets"]) - 1]
    assert end not in example["inputs"]


def test_settings_decide_what_is_read(codegen, alpaca, tmp_path):
    settings.configure(tokenizer=codegen, instruct_dir=alpaca)
    prints = [instruct._fingerprint()]
    assert settings.instruct_held_out() == 0.01
    (tmp_path / "mine.json").write_text('{"without_input": "{instruction}: "}')
    settings.configure(instruct_templates=tmp_path / "mine.json")
    prints.append(instruct._fingerprint())
    settings.configure(instruct_held_out=0.4)
    prints.append(instruct._fingerprint())
    (alpaca / "more.jsonl").write_text(json.dumps(ROWS[0]))
    prints.append(instruct._fingerprint())
    assert len(set(map(digest, prints))) == 4
    task = seqio.TaskRegistry.get("instruct")
    tokenizer = Tokenizer.load(codegen)
    splits = {
        split: [tokenizer.decode(e["inputs"]) for e in cached_examples(task, split)]
        for split in task.splits
    }
    assert all(splits.values())
    assert "sort the list: " in splits["train"] + splits["validation"]
    with pytest.raises(ValueError, match="instruct_held_out: expected a share from 0 to 1"):
        settings.configure(instruct_held_out=2.0)


def test_missing_folder(codegen, tmp_path):
    settings.configure(tokenizer=codegen)
    task = seqio.TaskRegistry.get("instruct")
    with pytest.raises(ValueError, match=r"--instruct_dir=PATH.*CODET5P_INSTRUCT_DIR"):
        next(cached_examples(task, "train"))
    settings.configure(instruct_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"instruct_dir: found no \*\.json or \*\.jsonl"):
        next(cached_examples(task, "train"))
