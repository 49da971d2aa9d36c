"""Stage 2 over CodeSearchNet: `codesearchnet_<language>_<objective>` for its six languages.

CodeSearchNet has no C, C++ or C#, and the paper's second stage none either; text-code pairs of
these come in as tasks of one's own (docs/custom_task.md).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from codet5p_jax.data.corpora.codesearchnet import SPLITS, codesearchnet_pairs
from codet5p_jax.data.corpora.files import identities, require_folder
from codet5p_jax.data.corpora.languages import LANGUAGES
from codet5p_jax.data.corpora.pairs import PairFilter
from codet5p_jax.data.seqio_tasks import examples_source
from codet5p_jax.tasks import settings
from codet5p_jax.tasks.stages import add_stage2_tasks

PAIR_LANGUAGES = tuple(language for language in LANGUAGES if language.pairs)


def _read(split: str, language: str) -> Iterator[dict[str, str]]:
    return codesearchnet_pairs(
        settings.codesearchnet_dir(),
        language,
        split,
        setting="codesearchnet_dir",
    )


def _fingerprint(language: str) -> list[object]:
    folder = require_folder(Path(settings.codesearchnet_dir(), language), "codesearchnet_dir")
    return [PairFilter(), identities(sorted(folder.rglob("*.jsonl*")))]


for _language in PAIR_LANGUAGES:
    add_stage2_tasks(
        f"codesearchnet_{_language.key}",
        examples_source(
            partial(_read, language=_language.key),
            SPLITS,
            {"text": str, "code": str},
            partial(_fingerprint, _language.key),
        ),
    )
