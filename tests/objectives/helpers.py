"""A vocabulary, examples, rows: what the tests of the objectives are made of."""

import numpy as np

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.models import ModelConfig, t5

VOCAB_SIZE = 64
FIRST = 8  # ids of ordinary tokens are 8..49

# CodeT5's layout in small: the first sentinel has the highest id of its kind.
SPECIAL = SpecialTokens(
    pad=0,
    bos=1,
    eos=2,
    unk=3,
    sentinels=tuple(range(59, 49, -1)),
    decoder_start=0,
    enc=60,
    tdec=61,
    cdec=62,
)


def small_config(**overrides) -> ModelConfig:
    settings = {
        "vocab_size": VOCAB_SIZE,
        "d_model": 16,
        "num_heads": 2,
        "head_dim": 8,
        "d_ff": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "embed_dim": 8,
        "matching_head": True,
        "loss_chunk": 4,
    }
    return t5(**(settings | overrides))


def words(sizes, first: int = FIRST) -> dict[str, np.ndarray]:
    """A cached example of words with these numbers of tokens; ids count up, so all differ."""
    sizes = np.asarray(sizes, dtype=int)
    starts = np.zeros(int(sizes.sum()), dtype=bool)
    starts[np.cumsum(sizes) - sizes] = True
    return {"tokens": np.arange(first, first + len(starts), dtype=np.int32), "word_starts": starts}


def real(row, side: str) -> list[int]:
    """The tokens of a row without padding; side is encoder, decoder, text or code."""
    return row[f"{side}_tokens"][row[f"{side}_segments"] > 0].tolist()


def labels(row) -> list[int]:
    """The targets of a row without padding."""
    return row["decoder_targets"][row["decoder_segments"] > 0].tolist()


def stack(rows) -> dict[str, np.ndarray]:
    """A batch of rows."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def chi_square(counts, probabilities) -> float:
    """Pearson's statistic of observed counts."""
    expected = np.asarray(probabilities) * np.sum(counts)
    return float(np.sum((np.asarray(counts) - expected) ** 2 / expected))
