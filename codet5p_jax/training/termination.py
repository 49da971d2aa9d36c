"""The signals that a training run listens to: the end after a step, and a wish for a trace."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

_asked = itertools.count()


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """A function that says whether this process was asked to stop.

    Several processes have to stop after the same step, and all call it equally often. JAX's
    coordination service listens to SIGTERM and picks a number above all that it was asked with, 0
    at first, only once: numbers that began with the step of a run that goes on would be past it.
    """
    if jax.process_count() > 1:
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_asked))
        return
    with heard(signal.SIGTERM) as event:
        yield event.is_set


@contextmanager
def heard(number: signal.Signals) -> Iterator[threading.Event]:
    """An event that is set whenever the signal comes; never outside the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    previous = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(number, previous)
