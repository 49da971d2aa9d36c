"""The tables against the parameters, over drawn configurations: every tensor, bit for bit."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.interop import hf_config
from codet5p_jax.interop.changed_weights import ResizedVocabulary
from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.tables import Entry, hugging_face
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face, open_hugging_face, place
from codet5p_jax.models import CodeT5p, t5
from codet5p_jax.models.params import flatten

DTYPES = ("float32", "bfloat16", "float16")
sizes = st.integers(1, 4)


@st.composite
def networks(draw):
    """(arguments of `t5`, architecture); the configuration is made outside, since beartype's checks
    draw random numbers, which strategies may not."""
    arch = draw(st.sampled_from(sorted(hf_config.T5_ARCHITECTURES)))
    encoder_only = arch in hf_config.ENCODERS
    heads = arch in hf_config.WITH_HEADS
    settings = dict(
        vocab_size=draw(st.integers(1, 20)),
        d_model=draw(sizes),
        num_heads=draw(sizes),
        head_dim=draw(sizes),
        d_ff=draw(sizes),
        num_encoder_layers=draw(sizes),
        num_decoder_layers=0 if encoder_only else draw(sizes),
        activation=draw(st.sampled_from(["relu", "gelu_tanh", "silu"])),
        gated=draw(st.booleans()),
        relative_buckets=draw(st.sampled_from([4, 32])),
        relative_max_distance=draw(st.sampled_from([24, 128])),
        tie_embeddings=encoder_only or draw(st.booleans()),
        embed_dim=draw(sizes) if heads else None,
        matching_head=arch == "codet5p_bimodal",
        dropout=draw(st.sampled_from([0.0, 0.1])),
        scan_layers=draw(st.booleans()),
    )
    return settings, arch


def drawn_params(config, seed, dtype="float32"):
    """Random bits, every one of which has to survive: NaN with payloads, denormals, -0."""
    rng = np.random.default_rng(seed)
    out = {}
    for path, spec in flatten(CodeT5p(config).specs):
        kind = np.dtype(np.float32) if path == "log_temperature" else np.dtype(dtype)
        bits = rng.integers(0, 256, (int(np.prod(spec.shape)), kind.itemsize), np.uint8)
        out[path] = bits.reshape(-1).view(kind).reshape(spec.shape)
        if path == "log_temperature":
            out[path] = np.float32(rng.normal())[()] * np.ones((), np.float32)
    return out


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def assert_same_bits(one, other, name=""):
    assert (one.dtype, one.shape) == (other.dtype, other.shape), name
    np.testing.assert_array_equal(bits(one), bits(other), err_msg=name)


@given(networks(), st.integers(0, 99), st.sampled_from(DTYPES), st.sampled_from([1, 500, 10**9]))
def test_export_then_import_gives_back_every_parameter(
    tmp_path_factory, network, seed, dtype, shard_bytes
):
    config, arch = t5(**network[0]), network[1]
    params = drawn_params(config, seed, dtype)
    folder = tmp_path_factory.mktemp("exports") / "model"
    left_out = export_hugging_face(
        folder, ArrayWeights(config, params), arch=arch, max_shard_bytes=shard_bytes
    )
    assert not left_out
    back = open_hugging_face(folder)
    assert back.shapes.keys() == params.keys()
    for path, array in params.items():
        assert_same_bits(back.read(path), array, path)
    assert back.config.encoder == config.encoder
    assert (back.config.decoder == config.decoder) or not config.decoder.num_layers
    if shard_bytes != 500:
        assert (folder / "model.safetensors.index.json").exists() == (shard_bytes == 1)


@given(networks(), st.integers(0, 99), st.sampled_from(DTYPES))
def test_import_then_export_gives_back_every_tensor(tmp_path_factory, network, seed, dtype):
    config, arch = t5(**network[0]), network[1]
    params = drawn_params(config, seed, dtype)
    root = tmp_path_factory.mktemp("imports")
    export_hugging_face(root / "a", ArrayWeights(config, params), arch=arch)
    weights = open_hugging_face(root / "a")
    export_hugging_face(root / "b", weights, arch=arch)
    first, second = SafetensorsFolder(root / "a"), SafetensorsFolder(root / "b")
    assert list(first.tensors) == list(second.tensors)
    for name in first.tensors:
        assert_same_bits(first.read(name), second.read(name), name)
    assert json.loads((root / "a/config.json").read_text()) == json.loads(
        (root / "b/config.json").read_text()
    )


@given(networks(), st.sampled_from(["bfloat16", "float16"]))
def test_a_narrow_file_survives_a_wide_checkpoint(tmp_path_factory, network, dtype):
    config, arch = t5(**network[0]), network[1]
    narrow = np.dtype(dtype) if dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(size=spec.shape).astype(narrow)
        for path, spec in flatten(CodeT5p(config).specs)
    }
    root = tmp_path_factory.mktemp("wide")
    export_hugging_face(root / "a", ArrayWeights(config, params), arch=arch)
    weights = open_hugging_face(root / "a")
    wide = {path: weights.read(path, np.dtype(np.float32)) for path in weights.shapes}
    export_hugging_face(root / "b", ArrayWeights(weights.config, wide), arch=arch, dtype=dtype)
    first, second = SafetensorsFolder(root / "a"), SafetensorsFolder(root / "b")
    for name in first.tensors:
        assert_same_bits(first.read(name), second.read(name), name)


@given(networks())
def test_every_parameter_has_one_entry(network):
    config = t5(**network[0])
    paths = [entry.ours for entry in hugging_face(config)]
    expected = {path for path, _ in flatten(CodeT5p(config).specs)} - {"log_temperature"}
    assert sorted(paths) == sorted(expected)


def test_axes_are_moved_as_the_entry_says():
    """PyTorch's x @ W.T is our einsum."""
    rng = np.random.default_rng(0)
    D, H, K = 5, 2, 3
    W, x = rng.normal(size=(H * K, D)), rng.normal(size=D)
    entry = Entry("q", "q.weight", "(H K) D -> D H K")
    ours = entry.to_ours(W, (D, H, K))
    assert np.shares_memory(ours, W)
    np.testing.assert_allclose(np.einsum("D,DHK->HK", x, ours).reshape(-1), W @ x)
    theirs = np.empty_like(W)
    entry.put(ours, theirs)
    np.testing.assert_array_equal(theirs, W)


@pytest.mark.parametrize("index", [(slice(None),) * 4, (slice(1, 3), slice(None), slice(0, 1))])
def test_a_slice_is_what_the_whole_has_there(tmp_path, index):
    config = t5(
        vocab_size=7, d_model=4, num_heads=2, head_dim=3, d_ff=6,
        num_encoder_layers=3, num_decoder_layers=1,
    )  # fmt: skip
    params = drawn_params(config, 0)
    export_hugging_face(tmp_path / "m", ArrayWeights(config, params))
    weights = open_hugging_face(tmp_path / "m")
    path = "encoder/layers/attention/q"
    index = (*index, *(slice(None),) * (4 - len(index)))
    assert_same_bits(weights.read(path, index=index), params[path][index])
    assert_same_bits(weights.read("embedding", index=(slice(2, 5), slice(1, 2))),
                     params["embedding"][2:5, 1:2])  # fmt: skip


def test_a_parameter_goes_to_its_shards(tmp_path):
    config = t5(
        vocab_size=8, d_model=4, num_heads=2, head_dim=3, d_ff=6,
        num_encoder_layers=2, num_decoder_layers=1,
    )  # fmt: skip
    params = {
        path: np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)
        for path, spec in flatten(CodeT5p(config).specs)
    }
    export_hugging_face(tmp_path / "m", ArrayWeights(config, params))
    weights = open_hugging_face(tmp_path / "m")
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "a", "b"))
    array = place(weights, "encoder/layers/attention/q", np.float32, sharding)
    assert array.sharding == sharding
    np.testing.assert_array_equal(array, params["encoder/layers/attention/q"])


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_added_as_the_mean_and_removed(tied):
    config = t5(
        vocab_size=8, d_model=4, num_heads=2, head_dim=3, d_ff=6, tie_embeddings=tied,
        num_encoder_layers=2, num_decoder_layers=1,
    )  # fmt: skip
    params = {
        path: np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)
        for path, spec in flatten(CodeT5p(config).specs)
    }
    weights = ArrayWeights(config, params)
    larger = ResizedVocabulary(weights, 11)
    assert larger.config.vocab_size == 11
    assert larger.shapes == {p: s.shape for p, s in flatten(CodeT5p(larger.config).specs)}
    for path in ("embedding", "lm_head")[: 1 if tied else 2]:
        np.testing.assert_array_equal(larger.read(path)[:8], params[path])
        np.testing.assert_allclose(larger.read(path)[8:], [params[path].mean(0)] * 3, atol=1e-6)
        part = (slice(7, 10), slice(1, 2))
        np.testing.assert_array_equal(larger.read(path, index=part), larger.read(path)[part])
    back = ResizedVocabulary(larger, 8)
    for path, array in params.items():
        assert_same_bits(back.read(path), array, path)
