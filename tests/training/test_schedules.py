import math

import numpy as np
import pytest

from codet5p_jax.training.schedules import Constant, Cosine, InverseSquareRoot, Linear


def values(schedule, total):
    rate = schedule.make(total)
    return np.array([float(rate(step)) for step in range(total)])


@pytest.mark.parametrize(
    "schedule", [Constant(0.2, 4), Linear(0.2, 4), Cosine(0.2, 4), InverseSquareRoot(0.2, 4)]
)
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    np.testing.assert_allclose(values(schedule, 20)[:4], [0.05, 0.1, 0.15, 0.2], rtol=1e-6)


def test_a_warm_up_may_begin_above_zero():
    found = values(Linear(0.2, 4, final=0.1, initial=0.1), 8)
    expected = [0.125, 0.15, 0.175, 0.2, 0.2, 0.175, 0.15, 0.125]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"initial learning rate must be 0 to peak=0.2, found 0.3"):
        Linear(0.2, 4, initial=0.3).make(8)


@pytest.mark.parametrize("schedule", [Linear(0.2), Cosine(0.2, 0, 0.05), Constant(0.2)])
def test_without_warm_up_the_first_step_is_at_the_peak(schedule):
    assert values(schedule, 5)[0] == pytest.approx(0.2)


def test_decays_are_the_textbook_formulas():
    step = np.arange(4, 20)
    part = (step - 4) / 16
    np.testing.assert_allclose(
        values(Linear(0.2, 4, 0.02), 20)[4:], 0.2 + (0.02 - 0.2) * part, rtol=1e-5
    )
    np.testing.assert_allclose(
        values(Cosine(0.2, 4, 0.02), 20)[4:],
        0.02 + 0.18 * (1 + np.cos(math.pi * part)) / 2,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        values(InverseSquareRoot(0.2, 4), 20)[4:], 0.2 * np.sqrt(4 / (step + 1)), rtol=1e-5
    )
    np.testing.assert_allclose(values(Constant(0.2, 4), 20)[4:], 0.2)


def test_a_run_shorter_than_its_warm_up_is_an_error_unless_the_decay_has_no_end():
    with pytest.raises(ValueError, match="warm-up takes 10 of 10 steps"):
        Linear(0.1, 10).make(10)
    assert values(InverseSquareRoot(0.1, 10), 5)[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, InverseSquareRoot])
@pytest.mark.parametrize("peak", [0.0, -1.0, math.nan])
def test_a_peak_that_is_not_positive_is_an_error(kind, peak):
    with pytest.raises(ValueError, match="must be positive"):
        kind(peak, 1).make(10)
