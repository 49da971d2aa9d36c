"""Pretraining objectives: each has a host half (example -> arrays) and a device half (-> loss)."""

from codet5p_jax.objectives.base import Batch, Features, Loss, Objective, State
from codet5p_jax.objectives.classification import Classification, PairClassification
from codet5p_jax.objectives.decoder_clm import DecoderCLM
from codet5p_jax.objectives.seq2seq import Seq2Seq
from codet5p_jax.objectives.seq2seq_clm import Seq2SeqCLM
from codet5p_jax.objectives.span_denoising import SpanDenoising
from codet5p_jax.objectives.text_code_lm import CodeToText, TextToCode
from codet5p_jax.objectives.text_code_pairs import TextCodePairs

OBJECTIVES: dict[str, type] = {
    objective.name: objective
    for objective in (
        SpanDenoising,
        Seq2SeqCLM,
        DecoderCLM,
        TextToCode,
        CodeToText,
        Seq2Seq,
        TextCodePairs,
        Classification,
        PairClassification,
    )
}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Classification",
    "CodeToText",
    "DecoderCLM",
    "Features",
    "Loss",
    "Objective",
    "PairClassification",
    "Seq2Seq",
    "Seq2SeqCLM",
    "SpanDenoising",
    "State",
    "TextCodePairs",
    "TextToCode",
]
