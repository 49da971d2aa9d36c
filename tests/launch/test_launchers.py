"""What all launchers have in common; what is peculiar to each is in the files beside this one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH, TRAIN, Machine

OPTIONS = {
    "local.sh": ["--processes=2", "--devices=4", "--logs=my logs"],
    "ssh.sh": ["--hosts=me@a,b", "--name=stage1"],
    "tpu.sh": ["--name=stage1", "--zone=us-east5-b", "--type=v5litepod-16", "--slices=2", "--spot"],
    "xpk.sh": [
        *("--name=stage1", "--cluster=c", "--zone=us-east5-b", "--type=tpu7x-16"),
        *("--storage=fs", "--project=p"),
    ],
    "jobset.sh": [
        *("--name=stage1", "--cluster=c", "--location=us-east5", "--image=i", "--claim=fs"),
        *("--topology=v6e:16x16", "--spot"),
    ],
    "slurm.sh": [
        *("--name=stage1", "--nodes=2", "--gpus=8", "--time=24:00:00", "--venv=/shared/env"),
        *("--jobs=3", "--partition=gpu"),
    ],
    "sky.sh": ["--name=stage1", "--accelerators=H100:8", "--nodes=2", "--bucket=gs://b"],
}
VERBS = [
    (script, verb)
    for script in ("ssh.sh", "tpu.sh", "xpk.sh", "jobset.sh", "sky.sh")
    for verb in ("logs", "status", "stop", "delete")
    if (verb != "status" or script != "ssh.sh") and (verb != "delete" or script == "tpu.sh")
]


def check_shell(text: str) -> None:
    """An error where ShellCheck finds one; without ShellCheck, where bash cannot read it."""
    checker = ["bash", "-n"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shellcheck := shutil.which("shellcheck", path=path):
        checker = [shellcheck, "--shell=bash", "--severity=warning", "--external-sources"]
        checker += [f"--source-path={LAUNCH}", "-"]
    done = subprocess.run(checker, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", OPTIONS)
@pytest.mark.parametrize("more", [[], ["--setup=mount -a && cd /shared"]])
def test_a_dry_run_calls_nothing_and_prints_a_sound_script(
    script: str, more: list[str], machine: Machine
):
    flags = {"tpu.sh": "v5e", "xpk.sh": "tpu7x", "jobset.sh": "v6e"}.get(script, "h100")
    if more and script != "local.sh":
        more = [*more, f"--xla_flags={flags}"]
    plan = machine.launch(script, *OPTIONS[script], *more, "--dry_run", "--", *TRAIN)
    assert not machine.calls()
    check_shell(plan)
    assert ("mount -a && cd /shared" in plan) == bool(more)
    # None unless named.
    assert ("LIBTPU_INIT_ARGS" in plan) == (len(more) == 2 and flags != "h100")
    assert ("XLA_FLAGS" in plan) == (script == "local.sh" or (len(more) == 2 and flags == "h100"))


@pytest.mark.parametrize(("script", "verb"), VERBS)
def test_the_other_verbs_too(script: str, verb: str, machine: Machine):
    plan = machine.launch(script, verb, *OPTIONS[script], "--dry_run")
    check_shell(plan)
    assert "stage1" in plan or (script, verb) == ("sky.sh", "status")


@pytest.mark.parametrize(
    ("script", "programs"),
    [
        ("tpu.sh", ["gcloud"]),
        ("xpk.sh", ["gcloud", "kubectl", "xpk"]),
        ("jobset.sh", ["gcloud", "kubectl"]),
        ("slurm.sh", ["uv", "sbatch"]),
        ("ssh.sh", ["ssh", "scp"]),
    ],
)
def test_a_dry_run_prints_what_a_run_does(script: str, programs: list[str], machine: Machine):
    for program in programs:
        machine.fake(program)
    machine.fake("gcloud", "[[ ! $* == *describe* ]] || echo ACTIVE")
    machine.fake("kubectl", "[[ ! $* == get* ]] || exit 1")
    options = [*OPTIONS[script], "--setup=true"]

    def calls() -> list[list[str]]:
        made = [[_without_folder(word) for word in call] for call in machine.calls()]
        return sorted(made) if script == "ssh.sh" else made  # hosts are called at once

    machine.launch(script, *options, "--", *TRAIN)
    ran = calls()
    assert {call[0] for call in ran} >= set(programs)
    plan = machine.launch(script, *options, "--dry_run", "--", *TRAIN)
    machine.run(["bash", "-c", plan])
    assert calls() == ran


def _without_folder(word: str) -> str:
    return re.sub(r"/tmp/tmp\.\w+", "", word)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("tpu.sh", ["--nam=x"], "there is no option --nam=…; options:"),
        ("tpu.sh", [*OPTIONS["tpu.sh"], "--slices="], "--slices=: expected a value"),
        ("tpu.sh", ["--zone"], "--zone is no option without a value"),
        ("tpu.sh", ["--zone=z", "--type=v6e-4"], "--name=… is missing"),
        ("tpu.sh", ["--name=x", "--zone=z", "--type=v5e-16"], "or v5litepod-N or v6e-N"),
        ("tpu.sh", [*OPTIONS["tpu.sh"], "--type=v5litepod-17"], "--type=v5litepod-17: expected"),
        ("tpu.sh", [*OPTIONS["tpu.sh"], "--type=v4-12"], "N a multiple of 8"),
        ("tpu.sh", [*OPTIONS["tpu.sh"], "--xla_flags=h100"], "h100 is for cuda, and this runs on"),
        (
            "slurm.sh",
            [*OPTIONS["slurm.sh"], "--xla_flags=v5e"],
            "is for tpu, and this runs on",
        ),
        ("slurm.sh", [*OPTIONS["slurm.sh"], "--time=1 day"], "--time=1 day: expected [DAYS-]HOURS"),
        ("ssh.sh", [*OPTIONS["ssh.sh"], "--xla_flags=v6e"], "is for tpu, and this runs on"),
        ("sky.sh", [*OPTIONS["sky.sh"], "--xla_flags=v6e"], "is for tpu, and this runs on"),
        ("xpk.sh", [*OPTIONS["xpk.sh"], "--xla_flags=h200"], "is for cuda, and this runs on tpu"),
        ("jobset.sh", [*OPTIONS["jobset.sh"], "--xla_flags=h200"], "is for cuda, and this runs on"),
        ("jobset.sh", [*OPTIONS["jobset.sh"], "--xla_flags=v5p"], "=v5p, and this runs on v6e"),
        ("tpu.sh", [*OPTIONS["tpu.sh"], "--xla_flags=v6e"], "=v6e, and this runs on v5e"),
        ("xpk.sh", [*OPTIONS["xpk.sh"], "--xla_flags=v6e"], "=v6e, and this runs on tpu7x"),
        (
            "sky.sh",
            [*OPTIONS["sky.sh"], "--nodes=1", "--accelerators=tpu-v6e-16", "--xla_flags=v5p"],
            "=v5p, and this runs on v6e",
        ),
        (
            "sky.sh",
            ["--name=s", "--bucket=b", "--accelerators=tpu-v5-lite-podslice:16", "--xla_flags=v6e"],
            "=v6e, and this runs on v5e",
        ),
        ("tpu.sh", ["go"], "unknown argument go; expected one of: run logs status stop delete"),
        ("tpu.sh", ["stop", "delete"], "both stop and delete; expected one of: run logs status"),
        ("local.sh", ["--dry_run?=1"], "there is no option --dry_run?=…"),
        ("ssh.sh", [*OPTIONS["ssh.sh"], "--coordinator=a:9"], "its port is --port=N"),
        ("ssh.sh", [*OPTIONS["ssh.sh"], "--extra=gpu"], "--extra=gpu: expected cuda or tpu"),
        ("ssh.sh", ["--xla_flags=h300"], "--xla_flags=h300 is unknown; expected v4, v5e,"),
        ("local.sh", ["--setup=a\nb"], "--setup: expected one line"),
        ("local.sh", ["--setup=mount -a # nfs"], "--setup: expected commands that others may"),
        ("local.sh", ["--setup=sleep 9 &"], "--setup: expected commands that others may follow"),
        ("slurm.sh", [*OPTIONS["slurm.sh"], "--partition=a\nEOF"], "--partition: expected one"),
        ("ssh.sh", [*OPTIONS["ssh.sh"], "--hosts=a, b"], "one comma between them"),
        ("ssh.sh", [*OPTIONS["ssh.sh"], "--hosts=a,b,a"], "a is there twice"),
        ("ssh.sh", [*OPTIONS["ssh.sh"], "--port=99999"], "--port=99999: expected 65535 at most"),
        ("sky.sh", [*OPTIONS["sky.sh"], "--bucket=gs://b: x"], "expected names, found"),
        ("sky.sh", [*OPTIONS["sky.sh"], "--accelerators=tpu-v6e-16"], "of a TPU, one slice"),
        ("jobset.sh", [*OPTIONS["jobset.sh"], "--topology=v5e-16"], "expected v5e or v6e:2x2"),
        ("jobset.sh", [*OPTIONS["jobset.sh"], "--topology=v5e:1x1"], "in hosts of 4 chips"),
        ("jobset.sh", [*OPTIONS["jobset.sh"], "--topology=v5e:3x4"], "2x4, 4x4, 4x8"),
        ("jobset.sh", [*OPTIONS["jobset.sh"], "--topology=v5p:4x4"], "such as v4:2x2x4"),
        ("ssh.sh", [*OPTIONS["ssh.sh"], "--hosts=a,,b"], "one comma between them"),
        (
            "ssh.sh",
            [*OPTIONS["ssh.sh"], "--name=x;touch pwn"],
            "--name=x;touch pwn: expected letters",
        ),
        ("xpk.sh", [*OPTIONS["xpk.sh"], "--name=S_1"], "--name=S_1: Kubernetes takes up"),
        ("jobset.sh", [*OPTIONS["jobset.sh"], "--claim=c}"], "expected names, found --image=i"),
        (
            "jobset.sh",
            [*OPTIONS["jobset.sh"], "--image=I: x"],
            "expected names, found --image=I: x",
        ),
        ("local.sh", [*OPTIONS["local.sh"], "--processes=0"], "--processes=0: expected a whole"),
        ("sky.sh", ["--name=x"], "--accelerators=… is missing"),
    ],
)
def test_mistakes_are_found_first(script: str, options: list[str], message: str, machine: Machine):
    assert message in machine.launch(script, *options, "--", *TRAIN, code=2)


def test_odd_values_stay_one_word(machine: Machine):
    odd = ("--storage=sh; touch pwn", "--type=v5 x", "--image=a b")
    plan = machine.launch("xpk.sh", *OPTIONS["xpk.sh"], *odd, "--dry_run", "--", *TRAIN)
    for word in ("--storage=sh; touch pwn", "--tpu-type=v5 x", "--base-docker-image=a b"):
        assert f" '{word}' " in plan


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(script: Path):
    check_shell(script.read_text())


@pytest.mark.parametrize("setup", ["false && true", "false; true"])
def test_training_waits_for_a_set_up_that_works(setup: str, machine: Machine, tmp_path: Path):
    options = [*OPTIONS["local.sh"], f"--setup={setup}", f"--logs={tmp_path / 'logs'}"]
    machine.launch("local.sh", *options, "--", *TRAIN, code=1)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_processes(ending: int, machine: Machine, tmp_path: Path):
    """One to trace steps ends neither them nor the launcher; the others let them save."""
    program = machine.fake(
        "trainer",
        "trap 'echo traced' USR1; trap 'echo saved; exit 0' TERM; echo ready;"
        " while true; do read -r -t 0.1 <> <(:) || true; done",
    )
    logs = tmp_path / "logs"
    options = ["--processes=2", "--devices=1", f"--logs={logs}", f"--program={program}"]
    # Under nohup it is ignored, and no shell can change that.
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", heeding, str(LAUNCH / "local.sh"), *options, "--", *TRAIN],
        env=machine.environment,
        start_new_session=True,
    )

    def until(said: str) -> None:
        ends = time.monotonic() + 60
        while [f.read_text().count(said) for f in sorted(logs.glob("*"))] != [1, 1]:
            assert time.monotonic() < ends, said
            time.sleep(0.05)

    try:
        until("ready")
        launcher.send_signal(signal.SIGUSR1)
        until("traced")
        assert launcher.poll() is None
        launcher.send_signal(ending)
        until("saved")
        assert launcher.wait(60) == 0
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()


@pytest.mark.parametrize(
    ("script", "option"),
    [
        *(("tpu.sh", f"--type={kind}") for kind in ("v4-8", "v5p-1024", "v5litepod-1", "v6e-256")),
        *(
            ("slurm.sh", f"--time={time}")
            for time in ("90", "90:00", "2-0", "2-12:30", "UNLIMITED")
        ),
        *(("ssh.sh", f"--{more}") for more in ("extra=tpu", "extra=cuda")),
        ("jobset.sh", "--topology=v5e:2x4"),
    ],
)
def test_values_that_platforms_take(script: str, option: str, machine: Machine):
    machine.launch(script, *OPTIONS[script], option, "--dry_run", "--", *TRAIN)


def test_a_value_may_be_a_word_of_its_own(machine: Machine):
    plan = machine.launch("ssh.sh", *OPTIONS["ssh.sh"], "--dry_run", "--", "--gin_file", "a.gin")
    assert " train --gin_file a.gin --coordinator=" in plan


@pytest.mark.parametrize("arguments", [[], ["--"], ["--", "--gin_files=a"]])
def test_nothing_to_train_is_a_mistake(arguments: list[str], machine: Machine):
    message = machine.launch("local.sh", *OPTIONS["local.sh"], *arguments, code=2)
    assert "at least --gin_file=FILE, come after --" in message


@pytest.mark.parametrize("word", ["--dry_run", "--coordinator=a:1", "--process_id=0"])
def test_what_is_the_launchers_is_not_given_to_the_run(word: str, machine: Machine):
    """A dry run that is none costs what a run does."""
    shown = machine.launch("tpu.sh", *OPTIONS["tpu.sh"], "--", *TRAIN, word, code=2)
    assert f"{word.partition('=')[0]} is the launcher's, before --" in shown


@pytest.mark.parametrize("script", OPTIONS)
def test_help_names_every_option(script: str, machine: Machine):
    text = (LAUNCH / script).read_text()
    assert len(text.splitlines()) <= 100
    shown = machine.launch(script, "--help")
    (declared,) = (line for line in text.splitlines() if line.startswith("parse "))
    names = declared.split('"')[-4].split()
    for option in [*names, "dry_run", "xla_flags", "setup"]:
        assert f"--{option.removesuffix('?')}" in shown, option


def test_no_launcher_is_left_out():
    launchers = {p.name for p in LAUNCH.glob("*.sh") if "launcher.sh" in p.read_text()}
    assert launchers - {"launcher.sh", "options.sh", "xla_flags.sh"} == set(OPTIONS)
