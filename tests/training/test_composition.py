"""Models made of two, trained with the decoder frozen."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.models import CodeT5p, ModelConfig, codegen_stack, init_params
from codet5p_jax.models.params import flatten, nested
from codet5p_jax.objectives import Seq2SeqCLM
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.composition import compose, composed_config, cross_attention_layers
from codet5p_jax.training.conversion import export_weights
from codet5p_jax.training.freezing import Trainable
from codet5p_jax.training.init_from import frozen_as_drawn, plan_init
from codet5p_jax.training.model_dir import config_to_json, load_config, same_tokenizer
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.stored_weights import StoredWeights, load_params, write_weights
from tests.training import synthetic
from tests.training.synthetic import VOCAB, tiny_config

NO_ENCODER = dataclasses.replace(tiny_config().encoder, num_layers=0)
LLM = ModelConfig(
    vocab_size=VOCAB,
    encoder=NO_ENCODER,
    decoder=codegen_stack(num_layers=3, d_model=32, num_heads=4, rotary_dim=4, causal=True),
    tie_embeddings=False,
    head_bias=True,
    dropout=0.0,
    scan_layers=False,
)
SMALL = dataclasses.replace(
    LLM,
    decoder=codegen_stack(num_layers=2, d_model=16, num_heads=4, rotary_dim=4, causal=True),
)


NO_DECODER = dataclasses.replace(
    tiny_config(), decoder=dataclasses.replace(tiny_config().decoder, num_layers=0)
)
SOME_READ = dataclasses.replace(
    tiny_config(),
    decoder=dataclasses.replace(tiny_config().decoder, num_layers=2, cross_attention=(1,)),
)


def make(folder, config, seed, dtype="bfloat16"):
    """A model directory with values that have moved away from the initial ones."""
    rng = np.random.default_rng(seed)
    params = {
        path: (np.asarray(x) + 0.1 * rng.normal(size=x.shape)).astype(jnp.dtype(dtype))
        for path, x in flatten(init_params(CodeT5p(config).specs, jax.random.key(seed)))
    }
    values = config_to_json(config)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    meta = {
        "step": 0,
        "model": values,
        "tokenizer": "../../tokenizer",
        "token_ids": {"pad": 0, "bos": 1, "eos": 2, "decoder_start": None},
    }
    write_weights(folder / "checkpoints/0", params.items(), meta)
    return params


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return root, make(root / "small", SMALL, 1), make(root / "llm", LLM, 2)


def build(models, target, **options):
    root = models[0]
    compose(str(root / "small"), str(root / "llm"), target, say=lambda _: None, **options)
    return load_params(target)[:2]


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, VOCAB, (2, 7)), jnp.int32), jnp.ones((2, 7), jnp.int32)


@pytest.mark.parametrize("layers", ["last:1", "all", "every:2", "0,2"])
@pytest.mark.parametrize("parallel", [None, False])
def test_it_starts_out_as_the_decoder_alone(models, tmp_path, layers, parallel):
    options = {"layers": layers, "parallel": parallel, "zero_init": True}
    params, config = build(models, tmp_path / "composed", **options)
    alone = CodeT5p(LLM).bind(nested({k: jnp.asarray(v) for k, v in models[2].items()}))
    ids, ones = tokens()
    expected = alone.logits(alone.decode(ids, ones))
    bound = CodeT5p(config).bind(params)
    encoded = bound.encode(*tokens(1))
    assert encoded.shape == (2, 7, 16)
    for encoder in ((), (encoded, ones)):
        got = bound.logits(bound.decode(ids, ones, *encoder))
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_encoder_is_the_small_model_seeing_both_ways(models, tmp_path):
    params, config = build(models, tmp_path / "composed")
    both_ways = dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, causal=False))
    small = CodeT5p(both_ways).bind(nested({k: jnp.asarray(v) for k, v in models[1].items()}))
    ids, ones = tokens(1)
    encoded = CodeT5p(config).bind(params).encode(ids, ones)
    np.testing.assert_allclose(encoded, small.decode(ids, ones), atol=1e-5)
    start, _ = build(models, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, params, start)
    other, _ = build(models, tmp_path / "other", seed=1)
    assert np.any(other["encoder_to_decoder"]["kernel"] != params["encoder_to_decoder"]["kernel"])


def test_each_side_reads_with_its_own_tokenizer(models, tmp_path, one_device, capsys):
    """The data is tokenised for the decoder; the encoder's model comes with another tokenizer."""
    texts = ["def add(a, b):\n    return a + b\n", "for i in range(9): print(i)\n"] * 6
    sides = {"small": (SMALL, 290), "llm": (LLM, 330)}
    for seed, (name, (config, size)) in enumerate(sides.items()):
        tokenizer = train_tokenizer(texts, size, tmp_path / name / "tokenizer", num_sentinels=8)
        rows = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
        make(tmp_path / name, rows, seed)
    compose(*(str(tmp_path / name) for name in sides), tmp_path / "composed", say=lambda _: None)
    assert not same_tokenizer(*(tmp_path / name / "tokenizer" for name in sides))
    config = load_params(tmp_path / "composed")[1]
    assert config.vocab_size != config.encoder_vocab_size

    cache = tmp_path / "cache"
    for split in ("train", "validation"):
        with CacheWriter(cache, "files", split, {"made": "up"}) as writer:
            for text in texts * 4:
                writer.write({"tokens": np.array(tokenizer.encode(text), np.int32)})
    write_mixture(
        cache, "clm", [("files", "seq2seq_clm", 1.0)], special=tokenizer.special,
        vocab_size=tokenizer.vocab_size, tokenizer_digest="made-up", save_tokenizer=tokenizer.save,
    )  # fmt: skip

    def run(**changes):
        settings = {
            "model": config,
            "objectives": [Seq2SeqCLM(inputs_length=32, targets_length=24)],
            "init_from": InitFrom(str(tmp_path / "composed")),
            "trainable": Trainable(("encoder.*", ".*/cross_attention.*")),
            "phases": [Phase("clm", 20, 8)],
            "evaluation": synthetic.Evaluation(every=20, batches=2),
            "save_every": 10,
        }
        return synthetic.run(cache, tmp_path / "run", **{**settings, **changes})

    with pytest.raises(ValueError, match="ids, its embedding 64 rows; set encoder_vocab_size"):
        run(model=dataclasses.replace(config, encoder_vocab_size=64), init_from=None)
    result = run()
    assert "ids of its own tokenizer" in capsys.readouterr().out
    assert result.after["seq2seq_clm/loss"] < result.before["seq2seq_clm/loss"]
    assert same_tokenizer(tmp_path / "run/encoder_tokenizer", tmp_path / "small/tokenizer")
    # What a run goes on with lies in its own folder.
    shutil.rmtree(tmp_path / "composed")
    shutil.rmtree(tmp_path / "run/checkpoints/20")
    again = run()
    assert again.after == result.after


def test_the_command(models, tmp_path, capsys):
    root = models[0]
    args = ["compose", f"--encoder={root / 'small'}", f"--decoder={root / 'llm'}"]
    args += ["--cross_attention=sequential"]
    done = main([*args, "--cross_attention_layers=every:2", f"--out={tmp_path / 'x'}"])
    assert done == 0
    assert load_params(tmp_path / "x")[1].decoder.cross_attention == (1,)
    assert "of them are new: decoder/layers_1/cross_attention/k" in capsys.readouterr().out
    specs = CodeT5p(load_params(tmp_path / "x")[1]).specs
    plan = plan_init(InitFrom(str(tmp_path / "x")), specs)
    norm = [f"decoder/layers_1/cross_attention_norm/{name}" for name in ("bias", "scale")]
    for pattern, found in ((".*/cross_attention/.*", norm), (".*/cross_attention.*", [])):
        frozen = Trainable(("encoder.*", pattern)).split(specs).frozen
        assert frozen_as_drawn(plan, frozen) == found
    verify = ["compose", f"--verify={tmp_path / 'x'}"]
    assert main([*verify, f"--decoder={root / 'llm'}"]) == 0
    assert "are those of" in capsys.readouterr().out
    assert main([*verify, f"--decoder={root / 'small'}"]) == 1
    assert "DIFFERS  lm_head\n" in capsys.readouterr().out
    # Of another dtype it is cast to that of the run, and only then compared.
    make(tmp_path / "wide", LLM, seed=2, dtype="float32")
    assert main([*verify, f"--decoder={tmp_path / 'wide'}"]) == 0
    out = capsys.readouterr().out
    told = r"note: (\d+) dtypes differ, .*: float32 there, bfloat16 here\n\1 of \1 parameters"
    assert re.search(told, out)
    assert out.endswith("bit for bit in the dtype they have here\n")
    make(tmp_path / "another", LLM, seed=3, dtype="float32")
    assert main([*verify, f"--decoder={tmp_path / 'another'}"]) == 1
    assert re.search(r"\n0 of \d+ parameters", capsys.readouterr().out)
    assert main([*args, "--cross_attention_layers=3", f"--out={tmp_path / 'y'}"]) == 1
    assert "cross-attention layer 3 is past the end: the decoder has 3" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_composing_from_gin(models, tmp_path, capsys):
    root = models[0]
    (tmp_path / "mine.gin").write_text(f"""
from __gin__ import dynamic_registration
from codet5p_jax.training import composition
from codet5p_jax.training import train

include 'runs/quickstart_stage1.gin'

INITIAL_CHECKPOINT_PATH = {str(tmp_path / "composed")!r}
composition.compose:
  encoder = {str(root / "small")!r}
  decoder = {str(root / "llm")!r}
  model_dir = %INITIAL_CHECKPOINT_PATH
  layers = 'every:2'
  zero_init = True
""")
    assert main(["compose", f"--gin_file={tmp_path / 'mine.gin'}"]) == 0
    config = load_params(tmp_path / "composed")[1]
    assert (config.decoder.cross_attention, config.decoder.cross_zero_init) == ((1,), True)

    # An option replaces what a file says, and --gin.… both; neither needs a file.
    given = [f"--gin_file={tmp_path / 'mine.gin'}", "--cross_attention_layers=all"]
    where = f"--gin.INITIAL_CHECKPOINT_PATH={str(tmp_path / 'another')!r}"
    assert main(["compose", *given, where]) == 0
    assert load_params(tmp_path / "another")[1].decoder.cross_attention == (0, 1, 2)
    bindings = {"encoder": root / "small", "decoder": root / "llm", "model_dir": tmp_path / "gin"}
    alone = [f"--gin.composition.compose.{name}={str(v)!r}" for name, v in bindings.items()]
    assert main(["compose", *alone]) == 0
    assert load_params(tmp_path / "gin")[1].decoder.cross_attention == (2,)

    capsys.readouterr()
    assert main(["compose", f"--encoder={root / 'small'}"]) == 3
    assert "--decoder, --out missing" in capsys.readouterr().err
    assert main(["compose", *alone, "--gin.composition.compose.layer='all'"]) == 3
    assert "no parameter 'layer'; did you mean layers?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("some", "{0}/some (decoder): that of the decoder has cross-attention in some of its"),
        ("scaled", "that of the decoder scales its embedding (scale_embedding, as Gemma), that of"),
        ("hf:unknown", "decoder: {}/unknown/config.json: model_type 'mamba' does not convert; exp"),
        ("hf:unknown", "codegen, llama, qwen2, gpt2, gpt_bigcode, gpt_neox, starcoder2 or gemma; "),
        ("hf:unknown", "`codet5p convert import --arch` makes a model directory of what is one"),
        ("unknown", "decoder: {0}/unknown is not a model directory: its config.json is Hugging"),
        ("absent", "decoder: {}/absent is not a model directory: it has no config.json"),
        ("hf:absent", "decoder: {}/absent has no config.json"),
        ("encoder", "{0}/encoder (decoder): that of the decoder is an encoder alone"),
    ],
)
def test_decoders_that_cannot_be_are_refused_before_weights_are_read(
    models, tmp_path, monkeypatch, decoder, message
):
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown/config.json").write_text('{"model_type": "mamba"}')
    made = {
        "encoder": NO_DECODER,
        "scaled": dataclasses.replace(LLM, scale_embedding=True),
        "some": SOME_READ,
    }
    if decoder in made:
        make(tmp_path / decoder, made[decoder], 3)
    monkeypatch.setattr(StoredWeights, "read", pytest.fail)
    prefix, _, name = decoder.rpartition(":")
    decoder = f"{prefix}:{tmp_path / name}" if prefix else str(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message.format(tmp_path))):
        compose(str(models[0] / "small"), decoder, tmp_path / "composed")
    assert not (tmp_path / "composed").exists()


TEXTS = ["def f(x): return x", "class A: pass", "for i in range(9): print(i)"] * 4


def test_data_of_another_tokenizer_is_refused_before_weights_are_read(tmp_path):
    """Of the decoder's, that is: for another one of the encoder the data is re-encoded."""
    trained = {
        "data": train_tokenizer(TEXTS, 400, tmp_path / "data", num_sentinels=10),
        "other": train_tokenizer(TEXTS[::2], 400, tmp_path / "another", num_sentinels=10),
    }
    sized = {"vocab_size": trained["data"].vocab_size}
    for name, config in (("llm", LLM), ("small", SMALL)):
        make(tmp_path / name, dataclasses.replace(config, **sized), 1)
        source = tmp_path / ("another" if name == "llm" else "data")
        shutil.copytree(source, tmp_path / name / "tokenizer")
    compose(str(tmp_path / "small"), str(tmp_path / "llm"), tmp_path / "composed", say=print)
    config = load_config(tmp_path / "composed")
    source = InitFrom(str(tmp_path / "composed"))
    with pytest.raises(ValueError, match=r"/tokenizer, is not that of the data, .*/data"):
        plan_init(source, CodeT5p(config).specs, tmp_path / "data", config)


def test_folders_of_decoder_only_models_are_composed_as_model_directories_are(
    models, tmp_path, capsys
):
    root = models[0]
    folders = []
    for name in ("small", "llm"):
        folders.append(f"hf:{tmp_path / name}")
        export_weights(root / name, tmp_path / name, say=lambda _: None)
        values = json.loads((tmp_path / name / "config.json").read_text())
        assert values["architectures"] == ["CodeGenForCausalLM"]
    file = tmp_path / "llm/generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [50256, 2]}))
    compose(*folders, tmp_path / "of_folders")
    assert f"tokens of {folders[1]}: eos 50,256, since its emb" in capsys.readouterr().out
    assert StoredWeights(tmp_path / "of_folders").meta["token_ids"]["eos"] == 2
    expected, _ = build(models, tmp_path / "of_directories")
    found, config, _ = load_params(tmp_path / "of_folders")
    assert config.decoder.cross_attention == (2,)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    # It starts with what the language model starts with, so there is nothing to warn of.
    export_weights(tmp_path / "of_folders", tmp_path / "exported")
    assert "WARNING" not in capsys.readouterr().out
    values = json.loads((tmp_path / "exported/generation_config.json").read_text())
    assert values["decoder_start_token_id"] == 1


@pytest.mark.parametrize("text", ["", "first:1", "last:0", "last:4", "every:9", "-1", "0,,1"])
def test_layers_that_are_none(text):
    with pytest.raises(ValueError, match=r"expected (all|a number)"):
        cross_attention_layers(text, 3)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="that of the decoder is an encoder alone"):
        composed_config(LLM, NO_DECODER)
    looking_back = dataclasses.replace(
        LLM, decoder=dataclasses.replace(LLM.decoder, attention_window=4)
    )
    with pytest.raises(ValueError, match="attention_window = 4 cannot become an encoder: its"):
        composed_config(looking_back, LLM)
    scaled = dataclasses.replace(LLM, scale_embedding=True)
    with pytest.raises(ValueError, match=r"that of the encoder scales .* that of the decoder does"):
        composed_config(scaled, LLM)
    composed_config(scaled, scaled)
    every = dataclasses.replace(SOME_READ.decoder, cross_attention="all")
    composed_config(LLM, dataclasses.replace(SOME_READ, decoder=every))


@pytest.mark.parametrize(
    ("run", "decoder", "message"),
    [
        ("some", "some", "some (decoder): that of the decoder has cross-attention in some of its"),
        ("some", "encoder", "encoder (decoder): that of the decoder is an encoder alone"),
        ("encoder", "some", "encoder is an encoder alone; expected a model with a decoder"),
    ],
)
def test_what_cannot_be_verified_is_refused_before_weights_are_read(
    tmp_path, monkeypatch, capsys, run, decoder, message
):
    for name in {run, decoder}:
        make(tmp_path / name, SOME_READ if name == "some" else NO_DECODER, 3)
    monkeypatch.setattr(StoredWeights, "read", pytest.fail)
    done = main(["compose", f"--verify={tmp_path / run}", f"--decoder={tmp_path / decoder}"])
    assert done == 1
    assert message in capsys.readouterr().err
