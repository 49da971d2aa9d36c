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


def test_files_where_one_stands_hide_neither_the_package_nor_the_standard_library(tmp_path):
    """As a checkout does that is not what is installed, or a user's own `queue.py`."""
    for name in ("codet5p_jax/__init__.py", "queue.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('hidden')\n")
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    for command in ([f"{sys.prefix}/bin/codet5p"], list(child.COMMAND)):
        out = subprocess.run(
            [*command, "train", "--gin_file=runs/stage1_220m.gin", "--num_devices=16", "--dry_run"],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert out.returncode == 0, out.stderr
        assert "phase codet5p_stage1: 100,000 steps" in out.stdout
