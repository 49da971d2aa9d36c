"""Batches of prompts of many lengths, and texts that come bit by bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.data.buckets import bucket
from codet5p_jax.decoding.beam import BeamSearch
from codet5p_jax.decoding.prompts import Prompt
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.decoding.writer import Writer
from codet5p_jax.models import StackConfig
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import abstract_params, init_params, logical_axes
from codet5p_jax.sharding import MeshConfig, make_mesh, param_shardings
from tests.decoding.test_generate import CONFIG, SPECIAL

MODEL = CodeT5p(dataclasses.replace(CONFIG, scan_layers=False))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda p: 2 * p, init_params(MODEL.specs, jax.random.key(0)))


def prompts(*lengths, prefix=0):
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(4, 20, n).astype(np.int32)  # noqa: E731
    return [Prompt(draw(n), draw(prefix)) for n in lengths]


def written(writer, asked):
    found = dict(writer.write(asked, jax.random.key(1)))
    assert sorted(found) == list(range(len(asked)))
    return [[row.tolist() for row in found[i]] for i in range(len(asked))]


@pytest.mark.parametrize(
    "how",
    [
        Sampling(max_length=9, temperature=1.0, samples=2),
        BeamSearch(max_length=9, beams=3, outputs=2),
    ],
    ids=lambda how: type(how).__name__,
)
def test_batches_change_nothing(params, how):
    asked = prompts(3, 80, 5, 2, prefix=1)
    one = written(Writer(MODEL, params, SPECIAL, how, batch_size=1), asked)
    together = Writer(MODEL, params, SPECIAL, how, batch_size=3)
    assert written(together, asked) == one
    assert all(len(rows) == 2 for rows in one)
    order = [i for i, _ in together.write(asked, jax.random.key(1))]
    assert order == [0, 2, 3, 1]  # the long one last


def test_a_stream_is_what_is_written_at_once(params):
    how = Sampling(max_length=11, temperature=1.0, repetition_penalty=1.2)
    writer = Writer(MODEL, params, SPECIAL, how)
    (prompt,) = prompts(6, prefix=3)
    key = jax.random.key(1)
    parts = list(writer.stream(prompt, key, chunk=4))
    keys = jax.random.fold_in(key, 0)[None]
    width = np.zeros((1, 61), np.int32)
    tokens = np.concatenate([prompt.encoder[None], width[:, :58]], axis=1)
    segments = (np.arange(64) < 6).astype(np.int32)[None]
    whole = writer._run(params, tokens, segments, prompt.prefix[None], np.array([3]), keys)
    length = int(whole.lengths[0])
    assert np.concatenate(parts).tolist() == whole.tokens[0, :length].tolist()
    assert [len(part) for part in parts[:-1]] == [4] * (len(parts) - 1)
    with pytest.raises(ValueError, match="only a single text"):
        next(Writer(MODEL, params, SPECIAL, BeamSearch(max_length=4)).stream(prompt, key))


def test_over_a_mesh(params):
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    how = Sampling(max_length=5)
    asked = prompts(3, 9, 5, 2, 7)
    one = written(Writer(MODEL, params, SPECIAL, how, batch_size=4), asked)
    shardings = param_shardings(logical_axes(MODEL.specs), abstract_params(MODEL.specs), mesh)
    placed = jax.device_put(params, shardings)
    assert written(Writer(MODEL, placed, SPECIAL, how, batch_size=4, mesh=mesh), asked) == one
    with pytest.raises(ValueError, match="a batch of prompts: axis 'batch' of size 3"):
        Writer(MODEL, placed, SPECIAL, how, batch_size=3, mesh=mesh)


def test_a_decoder_alone_starts_with_its_prompt(params):
    none = StackConfig(num_layers=0, d_model=16, num_heads=2, head_dim=8, d_ff=32)
    decoder = dataclasses.replace(MODEL.config.decoder, cross_attention="none")
    alone = CodeT5p(dataclasses.replace(MODEL.config, encoder=none, decoder=decoder))
    weights = init_params(alone.specs, jax.random.key(0))
    asked = [Prompt(p.encoder[:0], p.encoder) for p in prompts(3, 8)]
    found = written(Writer(alone, weights, SPECIAL, Sampling(max_length=4)), asked)
    bound = alone.bind(weights)
    for prompt, (row,) in zip(asked, found, strict=True):
        given = jnp.array([[*prompt.prefix.tolist(), *row]])
        logits = bound.logits(bound.decode(given, jnp.ones_like(given)))
        assert logits[0, len(prompt.prefix) - 1 : -1].argmax(-1).tolist() == row
    encoder_only = dataclasses.replace(MODEL.config, decoder=none)
    with pytest.raises(ValueError, match="no decoder"):
        Writer(CodeT5p(encoder_only), params, SPECIAL, Sampling(max_length=4))


def test_widths_stay_within_the_positions():
    assert [bucket(n) for n in (0, 1, 64, 65, 128, 129)] == [64, 64, 64, 128, 128, 256]
    towers = {
        tower: dataclasses.replace(getattr(MODEL.config, tower), max_positions=100)
        for tower in ("encoder", "decoder")
    }
    config = dataclasses.replace(MODEL.config, prompt_to_decoder=True, **towers)
    writer = Writer(CodeT5p(config), {}, SPECIAL, Sampling(max_length=20))
    assert [writer._width(n) for n in (3, 70, 90)] == [64, 80, 90]
    config = dataclasses.replace(config, prompt_to_decoder=False)
    writer = Writer(CodeT5p(config), {}, SPECIAL, Sampling(max_length=20))
    (tokens, _, forced, _), _ = writer._arrays(prompts(90, prefix=3), writer._width(90))
    assert (tokens.shape, forced.shape) == ((1, 100), (1, 80))
