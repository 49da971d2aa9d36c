"""CodeT5+ 2B, 6B and 16B: names, sizes and layout of the published files."""

import dataclasses
import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codet5p_jax.interop import codet5p_large
from codet5p_jax.interop.token_ids import TokenIds
from codet5p_jax.interop.weights import open_hugging_face
from codet5p_jax.models import CodeT5p, codet5p_codegen
from codet5p_jax.models.params import flatten
from codet5p_jax.training.conversion import export_weights, import_weights
from codet5p_jax.training.stored_weights import load_params
from codet5p_jax.training.verification import verify_weights

# The published files name none: CodeGen's token 50,256 is then assumed.
IDS = dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id"), 3) | {
    "bos_token_id": 3
}
SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 4, "rotary_dim": 4, "vocab_size": 40}
DECODER = {**SIZES, "n_layer": 3, "n_embd": 24, "vocab_size": 50}


def their_tensors(encoder, decoder):
    """Written out from the published index, not from our table."""
    rng = np.random.default_rng(0)
    out = {}

    def add(name, *shape):
        out[name] = rng.normal(size=shape).astype(np.float16)

    def tower(base, sizes):
        d = sizes["n_embd"]
        add(f"{base}wte.weight", sizes["vocab_size"], d)
        for i in range(sizes["n_layer"]):
            h = f"{base}h.{i}"
            for name, shape in {
                "ln_1.weight": (d,), "ln_1.bias": (d,),
                "attn.qkv_proj.weight": (3 * d, d), "attn.out_proj.weight": (d, d),
                "mlp.fc_in.weight": (4 * d, d), "mlp.fc_in.bias": (4 * d,),
                "mlp.fc_out.weight": (d, 4 * d), "mlp.fc_out.bias": (d,),
            }.items():  # fmt: skip
                add(f"{h}.{name}", *shape)
            out[f"{h}.attn.causal_mask"] = np.tri(8, dtype=np.uint8)[None, None]
        add(f"{base}ln_f.weight", d)
        add(f"{base}ln_f.bias", d)

    tower("encoder.", encoder)
    tower("decoder.transformer.", decoder)
    d, last = decoder["n_embd"], decoder["n_layer"] - 1
    cross = f"decoder.transformer.h.{last}.crossattention"
    add(f"{cross}.q_attn.weight", d, d)
    add(f"{cross}.qkv_proj.weight", 2 * d, d)
    add(f"{cross}.out_proj.weight", d, d)
    out[f"{cross}.causal_mask"] = np.tri(8, dtype=np.uint8)[None, None]
    add("decoder.lm_head.weight", decoder["vocab_size"], d)
    add("decoder.lm_head.bias", decoder["vocab_size"])
    add("enc_to_dec_proj.weight", d, encoder["n_embd"])
    add("enc_to_dec_proj.bias", d)
    return out


@pytest.fixture
def folder(tmp_path):
    tensors = their_tensors(SIZES, DECODER)
    target = tmp_path / "codet5p"
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    module = {"model_type": "codet5p_module", "n_positions": 8}
    ids = {"bos_token_id": 2, "eos_token_id": 2}  # published: 50256, of the decoder alone
    values = {"encoder": {**module, **SIZES}, "decoder": {**module, **DECODER, **ids}}
    (target / "config.json").write_text(json.dumps({"model_type": "codet5p", **values}))
    return target, tensors


def test_every_tensor_arrives_where_it_belongs(folder, tmp_path):
    path, tensors = folder
    import_weights(path, tmp_path / "run", say=lambda _: None)
    params, config, _ = load_params(tmp_path / "run")
    assert config.decoder.cross_attention == (2,)
    assert (config.encoder_vocab_size, config.vocab_size) == (40, 50)
    found = {name: np.asarray(x) for name, x in flatten(params)}

    def theirs(name):
        return tensors[name].astype(np.float32)

    np.testing.assert_array_equal(found["encoder_embedding"], theirs("encoder.wte.weight"))
    np.testing.assert_array_equal(found["embedding"], theirs("decoder.transformer.wte.weight"))
    np.testing.assert_array_equal(
        found["encoder_to_decoder/kernel"], theirs("enc_to_dec_proj.weight").T
    )
    # W.reshape(4, 3, d/4, in): queries, values, keys of each shard
    d = 24
    fused = theirs("decoder.transformer.h.1.attn.qkv_proj.weight").reshape(4, 3, d // 4, d)
    for i, part in enumerate("qvk"):
        kernel = fused[:, i].reshape(4, d // 4, d)  # heads, head_dim, inputs
        np.testing.assert_array_equal(
            found[f"decoder/layers_0/attention/{part}"][1], kernel.transpose(2, 0, 1)
        )
    last = "decoder.transformer.h.2"
    np.testing.assert_array_equal(
        found["decoder/layers_2/feed_forward/wi"][0], theirs(f"{last}.mlp.fc_in.weight").T
    )
    cross = theirs(f"{last}.crossattention.qkv_proj.weight").reshape(4, 2, d // 4, d)
    for i, part in enumerate("vk"):
        np.testing.assert_array_equal(
            found[f"decoder/layers_2/cross_attention/{part}"][0], cross[:, i].transpose(2, 0, 1)
        )
    query = theirs(f"{last}.crossattention.q_attn.weight").reshape(4, d // 4, d)
    np.testing.assert_array_equal(
        found["decoder/layers_2/cross_attention/q"][0], query.transpose(2, 0, 1)
    )


def test_every_tensor_and_mask_comes_back(folder, tmp_path):
    path, tensors = folder
    import_weights(path, tmp_path / "run", say=lambda _: None)
    export_weights(tmp_path / "run", tmp_path / "with", causal_masks=True, say=lambda _: None)
    export_weights(tmp_path / "run", tmp_path / "without", say=lambda _: None)
    found = load_file(tmp_path / "with/model.safetensors")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name].view(np.uint8), array.view(np.uint8), name)
    names = load_file(tmp_path / "without/model.safetensors").keys()
    assert names == {name for name in tensors if not name.endswith("causal_mask")}
    values = json.loads((tmp_path / "with/config.json").read_text())
    ids = ("pad", "bos", "eos", "decoder_start")
    assert [values[f"{name}_token_id"] for name in ids] == [2, 2, 2, 2]
    assert values["prompt_to_decoder"] is True
    assert verify_weights(tmp_path / "with", tmp_path / "run").problems == ()


def test_masks_of_another_architecture(folder, tmp_path):
    import_weights(folder[0], tmp_path / "run", say=lambda _: None)
    with pytest.raises(ValueError, match=r"causal_masks are .* exported as codet5p_composed"):
        export_weights(tmp_path / "run", tmp_path / "x", arch="codet5p_composed", causal_masks=True)
    assert not (tmp_path / "x").exists()


def test_special_tokens_that_published_configurations_do_not_name(tmp_path):
    def read(values):
        (tmp_path / "config.json").write_text(json.dumps(values))
        return TokenIds.read(tmp_path, "codet5p")

    ids = read({"encoder": {}, "decoder": {}})
    assert ids == TokenIds(pad=50_256, bos=None, eos=50_256, decoder_start=50_256)
    named = {"pad_token_id": 7, "decoder": {"bos_token_id": 5, "eos_token_id": 6}}
    assert read(named) == TokenIds(7, 5, 6, 5)


def test_a_configuration_without_a_part(folder):
    path, _ = folder
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, "decoder": None}))
    with pytest.raises(ValueError, match=r"config.json: expected an object as decoder, found None"):
        open_hugging_face(path)


def test_the_bytes_of_the_published_index():
    """metadata.total_size of the 16B: fp16, and a mask of 2048² bytes for each attention."""
    config = codet5p_codegen(num_decoder_layers=34, d_model=6_144, num_heads=24)
    shapes = {name: spec.shape for name, spec in flatten(CodeT5p(config).specs)}
    tensors = {}
    for entry in codet5p_large.table(config):
        shape = entry.their_shape(shapes[entry.ours])
        tensors |= dict.fromkeys(entry.names(shapes[entry.ours]), math.prod(shape))
    masks = codet5p_large.causal_masks(config)
    attentions = {name.removesuffix(".out_proj.weight") for name in tensors}
    assert {name.removesuffix(".causal_mask") for name in masks} <= attentions
    assert len(masks) == 55
    assert 2 * sum(tensors.values()) + sum(n**2 for n in masks.values()) == 33_218_048_000
    assert "decoder.transformer.h.33.crossattention.q_attn.weight" in tensors
    small = dataclasses.replace(config.decoder, num_layers=1, cross_attention=(0,))
    names = {e.ours for e in codet5p_large.table(dataclasses.replace(config, decoder=small))}
    assert "decoder/layers/cross_attention/q" in names
