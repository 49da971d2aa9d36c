"""The contrastive loss against PyTorch, the queue against a Python list."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.objectives import contrastive

B, Q, E = 5, 7, 4


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_loss_and_gradients_match_torch(rng):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's autograd")
    queries, teacher, candidates = unit(rng, B, E), unit(rng, B, E), unit(rng, B + Q, E)
    allowed = rng.random((B, B + Q)) < 0.7
    allowed[np.arange(B), np.arange(B)] = True
    alpha, temperature = 0.4, 0.07

    def ours(queries, candidates, temperature):
        logits = contrastive.logits(queries, candidates, temperature, jnp.asarray(allowed))
        soft = contrastive.logits(
            jnp.asarray(teacher), candidates, temperature, jnp.asarray(allowed)
        )
        return contrastive.cross_entropy(logits, soft, alpha)

    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2)))(
        queries, candidates, np.float32(temperature)
    )

    # ALBEF's formula in double precision, masked entries removed instead of made small.
    q, c = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (queries, candidates))
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(B):
        keep = np.flatnonzero(allowed[row])
        log_p = torch.log_softmax(c[keep] @ q[row] / t, dim=0)
        with torch.no_grad():
            soft = torch.softmax(c[keep] @ torch.tensor(teacher[row]).double() / t, dim=0)
            target = alpha * soft
            target[list(keep).index(row)] += 1 - alpha
        total -= (target * log_p).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    for mine, reference in zip(gradients, (q.grad, c.grad, t.grad), strict=True):
        np.testing.assert_allclose(mine, reference.numpy(), rtol=1e-4, atol=1e-5)


def test_rows_that_share_a_side_are_not_negatives():
    ids = jnp.array([[1, 10], [2, 20], [1, 30]])  # rows 0 and 2 have the same text
    queue_ids = jnp.array([[9, 90], [8, 20], [0, 0]])  # the second has the code of row 1
    filled = jnp.array([True] * 5 + [False])
    allowed = contrastive.allowed_candidates(ids, jnp.concatenate((ids, queue_ids)), filled)
    assert allowed.astype(int).tolist() == [
        [1, 1, 0, 1, 1, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
    ]


def test_correct_counts_rows_whose_partner_is_first():
    logits = jnp.array([[3.0, 1.0, 2.0], [5.0, 4.0, 6.0]])
    assert float(contrastive.correct(logits)) == 1


@pytest.mark.parametrize(("value", "clamped"), [(0.07, 0.07), (-0.3, 0.001), (2.0, 0.5)])
def test_temperature_is_clamped_and_can_come_back(value, clamped):
    function = lambda t: contrastive.clamp(t, (0.001, 0.5))  # noqa: E731
    result, gradient = jax.value_and_grad(function)(jnp.float32(value))
    np.testing.assert_allclose(result, clamped, rtol=1e-5)
    assert float(gradient) == 1.0


def test_momentum_update(rng):
    average, params = ({"a": unit(rng, 3), "b": {"c": unit(rng, 2)}} for _ in range(2))
    updated = contrastive.momentum_update(average, params, 0.9)
    np.testing.assert_allclose(updated["a"], 0.9 * average["a"] + 0.1 * params["a"], rtol=1e-6)
    np.testing.assert_allclose(
        updated["b"]["c"], 0.9 * average["b"]["c"] + 0.1 * params["b"]["c"], rtol=1e-6
    )
    for momentum, same_as in ((1.0, average), (0.0, params)):
        jax.tree.map(
            np.testing.assert_array_equal,
            contrastive.momentum_update(average, params, momentum),
            same_as,
        )


@pytest.mark.parametrize(("size", "rows"), [(6, 2), (6, 3), (7, 3), (4, 4)])
def test_queue_keeps_the_newest_rows(size, rows):
    queue = contrastive.empty_queue(
        {"x": jax.ShapeDtypeStruct((2,), jnp.int32), "e": jax.ShapeDtypeStruct((), jnp.float32)},
        size,
    )
    put = jax.jit(contrastive.enqueue)
    expected = deque(maxlen=size)
    for step in range(6):
        new = np.arange(step * rows, (step + 1) * rows) + 1
        queue = put(queue, {"x": np.stack((new, -new), 1), "e": new.astype(np.float32)})
        expected.extend(new.tolist())
        filled = np.asarray(contrastive.filled(queue))
        assert filled.sum() == len(expected)
        assert sorted(np.asarray(queue["x"])[filled, 0].tolist()) == list(expected)
        np.testing.assert_array_equal(queue["x"][:, 0], -queue["x"][:, 1])
        np.testing.assert_array_equal(queue["x"][:, 0], queue["e"])
    assert int(queue["count"]) == 6 * rows


def test_queue_order_of_the_documented_example():
    queue = contrastive.empty_queue({"x": jax.ShapeDtypeStruct((), jnp.int32)}, 4)
    queue = contrastive.enqueue(queue, {"x": jnp.array([1, 2, 3])})
    queue = contrastive.enqueue(queue, {"x": jnp.array([4, 5])})
    assert queue["x"].tolist() == [5, 2, 3, 4]


def test_a_queue_smaller_than_the_batch_is_refused():
    queue = contrastive.empty_queue({"x": jax.ShapeDtypeStruct((), jnp.int32)}, 2)
    with pytest.raises(ValueError, match="a queue of 2 rows cannot take a batch of 3"):
        contrastive.enqueue(queue, {"x": jnp.array([1, 2, 3])})


def test_enqueueing_rows_that_lie_on_many_devices():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    queue = contrastive.empty_queue({"x": jax.ShapeDtypeStruct((), jnp.int32)}, 12)
    put = jax.jit(contrastive.enqueue)
    for start in (0, 8):
        queue = put(queue, {"x": jax.device_put(jnp.arange(start, start + 8), split)})
    assert queue["x"].tolist() == [12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
