"""What a configuration of the network may not be."""

import dataclasses
import functools

import jax.numpy as jnp
import pytest

from codet5p_jax.interop.differences import differences
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import ModelConfig, StackConfig, codet5p_codegen, t5

SIZES = {"num_layers": 2, "d_model": 8, "num_heads": 4, "head_dim": 2, "d_ff": 16}
STACK = StackConfig(**SIZES)
MODEL = ModelConfig(vocab_size=10, encoder=STACK, decoder=STACK)


@pytest.mark.parametrize(
    "name", [*list(SIZES)[1:], "num_kv_heads", "relative_buckets", "rotary_dim"]
)
def test_sizes_of_a_stack_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} has to be 1 or more, found 0"):
        dataclasses.replace(STACK, **{name: 0})


def test_a_decoder_of_no_layers_is_none():
    none = dataclasses.replace(STACK, num_layers=0)
    model = CodeT5p(dataclasses.replace(MODEL, decoder=none, tie_embeddings=False))
    assert model.specs.keys() == {"embedding", "encoder"}
    with pytest.raises(ValueError, match="matching_head reads the decoder"):
        dataclasses.replace(MODEL, decoder=none, matching_head=True)
    with pytest.raises(ValueError, match="the head of classes reads the encoder"):
        dataclasses.replace(MODEL, encoder=none, classes=2)
    with pytest.raises(ValueError, match="classify_pairs is for a model with classes"):
        dataclasses.replace(MODEL, classify_pairs=True)
    with pytest.raises(ValueError, match="num_layers has to be 0 or more, found -1"):
        dataclasses.replace(STACK, num_layers=-1)


def test_query_heads_share_key_value_heads_evenly():
    assert dataclasses.replace(STACK, num_kv_heads=2).num_kv_heads == 2
    with pytest.raises(ValueError, match="num_kv_heads has to divide num_heads=4, found 3"):
        dataclasses.replace(STACK, num_kv_heads=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("vocab_size", 0), ("embed_dim", -1)),
        *(("loss_chunk", 0), ("loss_chunks", 0)),
        *(("dropout", 1.0), ("dropout", -0.1), ("dropout", float("nan"))),
        *(("dtype", "bfloat17"), ("dtype", "int32"), ("dtype", jnp.int8), ("dtype", float)),
    ],
)
def test_a_wrong_setting_of_the_model_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} has to be"):
        dataclasses.replace(MODEL, **{name: value})


HOW = {
    "dtype": "bfloat16", "attention": "fused", "remat": "full", "scan_layers": False,
    "loss_chunk": 7, "loss_chunks": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "network",
    [
        functools.partial(
            t5, vocab_size=10, d_model=8, num_heads=4, head_dim=2, d_ff=16, num_encoder_layers=1,
            num_decoder_layers=1,
        ),
        functools.partial(codet5p_codegen, num_decoder_layers=1, d_model=256, num_heads=4),
    ],
)  # fmt: skip
def test_how_a_network_computes_is_no_part_of_what(network):
    changed = network(**HOW)
    assert changed == dataclasses.replace(network(), **HOW)
    assert differences(network(), changed) == []


def test_a_model_has_a_tower():
    none = dataclasses.replace(MODEL.decoder, num_layers=0)
    with pytest.raises(ValueError, match="num_layers are both 0"):
        dataclasses.replace(MODEL, encoder=none, decoder=none)


@pytest.mark.parametrize(("buckets", "distance"), [(32, 8), (32, 5), (3, 128)])
def test_relative_positions_grow_from_single_distances_to_the_largest(buckets, distance):
    relative = {"relative_buckets": buckets, "relative_max_distance": distance}
    with pytest.raises(ValueError, match="relative_max_distance above that, found"):
        dataclasses.replace(STACK, **relative)
    dataclasses.replace(STACK, **relative, position="none")
    dataclasses.replace(STACK, relative_buckets=32, relative_max_distance=9)


def test_learned_positions_have_a_number():
    with pytest.raises(ValueError, match="needs max_positions"):
        dataclasses.replace(MODEL.decoder, position="learned")


@pytest.mark.parametrize("rotary_dim", [1, 4])
def test_rotary_positions_turn_pairs_within_a_head(rotary_dim):
    with pytest.raises(ValueError, match=f"rotary_dim of at most as many, found {rotary_dim}"):
        dataclasses.replace(STACK, position="rotary", rotary_dim=rotary_dim)


def test_a_window_looks_back():
    with pytest.raises(ValueError, match="attention_window looks back only"):
        dataclasses.replace(STACK, attention_window=3)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("float16"), jnp.float32])
def test_a_dtype_is_given_by_name_or_as_itself(dtype):
    assert dataclasses.replace(MODEL, dtype=dtype).dtype is dtype


def test_t5_is_checked_as_well():
    with pytest.raises(ValueError, match="cross_attention = 'all' reads the encoder, which has"):
        t5(
            vocab_size=10, d_model=8, num_heads=4, head_dim=2, d_ff=16,
            num_encoder_layers=0, num_decoder_layers=2,
        )  # fmt: skip


def test_a_t5_may_be_tied_without_the_scale():
    """As mT5 is, where its projection is tied at all."""
    sizes = {"vocab_size": 9, "d_model": 8, "num_heads": 1, "head_dim": 8, "d_ff": 8}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    assert t5(**sizes, **layers).scale_tied_head
    assert not t5(**sizes, **layers, scale_tied_head=False).scale_tied_head
