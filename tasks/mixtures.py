"""Mixtures of both stages (paper §3, §4).

Rates divide the rows of a batch between objectives, and the rows of an objective between its tasks.
How the paper mixes languages is NOT STATED; here each comes by its share of files (stage 1) or
pairs (stage 2) that the paper lists.
"""

import seqio

from codet5p_jax.data.corpora.languages import LANGUAGES
from codet5p_jax.tasks import github_code, stdlib  # noqa: F401  (their tasks are mixed here)
from codet5p_jax.tasks.codesearchnet import PAIR_LANGUAGES
from codet5p_jax.tasks.stages import STAGE1_OBJECTIVES, STAGE2_OBJECTIVES

STAGE1_ROWS = dict(zip(STAGE1_OBJECTIVES, (2048, 512, 512), strict=True))

_FILES = sum(language.files for language in LANGUAGES)
_PAIRS = sum(language.pairs for language in PAIR_LANGUAGES)


def _add(name: str, rates: dict[str, float]) -> None:
    seqio.MixtureRegistry.add(name, list(rates.items()))


_github_code = {
    f"github_code_{language.key}_{objective}": rows * language.files / _FILES
    for objective, rows in STAGE1_ROWS.items()
    for language in LANGUAGES
}
_add(
    "codet5p_stage1_denoise",
    {name: rate for name, rate in _github_code.items() if name.endswith("_span_denoising")},
)
_add("codet5p_stage1", _github_code)
# For vocabularies without sentinels, such as CodeGen's.
_add(
    "codet5p_stage1_clm",
    {name: rate for name, rate in _github_code.items() if not name.endswith("_span_denoising")},
)
_add(
    "codet5p_stage2",
    {
        f"codesearchnet_{language.key}_{objective}": language.pairs / _PAIRS
        for objective in STAGE2_OBJECTIVES
        for language in PAIR_LANGUAGES
    },
)

_add("stdlib_stage1_denoise", {"stdlib_span_denoising": 1.0})
_add("stdlib_stage1", {f"stdlib_{name}": float(rows) for name, rows in STAGE1_ROWS.items()})
# The objectives that give an encoder something to read, for one beside a frozen decoder.
_add("stdlib_stage1_seq2seq", {"stdlib_span_denoising": 1.0, "stdlib_seq2seq_clm": 1.0})
# Four pairs to compare for each one to write: on a corpus of a few thousand pairs the number of
# negatives per batch decides how well the embedding gets in minutes.
_add(
    "stdlib_stage2",
    dict(zip((f"stdlib_{name}" for name in STAGE2_OBJECTIVES), (4.0, 1.0, 1.0), strict=True)),
)
