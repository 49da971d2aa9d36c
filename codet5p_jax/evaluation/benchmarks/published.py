"""The figures of the paper (arXiv 2305.07922) by benchmark and size, as its tables print them.

Those of released models are of their pages.
"""

from typing import Any

from codet5p_jax.evaluation.benchmarks.base import Published

SIZES = ("110M", "220M", "770M", "2B", "6B", "16B")
_TUNED = ("220M", "770M")

# (width, layers) of the decoder, of the encoder where there is none.
_SHAPES = {
    (768, 12): "220M",
    (1024, 24): "770M",
    (2560, 32): "2B",
    (4096, 33): "6B",
    (6144, 34): "16B",
}


def size_of(config: Any) -> str | None:
    """The size in the paper of a network of that shape, if there is one. An encoder alone counts
    as the model that it is the encoder of, but for the embedding model of 110M.

    Args:
      config: ModelConfig.
    """
    tower = config.decoder if config.decoder.num_layers else config.encoder
    size = _SHAPES.get((tower.d_model, tower.num_layers))
    embeds_only = not config.decoder.num_layers and config.embed_dim is not None
    return "110M" if size == "220M" and embeds_only else size


def _tuned(metric: str, *figures: float) -> tuple[Published, ...]:
    return tuple(Published(s, {metric: f}) for s, f in zip(_TUNED, figures, strict=True))


def _pass(size: str, *figures: float, how: str = "zero-shot") -> Published:
    names = ("pass@1", "pass@10", "pass@100")
    return Published(size, dict(zip(names, figures, strict=True)), how)


def _code_t(*figures: float, how: str) -> Published:
    names = ("code_t_pass@1", "code_t_pass@10", "code_t_pass@100")
    return Published("16B", dict(zip(names, figures, strict=True)), how)


HUMANEVAL = (
    _pass("220M", 12.0, 20.7, 31.6),
    _pass("770M", 15.5, 27.2, 42.7),
    _pass("2B", 24.2, 38.2, 57.8),
    _pass("6B", 28.0, 47.2, 69.8),
    _pass("16B", 30.9, 51.6, 76.7),
    _code_t(38.5, 63.6, 77.1, how="zero-shot, CodeT"),
)
HUMANEVAL_INSTRUCT = (
    _pass("16B", 35.0, 54.5, 77.9, how="InstructCodeT5+"),
    _pass("16B", 36.1, 57.1, 80.7, how="InstructCodeT5+, released model"),
    _code_t(42.9, 67.8, 78.7, how="InstructCodeT5+, CodeT"),
)
MATHQA = _tuned("pass@80", 85.6, 87.4)
GSM8K = _tuned("pass@100", 70.5, 73.8)

SUMMARIES = {
    "ruby": _tuned("bleu", 15.51, 15.63),
    "javascript": _tuned("bleu", 16.27, 17.93),
    "go": _tuned("bleu", 19.60, 19.64),
    "python": _tuned("bleu", 20.16, 20.47),
    "java": _tuned("bleu", 20.53, 20.83),
    "php": _tuned("bleu", 26.78, 26.39),
}
LINES = {
    "py150": (
        Published("220M", {"exact_match": 43.42, "edit_similarity": 73.69}),
        Published("770M", {"exact_match": 44.86, "edit_similarity": 74.22}),
    ),
    "javaCorpus": (
        Published("220M", {"exact_match": 35.17, "edit_similarity": 69.48}),
        Published("770M", {"exact_match": 37.90, "edit_similarity": 72.25}),
    ),
}
DEFECTS = _tuned("accuracy", 66.1, 66.7)
CLONES = (
    Published("220M", {"f1": 95.2, "recall": 96.4, "precision": 94.1}),
    Published("770M", {"f1": 95.1, "recall": 96.7, "precision": 93.5}),
)


def _redcoder(how: str, *figures: float) -> tuple[Published, ...]:
    names = ("exact_match", "bleu", "code_bleu")
    return (Published("220M", dict(zip(names, figures, strict=True)), how),)


NEAREST = {
    "java": _redcoder("retrieval only", 0.00, 28.74, 31.00),
    "python": _redcoder("retrieval only", 0.00, 27.30, 26.51),
}
GENERATION = {
    "java": _redcoder("generation only", 0.00, 10.33, 20.54),
    "python": _redcoder("generation only", 0.00, 4.40, 13.88),
}
AUGMENTED = {  # by language and number of codes
    ("java", 1): _redcoder("fine-tuned", 11.66, 33.83, 40.60),
    ("java", 5): _redcoder("fine-tuned", 13.02, 32.42, 42.28),
    ("java", 10): _redcoder("fine-tuned", 12.86, 31.38, 42.24),
    ("python", 1): _redcoder("fine-tuned", 11.83, 31.14, 36.39),
    ("python", 5): _redcoder("fine-tuned", 12.93, 30.52, 37.87),
    ("python", 10): _redcoder("fine-tuned", 12.84, 29.79, 37.79),
}


def _mrr(*figures: float) -> tuple[Published, ...]:
    rows = (
        ("220M", "fine-tuned"),
        ("770M", "fine-tuned"),
        ("110M", "zero-shot, embedding"),
        ("220M", "zero-shot, 32 reranked"),
    )
    pairs = zip(rows, figures, strict=True)
    return tuple(Published(size, {"mrr": figure}, how) for (size, how), figure in pairs)


SEARCH = {
    "ruby": _mrr(77.7, 78.0, 74.51, 76.04),
    "javascript": _mrr(70.8, 71.3, 69.07, 70.17),
    "go": _mrr(92.4, 92.7, 90.69, 91.37),
    "python": _mrr(75.6, 75.8, 71.55, 74.17),
    "java": _mrr(76.1, 76.2, 71.82, 74.76),
    "php": _mrr(69.8, 70.1, 67.72, 68.6),
    "cosqa": _mrr(72.7, 74.0, 39.57, 51.51),
    "advtest": _mrr(43.3, 44.7, 40.49, 42.9),
}
