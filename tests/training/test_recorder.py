import io
import time

import jax.numpy as jnp
import pytest
import rich.console
import rich.progress

from codet5p_jax.training.goodput import Goodput
from codet5p_jax.training.progress import (
    LiveProgress,
    PlainProgress,
    SilentProgress,
    format_record,
)
from codet5p_jax.training.recorder import Recorder
from codet5p_jax.training.startup import process_age, seconds_before

RECORD = {
    "step": 20, "split": "train", "loss": 1.25, "matching/loss": 0.5, "matching/accuracy": 0.9,
    "learning_rate": 0.001, "timing": {"tokens_per_second": 12345.6, "mfu": 0.4},
}  # fmt: skip
LINE = "step 20/100 train | loss 1.2500 | matching 0.5000 | lr 0.001 | 12,346 tokens/s | MFU 40.0%"


class Log(list):
    """A writer that remembers."""

    def write(self, record):
        self.append(record)

    def close(self):
        self.append("closed")


def pair(value):
    return jnp.float32(value), jnp.float32(1)


def metrics(loss, in_a_row=0):
    return {"loss": pair(loss), "tokens": pair(100), "skipped_in_a_row": pair(in_a_row)}


def recorder(log, **settings):
    defaults = {"step": 0, "totals": {}, "peak": None, "max_nonfinite": 3}
    return Recorder([log], SilentProgress(), Goodput(0.0), **{**defaults, **settings})


def test_an_interval_becomes_a_record_with_its_rates():
    log = Log()
    r = recorder(log, peak=1e6)
    for loss in (3.0, 2.0, 1.0):
        with r.waiting():
            time.sleep(0.01)
        r.add(metrics(loss), flops=1000.0)
    with r.paused("checkpoint"):
        time.sleep(0.3)
    r.finish_interval(3)
    r.add(metrics(7.0), flops=0.0)
    r.finish_interval(4)
    r.evaluation(4, "validation", {"loss": 5.0})
    r.close()
    first, second, held_out, closed = log
    assert (first["step"], first["split"], first["loss"]) == (3, "train", 2.0)
    timing = first["timing"]
    assert timing["seconds"] < 0.3
    assert 0.03 <= timing["data_wait_seconds"] < 0.3
    assert timing["spent/checkpoint"] >= 0.3
    assert timing["spent/data"] == pytest.approx(timing["data_wait_seconds"], abs=0.01)
    assert timing["tokens_per_second"] == pytest.approx(300 / timing["seconds"])
    assert timing["mfu"] == pytest.approx(3000 / timing["seconds"] / 1e6)
    assert second["loss"] == 7.0
    assert held_out == {"step": 4, "split": "validation", "loss": 5.0}
    assert closed == "closed"


def test_a_record_counts_the_steps_that_were_skipped():
    log = Log()
    r = recorder(log)
    for skipped in (0, 1, 1):
        r.add(metrics(1.0, skipped) | {"skipped": pair(skipped)}, flops=0.0)
    r.finish_interval(3)
    assert log[0]["skipped"] == 2


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run():
    r = recorder(Log(), step=10)
    for number in (1, 2, 0, 1, 2):
        r.add(metrics(1.0, number), flops=0.0)
    r.totals()
    r.add(metrics(1.0, 3), flops=0.0)
    with pytest.raises(FloatingPointError, match=r"in the 3 steps up to 16; lower the learning"):
        r.totals()


def test_a_record_in_one_line(capsys):
    assert format_record(RECORD, 100) == LINE
    progress = PlainProgress()
    progress.begin(0, 100)
    progress.record(RECORD)
    assert capsys.readouterr().out == LINE + "\n"
    assert format_record({**RECORD, "skipped": 0.0}, 100) == LINE
    skipped = format_record({**RECORD, "skipped": 2.0}, 100)
    assert skipped == LINE.replace("lr 0.001", "lr 0.001 | 2 skipped")


def test_a_live_line(monkeypatch):
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=120)
    original = rich.progress.Progress
    monkeypatch.setattr(
        rich.progress, "Progress", lambda *columns: original(*columns, console=console)
    )
    progress = LiveProgress()
    progress.begin(10, 100)
    progress.advance(20, {"loss": 1.23456, "skipped": 0.0})
    console.print("")  # a line of its own for what the bar shows now
    assert "skipped" not in screen.getvalue()
    progress.advance(21, {"skipped": 1.0})
    progress.record(RECORD)
    progress.record({**RECORD, "split": "validation"})
    progress.end()
    progress.end()
    shown = screen.getvalue()
    assert "21/100" in shown
    assert "loss 1.2346 | 1 skipped" in shown
    assert LINE.replace("train", "validation") in shown
    assert LINE not in shown, "the bar says it already"


def test_the_age_of_a_process_is_known_on_linux():
    assert 0 < process_age() < 24 * 3600


def test_what_came_before_the_first_run_is_not_told_to_the_second(monkeypatch):
    monkeypatch.setattr("codet5p_jax.training.startup._told", False)
    assert 0 < seconds_before() <= process_age()
    assert seconds_before() == 0
