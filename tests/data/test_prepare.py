"""Preparing a mixture: what is shared, kept, refused; an interruption; a TFDS task to batches."""

import io
import re

import pytest
import sentencepiece
import tensorflow_datasets as tfds
from rich.console import Console

from codet5p_jax.data import prepare as prepare_module
from codet5p_jax.data.cache import CacheError, open_mixture, open_task
from codet5p_jax.data.inspect import inspect
from codet5p_jax.data.loader import Loader
from codet5p_jax.data.prepare import prepare
from codet5p_jax.data.seqio_tasks import add_task, examples_source, seqio, tf
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.data.vocab import CodeVocabulary
from codet5p_jax.objectives import CodeToText, Seq2Seq, TextToCode

CODE = ["def add(a, b):\n    return a + b\n", "class A:\n    pass\n"]


def read(split):
    for i in range({"train": 20, "validation": 8}[split]):
        yield {"text": f"Number {i}.", "code": CODE[i % 2]}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CODE, 400, folder, num_sentinels=20, min_frequency=1)
    return CodeVocabulary(folder)


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Tasks and mixtures that a test adds are gone after it."""
    monkeypatch.setattr(seqio.TaskRegistry, "_REGISTRY", {})
    monkeypatch.setattr(seqio.MixtureRegistry, "_REGISTRY", {})


def add(name, vocabulary, objective, reader=read, splits=("train", "validation"), version=1):
    def tokenise(dataset):
        return dataset.map(lambda e: {k: vocabulary.encode_tf(e[k]) for k in ("text", "code")})

    source = examples_source(reader, splits, {"text": str, "code": str}, version)
    return add_task(
        name, source=source, objective=objective, vocabulary=vocabulary, preprocessors=[tokenise]
    )


@pytest.fixture
def mixture(vocabulary):
    add("a", vocabulary, "text_to_code")
    add("b", vocabulary, "code_to_text")
    return seqio.MixtureRegistry.add("both", [("a", 3), ("b", 1.5)])


def ways(summary):
    return [(s.manifest.task, s.manifest.split, s.how) for s in summary.splits]


OBJECTIVES = {
    o.name: o
    for o in (
        TextToCode(inputs_length=8, targets_length=16),
        CodeToText(inputs_length=16, targets_length=8),
    )
}


def test_a_mixture_is_cached_once_and_kept(tmp_path, mixture, vocabulary):
    console = Console(file=io.StringIO())
    summary = prepare("both", tmp_path, console=console)
    assert ways(summary) == [
        ("a", "train", "written"),
        ("a", "validation", "written"),
        ("b", "train", "shared"),
        ("b", "validation", "shared"),
    ]
    assert len(list(tmp_path.rglob("*.array_record"))) == 2
    said = console.file.getvalue()
    assert re.search(r"^a/train: 20 examples, [\d,]+/s; text [\d,]+ \(p50 \d+, p95 ", said)
    assert "\nb/train: 20 examples [shared, shards of a]\n" in said

    again = prepare(mixture, tmp_path, ["validation"], console=console)
    assert [s.how for s in again.splits] == ["kept", "kept"]

    cached = open_mixture(tmp_path, "both", "train")
    assert [(t.name, t.objective, t.rate) for t in cached.tasks] == [
        ("a", "text_to_code", 3.0),
        ("b", "code_to_text", 1.5),
    ]
    assert cached.special == vocabulary.tokenizer.special
    assert cached.vocab_size == vocabulary.vocab_size
    kept = Tokenizer.load(cached.tokenizer)
    assert kept.fingerprint == vocabulary.fingerprint
    assert [kept.decode(cached.tasks[1].examples[i]["code"]) for i in range(2)] == CODE

    loader = Loader(cached, OBJECTIVES, 6, 0)
    assert loader.rows == {"text_to_code": 4, "code_to_text": 2}
    assert loader.batch_at(0)["text_to_code"]["encoder_tokens"].shape == (4, 8)
    lines = "\n".join(inspect(cached, OBJECTIVES, 6))
    assert "== text_to_code: 4 rows of each batch" in lines
    assert "task a, rate 3, 20 examples" in lines
    assert "<s>Number" in lines


def test_a_task_alone_is_a_mixture_of_one(tmp_path, mixture):
    prepare("b", tmp_path, ["train"], console=Console(quiet=True))
    (task,) = open_mixture(tmp_path, "b", "train").tasks
    assert (task.name, task.rate, len(task.examples)) == ("b", 1.0, 20)


def test_a_stale_cache_is_refused_and_rebuilt_on_demand(tmp_path, mixture, vocabulary):
    quiet = Console(quiet=True)
    prepare("both", tmp_path, console=quiet)
    for name in ("a", "b"):
        seqio.TaskRegistry.remove(name)
    seqio.MixtureRegistry.remove("both")
    add("a", vocabulary, "text_to_code", version=2)
    add("b", vocabulary, "code_to_text", version=2)
    seqio.MixtureRegistry.add("both", ["a", "b"], default_rate=1)
    with pytest.raises(CacheError, match=r"task 'a', split 'train'.*otherwise: source changed. Pa"):
        prepare("both", tmp_path, console=quiet)
    assert open_mixture(tmp_path, "both", "train").tasks[0].rate == 3.0  # as it was
    rebuilt = prepare("both", tmp_path, rebuild=True, console=quiet)
    assert [s.how for s in rebuilt.splits] == ["written", "written", "shared", "shared"]
    assert open_mixture(tmp_path, "both", "train").tasks[0].rate == 1.0


def test_a_task_made_again_with_another_tokenizer_is_refused(tmp_path, mixture):
    quiet, cache_dir, other = Console(quiet=True), tmp_path / "cache", tmp_path / "other"
    prepare("both", cache_dir, console=quiet)
    kept = open_mixture(cache_dir, "both", "train").tokenizer
    train_tokenizer(CODE, 400, other, num_sentinels=10, min_frequency=1)
    seqio.TaskRegistry.remove("b")
    add("b", CodeVocabulary(other), "code_to_text")
    prepare("b", cache_dir, rebuild=True, console=quiet)
    assert open_mixture(cache_dir, "b", "train").tokenizer != kept
    with pytest.raises(
        CacheError,
        match=rf"'both' was prepared with the tokenizer in {kept}, but .*{cache_dir}/b/train with "
        r"another one; run `codet5p prepare both --rebuild`",
    ):
        open_mixture(cache_dir, "both", "train")


def test_an_interrupted_preparation_goes_on_where_it_stopped(tmp_path, vocabulary):
    trouble = tmp_path / "trouble"
    trouble.touch()

    def interrupted(split):
        yield from read(split)
        if split == "validation" and trouble.exists():
            raise OSError("no network")

    add("a", vocabulary, "text_to_code", interrupted)
    quiet, cache_dir = Console(quiet=True), tmp_path / "cache"
    with pytest.raises(OSError, match=r"^no network$"):
        prepare("a", cache_dir, console=quiet)
    assert [p.name for p in (cache_dir / "a").iterdir()] == ["train"]
    with pytest.raises(CacheError, match="mixture 'a' is not prepared"):
        open_mixture(cache_dir, "a", "train")
    trouble.unlink()
    assert ways(prepare("a", cache_dir, console=quiet)) == [
        ("a", "train", "kept"),
        ("a", "validation", "written"),
    ]
    assert len(open_mixture(cache_dir, "a", "validation").tasks[0].examples) == 8


def test_two_processes_do_not_write_one_cache(tmp_path, mixture):
    with (
        prepare_module._only_process(tmp_path),
        pytest.raises(OSError, match="another process is preparing"),
    ):
        prepare("both", tmp_path, console=Console(quiet=True))
    prepare("both", tmp_path, ["train"], console=Console(quiet=True))


def test_names_and_splits_that_are_not_there(tmp_path, mixture, vocabulary):
    with pytest.raises(ValueError, match=r"no mixture or task 'boht' .* did you mean 'both'"):
        prepare("boht", tmp_path)
    with pytest.raises(
        ValueError, match=r"'both': expected splits among train, validation, .*test"
    ):
        prepare("both", tmp_path, ["test"])
    add("mixtures", vocabulary, "text_to_code")
    with pytest.raises(ValueError, match="rename that task"):
        prepare("mixtures", tmp_path)
    assert not list(tmp_path.iterdir())
    # Prepared before, by a module that is not imported now.
    (tmp_path / "mixtures").mkdir()
    (tmp_path / "mixtures" / "elsewhere.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no mixture or task .* did you mean 'elsewhere'"):
        prepare("elsewher", tmp_path)


def test_one_vocabulary_for_all_tasks(tmp_path, mixture, vocabulary):
    add("c", CodeVocabulary(vocabulary.path, prefixes=True), "text_to_code")
    other = seqio.Task(
        "d",
        seqio.FunctionDataSource(lambda split, shuffle_files: None, ["train"]),
        {k: seqio.Feature(seqio.ByteVocabulary()) for k in ("inputs", "targets")},
    )
    with pytest.raises(ValueError, match="expected one vocabulary for a, d"):
        prepare(seqio.Mixture("m", [("a", 1), (other, 1)]), tmp_path, ["train"])


# --- a task from elsewhere: TFDS, SentencePiece, TensorFlow preprocessors ---


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A prepared TFDS data set of six sums in words."""
    folder = tmp_path_factory.mktemp("tfds")
    data = folder / "tiny_sums/1.0.0"
    data.mkdir(parents=True)
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict({"question": text, "answer": text})
    with tf.io.TFRecordWriter(str(data / "tiny_sums-train.tfrecord-00000-of-00001")) as writer:
        for i in range(6):
            example = {"question": f"add two and {i}", "answer": f"it is {i + 2}"}
            writer.write(features.serialize_example(example))
    tfds.folder_dataset.write_metadata(
        data_dir=str(data),
        features=features,
        split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[6], num_bytes=0)],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    return folder


@pytest.fixture(scope="module")
def sentencepiece_vocabulary(tmp_path_factory):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"add two and {i} it is {i}" for i in range(10)]),
        model_writer=model,
        vocab_size=25,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    path = tmp_path_factory.mktemp("spm") / "spm.model"
    path.write_bytes(model.getvalue())
    return seqio.SentencePieceVocabulary(str(path), extra_ids=10)


@seqio.map_over_dataset(num_seeds=1)
def drop_a_word(example, seed):
    words = tf.strings.split(example["inputs"])
    keep = tf.range(tf.size(words)) != tf.random.stateless_uniform((), seed, 0, 4, tf.int32)
    return {**example, "inputs": tf.strings.reduce_join(words[keep], separator=" ")}


def test_a_plain_seqio_task_trains_unchanged(tmp_path, tfds_folder, sentencepiece_vocabulary):
    seqio.TaskRegistry.add(
        "sums",
        source=seqio.TfdsDataSource("tiny_sums:1.0.0", str(tfds_folder), splits=["train"]),
        preprocessors=[
            lambda ds: seqio.preprocessors.rekey(ds, {"inputs": "question", "targets": "answer"}),
            drop_a_word,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos,
        ],
        output_features={
            k: seqio.Feature(sentencepiece_vocabulary, add_eos=True) for k in ("inputs", "targets")
        },
    )
    console = Console(quiet=True)
    summary = prepare("sums", tmp_path, epochs=3, console=console)
    assert summary.splits[0].manifest.epochs == (6, 6, 6)
    assert [s.how for s in prepare("sums", tmp_path, epochs=3, console=console).splits] == ["kept"]
    with pytest.raises(CacheError, match=r"epochs changed\. Pass"):
        prepare("sums", tmp_path, epochs=2, console=console)

    mixture = open_mixture(tmp_path, "sums", "train")
    assert mixture.objectives == ("seq2seq",)
    assert mixture.vocab_size == sentencepiece_vocabulary.vocab_size
    examples = open_task(tmp_path, "sums", "train")
    inputs = [tuple(examples[i]["inputs"]) for i in range(18)]
    assert len(set(inputs)) > 6  # other words are dropped in other epochs
    answers = {sentencepiece_vocabulary.decode(examples[i]["targets"].tolist()) for i in range(6)}
    assert answers == {f"it is {i + 2}" for i in range(6)}

    objective = Seq2Seq(inputs_length=20, targets_length=16)
    batch = Loader(mixture, {"seq2seq": objective}, 6, 0).batch_at(0)["seq2seq"]
    targets = {tuple(row[row > 0]) for row in batch["decoder_targets"]}
    assert targets == {tuple(examples[i]["targets"]) for i in range(6)}
    lines = "\n".join(inspect(mixture, {"seq2seq": objective}, 6))
    assert "it is" in lines
    assert "</s>" in lines
