"""The mechanics of a step, on a network of one matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.training.optimizers import AdamW
from codet5p_jax.training.schedules import Linear as LinearSchedule
from codet5p_jax.training.state import new_state
from codet5p_jax.training.step import make_eval_step, make_train_step
from tests.training.linear import Linear, Regression, batch

MODEL = Linear()
RATE = LinearSchedule(0.1).make(10)
RULE = AdamW(clip_norm=1.0).make(RATE, MODEL.specs)


@functools.partial(jax.jit, static_argnames="ema")
def _fresh(key, ema):
    return new_state(MODEL, [Regression()], RULE, key, ema=ema)


def fresh(ema=False):
    return _fresh(jax.random.key(0), ema)


def step_fn(**settings):
    weights = settings.pop("loss_weights", {})
    return make_train_step(MODEL, [Regression()], weights, RULE, RATE, seed=0, **settings)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def mean(metrics, name):
    total, weight = metrics[name]
    return float(total) / float(weight)


def expected_loss(params, data):
    b = data["regression"]
    return np.mean((b["x"] @ params["w"] + params["b"] - b["y"]) ** 2)


@pytest.fixture(scope="module")
def plain():
    return step_fn()


def test_a_step_descends_and_reports_sums_and_weights(plain):
    state, data = fresh(), batch(6)
    before = host(state.params)
    state, metrics = plain(state, data)
    assert mean(metrics, "squared/loss") == pytest.approx(expected_loss(before, data), rel=1e-5)
    assert float(metrics["squared/loss"][1]) == 6 * 8
    assert mean(metrics, "loss") == pytest.approx(mean(metrics, "squared/loss"))
    assert mean(metrics, "squared/row") == pytest.approx(8 * mean(metrics, "loss"))
    assert mean(metrics, "learning_rate") == pytest.approx(0.1)
    assert mean(metrics, "tokens") == 6
    assert mean(metrics, "padding") == 0.5
    assert mean(metrics, "skipped") == 0
    moved = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), host(state.params), before)
    assert mean(metrics, "update_norm") == pytest.approx(sum(jax.tree.leaves(moved)) ** 0.5)
    assert expected_loss(host(state.params), data) < expected_loss(before, data)
    assert int(state.step) == 1
    assert int(state.objective_state["regression"]["seen"]) == 1


def test_the_state_is_donated(plain):
    state = fresh()
    plain(state, batch(6))
    assert state.params["w"].is_deleted()


def test_loss_weights_scale_the_gradient(plain):
    _, metrics = plain(fresh(), batch(6))
    _, scaled = step_fn(loss_weights={"squared": 3.0})(fresh(), batch(6))
    assert mean(scaled, "grad_norm") == pytest.approx(3 * mean(metrics, "grad_norm"), rel=1e-5)
    assert mean(scaled, "loss") == pytest.approx(3 * mean(metrics, "loss"), rel=1e-5)
    assert mean(scaled, "squared/loss") == pytest.approx(mean(metrics, "squared/loss"), rel=1e-6)


def test_accumulation_is_exact(plain):
    state, metrics = plain(fresh(), batch(6))
    accumulated, sums = step_fn(accumulate=3)(fresh(), batch(6))
    for one, other in zip(
        jax.tree.leaves(host(state.params)), jax.tree.leaves(host(accumulated.params)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for name in metrics:
        assert mean(sums, name) == pytest.approx(mean(metrics, name), rel=1e-5), name
    assert int(accumulated.objective_state["regression"]["seen"]) == 3


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="6 rows does not divide into accumulate=4"):
        step_fn(accumulate=4)(fresh(), batch(6))


def test_a_step_that_is_not_finite_changes_counters_only(plain):
    state, _ = plain(fresh(), batch(6))
    before = host(state)
    bad = batch(6)
    bad["regression"]["x"][2, 1] = np.nan
    for number in (1, 2):
        state, metrics = plain(state, bad)
        assert mean(metrics, "skipped") == 1
        assert mean(metrics, "skipped_in_a_row") == number
        # It has no part in the means of an interval.
        assert float(metrics["loss"][1]) == 0.0
        assert float(metrics["loss"][0]) == 0.0
    after = host(state)
    for name in ("params", "opt_state", "objective_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert (after.step, after.skipped, after.skipped_in_a_row) == (3, 2, 2)

    state, metrics = plain(state, batch(6))
    assert int(state.skipped_in_a_row) == 0
    # The optimizer has made one step so far, whatever the number of the batch.
    assert mean(metrics, "learning_rate") == pytest.approx(float(RATE(1)))


def test_without_skipping_a_bad_step_goes_through():
    bad = batch(6)
    bad["regression"]["x"][0, 0] = np.inf
    state, metrics = step_fn(skip_nonfinite=False)(fresh(), bad)
    assert not np.isfinite(np.asarray(state.params["w"])).all()
    assert mean(metrics, "skipped") == 0


def test_the_average_follows_the_parameters():
    step = step_fn(ema_decay=0.75)
    state = fresh(ema=True)
    expected = host(state.params)
    for seed in range(3):
        state, _ = step(state, batch(6, seed))
        expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, expected, host(state.params))
    jax.tree.map(
        lambda e, a: np.testing.assert_allclose(e, a, rtol=1e-5), expected, host(state.ema)
    )


def test_an_average_needs_a_place():
    with pytest.raises(ValueError, match="make it with ema=True"):
        step_fn(ema_decay=0.9)(fresh(), batch(6))


def test_a_batch_without_targets_is_no_division_by_zero():
    class Weightless(Regression):
        def weights(self, batch):
            return {"squared": jnp.float32(0)}

        def loss(self, model, batch, state, key, train):
            losses, state = super().loss(model, batch, state, key, train)
            loss = losses["squared"]
            return {"squared": loss._replace(sum=loss.sum * 0)}, state

    step = make_train_step(MODEL, [Weightless()], {}, RULE, RATE, seed=0)
    state, metrics = step(fresh(), batch(6))
    assert mean(metrics, "loss") == 0.0
    assert int(state.skipped) == 0


def test_dropout_keys_differ_between_steps_and_repeat_after_a_restart():
    class Keyed(Regression):
        def loss(self, model, batch, state, key, train):
            losses, state = super().loss(model, batch, state, key, train)
            draw = jax.random.uniform(key)
            metrics = {"draw": (draw, jnp.float32(1))}
            return {"squared": losses["squared"]._replace(metrics=metrics)}, state

    step = make_train_step(MODEL, [Keyed()], {}, RULE, RATE, seed=0)

    def draws():
        state, out = fresh(), []
        for _ in range(2):
            state, metrics = step(state, batch(6))
            out.append(mean(metrics, "squared/draw"))
        return out

    first = draws()
    assert first[0] != first[1]
    assert first == draws()


def test_evaluation_changes_nothing():
    state, data = fresh(), batch(5)
    step = make_eval_step(MODEL, [Regression()])
    metrics = step(state.params, state.objective_state, data)
    assert mean(metrics, "squared/loss") == pytest.approx(
        expected_loss(host(state.params), data), rel=1e-5
    )
    assert "loss" not in metrics
    assert int(state.objective_state["regression"]["seen"]) == 0
