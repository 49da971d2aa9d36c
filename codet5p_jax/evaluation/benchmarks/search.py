"""Text-to-code retrieval: CodeSearchNet, CosQA, AdvTest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from codet5p_jax.data.corpora.finetuning import retrieval as readers
from codet5p_jax.evaluation import retrieval
from codet5p_jax.evaluation.benchmarks.base import (
    Benchmark,
    Data,
    Model,
    Prediction,
    Problem,
    Settings,
    check_reading,
)
from codet5p_jax.evaluation.benchmarks.files import read_objects
from codet5p_jax.evaluation.encoder import PairEncoder
from codet5p_jax.evaluation.progress import progress_bar

KEPT = 100  # candidates of a query in a file of predictions
CUTS = (1, 5, 10)  # k of recall at k

Candidates = Callable[[Path, Sequence[Problem]], Mapping[Any, str]]


@dataclass(frozen=True, kw_only=True)
class SearchBenchmark(Benchmark):
    """Texts, each of which has one right function among all candidates.

    Attributes:
      candidates: (folder, problems) -> functions by name.
      name_field: the field of a problem that names it.
      target_field: the field with the name of its function.
      text_length, code_length: tokens, `<s>` and `</s>` included.
    """

    candidates: Candidates
    name_field: str = "url"
    target_field: str = "url"
    text_length: int = 64
    code_length: int = 360

    key: ClassVar[str] = "url"
    value: ClassVar[str] = "answers"

    def load(self, root: Path, split: str | None = None) -> Data:
        """Problems and candidates; the right one of each has to be among them."""
        problems = super().load(root, split).problems
        for problem in problems:
            if self.target_field not in problem:
                raise ValueError(
                    f"{self.name}: {problem['place']}: expected field {self.target_field!r}, which "
                    "names the right function"
                )
        found = self.candidates(root / self.folder, problems)
        for problem in problems:
            if problem[self.target_field] not in found:
                raise ValueError(
                    f"{self.name}: {problem['place']}: expected its {self.target_field} among the "
                    f"{len(found)} candidates, found no {problem[self.target_field]!r}"
                )
        return Data(problems, found)

    def key_of(self, record: Mapping[str, Any], number: int) -> str:
        """The name in the file, else the number."""
        return str(record.get(self.name_field) or number)

    def check_model(self, model: Model, settings: Settings) -> None:
        """It has to embed, and to match where candidates are reranked."""
        config, special = model.network.config, model.tokenizer.special
        check_embedding(self.name, model, max(self.text_length, self.code_length))
        if settings.rerank and (special.enc is None or not config.matching_head):
            raise ValueError(
                f"{self.name}: --rerank needs a model with a matching head and a vocabulary with "
                "[ENC] (stage 2); leave it out"
            )

    def predict(
        self,
        model: Model,
        data: Data,
        todo: Sequence[Problem],
        settings: Settings,
        key: jax.Array,
    ) -> Iterator[list[Prediction]]:
        """Ranks all candidates by cosine; with `rerank`, the first of them by logit + cosine."""
        del key
        names = list(data.candidates)
        place = {name: column for column, name in enumerate(names)}
        codes = [model.tokenizer.encode(code) for code in data.candidates.values()]
        encoder = pair_encoder(model, self.text_length, self.code_length, settings.batch_size)
        with progress_bar(f"{self.name}: candidates", len(codes)) as advance:
            encoder.progress = advance
            embedded = encoder.embed_codes(codes)
        encoder.progress = lambda rows: None
        for start in range(0, len(todo), settings.batch_size):
            problems = todo[start : start + settings.batch_size]
            texts = [model.tokenizer.encode(problem["text"]) for problem in problems]
            scores = encoder.embed_texts(texts) @ embedded.T
            if settings.rerank:
                scores = _reranked(encoder, texts, codes, scores, settings.rerank)
            targets = np.array([place[problem[self.target_field]] for problem in problems])
            best = retrieval.top(scores, KEPT)
            yield [
                {
                    self.key: problem["key"],
                    self.value: [names[column] for column in columns],
                    "rank": int(rank),
                }
                for problem, columns, rank in zip(
                    problems, best, retrieval.ranks(scores, targets), strict=True
                )
            ]

    def parse(self, path: Path, data: Data) -> list[Prediction]:
        """JSON lines of {url, answers}, candidates from the best on, as of CodeXGLUE's evaluator; a
        right one that is not among them counts 0. `rank` tells its place beyond them."""
        targets = {problem["key"]: problem[self.target_field] for problem in data.problems}
        kinds = {*map(type, data.candidates)}
        found = read_objects(path, {self.key: (str,), self.value: (list,)})
        for line, prediction in enumerate(found, start=1):
            key, answers = prediction[self.key], prediction[self.value]
            if key not in targets:
                raise ValueError(
                    f"{path}:{line}: expected a url of a problem of {self.name}, got {key[:60]!r}"
                )
            for answer in answers:
                if type(answer) not in kinds:
                    example = next(iter(data.candidates))
                    raise ValueError(
                        f"{path}:{line}: expected answers such as {example!r}, got {answer!r}"
                    )
            # Of candidates that score the same, the right one counts as the last.
            place = _rank({"answers": answers}, targets[key]) or len(answers) + 1
            rank = prediction.get("rank", place)
            if not isinstance(rank, int) or rank < place:
                raise ValueError(
                    f"{path}:{line}: expected rank to be {place} or more, as answers say, got "
                    f"{rank!r}"
                )
        return found

    def score(
        self, data: Data, predictions: Sequence[Prediction], settings: Settings, folder: Path
    ) -> dict[str, float]:
        """The last prediction of a problem counts, as in the official evaluator."""
        del settings, folder
        last = {prediction[self.key]: prediction for prediction in predictions}
        ranks = [_rank(last[p["key"]], p[self.target_field]) for p in data.problems]
        count = len(ranks)
        figures = {"mrr": sum(1 / rank if rank else 0.0 for rank in ranks) / count}
        return figures | {f"recall@{k}": sum(0 < rank <= k for rank in ranks) / count for k in CUTS}


def check_embedding(name: str, model: Model, length: int) -> None:
    """Raises ValueError where a network has no embedding, or fewer positions than `length`."""
    if model.network.config.embed_dim is None:
        raise ValueError(f"{name} needs a model with an embedding head (stage 2)")
    check_reading(name, model.network.config, length)


def pair_encoder(model: Model, text_length: int, code_length: int, batch_size: int) -> PairEncoder:
    """Embeds with a model, on its mesh."""
    return PairEncoder(
        model.network,
        model.params,
        model.tokenizer.special,
        text_length=text_length,
        code_length=code_length,
        batch_size=batch_size,
        mesh=model.mesh,
    )


def _rank(prediction: Prediction, target: Any) -> int:
    """From 1; 0: it is not among the answers."""
    if "rank" in prediction:
        return prediction["rank"]
    answers = prediction["answers"]
    return answers.index(target) + 1 if target in answers else 0


def _reranked(
    encoder: PairEncoder, texts: Sequence[Any], codes: Sequence[Any], scores: np.ndarray, k: int
) -> np.ndarray:
    """As in the released script: logit of "match" + cosine of the first k."""
    best = retrieval.top(scores, k)
    columns, within = np.unique(best, return_inverse=True)
    rows = np.repeat(np.arange(len(texts)), best.shape[1])
    pairs = np.stack([rows, within.ravel()], axis=1)
    logits = encoder.match(texts, [codes[column] for column in columns], pairs)
    return retrieval.rerank(scores, best, logits.reshape(*best.shape, 2), None)


def code_base(folder: Path, problems: Sequence[Problem]) -> dict[str, str]:
    """Of CodeSearchNet: `codebase.jsonl`, by `url`."""
    del problems
    functions = readers.functions(folder, "codebase", setting="finetune_dir")
    return {function["url"]: function["code"] for function in functions}


def own_functions(folder: Path, problems: Sequence[Problem]) -> dict[Any, str]:
    """Of AdvTest: the functions of the split itself, by `idx`."""
    del folder
    return {problem["idx"]: problem["code"] for problem in problems}


def cosqa_base(folder: Path, problems: Sequence[Problem]) -> dict[int, str]:
    """Of CosQA: `code_idx_map.txt`, by number, as they are."""
    del problems
    return readers.cosqa_codebase(folder, setting="finetune_dir")
