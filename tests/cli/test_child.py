"""A command in a process of its own ends with the process that runs it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from codet5p_jax.cli import child

CHILD = """
import signal, sys, time
def stop(*_):
    print("saving", flush=True)
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = f"""
import sys
from codet5p_jax.cli import child
child.run([sys.executable, "-c", {CHILD!r}])
print("going on")
"""


def test_termination_is_passed_on_and_waited_for():
    command = [sys.executable, "-c", textwrap.dedent(PARENT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        os.kill(parent.pid, signal.SIGTERM)
        rest = parent.stdout.read()  # ends when the child has ended as well
        assert parent.wait(30) == 143
    assert rest == "saving\nsaved\n"


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_is_returned_and_the_handler_put_back(code):
    before = signal.getsignal(signal.SIGTERM)
    assert child.run([sys.executable, "-c", f"raise SystemExit({code})"]) == code
    assert signal.getsignal(signal.SIGTERM) is before


def test_from_a_thread_which_handles_no_signals():
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(child.run([sys.executable, "-c", "raise SystemExit(4)"]))
    )
    thread.start()
    thread.join()
    assert codes == [4]
