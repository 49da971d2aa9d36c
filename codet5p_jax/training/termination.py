"""The signals that a training run listens to: the end after a step, and a wish for a trace."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


@contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
    """A function of the step that says whether this process was asked to stop.

    Several processes have to stop after the same step, which JAX's coordination service sees to; it
    listens to SIGTERM itself.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    with heard(signal.SIGTERM) as event:
        yield lambda step: event.is_set()


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
