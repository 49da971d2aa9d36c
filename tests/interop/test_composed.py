"""An encoder and a decoder with cross-attention, in PyTorch as they are here, at fp32."""

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codet5p_jax.cli.main import main
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding.generate import compiled
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.interop import hf_config
from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.token_ids import TokenIds
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face, open_hugging_face
from codet5p_jax.models import CodeT5p, ModelConfig, StackConfig, codet5p_codegen, t5
from codet5p_jax.models.params import flatten
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.composition import compose
from codet5p_jax.training.conversion import export_weights, import_weights
from codet5p_jax.training.init_from import load_init, plan_init
from codet5p_jax.training.verification import compare_outputs, verify_weights
from tests.interop.test_parity import export, load_theirs, params_of
from tests.interop.test_tables import assert_same_bits, drawn_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("offline")
ATOL = 1e-4
TOKENS = TokenIds(pad=2, bos=1, eos=2, decoder_start=1)
SPECIAL = SpecialTokens(pad=2, bos=1, eos=2, unk=3, sentinels=(), decoder_start=1)
PUBLISHED = codet5p_codegen(
    **dict(num_decoder_layers=3, d_model=24, num_heads=4, rotary_dim=4, vocab_size=90),
    **dict(num_encoder_layers=2, encoder_d_model=16, encoder_num_heads=4, encoder_rotary_dim=4),
)


def test_rows_may_be_added_for_the_encoder_alone(tmp_path):
    config = dataclasses.replace(PUBLISHED, encoder_vocab_size=PUBLISHED.vocab_size)
    params = dict(flatten(params_of(config)))
    export(tmp_path / "a", config, params, tokens=TOKENS)
    wider = dataclasses.replace(config, encoder_vocab_size=93)
    specs = CodeT5p(wider).specs
    plan = plan_init(InitFrom(f"hf:{tmp_path / 'a'}"), specs, model=wider)
    assert plan.rows == {"encoder_embedding": (90, 93)}
    found, _ = load_init(plan, specs, make_mesh(MeshConfig(), jax.devices()[:1]), seed=0)
    assert found["encoder_embedding"].shape == (93, 16)
    np.testing.assert_array_equal(found["encoder_embedding"][:90], params["encoder_embedding"])
    np.testing.assert_array_equal(found["embedding"], params["embedding"])


def rows_of(config):
    """Encoder tokens with padding on the right, what the decoder reads, and what it is to say."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, config.encoder_vocab_size or config.vocab_size, (3, 18))
    segments = np.ones_like(tokens)
    segments[1, 11:] = 0
    targets = rng.integers(3, config.vocab_size, (3, 9))
    shifted = np.concatenate([np.full((3, 1), 1), targets[:, :-1]], axis=1)
    return [x.astype(np.int32) for x in (tokens, segments, shifted, targets)]


def ours(config, params):
    """Encoder states, logits, logits of the decoder alone, loss."""
    tokens, segments, shifted, targets = map(jnp.asarray, rows_of(config))

    def run(params):
        bound, ones = CodeT5p(config).bind(params), jnp.ones_like(shifted)
        encoded = bound.encode(tokens, segments)
        states = bound.decode(shifted, ones, encoded, segments)
        losses = bound.token_losses(states, targets, jnp.ones(targets.shape))
        alone = bound.logits(bound.decode(shifted, ones))
        return encoded, bound.logits(states), alone, losses.loss / losses.weight

    return map(np.asarray, jax.jit(run)(params))


def theirs(model, config):
    """The same of PyTorch, whose targets alone say what the decoder reads."""
    tokens, segments, shifted, targets = (torch.tensor(x).long() for x in rows_of(config))
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=segments, labels=targets)
        alone = model(decoder_input_ids=shifted).logits
    return [x.numpy() for x in (out.encoder_last_hidden_state, out.logits, alone, out.loss)]


def assert_same_outputs(model, config, params):
    mine, found = ours(config, params), theirs(model, config)
    real = rows_of(config)[1] > 0
    for name, a, b in zip(("encoder", "logits", "alone", "loss"), mine, found, strict=True):
        a, b = (a[real], b[real]) if name == "encoder" else (a, b)
        np.testing.assert_allclose(a, b, atol=ATOL, rtol=0, err_msg=name)
        if name in ("logits", "alone"):
            np.testing.assert_array_equal(a.argmax(-1), b.argmax(-1))
            assert b.std() > 0.1


def assert_a_cache_changes_nothing(model, config):
    """Position by position, several at once, and all at once."""
    tokens, segments, shifted, _ = (torch.tensor(x).long() for x in rows_of(config))
    read = dict(input_ids=tokens, attention_mask=segments)
    with torch.no_grad():
        whole = model(**read, decoder_input_ids=shifted).logits
        cache, steps = None, []
        for part in shifted.split([1, 1, 4, 1, 2], dim=1):
            out = model(**read, decoder_input_ids=part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=0)


def load(folder):
    return load_theirs(transformers.AutoModelForSeq2SeqLM, folder, trust_remote_code=True)


def greedy(model, config, **options):
    tokens, segments, _, _ = (torch.tensor(x).long() for x in rows_of(config))
    options = {"max_new_tokens": 32, "do_sample": False, **options}
    return model.generate(tokens, attention_mask=segments, **options)


LAYOUTS = {
    "codet5p": PUBLISHED,
    "codet5p_composed": dataclasses.replace(
        PUBLISHED,
        decoder=dataclasses.replace(
            PUBLISHED.decoder,
            **dict(cross_attention=(0, 2), cross_parallel=False, num_kv_heads=2, head_dim=8),
        ),
        vocab_size=70,
        prompt_to_decoder=False,
    ),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def exported(request, tmp_path_factory):
    config = LAYOUTS[request.param]
    assert hf_config.default_architecture(config) == request.param
    params = params_of(config)
    folder = tmp_path_factory.mktemp("exported") / request.param
    assert export(folder, config, params, tokens=TOKENS, max_shard_bytes=20_000) == []
    return folder, config, params


def test_it_computes_what_training_did(exported):
    folder, config, params = exported
    model = load(folder)
    assert type(model).__name__ in (folder / "config.json").read_text()
    assert hasattr(model, "enc_to_dec_proj")
    assert_same_outputs(model, config, params)
    assert_a_cache_changes_nothing(model, config)


def test_it_writes_what_is_written_here(exported):
    folder, config, params = exported
    model = load(folder)
    generated = greedy(model, config)
    start = torch.ones(3, 1).long()
    alone = greedy(model, config, decoder_input_ids=start)
    assert torch.equal(generated, alone) == (not config.prompt_to_decoder)
    config_alone = dataclasses.replace(config, prompt_to_decoder=False)
    run = compiled(CodeT5p(config_alone), SPECIAL, Sampling(max_length=32))
    empty, none = np.zeros((3, 0), np.int32), np.zeros(3, np.int32)
    mine = np.asarray(run(params, *rows_of(config)[:2], empty, none, jax.random.key(0)).tokens)
    width = alone.shape[1] - 1  # theirs begin with the start token
    np.testing.assert_array_equal(mine[:, :width], alone[:, 1:].numpy())
    assert (mine[:, width:] == 2).all()
    assert len(np.unique(mine)) > 4
    assert torch.equal(generated, greedy(model, config, use_cache=False))
    beams = dict(num_beams=3, max_new_tokens=8)
    assert torch.equal(
        greedy(model, config, **beams), greedy(model, config, use_cache=False, **beams)
    )


def test_prompts_go_to_the_decoder_as_well(tmp_path):
    """As here, where the prompt is the prefix: without its end token, behind the start token."""
    params = params_of(PUBLISHED)
    export(tmp_path / "m", PUBLISHED, params, tokens=TOKENS)
    model = load(tmp_path / "m")
    tokens, segments, _, _ = rows_of(PUBLISHED)
    tokens[1, 10] = 2  # the row's last real token
    lengths = segments.sum(1) - [0, 1, 0]
    run = compiled(CodeT5p(PUBLISHED), SPECIAL, Sampling(max_length=12))
    prefix = np.where(np.arange(18) < lengths[:, None], tokens, 0)
    mine = run(params, tokens, segments, prefix, lengths, jax.random.key(0)).tokens
    ids, mask = (torch.tensor(x).long() for x in (tokens, segments))
    options = dict(max_new_tokens=12, do_sample=False)
    for cache in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        theirs = model.generate(ids, attention_mask=mask, **options, **cache).numpy()
        for i, length in enumerate(lengths):
            before = 18 - length
            assert theirs[i, : before + 1].tolist() == [2] * before + [1]
            assert theirs[i, before + 1 : 19].tolist() == tokens[i, :length].tolist()
            found = theirs[i, 19:]
            assert len(found) > 3
            np.testing.assert_array_equal(found, mine[i, : len(found)])
    one = model.generate(input_ids=ids[1:2, :11], **options).numpy()[0, 11:]
    np.testing.assert_array_equal(one, mine[1, : len(one)])
    other = model.generate(ids[:1], decoder_start_token_id=5, **options)
    assert other[0, :3].tolist() == [5, *tokens[0, :2].tolist()]


def test_a_prompt_in_tokens_of_the_encoder(tmp_path):
    """Two vocabularies: ids of one are not those of the other."""
    config = dataclasses.replace(LAYOUTS["codet5p_composed"], prompt_to_decoder=True)
    export(tmp_path / "m", config, params_of(config), tokens=TOKENS)
    model = load(tmp_path / "m")
    with pytest.raises(ValueError, match="it has 70 tokens and the encoder 90; expected decoder_i"):
        greedy(model, config)
    prompt = torch.full((3, 2), 69)
    generated = greedy(model, config, decoder_input_ids=prompt, max_new_tokens=2)
    assert torch.equal(generated[:, 1:3], prompt)


def test_prompts_of_the_decoder(exported):
    """A row with padding on the left is continued as it is without."""
    folder, config, _ = exported
    model = load(folder)
    tokens, segments, shifted, _ = (torch.tensor(x).long() for x in rows_of(config))
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    generated = greedy(model, config, decoder_input_ids=shifted, **options)
    assert torch.equal(generated[:, :9], shifted)
    again = greedy(model, config, decoder_input_ids=shifted, use_cache=False, **options)
    assert torch.equal(generated, again)
    padded = torch.cat([torch.full((1, 4), 2), shifted[:1]], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    read = dict(input_ids=tokens[:1], attention_mask=segments[:1])
    with torch.no_grad():
        one = model(**read, decoder_input_ids=padded, decoder_attention_mask=mask).logits[:, 4:]
        torch.testing.assert_close(one, model(**read, decoder_input_ids=shifted[:1]).logits)
    for use_cache in (True, False):
        one = model.generate(
            tokens[:1],
            attention_mask=segments[:1],
            decoder_input_ids=torch.cat([torch.ones(1, 1).long(), padded], dim=1),
            decoder_attention_mask=torch.cat([torch.zeros(1, 1).long(), mask], dim=1),
            use_cache=use_cache,
            **options,
        )
        assert torch.equal(one[:, 5:], generated[:1])


def test_transformers_saves_what_is_read_here(exported, tmp_path):
    folder, config, params = exported
    load(folder).save_pretrained(tmp_path / "again")
    back = open_hugging_face(tmp_path / "again")
    assert back.config == open_hugging_face(folder).config
    for path, array in flatten(params):
        np.testing.assert_array_equal(back.read(path), array)
    assert_same_outputs(load(tmp_path / "again"), config, params)


def test_masks_in_the_file_change_nothing(tmp_path):
    params = params_of(PUBLISHED)
    export(tmp_path / "m", PUBLISHED, params, tokens=TOKENS, causal_masks=True)
    names = SafetensorsFolder(tmp_path / "m").tensors
    assert names["decoder.transformer.h.2.crossattention.causal_mask"].shape == (1, 1, 2048, 2048)
    assert_same_outputs(load(tmp_path / "m"), PUBLISHED, params)


def test_labels_that_do_not_count(exported):
    folder, config, _ = exported
    model = load(folder)
    tokens, segments, _, targets = (torch.tensor(x).long() for x in rows_of(config))
    targets[0, 5:] = targets[2] = -100
    read = dict(input_ids=tokens, attention_mask=segments, labels=targets)
    with torch.no_grad():
        found = model(**read)
        logits = found.logits.log_softmax(-1)
        total = model(**read, num_items_in_batch=7).loss * 7
    chosen = [logits[i, t, targets[i, t]] for i in (0, 1) for t in range(5 if i == 0 else 9)]
    torch.testing.assert_close(found.loss, -torch.stack(chosen).mean())
    torch.testing.assert_close(total, -torch.stack(chosen).sum())
    start = model.prepare_decoder_input_ids_from_labels(targets)
    assert start[2].tolist() == [1] + [2] * 8


def drawn_config(seed):
    """Any network of an encoder and a decoder."""
    draw = random.Random(seed).choice
    yes = lambda: draw([False, True])  # noqa: E731
    positions = ("relative", "rotary", "learned", "none")  # each in the first four seeds
    shared, width = yes(), draw([6, 8])

    def stack(causal, d_model):
        heads, layers = draw([2, 4]), draw([1, 2, 3])
        readers = tuple(i for i in range(layers) if yes()) or (layers - 1,)
        return StackConfig(
            num_layers=layers,
            d_model=d_model,
            num_heads=heads,
            head_dim=draw([4, 6]),
            d_ff=draw([5, 9]),
            num_kv_heads=draw([None, 1, 2]),
            causal=causal,
            attention_window=draw([None, 4]) if causal else None,
            cross_attention=draw(["all", readers]) if causal else "none",
            cross_parallel=draw([None, False, True]),
            norm=draw(["rms", "layer"]),
            norm_eps=draw([1e-6, 1e-3]),
            norm_plus_one=yes(),
            activation=draw(["relu", "gelu", "gelu_tanh", "silu"]),
            gated=yes(),
            parallel=yes(),
            shared_norm=yes(),
            qkv_bias=yes(),
            out_bias=yes(),
            mlp_bias=yes(),
            position=positions[(seed + causal * (1 + seed // 4)) % 4],
            relative_buckets=draw([6, 8]),
            relative_max_distance=draw([8, 12]),
            max_positions=64,
            rotary_dim=draw([None, 2]),
            rotary_base=draw([100.0, 10_000.0]),
            rotary_scale=draw([0.5, 2.0]),
            rotary_interleaved=yes(),
            scale_attention=yes(),
        )

    encoder = stack(False, width if shared else draw([6, 10]))
    return ModelConfig(
        vocab_size=40,
        encoder=encoder,
        decoder=stack(True, width),
        encoder_vocab_size=None if shared else 30,
        project_encoder=yes(),
        tie_embeddings=yes(),
        scale_tied_head=yes(),
        head_bias=yes(),
        scale_embedding=yes(),
        dropout=0.0,
    )


@pytest.mark.parametrize("seed", range(6))
def test_any_network(tmp_path, seed):
    config = drawn_config(seed)
    params = params_of(config, seed)
    options = dict(arch="codet5p_composed", tokens=TOKENS)
    assert export(tmp_path / "m", config, params, **options) == []
    model = load(tmp_path / "m")
    assert_same_outputs(model, config, params)
    assert_a_cache_changes_nothing(model, config)
    model.save_pretrained(tmp_path / "again")
    for path, array in flatten(params):
        np.testing.assert_array_equal(open_hugging_face(tmp_path / "again").read(path), array)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_every_bit_of_any_network_survives(tmp_path_factory, seed, dtype):
    config = drawn_config(seed)
    params = drawn_params(config, seed, dtype)
    root = tmp_path_factory.mktemp("bits")
    options = dict(arch="codet5p_composed", tokens=TOKENS, max_shard_bytes=900)
    assert export_hugging_face(root / "a", ArrayWeights(config, params), **options) == []
    back = open_hugging_face(root / "a")
    assert back.shapes.keys() == params.keys()
    for path, array in params.items():
        assert_same_bits(back.read(path), array, path)
    assert export_hugging_face(root / "b", back, **options) == []
    for name in SafetensorsFolder(root / "a").tensors:
        assert_same_bits(*(SafetensorsFolder(root / folder).read(name) for folder in "ab"), name)
    one, other = (json.loads((root / x / "config.json").read_text()) for x in "ab")
    assert one == other


def test_the_commands(exported, tmp_path, capsys):
    """Verifying runs our modelling file, not the one in the folder."""
    folder, config, _ = exported
    run, target = str(tmp_path / "run"), str(tmp_path / "m")
    assert main(["convert", "import", "--from", str(folder), "--to", run]) == 0
    arch = hf_config.default_architecture(config)
    assert main(["convert", "export", "--from", run, "--to", target, "--arch", arch]) == 0
    file = hf_config.MODELING[arch].file
    assert (tmp_path / "m" / file).read_bytes() == (folder / file).read_bytes()
    (tmp_path / "m" / file).write_text("raise RuntimeError('executed')\n")
    capsys.readouterr()
    assert main(["convert", "verify", target, run]) == 0
    out = capsys.readouterr().out
    assert ", 0 differences" in out
    assert "largest difference of logits: " in out
    assert compare_outputs(target, run)["encoder states"] < ATOL


def test_a_published_network_in_the_other_layout(tmp_path):
    params = params_of(PUBLISHED)
    export(tmp_path / "m", PUBLISHED, params, tokens=TOKENS, arch="codet5p_composed")
    import_weights(tmp_path / "m", tmp_path / "run", say=lambda _: None)
    export_weights(tmp_path / "run", tmp_path / "published", say=lambda _: None)
    values = json.loads((tmp_path / "published/config.json").read_text())
    assert values["model_type"] == "codet5p"
    assert verify_weights(tmp_path / "published", tmp_path / "run").problems == ()
    assert_same_outputs(load(tmp_path / "m"), PUBLISHED, params)


def test_both_tokenizers(tmp_path, monkeypatch):
    """The decoder's at the top, the encoder's in a folder; and back. Neither needs code of the
    folder, nor asks whether to run it."""
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    texts = [["def f(x): return x"] * 9, ["parse a date string into parts"] * 9]
    for name, text in zip(("encoder", "decoder"), texts, strict=True):
        tokenizer = train_tokenizer(text, 300, tmp_path / "t" / name, num_sentinels=4)
        config = t5(
            **dict(vocab_size=tokenizer.vocab_size, d_model=8, num_heads=2, head_dim=4, d_ff=8),
            **dict(num_encoder_layers=1, num_decoder_layers=1),
        )
        export(tmp_path / name, config, params_of(config), tokenizer=tmp_path / "t" / name)
    parts = (f"hf:{tmp_path / name}" for name in ("encoder", "decoder"))
    compose(*parts, tmp_path / "run", say=lambda _: None)
    export_weights(tmp_path / "run", tmp_path / "m", say=lambda _: None)
    import_weights(tmp_path / "m", tmp_path / "again", say=lambda _: None)
    export_weights(tmp_path / "again", tmp_path / "n", say=lambda _: None)
    for folder in (tmp_path / "m", tmp_path / "n"):
        for name, place in (("encoder", folder / "encoder_tokenizer"), ("decoder", folder)):
            read = transformers.AutoTokenizer.from_pretrained
            found, given = read(place, trust_remote_code=False), read(tmp_path / name)
            for text in ("def f(x): return x", "parse a date"):
                assert found(text).input_ids == given(text).input_ids


ERRORS = {
    "an unknown norm": ("encoder", {"norm": "batch"}, "'rms' or 'layer' as norm"),
    "a size that is text": ("decoder", {"d_ff": "9"}, "an integer as d_ff"),
    "a size that is not positive": ("decoder", {"d_ff": 0}, "decoder: d_ff has to be 1 or more"),
    "an eps that is none": ("decoder", {"norm_eps": None}, "a number as norm_eps"),
    "a base of zero": ("decoder", {"rotary_base": 0}, "a positive number as rotary_base"),
    "a layer past the end": ("decoder", {"cross_attention": [3]}, "layers from 0 to 2 in order"),
    "layers that are no list": ("decoder", {"cross_attention": "all"}, "as cross_attention"),
    "layers without end": ("decoder", {"num_layers": 2**60}, "layers, but there are"),
    "a switch that is a number": (None, {"head_bias": 1}, "True or False as head_bias"),
    "rows that are shared": (None, {"share_embeddings": True}, "expected 70 as vocab_size of enc"),
    "no decoder": (None, {"decoder": []}, "an object as decoder"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_no_network_has(tmp_path, case):
    part, change, message = ERRORS[case]
    config = LAYOUTS["codet5p_composed"]
    export(tmp_path / "m", config, params_of(config), tokens=TOKENS)
    path = tmp_path / "m/config.json"
    values = json.loads(path.read_text())
    (values if part is None else values[part]).update(change)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as error:
        open_hugging_face(tmp_path / "m")
    assert str(tmp_path / "m") in str(error.value)
