"""The seam to SeqIO: tasks that name their objective, and NumPy examples out of any task.

Everything here runs offline. A task of this project stops at its `CacheDatasetPlaceholder`; what
comes after, the host half of its objective, runs in NumPy when a batch is made, and is wrapped as
its last preprocessor only to be looked at. A task from anywhere else keeps all its preprocessors:
its finished `inputs` and `targets` are what is cached.
"""

import functools
import hashlib
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from codet5p_jax.data import fingerprint as fingerprints
from codet5p_jax.data.quiet import quiet_stderr
from codet5p_jax.data.tokens import SpecialTokens

with quiet_stderr():
    import seqio
    import tensorflow as tf

    from codet5p_jax.data.vocab import CodeVocabulary

    tf.config.set_visible_devices([], "GPU")  # JAX's; TensorFlow would reserve all of its memory

FOREIGN_OBJECTIVE = "seq2seq"


class ObjectiveTask(seqio.Task):
    """A SeqIO task that says which objective consumes its examples."""

    def __init__(self, name: str, *, objective: str, **kwargs: Any):
        super().__init__(name, **kwargs)
        self.objective = objective


def add_task(
    name: str,
    *,
    source: seqio.DataSource,
    objective: str,
    vocabulary: seqio.Vocabulary,
    preprocessors: Sequence[Callable[..., tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task whose examples an objective consumes.

    Args:
      name: in SeqIO's registry.
      source: raw examples, for instance `examples_source(...)`.
      objective: name, such as `span_denoising`; it says which features the preprocessors leave
        (docs/data.md has the table).
      vocabulary: of all features; tasks of one mixture share it.
      preprocessors: SeqIO preprocessors up to and with tokenisation. Their result is cached.

    Returns:
      The task. Its `get_dataset()` shows the arrays of one row of the objective at its default
      lengths, and without their padding as `inputs` and `targets`.
    """
    feature = seqio.Feature(vocabulary, add_eos=False)
    task = ObjectiveTask(
        name,
        objective=objective,
        source=source,
        output_features={"inputs": feature, "targets": feature},
        preprocessors=[
            *preprocessors,
            seqio.CacheDatasetPlaceholder(),
            functools.partial(_apply_objective, objective=objective, vocabulary=vocabulary),
        ],
    )
    seqio.TaskRegistry.add_provider(name, task)
    return task


def examples_source(
    reader: Callable[[str], Iterator[Mapping[str, Any]]],
    splits: Iterable[str],
    features: Mapping[str, Any],
    fingerprint: Any,
) -> seqio.DataSource:
    """A SeqIO source over a Python reader, which may be an endless file: nothing is held.

    Args:
      reader: split -> examples, the same ones in the same order at every call.
      splits: their names.
      features: what to take of each example: name -> `tf.TensorSpec`, or a dtype of a scalar
        (`{"code": str}`).
      fingerprint: what the examples depend on apart from the code of `reader`: paths and sizes of
        files, settings. Any value, or a function that computes it, called when a cache is made.
    """
    return _ReaderSource(reader, splits, features, fingerprint)


def objective_of(task: seqio.Task) -> str:
    """Name of the objective that consumes a task; `seq2seq` for tasks from elsewhere."""
    return getattr(task, "objective", FOREIGN_OBJECTIVE)


def cached_examples(
    task: seqio.Task,
    split: str,
    *,
    epoch: int = 0,
    sequence_length: Mapping[str, int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """What the cache is to hold of a task.

    Args:
      task: its examples up to `CacheDatasetPlaceholder` if it is one of this project's, else
        finished `inputs` and `targets`, int32.
      split: one of its splits.
      epoch: seeds the preprocessors of a task from elsewhere; others ignore it.
      sequence_length: passed to the preprocessors of a task from elsewhere, which may need it.

    Raises:
      ValueError: a preprocessor failed, or a task from elsewhere leaves no vectors of ids.
      Exception: whatever the reader of an `examples_source` raises.
    """
    if isinstance(task, ObjectiveTask):
        dataset = task.source.get_dataset(split=split, shuffle=False)
        dataset = task.preprocess_precache(dataset, seed=0)
        keep = _numeric(dataset)
    else:
        dataset = _finished(task, split, epoch, sequence_length)
        keep = ["inputs", "targets"]
    dataset = dataset.map(functools.partial(_select, keep=keep)).prefetch(64)
    try:
        # The stub knows only datasets of bare arrays.
        yield from dataset.as_numpy_iterator()  # pyright: ignore[reportReturnType]
    except tf.errors.OpError as error:  # TensorFlow wraps what Python code in it raises
        failure = getattr(task.source, "failure", None)
        if failure is not None:
            raise failure from error
        what = error.message.strip().partition("\n")[0]
        raise ValueError(f"task {task.name!r}, split {split!r}: {what}") from error


def fingerprint_of(
    task: seqio.Task, *, epochs: int = 1, sequence_length: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Digests of what decides a task's cached examples, by part, to say later what changed."""
    parts = {"source": _source_identity(task.source), "tokenizer": vocabulary_digest(task)}
    preprocessors = task.preprocessors
    if isinstance(task, ObjectiveTask):
        preprocessors = preprocessors[:-2]  # without the placeholder and what is only for show
    else:
        parts["sequence_length"] = dict(sequence_length or {})
        parts["epochs"] = epochs
    for i, preprocessor in enumerate(preprocessors, 1):
        parts[f"preprocessor {i} ({fingerprints.name_of(preprocessor)})"] = preprocessor
    return {part: fingerprints.digest(value) for part, value in parts.items()}


def vocabulary_of(task: seqio.Task) -> seqio.Vocabulary:
    """The one vocabulary of a task; not read where all features have the same object.

    Raises:
      ValueError: its features have different ones.
    """
    vocabularies = [feature.vocabulary for feature in task.output_features.values()]
    same = all(vocabulary is vocabularies[0] for vocabulary in vocabularies)
    if not same and len(set(map(_vocabulary_identity, vocabularies))) != 1:
        raise ValueError(
            f"task {task.name!r}: expected one vocabulary for {', '.join(task.output_features)}, "
            "found several; encoder and decoder share their embedding"
        )
    return vocabularies[0]


def vocabulary_digest(task: seqio.Task) -> str:
    """Digest of a task's vocabulary."""
    return fingerprints.digest(_vocabulary_identity(vocabulary_of(task)))


def special_tokens_of(vocabulary: seqio.Vocabulary) -> SpecialTokens:
    """Roles of ids. SeqIO's own vocabularies get T5's: padding starts the decoder, sentinels are
    the extra ids from the highest down, and a role that is missing falls to padding."""
    if isinstance(vocabulary, CodeVocabulary):
        return vocabulary.tokenizer.special
    size, pad = vocabulary.vocab_size, vocabulary.pad_id

    def role(name: str) -> int:
        try:
            value = getattr(vocabulary, name)
        except NotImplementedError:
            value = None
        return pad if value is None or value < 0 else value

    return SpecialTokens(
        pad=pad,
        bos=role("bos_id"),
        eos=role("eos_id"),
        unk=role("unk_id"),
        sentinels=tuple(range(size - 1, size - 1 - vocabulary.extra_ids, -1)),
        decoder_start=pad,
    )


def save_vocabulary(vocabulary: seqio.Vocabulary, folder: Path) -> None:
    """Writes the files of a vocabulary, so that a cache can decode itself."""
    if isinstance(vocabulary, CodeVocabulary):
        vocabulary.tokenizer.save(folder)
    elif isinstance(vocabulary, seqio.SentencePieceVocabulary):
        (folder / "sentencepiece.model").write_bytes(_model_of(vocabulary))
    else:  # nothing to copy: bytes, or ids that mean nothing outside the task
        (folder / "vocabulary.txt").write_text(type(vocabulary).__name__ + "\n", encoding="utf-8")


class _ReaderSource(seqio.DataSource):
    """See `examples_source`; `failure` is what the reader raised last."""

    def __init__(
        self,
        reader: Callable[[str], Iterator[Mapping[str, Any]]],
        splits: Iterable[str],
        features: Mapping[str, Any],
        fingerprint: Any,
    ):
        super().__init__(splits)
        self._reader, self._fingerprint = reader, fingerprint
        self.failure: Exception | None = None
        self._signature = {name: _tensor_spec(value) for name, value in features.items()}

    @property
    def fingerprint(self) -> str:
        """Digest of the reader, and of what its author says it depends on."""
        data = self._fingerprint() if callable(self._fingerprint) else self._fingerprint
        signature = {name: str(spec) for name, spec in self._signature.items()}
        return fingerprints.digest([self._reader, self.splits, signature, data])

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        del shuffle, seed  # SeqIO's own buffer shuffles what is shown; the loader what is cached
        if split not in self.splits:
            raise ValueError(f"expected a split among {', '.join(self.splits)}, found {split!r}")
        index, step = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)

        def generate() -> Iterator[dict[str, Any]]:
            self.failure = None
            try:
                for example in itertools.islice(self._reader(split), index, None, step):
                    yield {name: example[name] for name in self._signature}
            except Exception as error:
                self.failure = error
                raise

        return tf.data.Dataset.from_generator(generate, output_signature=self._signature)


def _tensor_spec(value: Any) -> tf.TensorSpec:
    if isinstance(value, tf.TensorSpec):
        return value
    return tf.TensorSpec((), tf.string if value is str else tf.as_dtype(value))


def _numeric(dataset: tf.data.Dataset) -> list[str]:
    """All features but strings: those are what the others were made of, no objective reads them."""
    specs = cast(Mapping[str, tf.TensorSpec], dataset.element_spec)
    return [name for name, spec in specs.items() if spec.dtype != tf.string]


def _select(example: Mapping[str, tf.Tensor], keep: Sequence[str]) -> dict[str, tf.Tensor]:
    return {name: example[name] for name in keep}


def _finished(
    task: seqio.Task, split: str, epoch: int, sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
    """Finished `inputs` and `targets` of a task from elsewhere, as one of its epochs.

    As `task.get_dataset` makes them, except that the source gets no seed: it is not shuffled, and
    sources that take none refuse it.
    """
    seed = 10_000 * epoch  # preprocessors count on from it
    dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False), seed=seed)
    try:
        dataset = task.preprocess_postcache(dataset, sequence_length, seed=seed)
    except TypeError as error:
        if sequence_length is None:
            error.add_note(f"preprocessors of {task.name!r} may need `sequence_length`")
        raise
    dataset = seqio.utils.trim_dataset(dataset, sequence_length, task.output_features)
    spec = {n: s for n, s in dataset.element_spec.items() if n in task.output_features}
    vectors = [n for n in _IO if n in spec and spec[n].shape.rank == 1 and spec[n].dtype.is_integer]
    if "targets" not in vectors or set(spec) - set(vectors):
        raise ValueError(
            f"task {task.name!r}: expected vectors of ids `targets` and, but for language models, "
            f"`inputs`, found {spec}"
        )

    def as_int32(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        empty = tf.zeros((0,), tf.int32)
        return {n: tf.cast(example[n], tf.int32) if n in vectors else empty for n in _IO}

    return dataset.map(as_int32)


_IO = ("inputs", "targets")


def _apply_objective(
    dataset: tf.data.Dataset, *, objective: str, vocabulary: seqio.Vocabulary
) -> tf.data.Dataset:
    """The host half of an objective as a SeqIO preprocessor, at the objective's default lengths."""
    # By name: the data part knows of no objective, and needs none but to show a task.
    kinds = importlib.import_module("codet5p_jax.objectives").OBJECTIVES
    if objective not in kinds:
        raise ValueError(f"expected an objective among {', '.join(kinds)}, found {objective!r}")
    instance, special = kinds[objective](), special_tokens_of(vocabulary)
    spec = dict(instance.spec)
    names = _numeric(dataset)

    def features(seed: np.ndarray, *values: np.ndarray | np.generic) -> list[np.ndarray]:
        example = dict(zip(names, map(np.asarray, values), strict=True))
        rng = np.random.default_rng(seed.astype(np.uint64))
        row = instance.features(example, rng, special)
        return [*(row[name] for name in spec), *_without_padding(row)]

    @seqio.map_over_dataset(num_seeds=1)
    def apply(example: Mapping[str, tf.Tensor], seed: Any) -> dict[str, tf.Tensor]:
        dtypes = [*(tf.as_dtype(s.dtype) for s in spec.values()), tf.int32, tf.int32]
        values = tf.numpy_function(features, [tf.stack(seed), *(example[n] for n in names)], dtypes)
        shapes = [*(s.shape for s in spec.values()), (None,), (None,)]
        for value, shape in zip(values, shapes, strict=True):
            value.set_shape(shape)
        return dict(zip([*spec, *_IO], values, strict=True))

    # SeqIO's decorator, which says nothing of types, turns it into a function of a dataset.
    return apply(dataset)  # pyright: ignore[reportCallIssue]


def _without_padding(row: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`inputs` and `targets` of a finished row: what the encoder reads, what is to come out."""
    if "decoder_targets" in row:
        inputs = row["encoder_tokens"][row["encoder_segments"] > 0]
        return inputs, row["decoder_targets"][row["decoder_weights"] > 0]
    if "label" in row:
        return row["code_tokens"][row["code_segments"] > 0], row["label"].reshape(1)
    text, code = (row[f"{side}_tokens"][row[f"{side}_segments"] > 0] for side in ("text", "code"))
    return text, code


def _source_identity(source: seqio.DataSource) -> Any:
    """What a source reads, as far as it can be told without reading it."""
    if isinstance(source, seqio.TfdsDataSource):
        return repr(source)  # name with version, folder, splits
    if isinstance(source, seqio.FileDataSource):
        files = [file for split in source.splits for file in source.list_shards(split)]
        stats = [tf.io.gfile.stat(file) for file in files]
        return [source, [(f, s.length, s.mtime_nsec) for f, s in zip(files, stats, strict=True)]]
    return source


def _model_of(vocabulary: seqio.SentencePieceVocabulary) -> bytes:
    model = vocabulary.sp_model
    assert model is not None, "SeqIO reads the file when it is first asked for"
    return model


def _vocabulary_identity(vocabulary: seqio.Vocabulary) -> tuple[Any, ...]:
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        content = hashlib.sha256(_model_of(vocabulary)).hexdigest()
        return type(vocabulary).__name__, content, vocabulary.vocab_size, vocabulary.extra_ids
    own = getattr(vocabulary, "fingerprint", None)
    return type(vocabulary).__name__, own, vocabulary.vocab_size, vocabulary.extra_ids
