"""What is expected of any model of `transformers`, of composed ones: inner states, embeddings in
place of ids, training, caches, attention implementations, loading. At fp32 where not said."""

import dataclasses
import functools
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.weights import ArrayWeights
from codet5p_jax.models import CodeT5p, codet5p_codegen, layers, stack
from codet5p_jax.models.params import flatten
from tests.interop.test_composed import ATOL, TOKENS, drawn_config, greedy, rows_of
from tests.interop.test_parity import export, load_theirs, nested

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

pytestmark = pytest.mark.usefixtures("offline")
NETWORKS = {
    "published": codet5p_codegen(
        **dict(num_decoder_layers=2, d_model=24, num_heads=4, rotary_dim=4, vocab_size=90),
        **dict(num_encoder_layers=1, encoder_d_model=16, encoder_num_heads=4, encoder_rotary_dim=4),
    ),
    "relative, rotary, tied, a window": drawn_config(0),
    "rotary, relative, parallel, a reader": drawn_config(9),
}
TIED = "relative, rotary, tied, a window"
RATE = 0.25


def drawn_params(config):
    """Values that all count."""
    rng = np.random.default_rng(0)
    shapes = {path: spec.shape for path, spec in flatten(CodeT5p(config).specs)}
    flat = {path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()}
    return nested(ArrayWeights(config, flat))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    @functools.cache
    def folder(name):
        config = dataclasses.replace(NETWORKS[name], dropout=RATE, scan_layers=False)
        params = drawn_params(config)
        target = tmp_path_factory.mktemp("networks") / "m"
        assert export(target, config, params, tokens=TOKENS) == []
        return target, config, params

    return folder


TRAINED = [*list(NETWORKS)[:2], pytest.param(list(NETWORKS)[2], marks=pytest.mark.slow)]


@pytest.fixture(params=NETWORKS)
def network(request, folders):
    return folders(request.param)


def load(folder, **options):
    cls = transformers.AutoModelForSeq2SeqLM
    return load_theirs(cls, folder, trust_remote_code=True, **options)


def tensors_of(config):
    """Source, its mask, and targets."""
    tokens, segments, _, targets = (torch.tensor(x).long() for x in rows_of(config))
    return dict(input_ids=tokens, attention_mask=segments), targets


def left_padded(config):
    """What the decoder reads: two rows, the first with padding on the left."""
    ids = torch.tensor(rows_of(config)[2][:2]).long()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return dict(decoder_input_ids=ids, decoder_attention_mask=mask)


# ----------------------------------------------------------------------------------- inner states


def inner(config, params, monkeypatch):
    """What each layer reads, and each attention's weights, of the encoder and of the decoder."""
    states, weights = [], []
    block, attend = layers.Block.__call__, layers.attention

    def call(self, x, **options):
        states.append(x)
        return block(self, x, **options)

    def record(q, k, v, *, mask_B1TS, bias_PHTS=None, scale=1.0, **options):
        k_BSHK = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
        scores = jnp.einsum("BTHK,BSHK->BHTS", q, k_BSHK) * scale + mask_B1TS
        scores += 0 if bias_PHTS is None else bias_PHTS[0]
        weights.append(jax.nn.softmax(scores))
        return attend(q, k, v, mask_B1TS=mask_B1TS, bias_PHTS=bias_PHTS, scale=scale, **options)

    monkeypatch.setattr(layers.Block, "__call__", call)
    monkeypatch.setattr(layers, "attention", record)

    def run(params):
        tokens, segments, shifted, _ = map(jnp.asarray, rows_of(config))
        bound = CodeT5p(config).bind(params)
        encoded = bound.encode(tokens, segments)
        last = bound.decode(shifted, jnp.ones_like(shifted), encoded, segments)
        layers = config.encoder.num_layers
        encoder = [*states[:layers], encoded], weights[:layers]
        decoder = [*states[layers:], last], weights[layers:]
        return encoder, decoder

    return jax.tree.map(np.asarray, jax.jit(run)(params))


def assert_close(theirs, ours, axis=None):
    """The same number of arrays of the same values; where `axis` is given, of real tokens there."""
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        a = a.numpy()
        assert a.shape == b.shape
        if axis is not None:
            real = rows_of(NETWORKS[TIED])[1] > 0
            a, b = (np.moveaxis(x, axis, 1)[real] for x in (a, b))
        np.testing.assert_allclose(a, b, atol=ATOL, rtol=0)


def test_states_and_attentions_of_every_layer(network, monkeypatch):
    folder, config, params = network
    read, targets = tensors_of(config)
    (encoder_states, encoder_weights), (states, weights) = inner(config, params, monkeypatch)
    assert len(states) == config.decoder.num_layers + 1
    assert np.stack(states).std() > 0.1
    own, crossing, weights = [], [], iter(weights)
    for layer in range(config.decoder.num_layers):
        own.append(next(weights))
        if config.decoder.reads_encoder(layer):
            crossing.append(next(weights))
    for implementation in ("eager", "sdpa"):
        model = load(folder, attn_implementation=implementation)
        with torch.no_grad():
            out = model(**read, labels=targets, output_hidden_states=True, output_attentions=True)
            plain = model(**read, labels=targets)
        assert_close(out.encoder_hidden_states, encoder_states, axis=1)
        assert_close(out.encoder_attentions, encoder_weights, axis=2)
        assert_close(out.decoder_hidden_states, states)
        assert_close(out.decoder_attentions, own)
        assert_close(out.cross_attentions, crossing)
        assert out.encoder_hidden_states[-1] is out.encoder_last_hidden_state
        torch.testing.assert_close(out.logits, plain.logits, atol=1e-5, rtol=0)
        names = ("encoder_hidden_states", "decoder_attentions", "cross_attentions")
        assert not any(name in plain for name in names)


def test_generate_returns_them(folders):
    folder, config, _ = folders(TIED)
    model = load(folder)
    options = dict(output_hidden_states=True, output_attentions=True, return_dict_in_generate=True)
    out = greedy(model, config, max_new_tokens=3, eos_token_id=None, **options)
    assert len(out.encoder_hidden_states) == config.encoder.num_layers + 1
    assert out.encoder_attentions[0].shape == (3, config.encoder.num_heads, 18, 18)
    assert [len(step) for step in out.decoder_hidden_states] == [config.decoder.num_layers + 1] * 3
    assert [step[0].shape[-2:] for step in out.decoder_attentions] == [(1, 1), (1, 2), (1, 3)]
    assert [step[0].shape[-2:] for step in out.cross_attentions] == [(1, 18)] * 3
    alone = model(decoder_input_ids=out.sequences, output_attentions=True)
    assert alone.cross_attentions is None
    assert alone.encoder_attentions is None
    parts = model(**tensors_of(config)[0], decoder_input_ids=out.sequences, return_dict=False)
    assert [part.shape[-1] for part in parts] == [config.vocab_size, config.encoder.d_model]


# ----------------------------------------------------------------------- embeddings in place of ids


def test_embeddings_in_place_of_ids(network):
    folder, config, _ = network
    model = load(folder)
    read, targets = tensors_of(config)
    embedded = dict(
        inputs_embeds=model.get_encoder().get_input_embeddings()(read["input_ids"]),
        attention_mask=read["attention_mask"],
    )
    ids = model.prepare_decoder_input_ids_from_labels(targets)
    with torch.no_grad():
        given = model.get_input_embeddings()(ids)
        found = model(**embedded, decoder_inputs_embeds=given, labels=targets)
        expected = model(**read, labels=targets)
        torch.testing.assert_close(found.logits, expected.logits, atol=0, rtol=0)
        torch.testing.assert_close(found.loss, expected.loss, atol=0, rtol=0)
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
    options |= dict(decoder_input_ids=ids[:, :1])
    assert torch.equal(model.generate(**embedded, **options), model.generate(**read, **options))


def test_what_does_not_go_together(folders):
    folder, config, _ = folders("published")
    model = load(folder)
    read, targets = tensors_of(config)
    both = model.get_encoder().wte(read["input_ids"])
    with pytest.raises(ValueError, match="found both or neither"):
        model(**read, inputs_embeds=both, labels=targets)
    with pytest.raises(ValueError, match="decoder_inputs_embeds or labels are needed"):
        model(**read)
    with pytest.raises(ValueError, match=r"expected a mask of 9 positions, .* found 8"):
        model(**read, labels=targets, decoder_attention_mask=torch.ones(3, 8))
    with pytest.raises(ValueError, match="has no output_router_logits"):
        model(**read, labels=targets, output_router_logits=True)
    with pytest.raises(ValueError, match="expected input_ids, or decoder_input_ids beside"):
        model.generate(inputs_embeds=both)
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="needs a decoder_start_token_id"):
        model.generate(**read)


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_more_tokens_than_learned_positions(tmp_path, tower):
    config = NETWORKS["rotary, relative, parallel, a reader"]
    learned = dataclasses.replace(getattr(config, tower), position="learned", max_positions=18)
    config = dataclasses.replace(config, **{tower: learned})
    export(tmp_path / "m", config, drawn_params(config), tokens=TOKENS)
    model = load(tmp_path / "m")
    ids = torch.full((1, 19), 5)
    message = rf"19 tokens does not fit the 18 learned positions of the {tower} \(max_positions"
    model(ids[:, :18], decoder_input_ids=ids[:, :18])
    with pytest.raises(ValueError, match=message):
        model(ids, decoder_input_ids=ids)
    if tower == "decoder":
        options = dict(eos_token_id=None, do_sample=False)
        assert model.generate(ids, max_length=19, **options).shape == (1, 19)
        for cache in ("dynamic", "static"):
            with pytest.raises(ValueError, match=message):
                model.generate(ids, max_length=20, cache_implementation=cache, **options)
        mask = (torch.arange(19) > 1)[None].long()
        model(ids, decoder_input_ids=ids, decoder_attention_mask=mask)  # padding takes no position


# -------------------------------------------------------------------------------------- training


def mask_of(shape):
    """A fixed pattern of what dropout keeps, so that each place where it is or is not shows."""
    kept = np.arange(np.prod(shape)) % 5 != 2
    return (kept.reshape(shape) / (1 - RATE)).astype(np.float32)


def trained(config, params, monkeypatch):
    """Loss with dropout, and its gradient."""

    def drop(x, rate, key):
        assert rate == RATE
        return x if key is None else x * mask_of(x.shape)

    for module in (layers, stack):
        monkeypatch.setattr(module, "dropout", drop)
    tokens, segments, shifted, targets = map(jnp.asarray, rows_of(config))

    def loss(params):
        bound, key = CodeT5p(config).bind(params), jax.random.key(0)
        encoded = bound.encode(tokens, segments, key=key)
        states = bound.decode(shifted, jnp.ones_like(shifted), encoded, segments, key=key)
        losses = bound.token_losses(states, targets, jnp.ones(targets.shape))
        return losses.loss / losses.weight

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("network", TRAINED, indirect=True)
def test_training_is_what_it_is_here(network, tmp_path, monkeypatch):
    """Loss and every gradient with the same elements dropped: in the same places, that is."""
    folder, config, params = network
    model = load(folder, attn_implementation="eager").train()
    read, targets = tensors_of(config)

    def drop(x, p=0.5, training=True, inplace=False):
        assert p == RATE
        return x * torch.tensor(mask_of(x.shape)) if training else x

    monkeypatch.setattr(torch.nn.functional, "dropout", drop)
    found = model(**read, labels=targets).loss
    found.backward()
    expected, grads = trained(config, params, monkeypatch)
    np.testing.assert_allclose(found.item(), expected, atol=ATOL, rtol=0)
    # A gradient is laid out as its parameter is.
    export(tmp_path / "grads", config, grads, tokens=TOKENS)
    expected = SafetensorsFolder(tmp_path / "grads")
    parameters = {name: model.get_parameter(name) for name in expected.tensors}
    assert set(map(id, parameters.values())) == set(map(id, model.parameters()))
    for name, parameter in parameters.items():
        assert parameter.grad.abs().max() > 0, name
        mine = np.asarray(expected.read(name))
        np.testing.assert_allclose(parameter.grad, mine, atol=ATOL, rtol=0, err_msg=name)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(folders, reentrant):
    folder, config, _ = folders("rotary, relative, parallel, a reader")
    read, targets = tensors_of(config)
    model = load(folder).train()
    calls = []
    for tower in (model.encoder, model.decoder.transformer):
        for block in tower.h:
            block.mlp.register_forward_hook(lambda *_: calls.append(1))

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        calls.clear()
        model(**read, labels=targets).loss.backward()
        return len(calls), {name: x.grad.clone() for name, x in model.named_parameters()}

    times, expected = gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a new name for it in transformers 5
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, found = gradients()
    assert again == 2 * times
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize("beams", [1, 3])
def test_every_cache_generates_the_same(network, beams):
    folder, config, _ = network
    model = load(folder)
    read, _ = tensors_of(config)
    read = {name: x[:2] for name, x in read.items()}
    options = dict(max_new_tokens=6, do_sample=False, num_beams=beams, num_return_sequences=beams)
    options |= dict(output_logits=True, return_dict_in_generate=True)
    for prompt in ({}, left_padded(config)):
        run = functools.partial(model.generate, **read, **prompt, **options)
        none, growing, fixed = (
            run(use_cache=False),
            run(cache_implementation="dynamic"),
            run(cache_implementation="static"),
        )
        for other in (growing, fixed):
            assert torch.equal(other.sequences, none.sequences)
            torch.testing.assert_close(other.logits, none.logits, atol=1e-4, rtol=0)
    cache = fixed.past_key_values.self_attention_cache
    assert isinstance(cache, transformers.StaticCache)
    # Kept from the longer of the two runs: start, prompt and all new tokens but the last.
    assert cache.layers[0].keys.shape[2] == (24 if config.prompt_to_decoder else 14)


@pytest.mark.parametrize("position", ["relative", "rotary", "learned"])
def test_padding_on_the_left_moves_nothing(tmp_path, position):
    """A batch of prompts is what each row is alone, also where `generate` puts the start token
    before the padding; the window counts tokens."""
    config = NETWORKS["rotary, relative, parallel, a reader"]
    tower = dataclasses.replace(config.decoder, position=position, attention_window=3)
    config = dataclasses.replace(config, decoder=tower)
    export(tmp_path / "m", config, drawn_params(config), tokens=TOKENS)
    model = load(tmp_path / "m")
    read, _ = tensors_of(config)
    batch = {name: x[:2] for name, x in read.items()} | left_padded(config)
    batch["decoder_input_ids"][:, 0] = 3  # no start token, so `generate` adds one
    rows = []
    for i, real in enumerate(batch["decoder_attention_mask"].bool()):
        row = {name: x[i : i + 1] for name, x in batch.items()}
        rows.append(row | {name: row[name][:, real] for name in left_padded(config)})
    with torch.no_grad():
        together = model(**batch).logits
        for logits, row in zip(together, rows, strict=True):
            alone = model(**row).logits[0]
            torch.testing.assert_close(logits[-len(alone) :], alone, atol=1e-5, rtol=0)
    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    options |= dict(output_logits=True, return_dict_in_generate=True)
    rows = [model.generate(**row, **options, use_cache=False) for row in rows]
    for cache in (
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
    ):
        found = model.generate(**batch, **options, **cache)
        assert found.sequences[0, :5].tolist() == [1, *batch["decoder_input_ids"][0, :4].tolist()]
        for i, alone in enumerate(rows):
            assert torch.equal(found.sequences[i, -5:], alone.sequences[0, -5:])
            for step, other in zip(found.logits, alone.logits, strict=True):
                torch.testing.assert_close(step[i], other[0], atol=1e-4, rtol=0)


def test_a_static_cache_is_one_graph(folders):
    """No shape changes from one token to the next, and nothing breaks the graph."""
    folder, config, _ = folders("rotary, relative, parallel, a reader")
    model = load(folder)
    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    read = {name: x[:2] for name, x in tensors_of(config)[0].items()} | left_padded(config)
    settings = transformers.CompileConfig(fullgraph=True, mode=None, backend="eager")
    settings._compile_all_devices = True  # on a CPU `generate` compiles nothing otherwise
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    static = dict(cache_implementation="static", compile_config=settings)
    found = model.generate(**read, **options, **static)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch.equal(found, model.generate(**read, **options))


# -------------------------------------------------------------------------------------- attention


def test_attention_implementations(network):
    folder, config, _ = network
    model = load(folder)
    assert model.config._attn_implementation == "sdpa"
    read, _ = tensors_of(config)
    read = {name: x[:2] for name, x in read.items()} | left_padded(config)
    used = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, attn_mask, **options):
        used.append(attn_mask.dtype)
        assert torch.isfinite(attn_mask).all()
        return sdpa(*args, attn_mask=attn_mask, **options)

    def logits():
        used.clear()
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
            return model(**read).logits

    real = read["decoder_attention_mask"].bool()
    found = logits()
    assert set(used) == {torch.float32}
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits()[real], found[real], atol=1e-5, rtol=0)
    assert not used
    model = load(folder, dtype="bfloat16")
    assert torch.isfinite(logits()).all()
    assert set(used) == {torch.bfloat16}


# ---------------------------------------------------------------------------------------- loading


def bytes_of(model):
    return {name: x.view(torch.uint8).numpy().tobytes() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_again(network, tmp_path, dtype):
    folder, config, _ = network
    model = load(folder, dtype=dtype, low_cpu_mem_usage=True)
    assert {str(x.dtype) for x in model.parameters()} == {f"torch.{dtype}"}
    model.save_pretrained(tmp_path / "again", max_shard_size="10KB")
    again = load(tmp_path / "again")
    assert bytes_of(again) == bytes_of(model)
    head, rows = again.decoder.lm_head.weight, again.decoder.transformer.wte.weight
    assert (head is rows) == config.tie_embeddings
    assert (again.encoder.wte.weight is rows) == (config.encoder_vocab_size is None)
    read, targets = tensors_of(config)
    with torch.no_grad():
        expected, found = (m(**read, labels=targets).logits for m in (model, again))
    assert torch.equal(found, expected)


def test_norms_that_a_folder_lacks(network, tmp_path):
    """They only normalise, and nothing else is drawn anew."""
    folder, config, _ = network
    shutil.copytree(folder, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if ".ln_" not in name}
    save_file(kept, tmp_path / "m/model.safetensors", {"format": "pt"})
    cls = transformers.AutoModelForSeq2SeqLM
    found = cls.from_pretrained(tmp_path / "m", trust_remote_code=True).state_dict()
    for name, x in tensors.items():
        tower = config.decoder if name.startswith("decoder") else config.encoder
        one = name.endswith("weight") and not tower.norm_plus_one
        assert torch.equal(found[name], x if name in kept else torch.full_like(x, one)), name
