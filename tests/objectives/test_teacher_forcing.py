"""The shared device half against plain NumPy over full logits."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p
from codet5p_jax.objectives import DecoderCLM, Seq2Seq, Seq2SeqCLM
from tests.objectives.helpers import VOCAB_SIZE, stack


def reference(logits, targets, weights, z_loss, label_smoothing):
    """Sums over tokens of cross-entropy and z-loss and of hits, in float64.

    Smoothed targets are 1 - e on the target and e / (V - 1) elsewhere; their own entropy is
    subtracted, so that a perfect prediction costs nothing.
    """
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    q = np.full(logits.shape, label_smoothing / (VOCAB_SIZE - 1))
    np.put_along_axis(q, targets[..., None], 1 - label_smoothing, axis=-1)
    entropy = -np.sum(np.where(q > 0, q * np.log(np.maximum(q, 1e-300)), 0), axis=-1)
    nll = -np.sum(q * (logits - log_z[..., None]), axis=-1) - entropy
    z = z_loss * log_z**2
    hits = logits.argmax(-1) == targets
    return [float(np.sum(weights * x)) for x in (nll, z, hits)]


def test_loss_and_metrics(model, params, special, rng):
    z_loss, label_smoothing = 0.01, 0.1
    objective = Seq2SeqCLM(
        inputs_length=9, targets_length=7, z_loss=z_loss, label_smoothing=label_smoothing
    )
    examples = [{"tokens": rng.integers(8, 50, size).astype(np.int32)} for size in (0, 3, 10, 40)]
    batch = stack([objective.features(example, rng, special) for example in examples])

    @jax.jit
    def run(params, batch):
        bound = model.bind(params)
        losses, _ = objective.loss(bound, batch, {}, jax.random.key(0), False)
        encoded = bound.encode(batch["encoder_tokens"], batch["encoder_segments"])
        states = bound.decode(
            batch["decoder_tokens"], batch["decoder_segments"], encoded, batch["encoder_segments"]
        )
        return losses, bound.logits(states)

    losses, logits = run(params, batch)
    (loss,) = losses.values()
    nll, z, hits = reference(
        logits, batch["decoder_targets"], batch["decoder_weights"], z_loss, label_smoothing
    )
    tokens = float(batch["decoder_weights"].sum())
    assert set(losses) == set(objective.losses) == {"seq2seq_clm"}
    np.testing.assert_allclose(loss.sum, nll + z, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["loss"], (nll, tokens), rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["z_loss"], (z, tokens), rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["accuracy"], (hits, tokens))
    assert float(objective.weights(batch)["seq2seq_clm"]) == tokens


def test_padding_and_later_targets_do_not_matter(model, params, special, rng):
    """Longer arrays give the same loss, and what a decoder has not seen does not change it."""
    example = {"tokens": rng.integers(8, 50, 6).astype(np.int32)}
    run = jax.jit(
        lambda params, batch: (
            DecoderCLM()
            .loss(model.bind(params), batch, {}, jax.random.key(0), False)[0]["decoder_clm"]
            .sum
        )
    )
    short, long = (
        stack([DecoderCLM(targets_length=length).features(example, rng, special)])
        for length in (7, 12)
    )
    np.testing.assert_allclose(run(params, short), run(params, long), rtol=1e-5)
    changed = short | {"decoder_tokens": short["decoder_tokens"].copy()}
    changed["decoder_tokens"][0, -1] ^= 1  # seen by the last prediction only
    only_first = np.zeros_like(short["decoder_weights"])
    only_first[0, :-1] = 1
    before, after = (
        run(params, batch | {"decoder_weights": only_first}) for batch in (short, changed)
    )
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert abs(float(run(params, changed) - run(params, short))) > 1e-3


def test_dropout_in_training_only(model, params, special, rng):
    objective = Seq2Seq(inputs_length=4, targets_length=4)
    example = {"inputs": np.array([8, 9]), "targets": np.array([10, 11, 2])}
    batch = stack([objective.features(example, rng, special)])

    @functools.partial(jax.jit, static_argnames="train")
    def run(params, batch, seed, train):
        losses, state = objective.loss(model.bind(params), batch, {}, jax.random.key(seed), train)
        assert state == {}
        return losses["seq2seq"].sum

    assert run(params, batch, 0, False) == run(params, batch, 1, False)
    assert run(params, batch, 0, True) == run(params, batch, 0, True)
    assert run(params, batch, 0, True) != run(params, batch, 1, True)


def test_a_decoder_alone_is_that_of_the_network(model, params, special, rng):
    """Rows without a source, and a network without an encoder: the same loss."""
    objective = Seq2SeqCLM(inputs_length=9, targets_length=7)
    examples = [{"tokens": rng.integers(8, 50, size).astype(np.int32)} for size in (3, 10, 40)]
    batch = jax.device_put(stack([objective.features(e, rng, special) for e in examples]))
    alone = {name: x for name, x in batch.items() if not name.startswith("encoder")}
    decoder = dataclasses.replace(model.config.decoder, cross_attention="none")
    none = dataclasses.replace(model.config.encoder, num_layers=0)
    config = dataclasses.replace(model.config, encoder=none, decoder=decoder, embed_dim=None)
    language_model = CodeT5p(config)
    own = {name: params[name] for name in language_model.specs if name != "decoder"}
    specs = language_model.specs["decoder"]
    own["decoder"] = {
        name: {part: params["decoder"][name][part] for part in specs[name]}
        if isinstance(specs[name], dict)
        else params["decoder"][name]
        for name in specs
    }

    def loss(network, weights, rows):
        losses, _ = objective.loss(network.bind(weights), rows, {}, jax.random.key(0), False)
        return losses["seq2seq_clm"].sum

    found = loss(model, params, alone)
    np.testing.assert_allclose(loss(language_model, own, batch), found, rtol=1e-6)
    assert abs(found - loss(model, params, batch)) > 1e-3


def test_a_prompt_stands_before_the_targets_and_is_no_target(special):
    example = {
        "inputs": np.array([11, 12, special.eos], np.int64),
        "targets": np.array([21, 22, special.eos], np.int64),
    }
    objective = Seq2Seq(inputs_length=4, targets_length=7, prompt_to_decoder=True)
    row = objective.features(example, np.random.default_rng(0), special)
    start, eos, pad = special.decoder_start, special.eos, special.pad
    assert row["encoder_tokens"].tolist() == [11, 12, eos, pad]
    assert row["decoder_tokens"].tolist() == [start, 11, 12, 21, 22, pad, pad]
    assert row["decoder_targets"].tolist() == [11, 12, 21, 22, eos, pad, pad]
    assert row["decoder_weights"].tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert row["decoder_segments"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    # What the encoder is given of it does not change the decoder's, which is cut from the end.
    short = Seq2Seq(inputs_length=1, targets_length=3, prompt_to_decoder=True)
    row = short.features(example, np.random.default_rng(0), special)
    assert row["encoder_tokens"].tolist() == [11]
    assert row["decoder_targets"].tolist() == [11, 12, 21]
    assert row["decoder_weights"].tolist() == [0, 0, 1]
    full = Seq2Seq(inputs_length=4, targets_length=2, prompt_to_decoder=True)
    assert not full.features(example, np.random.default_rng(0), special)["decoder_weights"].any()


def test_prompt_and_targets_may_be_one_text(special):
    """Token 31 is the end of the prompt and the beginning of the targets."""
    example = {
        "inputs": np.array([11, 12]),
        "targets": np.array([21, 22, special.eos]),
        "inputs_and_targets": np.array([11, 31, 22, special.eos]),
    }
    objective = Seq2Seq(inputs_length=3, targets_length=5, prompt_to_decoder=True)
    row = objective.features(example, np.random.default_rng(0), special)
    assert row["encoder_tokens"].tolist() == [11, 12, special.pad]
    assert row["decoder_targets"].tolist() == [11, 31, 22, special.eos, special.pad]
    assert row["decoder_weights"].tolist() == [0, 0, 1, 1, 0]
    # An encoder that has room for less of the prompt leaves the decoder all of it.
    short = Seq2Seq(inputs_length=1, targets_length=3, prompt_to_decoder=True)
    row = short.features(example, np.random.default_rng(0), special)
    assert row["encoder_tokens"].tolist() == [11]
    assert row["decoder_targets"].tolist() == [11, 31, 22]
    assert row["decoder_weights"].tolist() == [0, 0, 1]
    # A decoder that is not given the prompt reads the targets as they are alone.
    row = Seq2Seq(targets_length=4).features(example, np.random.default_rng(0), special)
    assert row["decoder_targets"].tolist() == [21, 22, special.eos, special.pad]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_what_is_cut_is_what_rows_lack(special, prompt, joint):
    seen = set()
    for n, m in itertools.product((0, 1, 3, 4, 5), (0, 1, 2, 4, 5)):
        example = {"inputs": np.arange(10, 10 + n), "targets": np.arange(20, 20 + m)}
        if joint:
            example["inputs_and_targets"] = np.concatenate(list(example.values()))
        objective = Seq2Seq(inputs_length=3, targets_length=4, prompt_to_decoder=prompt)
        row = objective.features(example, np.random.default_rng(0), special)
        cut = objective.cut(example, special)
        weights = row["decoder_weights"].sum()
        assert cut == {
            "inputs": row["encoder_segments"].sum() < n,
            "targets": weights < m,
            "no loss": weights == 0,
        }
        seen.add(tuple(cut.values()))
    assert len(seen) == (5 if prompt else 6)  # every kind of cut there is
