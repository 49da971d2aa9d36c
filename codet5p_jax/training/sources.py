"""What a decoder gets from its encoder: losses of the same targets, given different sources.

Targets depend on the data, the seed and the lengths of the objectives; neither on the model nor on
what it reads. So losses of two models, or of one model given two sources, may be compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from codet5p_jax.data.cache import open_mixture
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.objectives.base import Objective
from codet5p_jax.objectives.seq2seq_clm import Seq2SeqCLM
from codet5p_jax.objectives.teacher_forcing import TeacherForced
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoint_files import model_dir_of
from codet5p_jax.training.evaluate import Evaluation, Evaluator, Rows
from codet5p_jax.training.model_dir import (
    check_tokenizer,
    encoder_tokenizer,
    recorded_tokenizer,
)
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.stored_weights import load_params

SOURCES = {
    "own": "encoder reads the source",
    "other": "encoder reads the source of another row",
    "none": "decoder alone",
    "prompt": "decoder alone, prefix before the targets",
}
"""What there is to read besides the targets before; all but the first are for teacher-forced
objectives, and the last is for `Seq2SeqCLM`."""


def evaluate(
    *,
    model_dir: str | Path,
    phases: Sequence[Phase],
    objectives: Sequence[Objective],
    cache_dir: str | Path,
    seed: int = 0,
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    sources: Sequence[str] = ("own",),
) -> Iterator[tuple[str, dict[str, float]]]:
    """Metrics of a trained model on a held-out split.

    Args:
      model_dir: of the model, not necessarily of the run that the others describe; or one
        checkpoint or snapshot in it. A model without an encoder is a decoder alone whatever the
        source.
      phases, …, mesh: as `train` takes them.
      sources: some of `SOURCES`.

    Yields:
      (source, means by name) for each of them.

    Raises:
      FileNotFoundError: there is no model.
      ValueError: the data come from another tokenizer than the model's.
    """
    directory = model_dir_of(Path(model_dir))
    tokenizer = open_mixture(cache_dir, phases[-1].mixture, evaluation.split).tokenizer
    check_tokenizer(directory.tokenizer, tokenizer, recorded_tokenizer(directory))
    device_mesh = make_mesh(mesh)
    params, config, _ = load_params(model_dir, device_mesh)
    model = CodeT5p(config)
    for source in sources:
        reading = [_reading(o, source) for o in objectives]
        evaluator = Evaluator(
            evaluation,
            model,
            phases,
            reading,
            cache_dir,
            seed,
            device_mesh,
            encoder_tokenizer(directory, None, tokenizer),
            lambda rows, source=source: _with_source(rows, source),
        )
        means = evaluator.means(params, {o.name: o.init_state(model, params) for o in reading})
        judged = {name for o in reading if _is_for(o, source) for name in o.losses}
        yield source, {k: v for k, v in means.items() if k.partition("/")[0] in judged}


def _is_for(objective: Objective, source: str) -> bool:
    if source == "own":
        return True
    return isinstance(objective, Seq2SeqCLM if source == "prompt" else TeacherForced)


def _reading(objective: Objective, source: str) -> Objective:
    if source == "prompt" and isinstance(objective, Seq2SeqCLM):
        return replace(objective, prompt_to_decoder=True)
    return objective


def _with_source(rows: Rows, source: str) -> Rows:
    """The rows of one objective, with what the encoder is to read."""
    if source == "own" or "encoder_tokens" not in rows:
        return rows
    read = ("encoder_tokens", "encoder_segments")
    if source == "other":
        return {n: np.roll(x, 1, axis=0) if n in read else x for n, x in rows.items()}
    return {name: x for name, x in rows.items() if name not in read}
