"""What SLURM, SkyPilot and Kubernetes are given to run, and the processes of one machine."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from codet5p_jax.cli import errors
from tests.launch.conftest import LAUNCH, TRAIN, Machine, heredoc

SLURM = ["--name=s", "--nodes=2", "--gpus=8", "--time=1:00:00", "--venv=/shared/env"]
SKY = ["--name=s", "--bucket=gs://b"]
XPK = ["--name=s", "--cluster=c", "--zone=us-east5-b", "--type=v6e-16", "--storage=fs"]
JOBSET = ["--name=s", "--cluster=c", "--location=us-east5", "--image=i", "--claim=fs"]
ON_GKE = ["--coordinator=auto", "--fail_on_sigterm"]


def test_slurm_starts_a_process_for_each_gpu(machine: Machine):
    venv = machine.root / "the env"
    machine.fake("codet5p", where="the env/bin")
    machine.fake("srun", '"${@:4}"')
    machine.fake("uv")
    machine.fake("sbatch", 'cat >"$ROOT/job"')
    options = [*SLURM[:-1], f"--venv={venv}", "--jobs=3", "--account=me", "--setup=A=1"]
    machine.launch("slurm.sh", *options, "--", *TRAIN)
    calls = machine.calls()
    assert [call[0] for call in calls] == ["uv", "uv", *3 * ["sbatch"]]
    assert calls[1][-1] == f"codet5p_jax[cuda] @ file://{LAUNCH.parent}"

    machine.fake("squeue", "echo 1234 gpu s me R")
    assert "s is running: " in machine.launch("slurm.sh", *options, "--", *TRAIN)
    assert not machine.calls("uv"), "nothing is installed under a run"

    job = (machine.root / "job").read_text()
    given = {line.removeprefix("#SBATCH ") for line in job.splitlines() if "#SBATCH" in line}
    assert given >= {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--account=me"}
    assert given >= {"--time=1:00:00", "--signal=TERM@120", "--dependency=singleton"}
    assert not any("partition" in option for option in given)
    machine.run(["bash", "-c", job])
    srun, train = machine.calls()
    assert srun[:4] == [*("srun", "--cpus-per-task=8", "--gpu-bind=none", "--kill-on-bad-exit=1")]
    assert train == ["codet5p", "train", *TRAIN, "--coordinator=auto"]


@pytest.mark.parametrize(
    ("accelerators", "extra", "coordinator"),
    [
        ("H100:8", "cuda", ["10.0.0.1:8476", "--num_processes=2", "--process_id=1"]),
        ("tpu-v6e-16", "tpu", ["auto"]),
    ],
)
def test_sky(accelerators: str, extra: str, coordinator: list[str], machine: Machine):
    machine.fake("sky", 'cp "${!#}" "$ROOT/task.yaml"')
    nodes = 1 if extra == "tpu" else 2
    options = [*SKY, f"--accelerators={accelerators}", f"--nodes={nodes}", "--spot", "--infra=aws"]
    machine.launch("sky.sh", *options, "--", *TRAIN)
    (call,) = machine.calls()
    assert call[:-1] == ["sky", "jobs", "launch", "--yes", "--detach-run", "--name=s"]
    task = yaml.safe_load((machine.root / "task.yaml").read_text())
    assert task["num_nodes"] == nodes
    recovery = {"recover_on_exit_codes": [errors.TERMINATED]}
    assert task["resources"].pop("job_recovery") == recovery
    assert task["resources"] == {"accelerators": accelerators, "infra": "aws", "use_spot": True}
    assert task["file_mounts"] == {"/shared": {"source": "gs://b", "mode": "MOUNT"}}

    machine.fake("uv")
    machine.fake("codet5p", where="home/codet5p_env/bin")
    known = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    known |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    machine.run(["bash", "-c", task["setup"]])
    machine.run(["bash", "-c", task["run"]], **known)
    _, install, train = machine.calls()
    assert install[-1] == f"codet5p_jax[{extra}] @ file://{machine.root}/home/sky_workdir"
    address, *rest = coordinator
    given = [*TRAIN, f"--coordinator={address}", *rest, "--fail_on_sigterm"]
    assert train == ["codet5p", "train", *given]


def jobset(machine: Machine, *options: str) -> dict[str, Any]:
    plan = machine.launch("jobset.sh", *JOBSET, *options, "--dry_run", "--", *TRAIN)
    return yaml.safe_load(heredoc(plan, "kubectl apply"))


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts"),
    [
        ("v4:2x2x4", "tpu-v4-podslice", 4),
        ("v5e:4x4", "tpu-v5-lite-podslice", 4),
        ("v5p:4x4x4", "tpu-v5p-slice", 16),
        ("v6e:16x16", "tpu-v6e-slice", 64),
        ("tpu7x:4x4x4", "tpu7x", 16),
    ],
)
def test_a_jobset_has_a_job_for_each_slice_and_a_pod_for_each_host(
    topology: str, accelerator: str, hosts: int, machine: Machine
):
    manifest = jobset(machine, f"--topology={topology}", "--slices=2", "--restarts=7")
    assert manifest["kind"] == "JobSet"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    (slices,) = manifest["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, hosts, hosts)
    (rule,) = job["podFailurePolicy"]["rules"]
    final = {errors.USAGE, errors.BAD_CONFIGURATION}  # a drained node's, TERMINATED, is none
    assert rule["action"] == "FailJob"
    assert set(rule["onExitCodes"]["values"]) == final
    pod = job["template"]["spec"]
    assert pod["shareProcessNamespace"] is True  # SIGTERM may pass over process 1
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    machine.fake("codet5p")
    machine.run([*container["command"], *container["args"]])
    assert machine.calls() == [["codet5p", "train", *TRAIN, *ON_GKE]]


def test_a_jobset_on_spot_nodes(machine: Machine):
    manifest = jobset(machine, "--topology=v5e:4x4", "--spot")
    (slices,) = manifest["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"  # a label, no boolean
    assert [toleration["key"] for toleration in pod["tolerations"]] == [
        "google.com/tpu",
        "cloud.google.com/gke-spot",
    ]


def test_xpk(machine: Machine):
    for name in ("gcloud", "pip", "codet5p"):
        machine.fake(name)
    machine.fake("kubectl", "[[ $1 != get ]] || exit 1")
    machine.fake(
        "xpk",
        """
    for word in "$@"; do
      [[ $word != --script-dir=* ]] || cp "${word#*=}/setup.py" "$ROOT/layered"
    done
    """,
    )
    machine.launch("xpk.sh", *XPK, "--setup=export LIBTPU_INIT_ARGS=--old", "--", *TRAIN)
    *_, call = machine.calls()
    assert call[:4] == ["xpk", "workload", "create", "--workload=s"]
    assert {"--cluster=c", "--zone=us-east5-b", "--tpu-type=v6e-16", "--storage=fs"} <= set(call)
    assert {"--num-slices=1", "--max-restarts=50", "--restart-on-exit-codes=1"} <= set(call)
    assert (machine.root / "layered").read_text() == (LAUNCH.parent / "setup.py").read_text()
    command = call[-1].removeprefix("--command=")
    assert "\n" not in command
    machine.run(["bash", "-c", command])
    assert machine.calls() == [
        ["pip", "install", "--quiet", ".[tpu]"],
        ["codet5p", "train", *TRAIN, *ON_GKE],
    ]


@pytest.mark.parametrize("script", ["xpk.sh", "jobset.sh"])
@pytest.mark.parametrize(
    ("state", "done"), [("", []), ("Failed", ["delete", "run"]), ("Completed", ["delete", "run"])]
)
def test_a_jobset_that_ended_makes_room_for_the_next(
    script: str, state: str, done: list[str], machine: Machine
):
    for name in ("gcloud", "xpk"):
        machine.fake(name)
    machine.fake("kubectl", f"[[ $* != *jsonpath* ]] || echo {state}")
    options = XPK if script == "xpk.sh" else [*JOBSET, "--topology=v5e:4x4"]
    shown = machine.launch(script, *options, "--", *TRAIN)
    calls = [call[1] for call in machine.calls("kubectl", "xpk") if call[1] != "get"]
    assert calls == [{"run": "workload" if script == "xpk.sh" else "apply"}.get(d, d) for d in done]
    assert ("s is running" in shown) == (not done)


def local(machine: Machine, behaviour: str, code: int = 0) -> str:
    program = machine.fake("codet5p", behaviour)
    options = ["--processes=2", "--devices=4", "--logs=logs", f"--program={program}"]
    return machine.launch("local.sh", *options, "--", *TRAIN, code=code)


def test_processes_of_this_machine(machine: Machine):
    local(machine, 'echo "$JAX_PLATFORMS $XLA_FLAGS"')
    where = ["--coordinator=127.0.0.1:8476", "--num_processes=2"]
    assert sorted(machine.calls()) == [
        ["codet5p", "train", *TRAIN, *where, f"--process_id={i}"] for i in (0, 1)
    ]
    logs = [machine.root / f"logs/process_{i}.log" for i in (0, 1)]
    flags = "--xla_force_host_platform_device_count=4"
    assert [log.read_text() for log in logs] == 2 * [f"cpu {flags}\n"]


def test_the_failure_of_one_process_is_the_launchers(machine: Machine):
    shown = local(machine, '[[ $* == *id=0* ]] || { echo "no data"; exit 3; }', code=3)
    assert "no data" in shown


def test_sigterm_reaches_all_processes_and_is_waited_for(machine: Machine):
    behaviour = """
    trap 'sleep 0.1; echo saved; exit 0' TERM
    echo trains
    while true; do sleep 0.02; done
    """
    program = machine.fake("codet5p", behaviour)
    options = ["--processes=2", "--logs=logs", f"--program={program}", "--", *TRAIN]
    command = [str(LAUNCH / "local.sh"), *options]
    logs = [machine.root / f"logs/process_{i}.log" for i in (0, 1)]
    with subprocess.Popen(command, cwd=machine.root, env=machine.environment) as process:
        while not all(log.exists() and log.read_text() for log in logs):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert [_lines(log)[-1] for log in logs] == ["saved", "saved"]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
