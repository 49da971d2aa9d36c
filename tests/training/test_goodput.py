import time

import pytest

from codet5p_jax.training.goodput import (
    PARTS,
    Goodput,
    latest_seconds,
    share_of_steps,
    summary,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; add to its only item."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_every_second_belongs_to_one_part(clock):
    goodput = Goodput(2.0)
    clock[0] += 3
    goodput.begin("steps")
    clock[0] += 10
    with goodput.spend("checkpoint"):
        clock[0] += 4
        with goodput.spend("data"):
            clock[0] += 1
        clock[0] += 2
    clock[0] += 20
    seconds = goodput.seconds()
    expected = {"start_up": 5.0, "steps": 30.0, "checkpoint": 6.0, "data": 1.0}
    assert {k: v for k, v in seconds.items() if v} == expected
    assert sum(seconds.values()) == 42
    assert goodput.timing()["goodput"] == 30 / 42


def test_an_error_inside_a_part_ends_it(clock):
    goodput = Goodput(2.0)
    with pytest.raises(OSError, match="full"), goodput.spend("checkpoint"):
        raise OSError("full")
    clock[0] += 1
    assert goodput.seconds()["checkpoint"] == 0


def of(**seconds):
    return {**dict.fromkeys(PARTS, 0.0), **seconds}


def test_steps_after_the_checkpoint_are_lost_and_the_rest_goes_on(clock):
    saved = of(start_up=5.0, steps=30.0, data=1.0, checkpoint=2.0, lost=4.0)
    known = of(start_up=9.0, steps=50.0, data=1.5, checkpoint=3.0, lost=4.0)
    goodput = Goodput(2.0)
    goodput.go_on(saved, known)
    assert goodput.seconds() == of(
        start_up=11.0, steps=30.0, data=1.0, checkpoint=3.0, lost=4.0 + 20.0 + 0.5
    )


def test_a_checkpoint_may_know_more_than_the_last_record(clock):
    goodput = Goodput(2.0)
    goodput.go_on(of(steps=30.0), of(steps=20.0))
    assert goodput.seconds() == of(start_up=2.0, steps=30.0)


def test_without_a_checkpoint_all_steps_are_lost(clock):
    goodput = Goodput(2.0)
    goodput.go_on({}, of(steps=20.0, evaluation=1.0))
    assert goodput.seconds() == of(start_up=2.0, lost=20.0, evaluation=1.0)


def test_a_record_gives_back_what_it_was_given(clock):
    goodput = Goodput(2.0)
    clock[0] += 6
    goodput.begin("steps")
    clock[0] += 8
    records = [{"timing": goodput.timing()}, {"step": 3, "timing": {"seconds": 1.0}}, {"step": 4}]
    assert latest_seconds(records) == goodput.seconds() == of(start_up=8.0, steps=8.0)
    assert latest_seconds(records[1:]) == {}


def test_one_line_says_it_all():
    line = summary(of(steps=1800.0, start_up=180.0, lost=20.04))
    assert line == "goodput 90.0% of 2,000.0 s: steps 1,800.0 s, start-up 180.0 s, lost 20.0 s"
    assert share_of_steps({}) == 0
