"""What every benchmark is: problems out of published files, predictions of them, figures."""

import abc
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
from jax.sharding import Mesh

from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.data.tokens import SpecialTokens

Problem = dict[str, Any]  # what a reader yields, and `key`
Prediction = dict[str, Any]  # a line of a file of predictions
Reader = Callable[..., Iterator[dict[str, Any]]]  # (folder, split, setting=…)


@dataclass(frozen=True)
class Model:
    """A network with its weights.

    Attributes:
      network: abstract CodeT5p.
      params: its weights.
      special: of the tokenizer, with all tokens that end a text of this model.
      mesh: that weights and batches are divided over; None: one device.
    """

    network: Any
    params: Any
    tokenizer: Tokenizer
    special: SpecialTokens
    mesh: Mesh | None = None


@dataclass(frozen=True)
class Settings:
    """What may be chosen for a run; None: as the benchmark has it.

    Attributes:
      batch_size: rows of a compiled call.
      seed: of sampling.
      samples: programs of each problem.
      temperature, top_p: of sampling.
      beams: of beam search, where nothing is sampled.
      max_tokens: written at most.
      rerank: candidates of a query that the matching head reads; 0: none.
      code_t: texts with tests that are written for each problem, to rank programs by; 0: none.
      code_separator: what [SEP] is between a text and code found for it.
      allow_weaker_sandbox: run programs where layers of the sandbox are missing.
    """

    batch_size: int = 16
    seed: int = 0
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    beams: int | None = None
    max_tokens: int | None = None
    rerank: int = 0
    code_t: int = 0
    code_separator: str | None = None
    allow_weaker_sandbox: bool = False


@dataclass(frozen=True)
class Metric:
    """A figure.

    Attributes:
      name: as in `scores.json`.
      percent: the benchmark's script has it from 0 to 1, the paper times 100.
    """

    name: str
    percent: bool = False


@dataclass(frozen=True)
class Published:
    """A row of the paper's tables.

    Attributes:
      size: of the model, as `size_of` says it.
      figures: by metric, in the paper's unit, 0 to 100.
      how: what had been done to the model.
    """

    size: str
    figures: Mapping[str, float]
    how: str = "fine-tuned"


class Data(NamedTuple):
    """What was read.

    Attributes:
      problems: each with its `key`.
      candidates: what is searched, by name; of retrieval only.
    """

    problems: list[Problem]
    candidates: Mapping[Any, str] = {}

    def fingerprint(self) -> str:
        """Of all that was read, wherever it was."""
        digest = hashlib.sha256()
        for problem in self.problems:
            said = {name: value for name, value in problem.items() if name != "place"}
            digest.update(json.dumps(said, sort_keys=True).encode())
        for name, code in self.candidates.items():
            digest.update(json.dumps([name, code]).encode())
        return digest.hexdigest()[:16]

    def first(self, limit: int | None) -> "Data":
        """The first problems, and all candidates."""
        return self._replace(problems=self.problems[:limit])


@dataclass(frozen=True, kw_only=True)
class Benchmark(abc.ABC):
    """A benchmark.

    Attributes:
      name: of the command's option.
      about: what is asked.
      folder: below the folder with data.
      files: what has to be in it, for people.
      read: reader of one split.
      metrics: what `score` finds, the main one first.
      metric_source: whose script the figures equal.
      split: that figures are published of.
      published: the paper's figures.
      published_source: where they are.
      note: what differs, or is not stated.
    """

    name: str
    about: str
    folder: str
    files: str
    read: Reader
    metrics: tuple[Metric, ...]
    metric_source: str
    split: str = "test"
    published: tuple[Published, ...] = ()
    published_source: str = ""
    note: str = ""

    key: ClassVar[str] = "id"
    """The field of a prediction that names its problem."""
    value: ClassVar[str]
    """The field with what was predicted."""
    unused: ClassVar[tuple[str, ...]] = ("code_separator",)
    """Settings that nothing depends on."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What scoring imports of the extra `metrics`."""

    def load(self, root: Path, split: str | None = None) -> Data:
        """All problems of a split.

        Raises:
          FileNotFoundError, ValueError: a file is missing or malformed.
        """
        folder, split = root / self.folder, split or self.split
        problems = []
        for number, record in enumerate(self.read(folder, split, setting="finetune_dir")):
            problems.append({**record, "key": self.key_of(record, number)})
        if not problems:
            raise ValueError(f"{self.name}: no problems in split {split!r} below {folder}")
        keys = Counter(problem["key"] for problem in problems)
        key, times = keys.most_common(1)[0]
        if times > 1:
            raise ValueError(f"{self.name}: expected different problems, found {key!r} {times} x")
        return Data(problems)

    def key_of(self, record: Mapping[str, Any], number: int) -> str:
        """The name of a problem in files of predictions."""
        del record
        return str(number)

    def samples(self, settings: Settings) -> int:
        """Predictions of each problem."""
        del settings
        return 1

    def remark(self, settings: Settings) -> str:
        """What differs from the paper in a run of a model."""
        del settings
        return self.note

    def left_out(self) -> str:
        """Figures that `score` will not find, and what they need."""
        return ""

    def also(self, settings: Settings) -> "list[tuple[Benchmark, Settings, str]]":
        """What is asked besides, how, and in which file the answers are when scores are made."""
        del settings
        return []

    def check_scoring(self, data: Data, settings: Settings) -> None:
        """Fails where scoring would, for what is not there."""
        del data, settings
        for package in self.packages:
            try:
                __import__(package)
            except ImportError as error:
                raise ImportError(
                    f"{self.name} needs {package}: `pip install codet5p_jax[metrics]`"
                ) from error

    @abc.abstractmethod
    def check_model(self, model: Model, settings: Settings) -> None:
        """Raises ValueError where a network or vocabulary cannot do it."""

    def check_lengths(self, model: Model, data: Data, settings: Settings) -> None:
        """Raises ValueError where the positions of a network are too few for what it would read
        and write."""
        del model, data, settings

    @abc.abstractmethod
    def predict(
        self,
        model: Model,
        data: Data,
        todo: Sequence[Problem],
        settings: Settings,
        key: jax.Array,
    ) -> Iterator[list[Prediction]]:
        """Predictions of `todo`, a batch at a time, in any order.

        Args:
          model: passed `check_model` and `check_lengths`.
          data: problems and candidates.
          todo: problems; one for each prediction that is missing.
          settings: of the run.
          key: for sampling; another one each time that a run goes on.
        """

    @abc.abstractmethod
    def parse(self, path: Path, data: Data) -> list[Prediction]:
        """Reads a file of predictions in the form of the benchmark's own evaluator, or ours.

        Raises:
          FileNotFoundError, ValueError: it is missing or of another form.
        """

    @abc.abstractmethod
    def score(
        self, data: Data, predictions: Sequence[Prediction], settings: Settings, folder: Path
    ) -> dict[str, float]:
        """Figures by name.

        Args:
          data: the problems that count.
          predictions: of these, in their order, as many of each as there are.
          settings: of the run.
          folder: where more may be written.
        """


def check_reading(name: str, config: Any, length: int) -> None:
    """Raises ValueError where the encoder of a network has fewer positions than a benchmark's texts
    have tokens at most."""
    limit = config.encoder.max_positions
    if limit is not None and length > limit:
        raise ValueError(
            f"{name}: texts of up to {length} tokens are read, and the network's encoder has "
            f"{limit} positions; take another model"
        )


def matched(
    benchmark: Benchmark, data: Data, predictions: Sequence[Prediction], where: str
) -> list[Prediction]:
    """Predictions of the problems, in their order; those of other problems are left out.

    Raises:
      ValueError: a problem has none, or more than others.
    """
    found: dict[str, list[Prediction]] = {problem["key"]: [] for problem in data.problems}
    for prediction in predictions:
        if prediction[benchmark.key] in found:
            found[prediction[benchmark.key]].append(prediction)
    missing = [key for key, of_problem in found.items() if not of_problem]
    if missing:
        raise ValueError(
            f"{where}: expected predictions of {len(found)} problems of {benchmark.name}, "
            f"{len(missing)} have none, {missing[0]!r} first"
        )
    return list(itertools.chain.from_iterable(found.values()))


def first_of_each(predictions: Sequence[Prediction], key: str, samples: int) -> list[Prediction]:
    """At most so many of a problem: a run may hold more, of an earlier command."""
    count: Counter[str] = Counter()
    kept = []
    for prediction in predictions:
        count[prediction[key]] += 1
        if count[prediction[key]] <= samples:
            kept.append(prediction)
    return kept
