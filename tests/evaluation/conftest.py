"""A tiny model with both stage-2 heads, on random weights."""

import jax
import pytest

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import init_params


@pytest.fixture(scope="session")
def special():
    # Ids 8 .. 263 are the bytes: see `tokenize`.
    return SpecialTokens(
        pad=0, bos=1, eos=2, unk=3, sentinels=(4,), decoder_start=0, enc=5, tdec=6, cdec=7
    )


@pytest.fixture(scope="session")
def tokenize():
    return lambda text: [8 + byte for byte in text.encode("utf-8", "surrogatepass")]


@pytest.fixture(scope="session")
def model():
    config = t5(
        vocab_size=264,
        d_model=16,
        num_heads=2,
        head_dim=8,
        d_ff=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        embed_dim=8,
        matching_head=True,
        pooling="mean",
    )
    return CodeT5p(config)


@pytest.fixture(scope="session")
def params(model):
    return init_params(model.specs, jax.random.key(0))
