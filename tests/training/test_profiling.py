import threading
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import pytest

from codet5p_jax.training.profiling import ON_SIGNAL, Profiler


class Tracing:
    """What a profiler does, without the profiler of JAX."""

    def __init__(self, tmp_path, steps, monkeypatch):
        self.calls, self.said, self.step, self.parts = [], [], 0, []
        self.asked = threading.Event()
        monkeypatch.setattr(jax.profiler, "start_trace", lambda _: self.start())
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self.stop())
        self.profiler = Profiler(tmp_path, steps, self.asked, self.paused, self.said.append)

    @contextmanager
    def paused(self, part):
        self.parts.append(part)
        yield

    def start(self):
        self.calls.append(("start", self.step))

    def stop(self):
        self.calls.append(("stop", self.step))

    def run(self, first, end):
        for self.step in range(first, end):
            self.profiler.at(self.step, jnp.zeros(()))
        self.step = end


@pytest.fixture
def tracing(tmp_path, monkeypatch):
    return lambda steps: Tracing(tmp_path, steps, monkeypatch)


def test_steps_that_were_named_are_traced_once(tracing, tmp_path):
    t = tracing((3, 5))
    t.run(0, 9)
    assert t.calls == [("start", 3), ("stop", 5)]
    assert t.said == [f"trace of steps 3 to 5 in {tmp_path}"]
    assert t.parts == ["profile", "profile"]


def test_each_of_several_processes_has_a_folder_and_a_say(tracing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    t = tracing((3, 5))
    t.run(0, 9)
    line = f"process 1: trace of steps 3 to 5 in {tmp_path / 'process_1'}\n"
    assert (t.said, capsys.readouterr().err) == ([], line)


def test_a_run_that_goes_on_in_between_traces_the_rest(tracing):
    t = tracing((3, 5))
    t.run(4, 9)
    assert t.calls == [("start", 4), ("stop", 5)]
    t = tracing((3, 5))
    t.run(5, 9)
    assert t.calls == []


def test_a_run_that_ends_in_between_writes_what_there_is(tracing):
    t = tracing((3, 99))
    t.run(0, 6)
    for _ in range(2):
        t.profiler.close(6, jnp.zeros(()))
    assert t.calls == [("start", 3), ("stop", 6)]


def test_the_next_steps_on_request_as_often_as_asked(tracing):
    t = tracing(None)
    t.run(0, 4)
    t.asked.set()
    t.run(4, 20)
    t.asked.set()
    t.run(20, 40)
    assert t.calls == [
        ("start", 4), ("stop", 4 + ON_SIGNAL), ("start", 20), ("stop", 20 + ON_SIGNAL)
    ]  # fmt: skip


def test_a_trace_that_fails_is_said_and_ends_nothing(tracing, tmp_path):
    def fail():
        raise RuntimeError("another profiler")

    t = tracing((3, 5))
    t.start = fail
    t.run(0, 9)
    assert t.calls == []
    assert t.said == ["no trace of steps: another profiler"]
    t = tracing((3, 5))
    t.stop = fail
    t.run(0, 9)
    assert t.said == ["the trace of steps 3 to 5 is lost: another profiler"]


def test_a_request_before_the_named_steps_takes_nothing_from_them(tracing):
    t = tracing((20, 22))
    t.run(0, 3)
    t.asked.set()
    t.run(3, 30)
    end = 3 + ON_SIGNAL
    assert t.calls == [("start", 3), ("stop", end), ("start", 20), ("stop", 22)]
