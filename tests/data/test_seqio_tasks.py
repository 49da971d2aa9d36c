"""The seam: this project's tasks shown by SeqIO, and SeqIO's own tasks in the cache."""

import functools
import io
from collections.abc import Iterator

import numpy as np
import pytest
import sentencepiece

from codet5p_jax.data import seqio_tasks
from codet5p_jax.data.seqio_tasks import (
    add_task,
    cached_examples,
    examples_source,
    fingerprint_of,
    objective_of,
    seqio,
    special_tokens_of,
    tf,
    vocabulary_of,
)
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.data.vocab import CodeVocabulary
from codet5p_jax.objectives import OBJECTIVES

CODE = ["def add(a, b):\n    return a + b\n", "class A:\n    pass\n", "x = [i for i in range(9)]\n"]
TEXT = ["Add two numbers.", "A class.", "Some numbers."]


def read(split: str) -> Iterator[dict[str, str]]:
    for i in range({"train": 12, "validation": 5}[split]):
        yield {"text": TEXT[i % 3], "code": CODE[i % 3] * (i + 1), "place": f"{split}/{i}"}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CODE + TEXT, 400, folder, num_sentinels=20, min_frequency=1)
    return CodeVocabulary(folder)


@pytest.fixture
def registered(monkeypatch):
    """Tasks and mixtures that a test adds are gone after it."""
    monkeypatch.setattr(seqio.TaskRegistry, "_REGISTRY", dict(seqio.TaskRegistry._REGISTRY))
    monkeypatch.setattr(seqio.MixtureRegistry, "_REGISTRY", dict(seqio.MixtureRegistry._REGISTRY))


def words(dataset, vocabulary):
    def split(example):
        tokens, word_starts = vocabulary.encode_words_tf(example["code"])
        return {"code": example["code"], "tokens": tokens, "word_starts": word_starts}

    return dataset.map(split)


def pairs(dataset, vocabulary):
    return dataset.map(lambda e: {k: vocabulary.encode_tf(e[k]) for k in ("text", "code")})


def source(fingerprint="1", features=("text", "code")):
    return examples_source(read, ["train", "validation"], dict.fromkeys(features, str), fingerprint)


def add(name, objective, vocabulary):
    tokenise = pairs if "text" in objective else words
    return add_task(
        name,
        source=source(),
        objective=objective,
        vocabulary=vocabulary,
        preprocessors=[functools.partial(tokenise, vocabulary=vocabulary)],
    )


# --- tasks of this project ---


def test_cached_examples_stop_at_the_placeholder(registered, vocabulary):
    task = add("t", "span_denoising", vocabulary)
    assert objective_of(task) == "span_denoising"
    assert seqio.TaskRegistry.get("t") is task
    examples = list(cached_examples(task, "train"))
    assert len(examples) == 12
    for i, example in enumerate(examples):
        assert {k: v.dtype for k, v in example.items()} == {"tokens": np.int32, "word_starts": bool}
        assert vocabulary.tokenizer.decode(example["tokens"]) == CODE[i % 3] * (i + 1)
    assert len(list(cached_examples(task, "validation"))) == 5


# Those of classes have examples of their own: tests/tasks/test_finetuning_tasks.py.
@pytest.mark.parametrize(
    "objective", [name for name in sorted(OBJECTIVES) if not name.endswith(("seq2seq", "tion"))]
)
def test_get_dataset_shows_finished_arrays(registered, vocabulary, objective):
    """What SeqIO shows is what the host half makes; `inputs` and `targets` are without padding."""
    task = add("t", objective, vocabulary)
    spec = OBJECTIVES[objective]().spec
    first, again, other = (
        list(task.get_dataset(None, "train", shuffle=False, seed=seed).as_numpy_iterator())
        for seed in (3, 3, 4)
    )
    assert len(first) == 12
    for row in first:
        assert row.keys() == {*spec, "inputs", "targets"}
        assert all(row[k].shape == s.shape and row[k].dtype == s.dtype for k, s in spec.items())
        tokens, target = (
            ("text_tokens", "code_tokens")
            if objective == "text_code_pairs"
            else ("encoder_tokens", "decoder_targets")
        )
        for name, array in (("inputs", tokens), ("targets", target)):
            used = row[name]
            assert len(used)
            np.testing.assert_array_equal(used, row[array][: len(used)])
            assert not row[array][len(used) :].any()
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left["inputs"], right["inputs"])
    random = objective in ("span_denoising", "seq2seq_clm")
    same = all(
        np.array_equal(left["inputs"], right["inputs"])
        for left, right in zip(first, other, strict=True)
    )
    assert same != random


def test_tasks_of_several_objectives_mix_in_seqio(registered, vocabulary):
    names = ["text_code_pairs", "text_to_code", "code_to_text"]
    for name in names:
        add(name, name, vocabulary)
    mixture = seqio.MixtureRegistry.add("m", names, default_rate=1)
    lengths = {"inputs": 64, "targets": 64}
    dataset = mixture.get_dataset(lengths, "train", shuffle=False, seed=0, num_epochs=None)
    for row in dataset.take(9).as_numpy_iterator():
        assert row.keys() == {"inputs", "targets"}


def test_unknown_objectives_are_errors_when_shown(registered, vocabulary):
    task = add("t", "denoising", vocabulary)
    with pytest.raises(ValueError, match=r"objective among .*span_denoising.*found 'denoising'"):
        task.get_dataset(None, "train")


def test_sources_stream_and_shard():
    opened = []

    def endless(split):
        opened.append(split)
        i = 0
        while True:
            yield {"x": i, "ignored": object()}
            i += 1

    numbers = examples_source(endless, ["train"], {"x": np.int64}, "")
    assert not opened
    shard = numbers.get_dataset("train", shard_info=seqio.ShardInfo(1, 3)).take(3)
    assert [int(e["x"]) for e in shard.as_numpy_iterator()] == [1, 4, 7]
    with pytest.raises(ValueError, match="split among train, found 'test'"):
        numbers.get_dataset("test")


def test_a_failing_preprocessor_is_named_in_one_line(registered, vocabulary):
    def fail(data):
        raise ValueError(f"cannot read {data.decode()}")

    def failing(dataset):
        return dataset.map(lambda e: {"x": tf.numpy_function(fail, [e["place"]], tf.int32)})

    task = add_task(
        "t",
        source=source(features=["place"]),
        objective="span_denoising",
        vocabulary=vocabulary,
        preprocessors=[failing],
    )
    with pytest.raises(ValueError, match=r"^task 't', split 'train': .*cannot read train/0$"):
        list(cached_examples(task, "train"))


# --- fingerprints ---


def test_fingerprints_name_the_part_that_changed(registered, vocabulary):
    base = add("a", "span_denoising", vocabulary)
    same = add("b", "decoder_clm", vocabulary)
    other = base.replace(name="c", source=source("2"))
    assert fingerprint_of(base) == fingerprint_of(same)  # so they share their shards
    changed = seqio_tasks.fingerprints.changes(
        fingerprint_of(base), {**fingerprint_of(base), **fingerprint_of(other)}
    )
    assert "source changed" in changed
    assert list(fingerprint_of(base)) == ["source", "tokenizer", "preprocessor 1 (words)"]


def test_the_source_of_an_examples_source_may_be_computed_late():
    calls = []

    def paths():
        calls.append(1)
        return ["a.jsonl", len(calls)]

    late = source(paths)
    assert not calls
    assert late.fingerprint != late.fingerprint  # the files changed in between
    assert source("1").fingerprint == source("1").fingerprint
    assert source("1").fingerprint != source("1", ["code"]).fingerprint


def test_an_edited_file_of_a_seqio_source_counts(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\n")

    def digest():
        lines = seqio.TextLineDataSource({"train": str(file)})
        task = seqio.Task("t", lines, {"targets": seqio.Feature(seqio.ByteVocabulary())}, [])
        return fingerprint_of(task)

    before = digest()
    assert digest() == before
    file.write_text("one\ntwo\n")
    assert seqio_tasks.fingerprints.changes(before, digest()) == ["source changed"]


# --- tasks from elsewhere ---


@pytest.fixture(scope="module")
def sentencepiece_vocabulary(tmp_path_factory):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["add two numbers", "return the sum of a and b", "a class"] * 20),
        model_writer=model,
        vocab_size=24,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("spm") / "spm.model"
    path.write_bytes(model.getvalue())
    return seqio.SentencePieceVocabulary(str(path), extra_ids=10)


def shorten(dataset):
    @seqio.map_over_dataset(num_seeds=1)
    def at_random(example, seed):
        keep = tf.random.stateless_uniform((), seed, 1, 4, tf.int32)
        return {**example, "targets": example["targets"][:keep]}

    return at_random(dataset)


def tensors(split, shuffle_files):
    del shuffle_files
    n = {"train": 6, "validation": 2}[split]
    texts = {"inputs": ["add two numbers"] * n, "targets": ["the sum of a and b"] * n}
    return tf.data.Dataset.from_tensor_slices(texts)


def foreign_task(vocabulary, *more, name="foreign"):
    return seqio.Task(
        name,
        seqio.FunctionDataSource(tensors, ["train", "validation"]),
        {k: seqio.Feature(vocabulary, add_eos=True) for k in ("inputs", "targets")},
        [
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            *more,
            seqio.preprocessors.append_eos_after_trim,
        ],
    )


def test_a_foreign_task_is_finished_by_its_own_preprocessors(sentencepiece_vocabulary):
    task = foreign_task(sentencepiece_vocabulary)
    assert objective_of(task) == "seq2seq"
    assert vocabulary_of(task) is sentencepiece_vocabulary
    examples = list(cached_examples(task, "train"))
    assert len(examples) == 6
    for example in examples:
        assert {k: v.dtype for k, v in example.items()} == {"inputs": np.int32, "targets": np.int32}
        assert example["inputs"][-1] == example["targets"][-1] == 1
        assert sentencepiece_vocabulary.decode(example["targets"].tolist()) == "the sum of a and b"


def test_a_random_foreign_task_differs_between_epochs_only(sentencepiece_vocabulary):
    task = foreign_task(sentencepiece_vocabulary, shorten)

    def lengths(epoch):
        return [len(e["targets"]) for e in cached_examples(task, "train", epoch=epoch)]

    assert lengths(0) == lengths(0)
    assert len({tuple(lengths(epoch)) for epoch in range(4)}) > 1
    assert fingerprint_of(task) != fingerprint_of(task, epochs=2)


def test_a_foreign_task_may_need_its_lengths(sentencepiece_vocabulary):
    def crop(dataset, sequence_length):
        length = sequence_length["inputs"]
        return dataset.map(lambda e: {**e, "inputs": e["inputs"][:length]})

    task = foreign_task(sentencepiece_vocabulary, crop)
    lengths = {"inputs": 3, "targets": 99}
    (first, *_) = cached_examples(task, "train", sequence_length=lengths)
    assert len(first["inputs"]) == 3
    with pytest.raises(TypeError) as error:
        list(cached_examples(task, "train"))
    assert "`sequence_length`" in error.value.__notes__[0]


def test_a_language_model_task_has_empty_inputs(sentencepiece_vocabulary):
    task = seqio.Task(
        "lm",
        seqio.FunctionDataSource(tensors, ["train"]),
        {"targets": seqio.Feature(sentencepiece_vocabulary)},
        [seqio.preprocessors.tokenize],
    )
    (first, *_) = cached_examples(task, "train")
    assert first["inputs"].shape == (0,)
    assert first["inputs"].dtype == np.int32
    assert len(first["targets"])


def test_a_task_without_token_vectors_is_an_error(sentencepiece_vocabulary):
    task = seqio.Task(
        "scores",
        seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.range(3), ["train"]),
        {"targets": seqio.Feature(sentencepiece_vocabulary, rank=0, add_eos=False)},
        [lambda dataset: dataset.map(lambda x: {"targets": tf.cast(x, tf.int32)})],
    )
    with pytest.raises(ValueError, match=r"'scores': expected vectors of ids `targets`.*found"):
        list(cached_examples(task, "train"))


def test_roles_of_a_sentencepiece_vocabulary_are_those_of_t5(sentencepiece_vocabulary):
    special = special_tokens_of(sentencepiece_vocabulary)
    assert (special.pad, special.eos, special.unk, special.decoder_start) == (0, 1, 2, 0)
    assert special.sentinels == tuple(range(33, 23, -1))
    assert special.bos == 0
    # SeqIO spells its sentinels itself: the first is the highest id.
    assert sentencepiece_vocabulary.decode_tf(tf.constant([33])).numpy().decode() == "<extra_id_0>"


def test_two_vocabularies_in_one_task_are_an_error(sentencepiece_vocabulary):
    task = seqio.Task(
        "two",
        seqio.FunctionDataSource(tensors, ["train"]),
        {
            "inputs": seqio.Feature(sentencepiece_vocabulary),
            "targets": seqio.Feature(seqio.ByteVocabulary()),
        },
        [seqio.preprocessors.tokenize],
    )
    with pytest.raises(ValueError, match="'two': expected one vocabulary for inputs, targets"):
        fingerprint_of(task)


def test_one_vocabulary_is_not_read_to_compare_it(registered):
    absent = CodeVocabulary("nowhere")
    source = examples_source(read, ["train"], {"code": str}, None)
    task = add_task("t", source=source, objective="decoder_clm", vocabulary=absent)
    assert vocabulary_of(task) is absent
