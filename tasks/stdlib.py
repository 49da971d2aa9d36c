"""Both stages over the standard library of the running interpreter: `stdlib_<objective>`."""

import functools
from collections.abc import Iterator

from codet5p_jax.data.corpora import stdlib
from codet5p_jax.data.corpora.files import split_of
from codet5p_jax.data.corpora.pairs import PairFilter
from codet5p_jax.data.seqio_tasks import examples_source
from codet5p_jax.tasks.stages import STAGE1_OBJECTIVES, add_stage1_tasks, add_stage2_tasks

CHUNK_LENGTH = 256


@functools.cache
def _pairs() -> tuple[dict[str, str], ...]:
    """All pairs: parsing takes seconds, and every task and split asks for them."""
    return tuple(stdlib.documented_functions())


def _read_pairs(split: str) -> Iterator[dict[str, str]]:
    return (pair for pair in _pairs() if split_of(pair["module"], stdlib.SHARES) == split)


def _read_modules(split: str) -> Iterator[dict[str, str]]:
    return stdlib.modules(split)


def _fingerprint() -> list[object]:
    return [stdlib.version(), stdlib.SHARES, PairFilter()]


add_stage1_tasks(
    "stdlib",
    examples_source(_read_modules, stdlib.SHARES, {"code": str}, _fingerprint),
    dict.fromkeys(STAGE1_OBJECTIVES, CHUNK_LENGTH),
)
add_stage2_tasks(
    "stdlib", examples_source(_read_pairs, stdlib.SHARES, {"text": str, "code": str}, _fingerprint)
)
