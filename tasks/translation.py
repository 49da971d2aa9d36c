"""Stage 1 over both sides of the translation data, Java and C#: `translation_<objective>`.

Nothing says which method is the translation of which: the code of each language is read by itself.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import seqio

from codet5p_jax.data.corpora.finetuning import aligned
from codet5p_jax.data.seqio_tasks import examples_source
from codet5p_jax.tasks import settings
from codet5p_jax.tasks.finetuning import folder_fingerprint
from codet5p_jax.tasks.stages import STAGE1_OBJECTIVES, add_stage1_tasks

FOLDER = "code_translation"
SPLITS = ("train", "validation")  # the test is for translating alone
METHODS = 16  # of one language, as one file: their median is 50 tokens
CHUNK_LENGTH = 128


def _read(split: str) -> Iterator[dict[str, str]]:
    folder = Path(settings.finetune_dir(), FOLDER)
    for side in ("source", "target"):
        pairs = aligned.translation(folder, split, setting="finetune_dir")
        methods = [pair[side] for pair in pairs]
        for start in range(0, len(methods), METHODS):
            yield {"code": "\n".join(methods[start : start + METHODS])}


_tasks = add_stage1_tasks(
    "translation",
    examples_source(_read, SPLITS, {"code": str}, partial(folder_fingerprint, FOLDER)),
    dict.fromkeys(STAGE1_OBJECTIVES, CHUNK_LENGTH),
)
# The decoder alone is of no use to a translation, so that its objective is left out.
seqio.MixtureRegistry.add("translation_stage1", [(name, 1.0) for name in _tasks[:2]])
