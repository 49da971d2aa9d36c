import functools

import jax
import jax.numpy as jnp
import numpy as np

from codet5p_jax.objectives import matching
from codet5p_jax.objectives.contrastive import MASKED
from codet5p_jax.objectives.matching import Codes, Texts
from tests.objectives.helpers import chi_square


def test_negatives_are_drawn_in_proportion_to_similarity():
    logits = jnp.array([[9.0, 1.0, MASKED, 0.0, 2.0], [0.5, 9.0, 1.5, MASKED, -1.0]])
    draw = jax.jit(jax.vmap(lambda key: matching.draw_negatives(logits, key)))
    index, found = draw(jax.random.split(jax.random.key(0), 4000))
    assert bool(found.all())
    for row, candidates in enumerate(([1, 3, 4], [0, 2, 4])):
        p = np.exp(np.asarray(logits)[row, candidates])
        counts = np.bincount(index[:, row], minlength=5)
        assert counts.sum() == counts[candidates].sum()  # neither the partner nor masked ones
        assert chi_square(counts[candidates], p / p.sum()) < 13.8  # 2 degrees, p = 0.001


def test_a_row_without_negatives_says_so():
    logits = jnp.array([[1.0, MASKED, MASKED], [0.0, 1.0, MASKED]])
    index, found = matching.draw_negatives(logits, jax.random.key(0))
    assert found.tolist() == [False, True]
    assert int(index[1]) == 0
    assert 0 <= int(index[0]) < 3


def test_no_gradient_flows_through_the_draw():
    gradient = jax.grad(
        lambda x: matching.draw_negatives(x, jax.random.key(0))[0].astype(jnp.float32).sum()
    )(jnp.ones((3, 3)))
    assert not gradient.any()


def test_decoder_input_starts_with_enc_and_is_not_shifted():
    tokens = jnp.array([[1, 20, 21, 2, 0], [1, 22, 2, 0, 0]])
    assert matching.decoder_input(tokens, jnp.array([60, 60])).tolist() == [
        [60, 20, 21, 2, 0],
        [60, 22, 2, 0, 0],
    ]


class Transparent:
    """A model whose matching logits show which text met which code."""

    def decode(self, tokens, segments, encoded, encoder_segments, *, key):
        assert key is None
        text = (encoded[:, 0, 0] * encoder_segments[:, 0]).astype(jnp.float32)
        return jnp.stack((text, tokens[:, 0] * segments[:, 0]), axis=1)[:, None]

    def match(self, states, segments):
        return states[:, 0] / 100


def test_pairs_labels_and_weights():
    """Texts 1..3 with codes 10..30; negatives: texts 4..6, codes 40..60."""
    column = lambda *x: jnp.array(x, jnp.int32)[:, None]  # noqa: E731
    ones = column(1, 1, 1)
    text = lambda *x: Texts(column(*x).astype(jnp.float32)[..., None], ones)  # noqa: E731
    judged = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    outcome = jax.jit(functools.partial(matching.matching_loss, Transparent(), key=None))(
        text(1, 2, 3),
        Codes(column(10, 20, 30), ones),
        text(4, 5, 6),
        Codes(column(40, 50, 60), ones),
        judged,
    )
    triples = [(1, 10, 1), (4, 10, 0), (1, 40, 0), (2, 20, 1), (2, 50, 0), (3, 30, 1), (6, 30, 0)]
    loss = correct = 0.0
    for t, c, label in triples:  # logits are (t, c) / 100
        logits = np.array([t, c]) / 100
        loss += np.log(np.exp(logits).sum()) - logits[label]
        correct += logits.argmax() == label
    np.testing.assert_allclose(outcome.loss, loss, rtol=1e-6)
    assert (float(outcome.correct), float(outcome.number)) == (correct, 7.0)
