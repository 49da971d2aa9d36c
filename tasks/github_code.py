"""Stage 1 over github-code: `github_code_<language>_<objective>` for the nine languages (paper §4).

Chunk lengths: the paper says 512 for span denoising, and inputs and targets of at most 768 and 600
for the sequence-to-sequence and 1,024 targets for the decoder-only language model. Whether special
tokens count is NOT STATED; here they do: chunks of 510 tokens, which with `<s>` and `</s>` fill the
512, so that denoising crops none of them. How long the chunks of the latter two are is NOT STATED;
here 1,023, which with `</s>` fills the 1,024.
"""

from collections.abc import Iterator
from functools import partial

from codet5p_jax.data.corpora.files import identities
from codet5p_jax.data.corpora.github_code import (
    SHARES,
    GithubCodeFilter,
    github_code_files,
    parquet_files,
)
from codet5p_jax.data.corpora.languages import LANGUAGES
from codet5p_jax.data.seqio_tasks import examples_source
from codet5p_jax.tasks import settings
from codet5p_jax.tasks.stages import add_stage1_tasks

CHUNK_LENGTHS = {"span_denoising": 510, "seq2seq_clm": 1023, "decoder_clm": 1023}


def _filter() -> GithubCodeFilter:
    return GithubCodeFilter(excluded_repos=settings.excluded_repos())


def _read(split: str, language: str) -> Iterator[dict[str, str]]:
    return github_code_files(
        settings.github_code_dir(),
        language,
        split,
        keep=_filter(),
        setting="github_code_dir",
    )


def _fingerprint() -> list[object]:
    files = parquet_files(settings.github_code_dir(), "github_code_dir")
    return [_filter(), SHARES, identities(files)]


for _language in LANGUAGES:
    add_stage1_tasks(
        f"github_code_{_language.key}",
        examples_source(
            partial(_read, language=_language.key), SHARES, {"code": str}, _fingerprint
        ),
        CHUNK_LENGTHS,
        token_limits=(GithubCodeFilter.min_tokens, GithubCodeFilter.max_tokens),
    )
