"""Classification from the encoder: rows, loss, figures, what it asks of a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p, init_params
from codet5p_jax.objectives import Classification, PairClassification
from tests.objectives.helpers import SPECIAL, real, small_config, stack

ALONE = {"num_decoder_layers": 0, "embed_dim": None, "matching_head": False, "dropout": 0.0}


def network(**changes):
    model = CodeT5p(small_config(**{**ALONE, "classes": 2, **changes}))
    return model, init_params(model.specs, jax.random.key(0))


def rows(objective, labels, first=8):
    """Row n begins with token `first + label`; the other side, where there is one, with `first`."""
    rng = np.random.default_rng(0)
    found = []
    for label in labels:
        example = {"label": np.array(label, np.int32)}
        for side, begin in (("code", first + label), ("other", first)):
            example[side] = np.append(begin, rng.integers(20, 40, 3)).astype(np.int32)
        found.append(objective.features(example, rng, SPECIAL))
    return jax.tree.map(jnp.asarray, stack(found))


def test_rows():
    objective = PairClassification(length=5)
    example = {
        "code": np.arange(8, 20, dtype=np.int32),
        "other": np.array([9], np.int32),
        "label": np.array(1, np.int32),
    }
    row = objective.features(example, np.random.default_rng(0), SPECIAL)
    assert real(row, "code") == [1, 8, 9, 10, 2]
    assert real(row, "other") == [1, 9, 2]
    assert row["label"] == 1
    with pytest.raises(ValueError, match="length=2 must be 3 or more"):
        Classification(length=2)


class Fixed:
    """A network whose logits are known."""

    def __init__(self, logits):
        self.logits, self.config = logits, small_config(**ALONE, classes=logits.shape[1])

    def encode(self, tokens, segments, *, key):
        assert key is None
        return tokens

    def classify(self, *encoded):
        return self.logits


@pytest.mark.parametrize("classes", [2, 3])
def test_loss_and_figures(classes):
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, classes, 16), rng.normal(size=(16, classes))
    batch = {**rows(Classification(length=6), labels % 2), "label": jnp.asarray(labels)}
    losses, _ = Classification(length=6).loss(
        Fixed(jnp.asarray(logits)), batch, {}, jax.random.key(0), False
    )
    loss, metrics = losses["classification"]
    found = {name: float(top / bottom) for name, (top, bottom) in metrics.items()}
    guess = logits.argmax(1)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(16), labels])
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(16 * expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(guess == labels))
    assert ("f1" in found) == (classes == 2)
    if classes == 2:
        hits = np.sum((guess == 1) & (labels == 1))
        precision, recall = hits / np.sum(guess == 1), hits / np.sum(labels == 1)
        assert 0 < hits < 16
        assert found["precision"] == pytest.approx(precision)
        assert found["recall"] == pytest.approx(recall)
        assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("objective", [Classification(length=6), PairClassification(length=6)])
def test_it_learns_a_rule(objective):
    """The class is in the first token of one side; a few steps of gradient descent find it."""
    model, params = network(classify_pairs=len(objective.sides) == 2)
    labels = np.arange(16) % 2
    batch = rows(objective, labels)

    @jax.jit
    def step(params, key):
        def total(params):
            losses, _ = objective.loss(model.bind(params), batch, {}, key, True)
            (loss,) = losses.values()
            return loss.sum / 16, loss.metrics["accuracy"][0]

        (loss, hits), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), loss, hits

    first = None
    for key in jax.random.split(jax.random.key(0), 40):
        params, loss, hits = step(params, key)
        first = loss if first is None else first
    assert float(loss) < 0.3 * float(first)
    assert float(hits) == 16


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (Classification(), {"classes": None}, "needs a model with classes .* found None"),
        (Classification(), {"classify_pairs": True}, "classify_pairs = False, found 2 and True"),
        (PairClassification(), {}, "pair_classification needs .* classify_pairs = True, found"),
        (Classification(), {"num_decoder_layers": 1}, "expected a model without a decoder"),
    ],
)
def test_a_network_that_does_not_fit(objective, changes, message):
    model, params = network(**changes)
    with pytest.raises(ValueError, match=message):
        objective.init_state(model, params)
