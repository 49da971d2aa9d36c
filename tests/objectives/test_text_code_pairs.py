"""Both losses of the pairs against NumPy, on the encodings of a small real model."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p, init_params
from codet5p_jax.objectives import TextCodePairs
from tests.objectives.helpers import SPECIAL, real, small_config, stack

B, Q = 4, 12
SMALL = {"text_length": 6, "code_length": 8}
TRAINED = TextCodePairs(**SMALL, momentum=0.9, queue_size=Q, alpha=0.4, alpha_ramp_steps=4)


def make_batch(seed: int, rows: int = B):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: rng.integers(8, 50, rng.integers(low, high)).astype(np.int32)  # noqa: E731
    return stack(
        [
            TRAINED.features({"text": draw(1, 6), "code": draw(1, 8)}, rng, SPECIAL)
            for _ in range(rows)
        ]
    )


@pytest.fixture(scope="module")
def model():
    # Without dropout live encodings can be recomputed outside the loss.
    return CodeT5p(small_config(dropout=0.0))


@pytest.fixture(scope="module")
def params(model):
    drawn = init_params(model.specs, jax.random.key(1))
    # So cold that the most similar negative is drawn for certain.
    return drawn | {"log_temperature": jnp.log(jnp.float32(0.0016))}


@pytest.fixture(scope="module")
def embed(model):
    """(parameters, batch) -> unit vectors of texts and of codes."""

    @jax.jit
    def run(params, batch):
        bound = model.bind(params)
        side = lambda tokens, segments: bound.embed(bound.encode(tokens, segments), segments)  # noqa: E731
        return (
            side(batch["text_tokens"], batch["text_segments"]),
            side(batch["code_tokens"], batch["code_segments"]),
        )

    return lambda params, batch: tuple(np.asarray(x, np.float64) for x in run(params, batch))


@pytest.fixture(scope="module")
def judge(model):
    """Matching logits of one text with one code, each a list of ids, padded on its own."""

    @jax.jit
    def run(params, text, text_segments, code, code_segments):
        bound = model.bind(params)
        encoded = bound.encode(text, text_segments)
        states = bound.decode(code, code_segments, encoded, text_segments)
        return bound.match(states, code_segments)

    def one(params, text, code):
        code = [SPECIAL.enc, *code[1:]]
        padded = lambda x, n: np.array([x + [0] * (n - len(x))], np.int32)  # noqa: E731
        arrays = []
        for tokens, length in ((text, 10), (code, 10)):
            arrays += [padded(tokens, length), padded([1] * len(tokens), length)]
        return np.asarray(run(params, *arrays), np.float64)[0]

    return one


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def step(objective, model, params, batch, state, seed, train):
    """Losses and the next state."""
    return objective.loss(model.bind(params), batch, state, jax.random.key(seed), train)


@functools.partial(jax.jit, static_argnums=(0, 1))
def step_with_gradients(objective, model, params, batch, state, seed):
    """Losses, the next state, and the gradients of the summed losses by parameters."""

    def total(params):
        losses, new_state = step.__wrapped__(objective, model, params, batch, state, seed, True)
        return sum(loss.sum for loss in losses.values()), (losses, new_state)

    gradients, (losses, new_state) = jax.grad(total, has_aux=True)(params)
    return losses, new_state, gradients


def tree_average(momentum, average, params):
    return jax.tree.map(
        lambda a, p: momentum * np.asarray(a) + (1 - momentum) * np.asarray(p), average, params
    )


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def contrastive_reference(queries, teacher, candidates, alpha, temperature):
    """One direction, summed over rows; candidate b belongs to row b."""
    targets = (1 - alpha) * np.eye(len(queries), len(candidates))
    targets += alpha * np.exp(log_softmax(teacher @ candidates.T / temperature))
    return -np.sum(targets * log_softmax(queries @ candidates.T / temperature))


def matching_reference(judge, params, batch, texts, codes, text_of, code_of):
    """The pairs, each code with text `text_of`, each text with code `code_of` (indices)."""
    loss = correct = 0.0
    for row in range(len(batch["pair_id"])):
        pairs = [(row, row, 1), (text_of[row], row, 0), (row, code_of[row], 0)]
        for text, code, label in pairs:
            logits = judge(params, texts[text], codes[code])
            loss -= log_softmax(logits)[label]
            correct += logits.argmax() == label
    return loss, correct


def sides(batch):
    """Unpadded texts and codes of a batch, as lists of ids."""
    rows = [{name: x[i] for name, x in batch.items()} for i in range(len(batch["pair_id"]))]
    return [real(row, "text") for row in rows], [real(row, "code") for row in rows]


def test_features(special, rng):
    example = {"text": np.arange(10, 13), "code": np.arange(20, 30)}
    row = TextCodePairs(**SMALL).features(example, rng, special)
    assert real(row, "text") == [special.bos, 10, 11, 12, special.eos]
    assert real(row, "code") == [special.bos, *range(20, 26), special.eos]
    assert int(row["enc_token"]) == special.enc
    assert {k: (v.shape, v.dtype) for k, v in row.items()} == {
        k: (s.shape, s.dtype) for k, s in TextCodePairs(**SMALL).spec.items()
    }


def test_pair_id_says_which_sides_are_the_same(special, rng):
    def ids(text, code):
        example = {"text": np.array(text, np.int32), "code": np.array(code, np.int32)}
        return TRAINED.features(example, rng, special)["pair_id"].tolist()

    base = ids([10, 11], [20])
    assert ids([10, 11], [20]) == base
    assert ids([10, 11], [21])[0] == base[0]
    assert ids([10, 11], [21])[1] != base[1]
    assert ids([10], [20])[1] == base[1]
    assert ids([10], [20])[0] != base[0]


def test_empty_sides(special, rng):
    empty = np.zeros(0, np.int32)
    row = TRAINED.features({"text": empty, "code": empty}, rng, special)
    assert real(row, "text") == real(row, "code") == [special.bos, special.eos]


def test_two_training_steps_match_numpy(model, params, embed, judge):
    """The second step has a queue, soft targets on their ramp, and mines queue and batch."""
    first, second = make_batch(22), make_batch(23)  # hard negatives in queue and in batch
    state = TRAINED.init_state(model, params)
    _, state, _ = step_with_gradients(TRAINED, model, params, first, state, 0)
    moved = jax.tree.map(lambda x: x * 1.05, params)
    losses, new_state, gradients = step_with_gradients(TRAINED, model, moved, second, state, 1)

    parts = ("embedding", "encoder", "projection")
    start = {name: params[name] for name in parts}
    average = tree_average(0.9, start, {name: moved[name] for name in parts})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        new_state["momentum"],
        average,
    )
    queued_text, queued_code = embed(start, first)
    teacher_text, teacher_code = embed(average, second)
    text, code = embed(moved, second)
    all_texts = np.concatenate((teacher_text, queued_text))
    all_codes = np.concatenate((teacher_code, queued_code))

    temperature, alpha = float(np.exp(moved["log_temperature"])), 0.4 * 1 / 4
    expected = 0.5 * (
        contrastive_reference(text, teacher_text, all_codes, alpha, temperature)
        + contrastive_reference(code, teacher_code, all_texts, alpha, temperature)
    )
    np.testing.assert_allclose(losses["contrastive"].sum, expected, rtol=1e-3)
    total, rows = losses["contrastive"].metrics["temperature"]
    np.testing.assert_allclose(total / rows, temperature, rtol=1e-6)
    hits = np.mean(
        [(q @ c.T).argmax(1) == np.arange(B) for q, c in ((text, all_codes), (code, all_texts))]
    )
    hit_sum, rows = losses["contrastive"].metrics["accuracy"]
    np.testing.assert_allclose(hit_sum / rows, hits)

    others = np.where(np.eye(B, 2 * B), -np.inf, 0)
    text_of = (code @ all_texts.T + others).argmax(1)
    code_of = (text @ all_codes.T + others).argmax(1)
    assert (text_of >= B).any()
    assert (np.concatenate((text_of, code_of)) < B).any()
    texts, codes = (a + b for a, b in zip(sides(second), sides(first), strict=True))
    loss, correct = matching_reference(judge, moved, second, texts, codes, text_of, code_of)
    np.testing.assert_allclose(losses["matching"].sum, loss, rtol=1e-4)
    assert [float(x) for x in losses["matching"].metrics["accuracy"]] == [correct, 3 * B]

    queue = new_state["queue"]
    assert int(queue["count"]) == 2 * B
    np.testing.assert_allclose(queue["text"][: 2 * B], np.r_[queued_text, teacher_text], atol=1e-5)
    np.testing.assert_allclose(queue["code"][: 2 * B], np.r_[queued_code, teacher_code], atol=1e-5)
    for name in ("text_tokens", "code_tokens", "code_segments", "pair_id"):
        np.testing.assert_array_equal(queue[name][: 2 * B], np.r_[first[name], second[name]])

    for part in (
        "embedding",
        "encoder",
        "decoder",
        "projection",
        "matching_head",
        "log_temperature",
    ):
        assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients[part])), part


def test_evaluation_depends_on_the_batch_alone(model, params, embed, judge):
    batch = make_batch(2)
    state = TRAINED.init_state(model, params)
    state["queue"] = jax.tree.map(jnp.ones_like, state["queue"])
    losses, new_state = step(TRAINED, model, params, batch, state, 1, False)
    jax.tree.map(np.testing.assert_array_equal, new_state, state)

    text, code = embed(params, batch)
    temperature = float(np.exp(params["log_temperature"]))
    expected = 0.5 * (
        contrastive_reference(text, text, code, 0.0, temperature)
        + contrastive_reference(code, code, text, 0.0, temperature)
    )
    np.testing.assert_allclose(losses["contrastive"].sum, expected, rtol=1e-3)
    others = np.where(np.eye(B), -np.inf, 0)
    text_of, code_of = (code @ text.T + others).argmax(1), (text @ code.T + others).argmax(1)
    loss, _ = matching_reference(judge, params, batch, *sides(batch), text_of, code_of)
    np.testing.assert_allclose(losses["matching"].sum, loss, rtol=1e-4)


class Lookup:
    """A model whose encoder is a table and whose embedding is the normalised mean: quick to run."""

    config = types.SimpleNamespace(embed_dim=8, matching_head=False)

    def __init__(self, params=None):
        self.params = params

    def bind(self, params):
        return Lookup(params)

    @property
    def temperature(self):
        return self.params["temperature"]

    def encode(self, tokens, segments, *, key):
        return self.params["embedding"][tokens] * segments[..., None]

    def embed(self, states, segments):
        mean = states.sum(1) / segments.sum(1, keepdims=True)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


@pytest.mark.parametrize("momentum", [None, 0.0])
def test_gradients_of_the_contrastive_loss(momentum):
    """Into both sides in-batch; not into a momentum network, here equal to the live one."""
    objective = TextCodePairs(**SMALL, momentum=momentum, queue_size=0, matching=False)
    model, batch = Lookup(), make_batch(4)
    table = jax.random.normal(jax.random.key(2), (64, 8))
    params = {"embedding": table, "encoder": {}, "projection": {}, "temperature": jnp.array(0.1)}
    state = objective.init_state(model, params)
    assert set(state) == (set() if momentum is None else {"momentum", "step"})
    losses, _, gradients = step_with_gradients(objective, model, params, batch, state, 0)
    assert set(losses) == set(objective.losses) == {"contrastive"}

    def reference(params):
        bound = model.bind(params)
        side = lambda t, s: bound.embed(bound.encode(t, s, key=None), s)  # noqa: E731
        text = side(batch["text_tokens"], batch["text_segments"])
        code = side(batch["code_tokens"], batch["code_segments"])
        constant = (lambda x: x) if momentum is None else jax.lax.stop_gradient
        loss = 0.0
        for queries, candidates in ((text, code), (code, text)):
            scores = queries @ constant(candidates).T / params["temperature"]
            loss += 0.5 * jnp.sum(jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores))
        return loss

    value, expected = jax.jit(jax.value_and_grad(reference))(params)
    np.testing.assert_allclose(losses["contrastive"].sum, value, rtol=1e-5)
    assert np.abs(expected["temperature"]) > 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected
    )


def test_a_batch_of_copies_has_no_negatives(model, params):
    """Every loss is then what is left: nothing to tell apart, only positives to judge."""
    objective = TextCodePairs(**SMALL, momentum=None, queue_size=0)
    one = make_batch(5, rows=1)
    batch = {name: np.repeat(x, B, axis=0) for name, x in one.items()}
    losses, _ = step(objective, model, params, batch, {}, 0, False)
    assert float(losses["contrastive"].sum) == 0.0
    assert float(losses["matching"].metrics["accuracy"][1]) == B
    assert {k: float(v) for k, v in objective.weights(batch).items()} == {
        "contrastive": B,
        "matching": 3 * B,
    }


def test_rows_on_many_devices_are_negatives_of_each_other(model, params):
    rows = 8
    mesh = jax.make_mesh((rows,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    objective = TextCodePairs(**SMALL, momentum=None, queue_size=0)
    batch = make_batch(6, rows)
    here, _ = step(objective, model, params, batch, {}, 0, True)
    there, _ = step(objective, model, params, jax.device_put(batch, split), {}, 0, True)
    for mine, other in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)


def test_state_is_traceable_and_holds_no_more_than_it_needs(model, params):
    state = jax.eval_shape(lambda p: TRAINED.init_state(model, p), params)
    assert set(state) == {"momentum", "queue", "step"}
    assert set(state["momentum"]) == {"embedding", "encoder", "projection"}
    shapes = {name: x.shape for name, x in state["queue"].items()}
    tokens = {"text_tokens": (Q, 6), "text_segments": (Q, 6)}
    tokens |= {"code_tokens": (Q, 8), "code_segments": (Q, 8)}
    small = {"text": (Q, 8), "code": (Q, 8), "pair_id": (Q, 2), "count": ()}
    assert shapes == small | tokens
    for changes in ({"negatives_from_queue": False}, {"matching": False}):
        lighter = dataclasses.replace(TRAINED, **changes)
        state = jax.eval_shape(functools.partial(lighter.init_state, model), params)
        assert {name: x.shape for name, x in state["queue"].items()} == small
    state = dataclasses.replace(TRAINED, queue_size=0).init_state(model, params)
    assert set(state) == {"momentum", "step"}
    assert state["momentum"]["embedding"] is not params["embedding"]


def test_settings_and_models_that_cannot_work_are_refused(model, params, special, rng):
    with pytest.raises(ValueError, match=r"queue_size=57600 and alpha=0\.0 need the momentum"):
        TextCodePairs(momentum=None)
    with pytest.raises(ValueError, match=r"momentum=1\.5 is not between 0 and 1"):
        TextCodePairs(momentum=1.5)
    with pytest.raises(ValueError, match="must be 3 or more"):
        TextCodePairs(text_length=2)
    example = {"text": np.array([10]), "code": np.array([20])}
    with pytest.raises(ValueError, match=r"needs a vocabulary with \[ENC\]"):
        TRAINED.features(example, rng, dataclasses.replace(special, enc=None))
    with pytest.raises(ValueError, match="needs a model with embed_dim"):
        TRAINED.init_state(CodeT5p(small_config(embed_dim=None)), params)
    with pytest.raises(ValueError, match="needs a model with matching_head=True"):
        TRAINED.init_state(CodeT5p(small_config(matching_head=False)), params)


def test_token_dropout_hides_tokens_in_training_only(model, params):
    plain = TextCodePairs(**SMALL, momentum=None, queue_size=0, matching=False)
    thinned = dataclasses.replace(plain, token_dropout=0.5)
    batch = jax.tree.map(jnp.asarray, make_batch(3))
    bound, key = model.bind(params), jax.random.key(0)

    def contrastive(objective, train):
        losses, _ = objective.loss(bound, batch, {}, key, train)
        return float(losses["contrastive"].sum)

    assert contrastive(thinned, False) == contrastive(plain, False)
    assert contrastive(thinned, True) != contrastive(plain, True)
    with pytest.raises(ValueError, match="token_dropout=1"):
        dataclasses.replace(plain, token_dropout=1.0)


class Watched:
    """A bound model that notes the segments of each call of its encoder."""

    def __init__(self, model):
        self._model, self.seen = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def bind(self, params):
        return self._model.bind(params)

    def encode(self, tokens, segments, *, key=None):
        self.seen.append(np.asarray(segments))
        return self._model.encode(tokens, segments, key=key)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_negatives_that_are_encoded_again_lose_as_many_tokens_as_the_pairs(model, params, rate):
    """Or the matching head would tell a negative text by its being whole."""
    rows, length = 8, 100
    objective = TextCodePairs(
        text_length=length, code_length=8, momentum=0.9, queue_size=2 * rows, token_dropout=rate
    )
    example = {"text": np.arange(length) % 40 + 8, "code": np.arange(8) + 8}
    filled = [
        objective.features(
            {side: np.roll(ids, shift) for side, ids in example.items()},
            np.random.default_rng(0),
            SPECIAL,
        )
        for shift in range(rows)
    ]
    batch = jax.tree.map(jnp.asarray, stack(filled))
    watched = Watched(model.bind(params))
    state = objective.init_state(model, params)
    objective.loss(watched, batch, state, jax.random.key(0), True)
    text, _, negative = watched.seen
    for segments in (text, negative):
        assert segments.shape == (rows, length)
        assert segments[:, 0].all(), "what is pooled stays"
        assert 1 - segments[:, 1:].mean() == pytest.approx(rate, abs=0.06)
    assert rate == 0 or (text != negative).any()


def test_matching_of_some_rows_only(model, params):
    """The first row alone: one positive and its two negatives, drawn from the whole batch."""
    objective = TextCodePairs(**SMALL, momentum=None, queue_size=0, matching_rows=1)
    batch = jax.tree.map(jnp.asarray, make_batch(3))
    losses, _ = objective.loss(model.bind(params), batch, {}, jax.random.key(0), False)
    total, number = losses["matching"].metrics["loss"]
    assert int(number) == 3
    assert int(objective.weights(batch)["matching"]) == 3
    assert int(objective.weights(batch)["contrastive"]) == len(batch["pair_id"])
    assert float(total) == float(losses["matching"].sum) > 0
