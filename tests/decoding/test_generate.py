"""Cached generation against recomputing everything for each token; ends, prefixes, sampling."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding import generate as decoding
from codet5p_jax.decoding.beam import BeamSearch
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.decoding.stop import stop_table
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import abstract_params, init_params, logical_axes
from codet5p_jax.sharding import MeshConfig, batch_sharding, make_mesh, param_shardings

VOCAB = 24
SPECIAL = SpecialTokens(
    pad=0, bos=1, eos=2, unk=3, sentinels=(20,), decoder_start=0, enc=21, tdec=22, cdec=23
)
CONFIG = t5(
    vocab_size=VOCAB,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
LONGEST = 16
FREE = np.zeros((3, 0), np.int32)
NONE = np.zeros(3, np.int32)


@pytest.fixture(scope="module")
def model():
    return CodeT5p(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    params = init_params(model.specs, jax.random.key(0))
    # Sharper than at initialisation, so that argmax differs from row to row and step to step.
    return jax.tree.map(lambda p: 2 * p, params)


@pytest.fixture(scope="module")
def prompts():
    tokens = np.random.default_rng(0).integers(4, 20, (3, 7)).astype(np.int32)
    segments = (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int32)
    return jnp.asarray(tokens * segments), jnp.asarray(segments)


@pytest.fixture(scope="module")
def recompute(model, params, prompts):
    """Greedy decoding without a cache: the whole decoder again for every token of every row."""

    @jax.jit
    def all_logits(params, decoder_tokens, encoder_tokens, encoder_segments):
        bound = model.bind(params)
        encoded = bound.encode(encoder_tokens, encoder_segments)
        ones = jnp.ones_like(decoder_tokens)
        return bound.logits(bound.decode(decoder_tokens, ones, encoded, encoder_segments))

    def run(params, prefix, prefix_lengths, max_length, min_length=0):
        return _recompute(
            lambda *args: np.array(all_logits(params, *args))[0],
            prompts,
            prefix,
            prefix_lengths,
            max_length,
            min_length,
        )

    return run


def _recompute(all_logits, prompts, prefix, prefix_lengths, max_length, min_length):
    rows = []
    for i in range(len(prefix)):
        decoder = np.zeros((1, LONGEST + 1), np.int32)  # causal: what is still 0 is not seen
        decoder[0, 0] = SPECIAL.decoder_start
        made = []
        while len(made) < max_length + prefix_lengths[i]:
            if len(made) < prefix_lengths[i]:
                made.append(int(prefix[i, len(made)]))
            else:
                prompt = prompts[0][i : i + 1], prompts[1][i : i + 1]
                logits = all_logits(decoder, *prompt)[len(made)]
                if len(made) + 1 - prefix_lengths[i] < min_length:
                    logits[SPECIAL.eos] = -np.inf
                made.append(int(logits.argmax()))
                if made[-1] == SPECIAL.eos:
                    break
            decoder[0, len(made)] = made[-1]
        rows.append(made[prefix_lengths[i] :])
    return rows


def check(result, expected, max_length):
    for tokens, length, row in zip(result.tokens, result.lengths, expected, strict=True):
        assert tokens.tolist() == row + [SPECIAL.pad] * (max_length - len(row))
        assert int(length) == len(row)


def test_greedy_is_full_recomputation(model, params, prompts, recompute):
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=12))
    expected = recompute(params, FREE, NONE, 12)
    assert len({tuple(row) for row in expected}) > 1
    check(run(params, *prompts, FREE, NONE, jax.random.key(0)), expected, 12)


def test_ragged_prefixes_are_forced_and_then_continued(model, params, prompts, recompute):
    prefix = np.array([[22, 0, 0], [23, 5, 9], [0, 0, 0]], np.int32)
    lengths = np.array([1, 3, 0], np.int32)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=9))
    expected = recompute(params, prefix, lengths, 9)
    result = run(params, *prompts, prefix, lengths, jax.random.key(0))
    check(result, expected, 9)
    wider = np.pad(prefix, ((0, 0), (0, 2)))
    check(run(params, *prompts, wider, lengths, jax.random.key(0)), expected, 9)


def favour_eos(params, amount):
    """The same model with an embedding that makes the end token likely (embeddings are tied)."""
    changed = jax.tree.map(lambda p: p, params)
    changed["embedding"] = changed["embedding"].at[SPECIAL.eos].mul(amount)
    return changed


def test_rows_end_at_the_end_token_and_not_before_min_length(model, params, prompts, recompute):
    keen = favour_eos(params, 8.0)
    expected = recompute(keen, FREE, NONE, 10)
    assert min(map(len, expected)) < 5  # the test is about rows that end
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=10))
    check(run(keen, *prompts, FREE, NONE, jax.random.key(0)), expected, 10)

    expected = recompute(keen, FREE, NONE, 10, min_length=5)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=10, min_length=5))
    result = run(keen, *prompts, FREE, NONE, jax.random.key(0))
    check(result, expected, 10)
    assert int(result.lengths.min()) >= 5


def test_an_end_token_in_the_prefix_does_not_end_the_row(model, params, prompts):
    prefix = np.full((3, 2), SPECIAL.eos, np.int32)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=6, min_length=6))
    result = run(params, *prompts, prefix, NONE + 2, jax.random.key(0))
    assert result.lengths.tolist() == [6, 6, 6]


def test_sampling_is_repeatable_and_differs_by_key_and_row(model, params):
    prompts = jnp.full((3, 2), 7), jnp.ones((3, 2), jnp.int32)
    run = decoding.compiled(model, SPECIAL, Sampling(max_length=12, min_length=12, temperature=2.0))
    one, again, other = (
        np.array(run(params, *prompts, FREE, NONE, jax.random.key(seed)).tokens)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[0] != one[1]).any()


def test_a_prompt_for_the_decoder_is_not_forgotten(model, params, prompts):
    config = dataclasses.replace(model.config, prompt_to_decoder=True)
    run = decoding.compiled(CodeT5p(config), SPECIAL, Sampling(max_length=4))
    with pytest.raises(ValueError, match="prompt has to be the prefix as well"):
        run(params, *prompts, FREE, NONE, jax.random.key(0))


def test_a_prompt_is_sampled_alike_wherever_it_stands(model, params, prompts):
    """Several samples of each; each prompt has a key, each sample its own."""
    sampling = Sampling(max_length=6, temperature=1.5, top_k=9, samples=3)
    run = decoding.compiled(model, SPECIAL, sampling)
    keys = jax.random.split(jax.random.key(3), 3)
    prefix = np.array([[5, 6], [7, 0], [0, 0]], np.int32)
    lengths = np.array([2, 1, 0], np.int32)
    whole = run(params, *prompts, prefix, lengths, keys)
    assert whole.tokens.shape == (9, 6)
    assert len({tuple(row) for row in whole.tokens.tolist()}) > 6
    back = run(params, *(x[::-1] for x in prompts), prefix[::-1], lengths[::-1], keys[::-1])
    for i in range(3):
        there = slice(3 * (2 - i), 3 * (3 - i))
        np.testing.assert_array_equal(whole.tokens[3 * i : 3 * i + 3], back.tokens[there])
        np.testing.assert_array_equal(whole.lengths[3 * i : 3 * i + 3], back.lengths[there])


def test_a_sample_is_drawn_from_what_is_recomputed(model, params, prompts, recompute):
    """With nothing but the most likely token to draw from, every sample is the greedy text."""
    sampling = Sampling(max_length=8, temperature=1.0, top_k=1, samples=2)
    run = decoding.compiled(model, SPECIAL, sampling)
    expected = recompute(params, FREE, NONE, 8)
    result = run(params, *prompts, FREE, NONE, jax.random.key(0))
    check(result, [row for row in expected for _ in range(2)], 8)


@pytest.mark.parametrize("how", [Sampling(max_length=10), BeamSearch(max_length=10, beams=2)])
def test_a_stop_text_ends_a_row(model, params, prompts, how):
    run = decoding.compiled(model, SPECIAL, how)
    free = run(params, *prompts, FREE, NONE, jax.random.key(0))
    texts = [bytes(row[:n].tolist()) for row, n in zip(free.tokens, free.lengths, strict=True)]
    stop = texts[0][2:4]
    assert min(stop) >= 4
    table = stop_table([stop], {i: bytes([i]) for i in range(4, VOCAB)}, VOCAB)
    made = run(params, *prompts, FREE, NONE, jax.random.key(0), stop=table)
    assert made.lengths[0] < 10
    for tokens, n, text in zip(made.tokens, made.lengths.tolist(), texts, strict=True):
        found = bytes(tokens[:n].tolist())
        assert stop not in found[:-1]
        assert n == 10 or found.endswith(stop) or found[-1] == SPECIAL.eos
        assert not tokens[n:].any()  # padding
        if isinstance(how, Sampling):
            end = text.find(stop)
            assert found == (text if end < 0 else text[: end + 2])


@pytest.mark.parametrize(
    "how",
    [Sampling(max_length=5, temperature=1.0, samples=2), BeamSearch(max_length=5, beams=2)],
    ids=lambda how: type(how).__name__,
)
def test_on_a_mesh_as_on_one_device(how):
    config = dataclasses.replace(CONFIG, vocab_size=32)
    model = CodeT5p(config)
    params = init_params(model.specs, jax.random.key(0))
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, 20, (4, 7)).astype(np.int32)
    batch = tokens, np.ones_like(tokens), tokens[:, :2], np.array([2, 0, 1, 2], np.int32)
    run = decoding.compiled(model, SPECIAL, how)
    expected = run(params, *batch, jax.random.key(0))
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    placed = jax.device_put(
        params, param_shardings(logical_axes(model.specs), abstract_params(model.specs), mesh)
    )
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch, batch_sharding(mesh))
        compiled = run.lower(placed, *rows, jax.random.key(0)).compile()
        result = compiled(placed, *rows, jax.random.key(0))
    np.testing.assert_array_equal(result.tokens, expected.tokens)
    np.testing.assert_array_equal(result.lengths, expected.lengths)
    # Rows of the cache and its heads are where the parameters are: an eighth of each array.
    local = "f32[2,1,1,10,8]" if isinstance(how, BeamSearch) else "f32[2,1,2,1,5,8]"
    assert local in compiled.as_text()


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    "how", [Sampling(max_length=37), BeamSearch(max_length=37, beams=3)], ids=lambda how: how.rows
)
def test_caches_are_written_in_place(params, prompts, how, scan_layers):
    """No step copies what was written, nor what the encoder gave."""
    model = CodeT5p(dataclasses.replace(CONFIG, scan_layers=scan_layers))
    run = decoding.compiled(model, SPECIAL, how)
    text = run.lower(params, *prompts, FREE, NONE, jax.random.key(0)).compile().as_text()
    bodies = re.findall(r"body=%([\w.]+)", text)
    loops = [part for part in text.split("\n\n") if part.split(" (")[0].strip("%") in bodies]
    cache = rf"f32\[(2,)?3,2,{37 * how.rows},8\]"
    assert any(re.search(rf"{cache}.* dynamic-update-slice", part) for part in text.split("\n\n"))
    assert len(loops) > scan_layers
    for part in loops:
        assert not re.search(rf"= {cache}\S* copy\(", part)
        assert not re.search(r"= f32\[2,3,2,7,8\]\S* copy\(", part)
