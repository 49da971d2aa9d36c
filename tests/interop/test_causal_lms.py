"""Decoder-only language models both ways against `transformers` on random weights at fp32."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding.generate import generate
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.interop import hf_config
from codet5p_jax.interop.causal_families import FAMILIES
from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face, open_hugging_face
from codet5p_jax.models import CodeT5p
from codet5p_jax.models.configs import ModelConfig, StackConfig
from codet5p_jax.training.conversion import check_exportable, export_weights, import_weights
from codet5p_jax.training.verification import compare_outputs, verify_weights
from tests.interop.test_parity import load_theirs, nested
from tests.interop.test_tables import assert_same_bits, drawn_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, unk=3, sentinels=(), decoder_start=0)
ATOL = 1e-4
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": 90, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    **{"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "intermediate_size": 24},
}
CASES = {
    "codegen": ("codegen", {**GPT, "rotary_dim": 4}),
    "codegen, two heads a shard": ("codegen", {**GPT, "n_head": 8, "rotary_dim": 2, "n_inner": 20}),
    "codegen, tied": ("codegen", {**GPT, "rotary_dim": 2, "tie_word_embeddings": True}),
    "llama": ("llama", LLAMA),
    "llama, grouped queries, biases": (
        "llama",
        {
            **{**LLAMA, "num_key_value_heads": 2, "head_dim": 6, "rms_norm_eps": 1e-3},
            **{"attention_bias": True, "mlp_bias": True, "rope_theta": 500.0},
        },
    ),
    "llama, scaled, tied": (
        "llama",
        {
            **{**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True},
            **{"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 100_000},
        },
    ),
    "gpt2": ("gpt2", GPT),
    "gpt2, untied, unscaled": (
        "gpt2",
        {
            **{**GPT, "n_inner": 20, "tie_word_embeddings": False, "scale_attn_weights": False},
            **{"activation_function": "relu"},
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_bigcode, a key for each query": (
        "gpt_bigcode",
        {**GPT, "multi_query": False, "tie_word_embeddings": False},
    ),
    "gpt_neox": ("gpt_neox", {**LLAMA, "rotary_pct": 0.5}),
    "gpt_neox, one after the other": (
        "gpt_neox",
        {
            **{**LLAMA, "use_parallel_residual": False, "attention_bias": False},
            **{"rotary_emb_base": 500, "rotary_pct": 1.0, "tie_word_embeddings": True},
        },
    ),
    "starcoder2": ("starcoder2", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 5}),
    "starcoder2, without biases, untied": (
        "starcoder2",
        {
            **{**LLAMA, "num_key_value_heads": 4, "use_bias": False, "hidden_act": "silu"},
            **{"tie_word_embeddings": False, "head_dim": 6},
        },
    ),
    "gemma": ("gemma", {**LLAMA, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma, biases": (
        "gemma",
        {
            **{**LLAMA, "num_key_value_heads": 4, "head_dim": 4, "attention_bias": True},
            **{"hidden_act": "gelu", "rope_theta": 500.0},
        },
    ),
    "qwen2": ("qwen2", {**LLAMA, "num_key_value_heads": 2}),
    "qwen2, tied": ("qwen2", {**LLAMA, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "qwen2, window": (
        "qwen2",
        {
            **{**LLAMA, "num_key_value_heads": 2, "use_sliding_window": True},
            **{"sliding_window": 5, "max_window_layers": 0, "head_dim": 8},
        },
    ),
}

# What is the same network as one of an architecture that is asked first.
SAME_AS = {"gpt_bigcode, a key for each query": "gpt2"}


def model_of(arch, settings):
    """A model of theirs with random weights, all of which count."""
    model_type = hf_config.ARCHITECTURES[arch][0]
    config = transformers.AutoConfig.for_model(model_type, **{**TOKENS, **settings})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens_of():
    return np.random.default_rng(0).integers(3, 90, (3, 20)).astype(np.int32)


def logits_of(config, params):
    tokens = jnp.asarray(tokens_of())

    def run(params):
        bound = CodeT5p(config).bind(params)
        return bound.logits(bound.decode(tokens, jnp.ones_like(tokens)))

    return jax.jit(run)(params)


def greedy(config, params, prompts, new):
    start, prefix = jnp.asarray(prompts[:, 0]), jnp.asarray(prompts[:, 1:])
    lengths = jnp.full(len(prompts), prefix.shape[1])
    sampling = Sampling(max_length=new)

    def run(params):
        model, key = CodeT5p(config).bind(params), jax.random.key(0)
        return generate(model, None, None, prefix, lengths, key, SPECIAL, sampling, start)

    return np.asarray(jax.jit(run)(params).tokens)


def theirs_greedy(model, prompts, new):
    ids = torch.tensor(prompts.astype(np.int64))
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    out = out[:, prompts.shape[1] :].numpy()
    return np.pad(out, ((0, 0), (0, new - out.shape[1])))


def tensors_of(folder):
    source = SafetensorsFolder(folder)
    return {name: np.array(source.read(name)) for name in source.tensors}


@pytest.mark.parametrize("case", CASES)
def test_both_ways(tmp_path, case):
    arch, settings = CASES[case]
    model = model_of(arch, settings)
    model.save_pretrained(tmp_path / "a")
    weights = open_hugging_face(tmp_path / "a")
    params = nested(weights)
    tokens = tokens_of()
    with torch.no_grad():
        theirs = model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    assert theirs.std() > 0.5
    np.testing.assert_allclose(logits_of(weights.config, params), theirs, atol=ATOL, rtol=0)
    mine = greedy(weights.config, params, tokens[:, :6], 32)
    np.testing.assert_array_equal(mine, theirs_greedy(model, tokens[:, :6], 32))

    assert hf_config.default_architecture(weights.config) == SAME_AS.get(case, arch)
    assert export_hugging_face(tmp_path / "b", weights, arch=arch) == []
    before, after = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name].view(np.uint32), array.view(np.uint32), name)
    again = load_theirs(transformers.AutoModelForCausalLM, tmp_path / "b")
    with torch.no_grad():
        same = again(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    np.testing.assert_array_equal(same, theirs)
    assert open_hugging_face(tmp_path / "b").config == weights.config


ERRORS = {
    "an unknown activation": ("codegen", {"activation_function": "quick_gelu"}),
    "a rotation of no size": ("codegen", {"rotary_dim": None}),
    "heads that are no shards": ("codegen", {"n_head": 2}),
    "heads that do not divide": ("codegen", {"n_head": 12}),
    "a size that is text": ("codegen", {"n_layer": "two"}),
    "no size": ("codegen", {"n_embd": None}),
    "quantized tensors": ("codegen", {"quantization_config": {"bits": 4}}),
    "an activation that is a list": ("codegen", {"activation_function": ["relu"]}),
    "yarn": ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    "yarn as transformers 5 has it": ("llama", {"rope_parameters": {"rope_type": "yarn"}}),
    "rotations by layer": ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}),
    "a scale of no size": ("llama", {"rope_scaling": {"type": "linear"}}),
    "a negative base": ("llama", {"rope_theta": -1}),
    "a part that rotates": ("llama", {"partial_rotary_factor": 0.5}),
    "windows of some layers": (
        "qwen2",
        {"max_window_layers": 1, "use_sliding_window": True, "sliding_window": 5},
    ),
    "windows of some, as transformers 5 has it": (
        "qwen2",
        {
            **{"layer_types": ["full_attention", "sliding_attention"]},
            **{"use_sliding_window": True, "sliding_window": 5},
        },
    ),
    "scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "an encoder to read": ("gpt2", {"add_cross_attention": True}),
    "two directions": ("gemma", {"use_bidirectional_attention": True}),
    "an activation of two names": ("gemma", {"hidden_activation": "relu"}),
    "tied to something": ("codegen", {"tie_word_embeddings": "embedding"}),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_the_network_cannot_have(tmp_path, case):
    arch, change = ERRORS[case]
    model_type, cls = hf_config.ARCHITECTURES[arch]
    settings = next(settings for name, settings in CASES.values() if name == arch)
    values = {"model_type": model_type, "architectures": [cls], **settings, **change}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"config\.json: expected .*{next(iter(change))}, found"):
        open_hugging_face(tmp_path)


def test_rotations_are_written_for_old_and_new_transformers(tmp_path):
    case = CASES["llama, scaled, tied"]
    model_of(*case).save_pretrained(tmp_path / "a")
    weights = open_hugging_face(tmp_path / "a")
    assert weights.config.decoder.rotary_scale == 4
    assert weights.config.decoder.rotary_base == 100_000
    export_hugging_face(tmp_path / "b", weights)
    path = tmp_path / "b/config.json"
    values = json.loads(path.read_text())
    for theirs in (("rope_parameters",), ("rope_scaling", "rope_theta")):
        kept = {key: value for key, value in values.items() if key not in theirs}
        path.write_text(json.dumps(kept))
        assert open_hugging_face(tmp_path / "b").config == weights.config


@pytest.mark.parametrize("case", ["gpt2", "llama, scaled, tied"])
def test_a_file_without_the_prefix_of_the_model(tmp_path, case):
    """As the model without its head is saved, and as GPT-2 is published, with its masks."""
    from safetensors.numpy import save_file

    arch, settings = CASES[case]
    model_of(arch, settings).save_pretrained(tmp_path)
    expected = nested(open_hugging_face(tmp_path))
    prefix = FAMILIES[arch].base
    tensors = {name.removeprefix(prefix): x for name, x in tensors_of(tmp_path).items()}
    masks = {"h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32)}
    save_file(tensors | (masks if arch == "gpt2" else {}), tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, nested(open_hugging_face(tmp_path)), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_bit_survives(tmp_path, case, dtype):
    arch, settings = CASES[case]
    config = hf_config.to_model_config(settings, arch, tmp_path)
    params = drawn_params(config, 0, dtype)
    weights = ArrayWeights(config, params)
    assert export_hugging_face(tmp_path / "a", weights, arch=arch, max_shard_bytes=900) == []
    back = open_hugging_face(tmp_path / "a")
    assert back.shapes.keys() == params.keys()
    for path, array in params.items():
        assert_same_bits(back.read(path), array, path)


@pytest.mark.parametrize("case", ["codegen", "gpt_bigcode", "qwen2"])
def test_a_model_directory_and_back(tmp_path, case):
    """Special tokens too: of those it lacks, none is made up."""
    arch, settings = CASES[case]
    model = model_of(arch, {**settings, "pad_token_id": None, "eos_token_id": [2, 7]})
    model.save_pretrained(tmp_path / "a")
    import_weights(tmp_path / "a", tmp_path / "run")
    found = verify_weights(tmp_path / "a", tmp_path / "run")
    assert (found.problems, found.notes, found.rounded) == ((), (), ())
    differences = compare_outputs(tmp_path / "a", tmp_path / "run")
    assert list(differences) == ["logits"]
    assert differences["logits"] < ATOL
    export_weights(tmp_path / "run", tmp_path / "b")
    values = json.loads((tmp_path / "b/config.json").read_text())
    assert [values[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [None, 1, 2]
    generation = json.loads((tmp_path / "b/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 7]}
    assert verify_weights(tmp_path / "b", tmp_path / "run").problems == ()


SANTACODER = {  # as published, but for the sizes
    **{"activation_function": "gelu_fast", "architectures": ["GPT2LMHeadCustomModel"]},
    **{"attention_head_type": "multiquery", "model_type": "gpt2", "layer_norm_epsilon": 1e-5},
    **{"initializer_range": 0.02, "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
    **{"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    **{"n_inner": 64, "bos_token_id": 1, "eos_token_id": 1, **GPT},
}


@pytest.fixture
def santacoder(tmp_path):
    """A folder, and the same network as a GPT-BigCode of theirs: its kernels are the other way
    round, and queries lie apart from the key and the value."""
    from safetensors.numpy import save_file

    model = model_of("gpt_bigcode", GPT)
    tensors = {name: x.numpy() for name, x in model.state_dict().items()}
    for name in list(tensors):
        module, _, kind = name.rpartition(".")
        if module.endswith(("c_attn", "c_proj", "c_fc")) and kind == "weight":
            tensors[name] = np.ascontiguousarray(tensors[name].T)
    for layer in range(GPT["n_layer"]):
        attn = f"transformer.h.{layer}.attn"
        for kind in ("weight", "bias"):
            fused = tensors.pop(f"{attn}.c_attn.{kind}")
            parts = np.split(fused, [GPT["n_embd"]], axis=-1)
            tensors[f"{attn}.q_attn.{kind}"], tensors[f"{attn}.kv_attn.{kind}"] = map(
                np.ascontiguousarray, parts
            )
        tensors[f"{attn}.bias"] = np.tri(64, dtype=np.uint8)[None, None]
        tensors[f"{attn}.masked_bias"] = np.array(-1e4, np.float32)
    folder = tmp_path / "santacoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SANTACODER))
    save_file(tensors, folder / "model.safetensors")
    return folder, model


def test_santacoder_as_first_published(santacoder, tmp_path, capsys):
    folder, model = santacoder
    run, out = tmp_path / "run", tmp_path / "out"
    weights = open_hugging_face(folder)
    tokens = torch.tensor(tokens_of().astype(np.int64))
    with torch.no_grad():
        theirs = model(tokens).logits.numpy()
    mine = logits_of(weights.config, nested(weights))
    np.testing.assert_allclose(mine, theirs, atol=ATOL, rtol=0)
    import_weights(folder, run)
    capsys.readouterr()
    assert main(["convert", "verify", str(folder), str(run)]) == 0
    said = capsys.readouterr().out
    assert "parameters compared, 0 differences" in said
    assert "outputs not compared: transformers has no class for santacoder" in said
    with pytest.raises(ValueError, match=r"read and not written, .* is also gpt_bigcode: choose"):
        export_weights(run, out, arch="santacoder")
    assert not out.exists()
    export_weights(run, out)
    again = load_theirs(transformers.AutoModelForCausalLM, out)
    assert type(again) is type(model)
    with torch.no_grad():
        np.testing.assert_array_equal(again(tokens).logits.numpy(), theirs)


def test_ids_that_name_no_row_are_left_out_and_that_is_said(tmp_path, capsys):
    """GPT-2's own ids are there whatever `vocab_size` is; transformers warns, and loads it."""
    settings = {"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": None}
    model_of("gpt2", {**GPT, **settings}).save_pretrained(tmp_path / "a")
    import_weights(tmp_path / "a", tmp_path / "run", pad_vocab_to_multiple=2**16)
    told = f"of {tmp_path / 'a'}: eos 50,256, bos 50,256, since its embedding has 90 rows"
    assert told in capsys.readouterr().out
    export_weights(tmp_path / "run", tmp_path / "b", vocab_size=90)
    values = json.loads((tmp_path / "b/config.json").read_text())
    assert [values[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [None] * 3
    assert not verify_weights(tmp_path / "a", tmp_path / "run").problems
    assert "WARNING" not in capsys.readouterr().out, "a decoder alone may lack them"


def test_rows_are_added_to_a_bias_as_well(tmp_path):
    model_of(*CASES["codegen"]).save_pretrained(tmp_path / "a")
    import_weights(tmp_path / "a", tmp_path / "run", pad_vocab_to_multiple=64)
    found = verify_weights(tmp_path / "a", tmp_path / "run")
    assert found.problems == ()
    assert found.notes == (f"38 rows of the vocabulary are not in {tmp_path / 'a'}",)
    export_weights(tmp_path / "run", tmp_path / "b")
    model = load_theirs(transformers.AutoModelForCausalLM, tmp_path / "b")
    torch.testing.assert_close(model.lm_head.bias[90:], model.lm_head.bias[:90].mean().expand(38))


def of_ours(**settings):
    """A decoder alone with T5's initial values, which no `config.json` knows."""
    decoder = StackConfig(
        **{
            **dict(num_layers=2, d_model=16, num_heads=4, head_dim=4, d_ff=24, causal=True),
            **dict(max_positions=64, position="rotary", scale_attention=True),
            **settings,
        }
    )
    none = dict(num_layers=0, causal=False, attention_window=None)
    encoder = dataclasses.replace(decoder, **none)
    return ModelConfig(vocab_size=90, encoder=encoder, decoder=decoder, tie_embeddings=False)


@pytest.mark.parametrize(
    ("settings", "arch"),
    [
        (dict(gated=True, num_kv_heads=4, rotary_dim=4, activation="silu"), "llama"),
        (dict(gated=True, qkv_bias=True), "qwen2"),
        (dict(norm="layer", mlp_bias=True, parallel=True, shared_norm=False), "gpt_neox"),
        (dict(norm="layer", attention_window=7), "starcoder2"),
    ],
)
def test_the_architecture_of_a_network_of_our_own(settings, arch):
    config = of_ours(**settings)
    assert hf_config.default_architecture(config) == arch
    check_exportable(config)


def test_a_decoder_alone_that_is_none_of_theirs():
    config = of_ours(gated=True, norm="layer", qkv_bias=True, out_bias=True)
    with pytest.raises(ValueError, match=r"the network is no \w+: decoder\.\w+ is .*, \w+ has"):
        check_exportable(config)
    six = of_ours(num_heads=6)
    with pytest.raises(ValueError, match=r"is no codegen: config\.json: expected a positive mult"):
        check_exportable(six, "codegen")


def test_an_encoder_beside_the_decoder_is_no_language_model():
    config = dataclasses.replace(of_ours(gated=True), encoder=of_ours(gated=True).decoder)
    with pytest.raises(ValueError, match=r"is no llama: encoder\.num_layers is 2, llama has 0"):
        check_exportable(config, "llama")


def test_a_fused_tensor_of_a_wrong_shape_is_one_error(tmp_path):
    from safetensors.numpy import save_file

    model_of(*CASES["gpt2"]).save_pretrained(tmp_path)
    tensors = tensors_of(tmp_path)
    name = "transformer.h.1.attn.c_attn.weight"
    tensors[name] = tensors[name][:, :-1]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=name) as error:
        open_hugging_face(tmp_path)
    assert str(error.value).count(name) == 1
