"""The named sets of XLA flags. An unknown one ends a process, so the pinned compilers are asked."""

import os
import subprocess
import sys

import pytest

from codet5p_jax.training.precompile import ENVIRONMENT
from tests.launch.conftest import LAUNCH

SETS = ("v4", "v5e", "v5p", "v6e", "tpu7x", "h100", "h200")
CPU = "import jax; jax.devices()"
# libtpu as it is on a machine without TPUs, for a topology that is not there.
TPU = """
from jax.experimental import topologies
topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
"""


def shell(command: str) -> str:
    script = f"source {LAUNCH / 'xla_flags.sh'}; {command}"
    return subprocess.run(
        ["bash", "-euc", script], capture_output=True, text=True, check=True
    ).stdout


def complaints(program: str, variable: str) -> str:
    """What a compiler says to the flags of all sets for its variable and an unknown one."""
    lines = [shell(f"xla_environment {name}").strip() for name in SETS]
    values = [line.removeprefix(f"{variable}=") for line in lines if line.startswith(variable)]
    assert values
    outer = os.environ | ENVIRONMENT | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=outer | {variable: " ".join([*values, "--xla_no_such=1"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_a_source(name: str):
    head, *flags = shell(f"xla_set {name}").splitlines()
    variable, source = head.split()
    assert variable == ("XLA_FLAGS" if name in ("h100", "h200") else "LIBTPU_INIT_ARGS")
    assert source.startswith("https://")
    assert flags
    assert all(flag.startswith("--xla_") for flag in flags)
    assert shell(f"xla_environment {name}") == f"{variable}={' '.join(flags)}\n"


def test_the_compiler_for_gpus_knows_the_flags():
    said = complaints(CPU, "XLA_FLAGS")
    assert "Unknown flag in XLA_FLAGS: --xla_no_such=1\n" in said


def test_the_compiler_for_tpus_knows_the_flags():
    pytest.importorskip("libtpu")
    said = complaints(TPU, "LIBTPU_INIT_ARGS")
    errors = [line for line in said.splitlines() if line.startswith("ERROR")]
    assert errors == ["ERROR: Unknown command line flag 'xla_no_such'"]
