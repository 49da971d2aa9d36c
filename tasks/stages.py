"""The tasks of both stages over one corpus: how a corpus becomes three tasks."""

from collections.abc import Mapping
from functools import partial

import seqio

from codet5p_jax.data.seqio_tasks import add_task
from codet5p_jax.data.vocab import CodeVocabulary
from codet5p_jax.tasks import preprocessors, settings

STAGE1_OBJECTIVES = ("span_denoising", "seq2seq_clm", "decoder_clm")
STAGE2_OBJECTIVES = ("text_code_pairs", "text_to_code", "code_to_text")


def add_stage1_tasks(
    corpus: str,
    source: seqio.DataSource,
    chunk_lengths: Mapping[str, int],
    *,
    token_limits: tuple[int, int] | None = None,
    vocabulary: CodeVocabulary = settings.STAGE1_VOCABULARY,
) -> list[str]:
    """Registers `<corpus>_<objective>` for the objectives of stage 1.

    Args:
      corpus: first part of the names.
      source: examples with `code`.
      chunk_lengths: objective -> tokens of an example, which is what files are cut into.
      token_limits: fewest and most tokens of a file; None keeps all.
      vocabulary: of the tasks.

    Returns:
      The names, in the order of `STAGE1_OBJECTIVES`.
    """
    steps = [partial(preprocessors.tokenize_code, vocabulary=vocabulary)]
    if token_limits is not None:
        shortest, longest = token_limits
        steps.append(partial(preprocessors.keep_lengths, shortest=shortest, longest=longest))
    for objective in STAGE1_OBJECTIVES:
        cut = partial(preprocessors.cut_into_chunks, length=chunk_lengths[objective])
        add_task(
            f"{corpus}_{objective}",
            source=source,
            objective=objective,
            vocabulary=vocabulary,
            preprocessors=[*steps, cut],
        )
    return [f"{corpus}_{objective}" for objective in STAGE1_OBJECTIVES]


def add_stage2_tasks(
    corpus: str,
    source: seqio.DataSource,
    *,
    vocabulary: CodeVocabulary = settings.STAGE2_VOCABULARY,
) -> list[str]:
    """Registers `<corpus>_<objective>` for the objectives of stage 2, over `text` and `code`.

    Returns:
      The names, in the order of `STAGE2_OBJECTIVES`.
    """
    for objective in STAGE2_OBJECTIVES:
        add_task(
            f"{corpus}_{objective}",
            source=source,
            objective=objective,
            vocabulary=vocabulary,
            preprocessors=[partial(preprocessors.tokenize_pair, vocabulary=vocabulary)],
        )
    return [f"{corpus}_{objective}" for objective in STAGE2_OBJECTIVES]
