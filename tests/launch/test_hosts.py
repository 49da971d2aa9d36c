"""The launchers that reach their hosts over ssh, with hosts that are folders."""

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.launch.conftest import TRAIN, Machine

# A host is a folder, which is the home of what runs there.
SSH = """
host="$1"
shift
cd "$ROOT/$host"
HOME="$PWD" HOSTNAME="$host" bash -c "$*"
"""
SCP = 'last="${!#}" && cp "${@:2:$#-2}" "$ROOT/${last%:}"'
# What it installs trains until SIGTERM comes.
UV = '[[ $1 != venv ]] || { mkdir -p "${!#}/bin" && cp "$ROOT/bin/codet5p" "${!#}/bin"; }'
CODET5P = """
exec 2>/dev/null
trap 'echo saved; exit 0' TERM
echo trains
while true; do sleep 0.02; done
"""


@pytest.fixture
def hosts(machine: Machine) -> Iterator[Machine]:
    for name in ("a", "b"):
        (machine.root / name).mkdir()
    machine.fake("ssh", SSH)
    machine.fake("scp", SCP)
    machine.fake("uv", UV)
    machine.fake("codet5p", CODET5P)
    yield machine
    for pid in machine.root.glob("*/stage1.pid"):
        machine.run(["bash", "-c", f"kill -KILL -- -{pid.read_text().strip()} || true"])


def ssh(hosts: Machine, *options: str, code: int = 0) -> str:
    return hosts.launch("ssh.sh", "--hosts=a,b", "--name=stage1", *options, "--", *TRAIN, code=code)


def log(hosts: Machine, host: str, lines: int) -> list[str]:
    """The host's log once it has so many lines."""
    path: Path = hosts.root / host / "stage1.log"
    for _ in range(500):
        if path.exists() and len(found := path.read_text().splitlines()) >= lines:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{path}: fewer than {lines} lines")


def test_over_ssh_from_nothing_to_a_resumed_run(hosts: Machine):
    # It stays, as a mount's daemon does.
    ssh(hosts, "--setup=(sleep 9; true) >/dev/null 2>&1 & echo set up")
    for host in "ab":
        assert log(hosts, host, 1) == ["trains"]
        assert (hosts.root / host / "codet5p_jax.tar.gz").stat().st_size > 1000
    where = ["--coordinator=a:8476", "--num_processes=2"]
    calls = hosts.calls()
    assert sorted(call for call in calls if call[0] == "codet5p") == [
        ["codet5p", "train", *TRAIN, *where, f"--process_id={i}"] for i in (0, 1)
    ]

    shown = ssh(hosts)
    assert "a: stage1 is running" in shown
    assert "b: stage1 is running" in shown
    assert not hosts.calls("codet5p", "uv"), "nothing is installed under a run"
    shown = ssh(hosts, "--name=stage2", code=1)
    assert "a: another run uses ~/codet5p_env; stop it first" in shown
    assert not hosts.calls("codet5p", "uv")

    ssh(hosts, "stop")
    assert log(hosts, "a", 2) == log(hosts, "b", 2) == ["trains", "saved"]
    assert "a: stage1 is not running" in ssh(hosts, "stop")
    ssh(hosts)
    assert log(hosts, "a", 3) == log(hosts, "b", 3) == ["trains", "saved", "trains"]


def test_what_is_being_installed_is_not_stopped(hosts: Machine):
    """The number of the run before may be another program's by now."""
    asleep = subprocess.Popen(["sleep", "60"], start_new_session=True)
    for host in "ab":
        (hosts.root / host / "stage1.pid").write_text(str(asleep.pid))
    waits = 'touch "$HOME/begun"; until [[ -e "$ROOT/stopped" ]]; do sleep 0.02; done'
    hosts.fake("uv", f"[[ $1 != venv ]] || {{ {waits}; }}\n{UV}")
    with ThreadPoolExecutor(1) as thread:
        launched = thread.submit(ssh, hosts)
        try:
            while not all((hosts.root / host / "begun").exists() for host in "ab"):
                assert not launched.done()
                time.sleep(0.01)
            assert "a: stage1 is being installed" in ssh(hosts, "stop", code=1)
        finally:
            (hosts.root / "stopped").touch()
        launched.result()
    assert asleep.poll() is None
    asleep.kill()
    asleep.wait()
    assert log(hosts, "a", 1) == log(hosts, "b", 1) == ["trains"]


def test_nothing_starts_where_a_host_lacks_the_program(hosts: Machine):
    hosts.fake("uv", '[[ $HOME == */a ]] || { echo "no space" >&2; exit 1; }')
    shown = ssh(hosts, code=1)
    assert "no space" in shown
    assert "b: failed" in shown
    assert not any("codet5p_start.sh" in call for call in hosts.calls())


def test_flags_and_setup_reach_the_training_process(hosts: Machine):
    hosts.fake("codet5p", 'echo "$XLA_FLAGS"; cat "$PWD/mounted"')
    ssh(hosts, "--xla_flags=h200", "--setup=echo yes >mounted", "--coordinator=10.0.0.7")
    for host in "ab":
        assert log(hosts, host, 2) == ["--xla_gpu_enable_latency_hiding_scheduler=true", "yes"]
    (call, _) = hosts.calls("codet5p")
    assert "--coordinator=10.0.0.7:8476" in call


# A request for TPUs, whose state is in a file.
GCLOUD = """
case "$*" in
  *describe*) cat "$ROOT/state" 2>/dev/null || { echo "ERROR: NOT_FOUND: no" >&2; exit 1; } ;;
  *create*) echo "${AFTER_CREATE:-ACTIVE}" >"$ROOT/state" ;;
  *delete*) rm "$ROOT/state" ;;
esac
"""


@pytest.fixture
def cloud(machine: Machine) -> Machine:
    machine.fake("gcloud", GCLOUD)
    machine.fake("sleep", 'echo ACTIVE >"$ROOT/state"')
    return machine


def tpu(cloud: Machine, *options: str, code: int = 0, after_create: str = "ACTIVE") -> list[str]:
    """Launches and returns what gcloud was asked to do."""
    cloud.fake("gcloud", f"AFTER_CREATE={after_create}\n{GCLOUD}")
    script = ["--name=stage1", "--zone=us-east5-b", "--type=v5litepod-16", "--spot"]
    cloud.launch("tpu.sh", *options, *script, "--", *TRAIN, code=code)
    return [call[4] for call in cloud.calls("gcloud") if call[4] != "describe"]


def test_tpus_are_asked_for_once(cloud: Machine):
    assert tpu(cloud) == ["create", "scp", "ssh", "ssh"]
    assert tpu(cloud) == ["scp", "ssh", "ssh"]


def test_tpus_that_cannot_be_asked_after_are_not_asked_for(cloud: Machine):
    cloud.fake("gcloud", 'echo "ERROR: your login has expired" >&2; exit 1')
    options = ["--name=stage1", "--zone=us-east5-b", "--type=v5litepod-16"]
    assert "login has expired" in cloud.launch("tpu.sh", *options, "--", *TRAIN, code=1)
    assert [call[4] for call in cloud.calls("gcloud")] == ["describe"]


def test_tpus_are_waited_for(cloud: Machine):
    assert tpu(cloud, after_create="WAITING_FOR_RESOURCES") == ["create", "scp", "ssh", "ssh"]


def test_spot_tpus_that_were_taken_away_are_asked_for_anew(cloud: Machine):
    (cloud.root / "state").write_text("SUSPENDED\n")
    assert tpu(cloud) == ["delete", "create", "scp", "ssh", "ssh"]


def test_a_request_that_fails_ends_the_launch(cloud: Machine):
    assert tpu(cloud, after_create="FAILED", code=1) == ["create"]


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_how_tpus_are_asked_for(kind: str, runtime: str, cloud: Machine):
    options = ["--name=s", "--zone=z", "--project=p", f"--type={kind}", "--slices=2", "--reserved"]
    cloud.launch("tpu.sh", *options, "--", *TRAIN)
    where = ["--zone=z", "--project=p"]
    everywhere = ["--node=all", "--worker=all"]
    create, copy, install, start = (c[4:] for c in cloud.calls("gcloud") if c[4] != "describe")
    assert create == [
        *("create", "s", *where, f"--accelerator-type={kind}", f"--runtime-version={runtime}"),
        *("--node-count=2", "--node-prefix=s", "--reserved"),
    ]
    names = ["codet5p_install.sh", "codet5p_jax.tar.gz", "codet5p_start.sh"]
    assert [Path(word).name for word in copy[1:4]] == names
    assert copy[4:] == ["s:", *where, *everywhere]
    assert install == ["ssh", "s", *where, *everywhere, "--command=bash codet5p_install.sh"]
    assert start == ["ssh", "s", *where, *everywhere, "--command=bash codet5p_start.sh"]


def test_workers_find_each_other(cloud: Machine):
    (cloud.root / "state").write_text("ACTIVE\n")
    cloud.fake("gcloud", GCLOUD + '[[ $4 != scp ]] || cp "${@:5:3}" "$HOME"')
    cloud.launch("tpu.sh", "--name=s", "--zone=z", "--type=v6e-16", "--", *TRAIN)
    cloud.fake("codet5p", where="home/codet5p_env/bin")
    cloud.run(["bash", "-c", "cd; bash codet5p_start.sh; flock s.lock true"])
    assert cloud.calls("codet5p") == [["codet5p", "train", *TRAIN, "--coordinator=auto"]]
