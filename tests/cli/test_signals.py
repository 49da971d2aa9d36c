"""A signal during `codet5p convert` and `compose` ends them, and leaves nothing."""

import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face
from codet5p_jax.models import CodeT5p, init_params, t5
from codet5p_jax.models.params import flatten

# Runs a command, and sends a signal to itself at the n-th event of a kind: in a callback of the
# garbage collector, where exceptions are swallowed, or when something in the folder to be made is
# opened, made or renamed, by whatever library. All runs but the last are ended by hand.
CHILD = """
import gc, json, os, sys
from codet5p_jax.cli import compose, convert, main
from codet5p_jax.training import stored_weights

stored_weights._BUFFER = 0  # each parameter is written on its own
number, runs = json.loads(sys.argv[1])
left, kind = 0, ""

def happened():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)

def audit(event, args):
    if kind == "file" and event in ("open", "os.mkdir", "os.rename"):
        if ".partial-" in str(args[0]):
            happened()

def collect(phase, _):
    if kind == "gc" and phase == "start" and writing():
        happened()

def writing():
    return any(".partial-" in name for name in os.listdir(os.path.dirname(target)))

sys.addaudithook(audit)
gc.callbacks.insert(0, collect)
for kind, left, command in runs:
    target = command[-1].partition("=")[2]
    sys.argv = ["codet5p", *command]
    try:
        code = main.script()
    except SystemExit as error:
        code = error.code
    print(json.dumps([code, left, os.listdir(os.path.dirname(target))]), flush=True)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Each command but for where it writes to."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"d_model": 8, "num_heads": 2, "head_dim": 4, "d_ff": 16}
    config = t5(vocab_size=40, num_encoder_layers=2, num_decoder_layers=2, **sizes)
    params = init_params(CodeT5p(config).specs, jax.random.key(0))
    arrays = {path: np.array(array) for path, array in flatten(params)}
    export_hugging_face(root / "t5", ArrayWeights(config, arrays))
    assert main(["convert", "import", f"--from={root}/t5", f"--to={root}/run"]) == 0
    return {
        "import": ["convert", "import", f"--from={root}/t5", "--to="],
        "export": ["convert", "export", f"--from={root}/run", "--to="],
        "compose": ["compose", f"--encoder={root}/run", f"--decoder={root}/run", "--out="],
    }


FILES = [("file", n) for n in (1, 2, 5, 12, 30)]


@pytest.mark.parametrize(
    ("command", "number", "moments"),
    [
        ("import", signal.SIGTERM, [*FILES, ("gc", 1), ("gc", 6)]),
        ("import", signal.SIGINT, [FILES[2], ("gc", 3), FILES[4]]),
        ("compose", signal.SIGTERM, [*FILES[1:4], ("gc", 7)]),
        ("export", signal.SIGTERM, FILES[:3]),
        ("export", signal.SIGINT, FILES[:3]),
    ],
)
def test_a_signal_while_writing_leaves_nothing(tmp_path, commands, command, number, moments):
    *words, last = commands[command]
    runs = [(kind, n, [*words, f"{last}{tmp_path}/made"]) for kind, n in moments]
    child = [sys.executable, "-c", CHILD, json.dumps([number, runs])]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line[0] == "["]
    code = 128 + number
    assert len(found) == len(runs), done.stderr
    for (ended, left, names), moment in zip(found, moments, strict=True):
        assert left <= 0, f"{moment}: no signal was sent"
        assert (ended, names) == (code, []), moment
    assert done.returncode == code
    interrupted = "interrupted\n" * len(runs) if number == signal.SIGINT else ""
    assert done.stderr == interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("before", [True, False])
def test_a_second_signal_or_one_before_writing_ends_at_once(tmp_path, number, before):
    code = (
        "import os, pathlib\n"
        "from codet5p_jax import files, signals\n"
        "signals.listen()\n"
        f"if {before}: os.kill(os.getpid(), {number})\n"
        f"with files.new_folder(pathlib.Path({str(tmp_path)!r}) / 'made'):\n"
        f"    os.kill(os.getpid(), {number})\n"
        "    print('writing', flush=True)\n"
        f"    os.kill(os.getpid(), {number})\n"
        "    print('not reached', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert done.stdout == ("" if before else "writing\n")
