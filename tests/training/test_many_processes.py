"""Runs of several real processes: what each reads and writes, and what ends one ends all."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from codet5p_jax.data.cache import open_mixture
from codet5p_jax.data.loader import Loader
from codet5p_jax.models import CodeT5p
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoint_files import saved_steps
from codet5p_jax.training.checkpoints import restore_latest
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.optimizers import AdamW
from codet5p_jax.training.phases import data_seed
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import abstract_state
from tests.training import synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    synthetic.write_cache(folder / "cache")
    return folder


def start(workplace, name, of, *, devices=1, each=None, **settings):
    """(exit code, output, seconds) of each of the processes; `each` has settings of single ones."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(workplace / f"compiled{of}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    common = {"cache": str(workplace / "cache"), "model_dir": str(workplace / name), **settings}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.many_processes", json.dumps(mine)],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(of)
        for mine in [{**common, "process": i, "of": of, "port": port, **(each or {}).get(i, {})}]
    ]  # fmt: skip

    def ended(process):
        output = process.communicate(timeout=300)[0]
        return output, process.returncode, time.monotonic()

    try:
        with ThreadPoolExecutor(of) as threads:
            return list(threads.map(ended, processes))
    finally:
        for process in processes:
            process.kill()


def of_training(path):
    return [record for record in read_records(path) if record["split"] == "train"]


def test_two_processes_share_a_run_and_stop_together(workplace):
    """SIGTERM comes to one of them; both save, and exit with 0."""
    rows = workplace / "rows"
    settings = {"denoise": True, "steps": 24}  # an epoch is 25
    both = start(workplace, "two", 2, rows=str(rows), each={1: {"terminate": 4}}, **settings)
    (first, code, _), (second, other, _) = both
    assert (code, other) == (0, 0), first + second
    assert "2 x cpu in 2 process(es)" in first
    assert "stopped by SIGTERM" in first
    directory = ModelDir(workplace / "two")
    step = saved_steps(directory.checkpoints)[-1]
    assert 4 <= step < 24
    assert f"finished at step {step} interrupted" in first
    assert second.strip().splitlines()[-1] == f"finished at step {step} interrupted"
    assert "step " not in second.replace("finished at step", ""), "one host tells"

    # One host writes, and what it writes is of the rows of both.
    records = of_training(directory.metrics)
    assert [r["step"] for r in records] == list(range(1, step + 1))
    loader = Loader(
        open_mixture(workplace / "cache", "denoise", "train"),
        {o.name: o for o in synthetic.objectives()},
        8,
        data_seed(0, 0),
    )
    for i, record in enumerate(records):
        whole = loader.batch_at(i)["span_denoising"]
        halves = [np.load(rows / f"{process}-{i}.npz") for process in (0, 1)]
        for name, expected in whole.items():
            found = [half[f"span_denoising/{name}"] for half in halves]
            assert [len(x) for x in found] == [4, 4]
            np.testing.assert_array_equal(np.concatenate(found), expected)
        real = sum((whole[f"{side}_segments"] > 0).sum() for side in ("encoder", "decoder"))
        assert record["tokens"] == real
        assert record["span_denoising/loss"] > 0

    # Neither reads rows of the other. Both look at example 0 at the start.
    reads = [set((rows / f"reads-{p}").read_text().split()) for p in (0, 1)]
    assert reads[0] & reads[1] <= {"0"}

    # A run that goes on heeds a signal that comes before its first step.
    settings["steps"] = 60
    both = start(workplace, "two", 2, pause=2, each={0: {"terminate": 0}}, **settings)
    assert [code for _, code, _ in both] == [0, 0], both
    assert f"resuming {workplace / 'two'} from step {step}" in both[0][0]
    step, before = saved_steps(directory.checkpoints)[-1], step
    assert before <= step < 60

    # And at once one that comes while it saves.
    saving = (step + 4) // 3 * 3  # it saves every 3 steps
    both = start(workplace, "two", 2, each={1: {"terminate_in_save": saving}}, **settings)
    assert [code for _, code, _ in both] == [0, 0], both
    assert saving <= saved_steps(directory.checkpoints)[-1] < saving + 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "of_process", "said"),
    [
        ("kill", 1, "process 1 ({host}) was killed, or its machine is out of reach"),
        ("kill", 0, "process 0 ({host}) was killed, or its machine is out of reach"),
        ("full_disk", 1, "process 1 ({host}): saving a checkpoint to"),
        ("full_disk", 0, "process 0 ({host}): saving a checkpoint to"),
        ("full_disk_later", 1, "process 1 ({host}): saving a checkpoint to"),
        ("bad_shard", 1, "process 1 ({host}): [Errno 5] Input/output error: 'shard-00000'"),
        ("stuck", 1, "process 1 ({host}): no batch for step 6 within 4 s"),
        ("stuck_evaluation", 1, "process 1 ({host}): no batch of an evaluation within 4 s"),
    ],
)
def test_what_ends_one_process_ends_all_with_a_line_and_the_run_resumes(
    workplace, event, of_process, said
):
    name = f"{event}{of_process}"
    settings = {"denoise": True, "steps": 40}
    if event == "stuck_evaluation":
        settings["evaluate"] = 3
    began = time.monotonic()
    both = start(workplace, name, 2, each={of_process: {event: 6}}, data_timeout=4, **settings)
    (hurt, code, ended), (other, other_code, other_ended) = both[of_process], both[1 - of_process]
    assert code != 0
    assert other_code == 1, other
    assert time.monotonic() - began < 240
    assert abs(ended - other_ended) < 60
    line = f"codet5p: {said.format(host=socket.gethostname())}"
    assert line in other
    assert "Traceback" not in other
    assert "Check failure" not in hurt
    if event != "kill":
        assert said.split(": ")[-1] in hurt
    saved = saved_steps(ModelDir(workplace / name).checkpoints)
    assert saved
    again = start(workplace, name, 2, data_timeout=60, **settings)
    assert [code for _, code, _ in again] == [0, 0], again
    assert "resuming" in again[0][0]
    assert [r["step"] for r in of_training(ModelDir(workplace / name).metrics)] == [*range(1, 41)]


def state_of(directory):
    """Every array of the newest checkpoint."""
    model = CodeT5p(synthetic.tiny_config())
    rule = AdamW().make(Constant(0.1).make(10), model.specs)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    abstract = abstract_state(model, synthetic.objectives()[:1], rule, one)
    state, _ = restore_latest(ModelDir(directory), abstract, print)
    return jax.tree.leaves(state)


def values(directory):
    found = of_training(ModelDir(directory).metrics)
    return [{k: v for k, v in r.items() if k not in ("timing", "split")} for r in found]


def batch(rows, of, number):
    """A batch put together from what the processes kept."""
    parts = [np.load(rows / f"{process}-{number}.npz") for process in range(of)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(workplace):
    """On four devices: what is restored is the same to the bit, and so are the next batches."""
    settings = {"denoise": True, "steps": 12}
    whole = start(workplace, "whole", 4, rows=str(workplace / "rows-whole"), **settings)
    assert [code for _, code, _ in whole] == [0] * 4, whole
    four = start(workplace, "four", 4, each={2: {"terminate": 4}}, **settings)
    assert [code for _, code, _ in four] == [0] * 4, four
    step = saved_steps(ModelDir(workplace / "four").checkpoints)[-1]
    assert 4 <= step < 12
    saved = state_of(workplace / "four")
    for of in (4, 2, 1):
        name, rows = f"then{of}", workplace / f"rows-{of}"
        shutil.copytree(workplace / "four", workplace / name)
        done = start(workplace, name, of, devices=4 // of, rows=str(rows), **settings)
        assert [code for _, code, _ in done] == [0] * of, done
        assert f"resuming {workplace / name} from step {step}" in done[0][0]
        for i, expected in enumerate(saved):
            found = np.full(expected.shape, 77, expected.dtype)
            for path in rows.glob(f"state-{i}-*.npz"):
                shard = np.load(path)
                found[tuple(slice(*at) for at in shard["at"].astype(int))] = shard["data"]
            np.testing.assert_array_equal(found, expected)
        for i in range(12 - step):
            expected, found = batch(workplace / "rows-whole", 4, step + i), batch(rows, of, i)
            assert found.keys() == expected.keys()
            for key, value in found.items():
                np.testing.assert_array_equal(value, expected[key])
        mine, theirs = values(workplace / name), values(workplace / "whole")
        if of == 4:
            assert mine == theirs
            ends = state_of(workplace / name), state_of(workplace / "whole")
            for one, other in zip(*ends, strict=True):
                np.testing.assert_array_equal(one, other)
        else:  # sums over devices of one process are made in another order
            for one, other in zip(mine, theirs, strict=True):
                assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_processes_along_a_tensor_axis_make_the_same_rows(workplace):
    one = start(workplace, "tensor1", 1, devices=2, tensor=2, denoise=True, steps=4)
    two = start(workplace, "tensor2", 2, tensor=2, denoise=True, steps=4)
    assert [code for _, code, _ in one + two] == [0] * 3, one + two
    pairs = zip(values(workplace / "tensor2"), values(workplace / "tensor1"), strict=True)
    for mine, theirs in pairs:
        assert mine == pytest.approx(theirs, rel=1e-5)
