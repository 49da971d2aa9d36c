"""Folders both ways against `transformers` on random weights at fp32."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding.generate import compiled
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.token_ids import TokenIds
from codet5p_jax.interop.tokenizer_files import export_tokenizer
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face, open_hugging_face
from codet5p_jax.models import CodeT5p, init_params, t5
from codet5p_jax.models.params import flatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, unk=3, sentinels=(), decoder_start=0)
ATOL = 1e-4
VARIANTS = {
    "v1.0 (CodeT5+)": {},
    "v1.1 (Flan-T5)": {"gated": True, "activation": "gelu_tanh", "tie_embeddings": False},
    "narrow": {"num_heads": 2, "head_dim": 5, "relative_buckets": 8, "relative_max_distance": 20},
}


def config_of(**settings):
    return t5(
        **{
            **{"vocab_size": 300, "d_model": 32, "num_heads": 4, "head_dim": 8, "d_ff": 64},
            **{"num_encoder_layers": 3, "num_decoder_layers": 2},
            **settings,
        }
    )


def params_of(config, seed=0):
    """Initial values, moved a little so that norms and biases count."""
    params = init_params(CodeT5p(config).specs, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape).astype(np.float32)), params
    )


def nested(weights):
    tree = {}
    for path in weights.shapes:
        *parents, name = path.split("/")
        node = functools.reduce(lambda t, key: t.setdefault(key, {}), parents, tree)
        node[name] = jnp.asarray(weights.read(path, np.dtype(np.float32)))
    return tree


def export(folder, config, params, **options):
    return export_hugging_face(folder, ArrayWeights(config, dict(flatten(params))), **options)


@functools.cache
def rows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 300, (3, 40)).astype(np.int32)
    segments = np.ones_like(tokens)
    segments[1, 25:] = tokens[1, 25:] = 0
    targets = rng.integers(4, 300, (3, 9)).astype(np.int32)
    shifted = np.concatenate([np.zeros((3, 1), np.int32), targets[:, :-1]], axis=1)
    return tokens, segments, shifted, targets


def ours(config, params):
    tokens, segments, shifted, targets = map(jnp.asarray, rows())
    bound = CodeT5p(config).bind(params)
    encoded = bound.encode(tokens, segments)
    states = bound.decode(shifted, jnp.ones_like(shifted), encoded, segments)
    losses = bound.token_losses(states, targets, jnp.ones(targets.shape))
    return encoded, bound.logits(states), losses.loss / losses.weight


def assert_same_outputs(model, config, params):
    tokens, segments, _, targets = (torch.tensor(x) for x in rows())
    with torch.no_grad():
        theirs = model(input_ids=tokens, attention_mask=segments, labels=targets.long())
        generated = model.generate(
            input_ids=tokens, attention_mask=segments, max_new_tokens=32, do_sample=False
        )
    encoded, logits, loss = ours(config, params)
    real = rows()[1] > 0
    np.testing.assert_allclose(
        encoded[real], theirs.encoder_last_hidden_state.numpy()[real], atol=ATOL, rtol=0
    )
    np.testing.assert_allclose(logits, theirs.logits.numpy(), atol=ATOL, rtol=0)
    np.testing.assert_array_equal(logits.argmax(-1), theirs.logits.numpy().argmax(-1))
    np.testing.assert_allclose(loss, theirs.loss.numpy(), atol=ATOL, rtol=0)
    run = compiled(CodeT5p(config), SPECIAL, Sampling(max_length=32))
    mine = run(
        params, rows()[0], rows()[1], np.zeros((3, 0), np.int32), np.zeros(3, np.int32),
        jax.random.key(0),
    )  # fmt: skip
    width = generated.shape[1] - 1  # theirs begin with the start id and end with the longest row
    np.testing.assert_array_equal(np.asarray(mine.tokens)[:, :width], generated.numpy()[:, 1:])
    assert not np.asarray(mine.tokens)[:, width:].any()


def load_theirs(cls, folder, **options):
    model, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_exported_runs_in_transformers(tmp_path, variant):
    config = config_of(**VARIANTS[variant])
    params = params_of(config)
    export(tmp_path / "m", config, params, max_shard_bytes=20_000)
    model = load_theirs(transformers.T5ForConditionalGeneration, tmp_path / "m")
    assert_same_outputs(model, config, params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_transformers_saves_is_imported(tmp_path, variant):
    config = config_of(**VARIANTS[variant])
    export(tmp_path / "a", config, params_of(config))
    model = load_theirs(transformers.T5ForConditionalGeneration, tmp_path / "a")
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    weights = open_hugging_face(tmp_path / "b")
    assert weights.config == config
    assert_same_outputs(model, weights.config, nested(weights))


def test_a_tied_projection_without_the_scale(tmp_path):
    """`scale_decoder_outputs` of transformers v5: tied, and yet no 1/sqrt(d_model)."""
    config = dataclasses.replace(config_of(), scale_tied_head=False)
    params = params_of(config)
    export(tmp_path / "m", config, params)
    assert json.loads((tmp_path / "m/config.json").read_text())["scale_decoder_outputs"] is False
    weights = open_hugging_face(tmp_path / "m")
    assert weights.config == config
    model = load_theirs(transformers.T5ForConditionalGeneration, tmp_path / "m")
    assert_same_outputs(model, config, params)


def test_a_sentencepiece_tokenizer_loads_there(tmp_path):
    """That of a SeqIO task, as training leaves it: `sentencepiece.model`."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("def add(a, b): return a + b\nprint(add(1, 2))\n" * 20)
    (tmp_path / "t").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "t/sentencepiece"),
        vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    config = config_of()
    tokens = TokenIds(pad=0, bos=None, eos=1, decoder_start=0)
    export(tmp_path / "m", config, params_of(config), tokenizer=tmp_path / "t", tokens=tokens)
    assert not (tmp_path / "m/sentencepiece.model").exists()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    mine = sentencepiece.SentencePieceProcessor(str(tmp_path / "t/sentencepiece.model"))
    assert theirs("add(b)").input_ids == [*mine.encode("add(b)"), 1]
    assert theirs.eos_token_id == 1


def test_mt5_is_read_as_the_t5_that_it_is(tmp_path):
    """transformers v5 ties what it makes anew, so the folder is written here, as it is published:
    with a projection of its own."""
    config = config_of(**VARIANTS["v1.1 (Flan-T5)"])
    params = params_of(config)
    export(tmp_path / "m", config, params)
    path = tmp_path / "m/config.json"
    mt5 = {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | mt5))
    weights = open_hugging_face(tmp_path / "m")
    assert weights.config == config
    model = load_theirs(transformers.MT5ForConditionalGeneration, tmp_path / "m")
    assert_same_outputs(model, weights.config, nested(weights))


@pytest.mark.parametrize("tied", [True, False])
def test_mt5_that_transformers_saves(tmp_path, tied):
    """Its configuration is always tied; whether there is a projection says the file."""
    config = config_of(gated=True, activation="gelu_tanh", tie_embeddings=tied)
    export(tmp_path / "t5", config, params_of(config))
    path = tmp_path / "t5/config.json"
    mt5 = {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | mt5))
    model = load_theirs(transformers.MT5ForConditionalGeneration, tmp_path / "t5")
    model.save_pretrained(tmp_path / "m")
    weights = open_hugging_face(tmp_path / "m")
    assert (weights.config.tie_embeddings, weights.config.scale_tied_head) == (tied, not tied)
    assert_same_outputs(model, weights.config, nested(weights))


def test_only_the_encoder(tmp_path):
    config = config_of()
    params = params_of(config)
    left_out = export(tmp_path / "m", config, params, arch="t5_encoder")
    assert "decoder/final_norm/scale" in left_out
    model = load_theirs(transformers.T5EncoderModel, tmp_path / "m")
    tokens, segments, _, _ = (torch.tensor(x) for x in rows())
    with torch.no_grad():
        theirs = model(input_ids=tokens, attention_mask=segments).last_hidden_state.numpy()
    encoded, _, _ = ours(config, params)
    real = rows()[1] > 0
    np.testing.assert_allclose(encoded[real], theirs[real], atol=ATOL, rtol=0)
    assert open_hugging_face(tmp_path / "m").config.decoder.num_layers == 0


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_sentence_transformers_embeds_as_training_does(tmp_path, offline, pooling):
    library = pytest.importorskip("sentence_transformers")
    texts = ["def f(x):\n    return x + 1\n", "parse a date", "x"]
    tokenizer = train_tokenizer(texts * 20, 400, tmp_path / "tokenizer", num_sentinels=10)
    config = config_of(
        vocab_size=tokenizer.vocab_size, embed_dim=16, matching_head=True, pooling=pooling
    )
    params = params_of(config)
    options = {"arch": "sentence_transformers", "tokenizer": tmp_path / "tokenizer"}
    left_out = export(tmp_path / "m", config, params, **options)
    assert {path.split("/")[0] for path in left_out} == {
        "decoder",
        "matching_head",
        "log_temperature",
    }
    model = library.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    theirs = model.encode(texts)

    special = tokenizer.special
    rows = [[special.bos, *tokenizer.encode(text), special.eos] for text in texts]
    tokens = np.full((3, max(map(len, rows))), special.pad, np.int32)
    segments = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], segments[i, : len(row)] = row, 1
    bound = CodeT5p(config).bind(params)
    tokens, segments = jnp.asarray(tokens), jnp.asarray(segments)
    mine = bound.embed(bound.encode(tokens, segments), segments)
    np.testing.assert_allclose(theirs, mine, atol=ATOL, rtol=0)
    assert model.get_max_seq_length() == 512


def test_sentence_transformers_needs_a_projection(tmp_path):
    config = config_of()
    with pytest.raises(ValueError, match=r"lacks \(embed_dim is None\); --arch=t5_encoder"):
        export(tmp_path / "m", config, params_of(config), arch="sentence_transformers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_are_those_asked_for(tmp_path, dtype):
    config = config_of()
    params = params_of(config)
    export(tmp_path / "m", config, params, dtype=dtype)
    kinds = {info.dtype.name for info in SafetensorsFolder(tmp_path / "m").tensors.values()}
    assert kinds == {dtype}
    model = load_theirs(transformers.T5ForConditionalGeneration, tmp_path / "m", dtype="auto")
    name = str(model.shared.weight.dtype).removeprefix("torch.")
    assert name == json.loads((tmp_path / "m/config.json").read_text())["dtype"] == dtype
    expected = np.asarray(params["embedding"].astype(dtype), np.float32)
    np.testing.assert_array_equal(model.shared.weight.detach().float().numpy(), expected)


def test_a_tokenizer_trained_here_loads_there(tmp_path):
    texts = ["def f(x):\n    return x + 1\n"] * 20
    tokenizer = train_tokenizer(texts, 400, tmp_path / "tokenizer", num_sentinels=10)
    config = config_of(vocab_size=tokenizer.vocab_size)
    export(tmp_path / "m", config, params_of(config), tokenizer=tmp_path / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    text = texts[0]
    special = tokenizer.special
    assert theirs(text).input_ids == [special.bos, *tokenizer.encode(text), special.eos]
    assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.pad_token_id, theirs.eos_token_id) == (special.pad, special.eos)
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == special.sentinels[0]
    assert theirs.convert_tokens_to_ids("[TDEC]") == special.tdec
    assert theirs("<extra_id_0>").input_ids == [special.bos, special.sentinels[0], special.eos]
    model = load_theirs(transformers.T5ForConditionalGeneration, tmp_path / "m")
    assert model.generation_config.decoder_start_token_id == special.decoder_start
    assert model.generation_config.eos_token_id == special.eos
    assert model.generation_config.pad_token_id == special.pad


def test_tokens_without_rows_are_left_out(tmp_path):
    """A stage-2 model with the rows of stage 1 loses [ENC], [TDEC] and [CDEC], and nothing else."""
    tokenizer = train_tokenizer(["def f(x): return x"] * 9, 330, tmp_path / "t", num_sentinels=4)
    rows = tokenizer.vocab_size - 3
    config = config_of(vocab_size=rows)
    export(tmp_path / "m", config, params_of(config), tokenizer=tmp_path / "t")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert len(theirs) == rows
    assert theirs("[ENC]").input_ids[1:-1] == tokenizer.encode("[ENC]")  # text like any other
    assert theirs("<extra_id_0>").input_ids[1] == tokenizer.special.sentinels[0]
    mine = Tokenizer.load(tmp_path / "m")
    assert mine.vocab_size == rows
    assert mine.special.enc is None
    assert mine.with_prefixes().fingerprint == tokenizer.fingerprint

    config = config_of(vocab_size=rows - 1)
    with pytest.raises(ValueError, match=r"'<extra_id_0>' of the tokenizer has id .*--vocab_size"):
        export(tmp_path / "fewer", config, params_of(config), tokenizer=tmp_path / "t")
    assert not (tmp_path / "fewer").exists()


def test_tokens_without_rows_in_the_files_of_codet5(tmp_path):
    """vocab.json and merges.txt, with the added tokens in files of their own."""
    folder = tmp_path / "t"
    folder.mkdir()
    spec = train_tokenizer(["def f(x): return x"] * 9, 330, tmp_path / "x", num_sentinels=4)._spec
    names = ["[ENC]", "[TDEC]", "[CDEC]"]
    vocab = {t: i for t, i in spec["model"]["vocab"].items() if t not in names}
    files = {
        "vocab.json": vocab,
        "added_tokens.json": {name: len(vocab) + i for i, name in enumerate(names)},
        "special_tokens_map.json": {
            "eos_token": "</s>",
            "additional_special_tokens": [{"content": "[ENC]"}, "[TDEC]", "<extra_id_0>"],
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(vocab["</s>"]): {"content": "</s>"},
                str(len(vocab)): {"content": "[ENC]"},
            }
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    export_tokenizer(folder, tmp_path / "all", len(vocab) + 3)
    export_tokenizer(folder, tmp_path / "fewer", len(vocab))
    for name, values in files.items():
        assert json.loads((tmp_path / "all" / name).read_text()) == values
        files[name] = json.loads((tmp_path / "fewer" / name).read_text())
    assert files["vocab.json"] == vocab
    assert files["added_tokens.json"] == {}
    kept = files["special_tokens_map.json"]
    assert kept == {"eos_token": "</s>", "additional_special_tokens": ["<extra_id_0>"]}
    kept = files["tokenizer_config.json"]["added_tokens_decoder"]
    assert kept == {str(vocab["</s>"]): {"content": "</s>"}}


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"head_bias": True}, "the network is no codet5p_bimodal: head_bias is True"),
        ({"encoder": {"norm": "layer"}}, "encoder.norm is 'layer'"),
        ({"decoder": {"d_ff": 7}}, "decoder.d_ff is 7, codet5p_bimodal has 64"),
    ],
)
def test_a_network_that_is_none_of_theirs(tmp_path, change, pattern):
    config = config_of(embed_dim=4, matching_head=True)
    for name, value in change.items():
        if isinstance(value, dict):
            value = dataclasses.replace(getattr(config, name), **value)
        config = dataclasses.replace(config, **{name: value})
    with pytest.raises(ValueError, match=pattern):
        export(tmp_path / "m", config, init_params(CodeT5p(config).specs, jax.random.key(0)))
    assert not list(tmp_path.iterdir())


PUBLISHED = {  # beyond T5's own: {shared, encoder, decoder}
    "codet5p_embedding": {"proj.weight", "proj.bias"},
    "codet5p_bimodal": {"proj.weight", "proj.bias", "itm_head.weight", "itm_head.bias"},
}


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("arch", PUBLISHED)
def test_codet5p_classes(tmp_path, offline, arch, pooling):
    encoder_only = arch == "codet5p_embedding"
    config = config_of(
        embed_dim=16,
        matching_head=not encoder_only,
        num_decoder_layers=0 if encoder_only else 2,
        pooling=pooling,
    )
    params = params_of(config)
    assert export(tmp_path / "m", config, params) == []
    names = set(SafetensorsFolder(tmp_path / "m").tensors)
    rest = {n for n in names if not n.startswith(("encoder.", "decoder.", "shared."))}
    assert rest == PUBLISHED[arch]
    model = load_theirs(transformers.AutoModel, tmp_path / "m", trust_remote_code=True)
    assert (
        type(model).__name__
        in json.loads((tmp_path / "m/config.json").read_text())["auto_map"]["AutoModel"]
    )
    tokens, segments, shifted, _ = rows()
    ids, mask, decoder_ids = torch.tensor(tokens), torch.tensor(segments), torch.tensor(shifted)
    bound = CodeT5p(config).bind(params)
    encoded = bound.encode(jnp.asarray(tokens), jnp.asarray(segments))
    embedded = bound.embed(encoded, jnp.asarray(segments))
    with torch.no_grad():
        theirs = model(ids, mask) if encoder_only else model.embed(ids, mask)
    np.testing.assert_allclose(embedded, theirs.numpy(), atol=ATOL, rtol=0)
    if not encoder_only:
        lengths = np.ones_like(shifted)
        lengths[2, 5:] = 0  # a row that is shorter: its last real token decides
        states = bound.decode(
            jnp.asarray(shifted), jnp.asarray(lengths), encoded, jnp.asarray(segments)
        )
        matched = bound.match(states, jnp.asarray(lengths))
        with torch.no_grad():
            theirs = model.match(ids, decoder_ids, mask, torch.tensor(lengths))
        np.testing.assert_allclose(matched, theirs.numpy(), atol=ATOL, rtol=0)
        assert_same_outputs(model, config, params)
    model.save_pretrained(tmp_path / "again")
    back = open_hugging_face(tmp_path / "again")
    assert back.config.pooling == pooling
    for path, array in flatten(params):
        np.testing.assert_array_equal(back.read(path), array)


def test_the_embedding_model_is_a_part_of_the_bimodal_one(tmp_path):
    config = config_of(embed_dim=16, matching_head=True)
    params = params_of(config)
    export(tmp_path / "both", config, params)
    left_out = export(tmp_path / "encoder", config, params, arch="codet5p_embedding")
    assert {path.split("/")[0] for path in left_out} == {"decoder", "matching_head"}
    both, encoder = (SafetensorsFolder(tmp_path / name) for name in ("both", "encoder"))
    for name in encoder.tensors:
        np.testing.assert_array_equal(both.read(name), encoder.read(name))
