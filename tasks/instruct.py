"""Instruction tuning: `instruct`, prompts and responses of the folder `instruct_dir`."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from codet5p_jax.data.corpora.files import identities
from codet5p_jax.data.corpora.instructions import SPLITS, instruction_files, instructions
from codet5p_jax.data.seqio_tasks import add_task, examples_source
from codet5p_jax.tasks import settings
from codet5p_jax.tasks.preprocessors import tokenize_instruction


def _read(split: str) -> Iterator[dict[str, str]]:
    return instructions(
        settings.instruct_dir(),
        split,
        templates=settings.instruct_templates(),
        held_out=settings.instruct_held_out(),
        setting="instruct_dir",
    )


def _fingerprint() -> list[object]:
    files = instruction_files(settings.instruct_dir(), "instruct_dir")
    return [
        asdict(settings.instruct_templates()),
        settings.instruct_held_out(),
        {split: identities(paths) for split, paths in files.items()},
    ]


add_task(
    "instruct",
    source=examples_source(_read, SPLITS, {"prompt": str, "response": str}, _fingerprint),
    objective="seq2seq",
    vocabulary=settings.STAGE1_VOCABULARY,
    preprocessors=[partial(tokenize_instruction, vocabulary=settings.STAGE1_VOCABULARY)],
)
