"""What CodeT5 and CodeT5+ are fine-tuned on, out of the folder `finetune_dir` (docs/finetuning.md).

<finetune_dir>/summarization/<language>/{train,valid,test}.jsonl     summarize_<language>
<finetune_dir>/csn_retrieval/<language>/{train,valid,test}.jsonl     retrieve_<language>
…
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from codet5p_jax.data.corpora.files import identities, require_folder
from codet5p_jax.data.corpora.finetuning import (
    aligned,
    completion,
    concode,
    labelled,
    math_programs,
    programs,
    retrieval,
    retrieved,
    summarization,
)
from codet5p_jax.data.corpora.finetuning.files import SPLITS
from codet5p_jax.data.seqio_tasks import add_task, examples_source
from codet5p_jax.tasks import settings
from codet5p_jax.tasks.preprocessors import (
    tokenize_labelled,
    tokenize_lines,
    tokenize_pair,
    tokenize_retrieved,
    tokenize_seq2seq,
)

Reader = Callable[..., Iterator[dict[str, Any]]]
_SETTING = "finetune_dir"


def _read(split: str, reader: Reader, folder: str) -> Iterator[Mapping[str, Any]]:
    return reader(Path(settings.finetune_dir(), folder), split, setting=_SETTING)


def folder_fingerprint(folder: str) -> list[tuple[str, int, int]]:
    """Identities of the files in a folder below `finetune_dir`."""
    path = require_folder(Path(settings.finetune_dir(), folder), _SETTING)
    return identities(sorted(file for file in path.rglob("*") if file.is_file()))


def _fingerprint_and_separator(folder: str) -> list[Any]:
    return [retrieved.separator(), *folder_fingerprint(folder)]


def _add(
    name: str,
    folder: str,
    reader: Reader,
    *,
    features: Mapping[str, Any],
    objective: str,
    tokenize: Callable[..., Any],
    splits: Sequence[str] = SPLITS,
    prefixes: bool = False,
    fingerprint: Callable[[str], Any] = folder_fingerprint,
) -> None:
    """Registers one task over `<finetune_dir>/<folder>`.

    Args:
      name, objective: of the task.
      folder: below `finetune_dir`.
      reader: (folder, split, setting=…) -> examples with `features`.
      features: name -> dtype.
      tokenize: makes the features of the objective of them.
      splits: that the reader has.
      prefixes: whether the vocabulary is that of stage 2, with [ENC], [TDEC] and [CDEC].
      fingerprint: of the folder and of settings, to tell whether examples have changed.
    """
    vocabulary = settings.STAGE2_VOCABULARY if prefixes else settings.STAGE1_VOCABULARY
    read = partial(_read, reader=reader, folder=folder)
    add_task(
        name,
        source=examples_source(read, splits, features, partial(fingerprint, folder)),
        objective=objective,
        vocabulary=vocabulary,
        preprocessors=[partial(tokenize, vocabulary=vocabulary)],
    )


def _summaries(folder: Path, split: str, *, language: str, setting: str) -> Iterator[Any]:
    return summarization.summaries(folder, language, split, setting=setting)


def _programs(folder: Path, split: str, *, language: str, setting: str) -> Iterator[Any]:
    return summarization.programs(folder, language, split, setting=setting)


def _human_eval(folder: Path, split: str, *, setting: str) -> Iterator[dict[str, str]]:
    """Every four spaces are a tab, as the released script gives prompts to the model."""
    del split  # there is one
    for problem in programs.human_eval(folder, setting=setting):
        texts = {"source": problem["prompt"], "target": problem["canonical_solution"]}
        yield {name: text.replace("    ", "\t") for name, text in texts.items()}


_seq2seq = partial(
    _add,
    features={"source": str, "target": str},
    objective="seq2seq",
    tokenize=tokenize_seq2seq,
)
_pairs = partial(
    _add,
    features={"text": str, "code": str},
    objective="text_code_pairs",
    tokenize=tokenize_pair,
    prefixes=True,
)
_lines = partial(
    _add,
    reader=completion.completion_files,
    features={"code": str},
    objective="decoder_clm",
    tokenize=tokenize_lines,
    splits=("train", "validation"),
)
_labelled = partial(_add, tokenize=tokenize_labelled, prefixes=True)

for _language in summarization.LANGUAGES:
    _seq2seq(f"summarize_{_language}", "summarization", partial(_summaries, language=_language))
    _pairs(f"retrieve_{_language}", f"csn_retrieval/{_language}", retrieval.functions)
_pairs("retrieve_advtest", "advtest", retrieval.functions)
_pairs("retrieve_cosqa", "cosqa", retrieval.cosqa)
_pairs("retrieve_cosqa_all", "cosqa", partial(retrieval.cosqa, only_matching=False))

_lines("complete_py150", "line_completion/py150")
_lines("complete_java", "line_completion/javaCorpus")

for _language in retrieved.LANGUAGES:
    _seq2seq(f"generate_{_language}", "summarization", partial(_programs, language=_language))
    for _codes in retrieved.CODES:
        _seq2seq(
            retrieved.name(_language, _codes),
            f"retrieve_generate/{_language}",
            partial(retrieved.retrieved, codes=_codes),
            tokenize=tokenize_retrieved,
            fingerprint=_fingerprint_and_separator,
        )

_seq2seq("mathqa_python", "mathqa_python", math_programs.mathqa)
_seq2seq("gsm8k_python", "gsm8k", math_programs.gsm8k)
_seq2seq("mbpp", "mbpp", programs.mbpp)
_seq2seq("human_eval", "humaneval", _human_eval, splits=("test",))
_seq2seq("concode", "concode", concode.concode)
_seq2seq("refine_small", "code_refinement/small", aligned.refinement)
_seq2seq("refine_medium", "code_refinement/medium", aligned.refinement)
_seq2seq("translate_java_cs", "code_translation", aligned.translation)
_seq2seq("translate_cs_java", "code_translation", partial(aligned.translation, source="cs"))

_labelled(
    "defect",
    "defect",
    labelled.defects,
    features={"code": str, "label": np.int32},
    objective="classification",
)
_labelled(
    "clone",
    "clone_bigclonebench",
    labelled.clones,
    features={"code": str, "other": str, "label": np.int32},
    objective="pair_classification",
)
