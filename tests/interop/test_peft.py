"""Adapters in PEFT's layout, applied by hand to models of `transformers`."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.cache_writer import write_mixture
from codet5p_jax.interop.peft import export_adapter
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face, open_hugging_face
from codet5p_jax.models import CodeT5p, Lora, codet5p_codegen, init_params
from codet5p_jax.models.params import flatten, nested
from codet5p_jax.objectives import DecoderCLM
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.conversion import export_adapter as export_adapter_of
from codet5p_jax.training.freezing import Trainable
from codet5p_jax.training.phases import Phase
from tests.interop.test_causal_lms import ATOL, CASES, logits_of, model_of, tokens_of
from tests.training import synthetic
from tests.training.synthetic import tiny_config, write_cache

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

# Of LoraConfig and PeftConfig, as documented: name -> type.
SCHEMA = {
    "peft_type": str, "task_type": str, "base_model_name_or_path": str | None, "r": int,
    "lora_alpha": int | float, "target_modules": list, "rank_pattern": dict,
    "alpha_pattern": dict, "fan_in_fan_out": bool, "bias": str, "lora_dropout": float,
    "modules_to_save": list | None, "init_lora_weights": bool, "use_rslora": bool,
    "use_dora": bool, "inference_mode": bool, "auto_mapping": dict | None, "revision": str | None,
}  # fmt: skip


def with_additions(weights, lora, encoder=None):
    """The network of a folder with additions that are not zero, and all its parameters."""
    config = weights.config
    decoder = dataclasses.replace(config.decoder, lora=lora)
    encoder = dataclasses.replace(config.encoder, lora=encoder)
    config = dataclasses.replace(config, encoder=encoder, decoder=decoder)
    drawn = init_params(CodeT5p(config).specs, jax.random.key(1))
    params = {}
    for name, x in flatten(drawn):
        if "_lora_" in name:
            params[name] = x + 0.1 * jax.random.normal(jax.random.key(len(name)), x.shape)
        else:
            params[name] = weights.read(name)
    return config, params


def adapt(model, folder):
    """What PEFT does when it loads an adapter and merges it; returns the names of the modules."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config.keys() == SCHEMA.keys()
    for name, kind in SCHEMA.items():
        assert isinstance(config[name], kind), name
    tensors = safetensors_torch.load_file(folder / "adapter_model.safetensors")
    targets, adapted = config["target_modules"], []
    for name, module in model.named_modules():
        if not any(name == t or name.endswith(f".{t}") for t in targets):
            continue
        kind = type(module).__name__
        assert kind == ("Conv1D" if config["fan_in_fan_out"] else "Linear"), name

        def pattern(key, default, name=name):
            found = [v for k, v in config[key].items() if re.match(rf".*\.{k}$", name)]
            return found[0] if found else default

        r = pattern("rank_pattern", config["r"])
        alpha = pattern("alpha_pattern", config["lora_alpha"])
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{x}.weight") for x in "AB")
        assert (a.shape[0], b.shape[1]) == (r, r)
        delta = alpha / r * (b @ a)
        with torch.no_grad():
            module.weight += delta.T if config["fan_in_fan_out"] else delta
        adapted.append(name)
    assert not tensors, "every tensor belongs to a module that its target_modules name"
    return adapted


FIRST = {arch: name for name, (arch, _) in reversed(CASES.items())}


ADAPTED = [
    *((case, Lora.PROJECTIONS) for case in (*FIRST.values(), "llama, grouped queries, biases")),
    # One of each layout: three tensors, one of them in the order of Conv1D, one in shards.
    *((case, targets) for case in ("llama", "gpt2", "codegen") for targets in (("q", "v"), ("o",))),
]


@pytest.mark.parametrize(("case", "targets"), ADAPTED, ids=str)
def test_an_adapted_model_has_our_logits(tmp_path, case, targets):
    arch, settings = CASES[case]
    model = model_of(arch, settings)
    model.save_pretrained(tmp_path / "base")
    lora = Lora(rank=3, alpha=6.0, targets=targets)
    config, params = with_additions(open_hugging_face(tmp_path / "base"), lora)
    adapter = tmp_path / "adapter"
    modules = export_adapter(adapter, ArrayWeights(config, params), arch=arch, base="base")
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    tokens = torch.tensor(tokens_of(), dtype=torch.long)
    with torch.no_grad():
        before = model(tokens).logits.numpy()
        assert sorted(adapt(model, adapter)) == modules
        theirs = model(tokens).logits.numpy()
    ours = logits_of(config, nested(params))
    assert np.max(np.abs(theirs - before)) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=ATOL)


def test_names_find_what_is_adapted_and_nothing_else(tmp_path):
    """GPT-2 has a c_proj in both halves of a layer; T5 has a q in both kinds of attention."""
    found = {}
    for case, targets in (("llama", ("q",)), ("gpt2", ("o",)), ("gpt2", ("o", "wo"))):
        arch, settings = CASES[case]
        folder = tmp_path / f"{case}{len(targets)}"
        model_of(arch, settings).save_pretrained(folder)
        lora = Lora(rank=3, alpha=4.5, targets=targets)
        config, params = with_additions(open_hugging_face(folder), lora)
        export_adapter(folder / "adapter", ArrayWeights(config, params), arch=arch)
        values = json.loads((folder / "adapter/adapter_config.json").read_text())
        found[case, targets] = values["target_modules"]
        assert (values["r"], values["lora_alpha"]) == (3, 4.5)
        assert values["base_model_name_or_path"] is None
        assert (values["rank_pattern"], values["fan_in_fan_out"]) == ({}, arch == "gpt2")
    assert found == {
        ("llama", ("q",)): ["q_proj"],
        ("gpt2", ("o",)): ["attn.c_proj"],
        ("gpt2", ("o", "wo")): ["c_proj"],
    }


def test_a_decoder_that_was_trained(tmp_path, one_device, capsys):
    """From a folder to an adapter with one command each; 8 bits or not."""
    arch, settings = CASES["llama"]
    model_of(arch, {**settings, "vocab_size": 64}).save_pretrained(tmp_path / "base")
    weights = open_hugging_face(tmp_path / "base")
    write_cache(tmp_path / "cache")
    write_mixture(
        tmp_path / "cache",
        "clm",
        [("files", "decoder_clm", 1.0)],
        special=synthetic.SPECIAL,
        vocab_size=64,
        tokenizer_digest="made-up",
        save_tokenizer=lambda folder: None,
    )
    result = synthetic.run(
        tmp_path / "cache",
        tmp_path / "run",
        model=weights.config,
        objectives=[DecoderCLM(targets_length=12)],
        phases=[Phase("clm", 6, 8)],
        trainable=Trainable((), "int8", save_frozen=False, lora=Lora(rank=2)),
        init_from=InitFrom(f"hf:{tmp_path / 'base'}"),
    )
    assert result.after["decoder_clm/loss"] < result.before["decoder_clm/loss"]
    command = ["convert", "export", "--from", str(tmp_path / "run"), "--adapter"]
    assert main([*command, "--to", str(tmp_path / "adapter")]) == 0
    assert "additions to 4 modules from" in capsys.readouterr().out
    values = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(tmp_path / "base")
    assert values["target_modules"] == ["q_proj", "v_proj"]
    tensors = safetensors_torch.load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    assert tensors[name].shape == (16, 2)
    assert tensors[name].abs().max() > 0
    assert main([*command, "--to", str(tmp_path / "half"), "--dtype=float16", "--base=x/y"]) == 0
    values = json.loads((tmp_path / "half/adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == "x/y"
    assert main([*command, "--to", str(tmp_path / "none"), "--vocab_size=50"]) != 0
    assert main([*command[:-1], "--to", str(tmp_path / "none"), "--base=x/y"]) != 0


def test_an_adapter_has_additions_alone(tmp_path, one_device):
    write_cache(tmp_path / "cache")
    settings = {"phases": [Phase("denoise", 3, 8)]}
    run = functools.partial(synthetic.run, tmp_path / "cache", **settings)
    trainable = Trainable(("encoder/.*",), lora=Lora(rank=2))
    run(tmp_path / "run", trainable=trainable)
    with pytest.raises(ValueError, match=r"but encoder/.* and \d+ more trained in .*run as well"):
        export_adapter_of(tmp_path / "run", tmp_path / "adapter")
    run(tmp_path / "plain", trainable=Trainable(("encoder/.*",)))
    with pytest.raises(ValueError, match=r"found 0 kinds: train with Trainable.lora"):
        export_adapter_of(tmp_path / "plain", tmp_path / "adapter")
    run(tmp_path / "alone", trainable=Trainable((), lora=Lora(rank=2)))
    export_adapter_of(tmp_path / "alone", tmp_path / "adapter", say=lambda _: None)
    values = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert values["task_type"] == "SEQ_2_SEQ_LM"
    inside = [f"layer.0.SelfAttention.{x}" for x in "qv"]
    assert values["target_modules"] == inside


@pytest.mark.parametrize(
    ("encoder", "decoder", "modules"),
    [
        # The modules of the encoder have the same names, so the decoder's are named in full.
        (None, Lora(2, targets=("k", "wo")), 4),
        (Lora(2, targets=("q",)), Lora(2, targets=("q", "cross_attention/v")), 6),
    ],
)
def test_additions_to_a_t5(tmp_path, encoder, decoder, modules):
    config = tiny_config(num_encoder_layers=2, num_decoder_layers=2)
    params = dict(flatten(init_params(CodeT5p(config).specs, jax.random.key(0))))
    export_hugging_face(tmp_path / "base", ArrayWeights(config, params))
    config, params = with_additions(open_hugging_face(tmp_path / "base"), decoder, encoder)
    export_adapter(tmp_path / "adapter", ArrayWeights(config, params))
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    assert len(adapt(model, tmp_path / "adapter")) == modules
    tokens = np.arange(3, 12)[None]
    with torch.no_grad():
        ids = torch.tensor(tokens)
        theirs = model(input_ids=ids, decoder_input_ids=ids).logits.numpy()
    params = jax.tree.map(jnp.asarray, nested(params))
    bound, ones = CodeT5p(config).bind(params), jnp.ones_like(tokens)
    states = bound.decode(jnp.asarray(tokens), ones, bound.encode(jnp.asarray(tokens), ones), ones)
    np.testing.assert_allclose(bound.logits(states), theirs, atol=ATOL)


def test_a_composed_network_is_exported_merged(tmp_path):
    config = codet5p_codegen(
        num_decoder_layers=2, d_model=16, num_heads=4, num_encoder_layers=1, encoder_d_model=8,
        encoder_num_heads=4, encoder_rotary_dim=2, rotary_dim=2, vocab_size=40,
    )  # fmt: skip
    decoder = dataclasses.replace(config.decoder, lora=Lora(rank=2))
    config = dataclasses.replace(config, decoder=decoder)
    params = dict(flatten(init_params(CodeT5p(config).specs, jax.random.key(0))))
    with pytest.raises(ValueError, match="the network is no "):
        export_adapter(tmp_path / "adapter", ArrayWeights(config, params))
