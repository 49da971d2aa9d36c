"""The released sizes on pods: the list, the table, and the figures against what is compiled."""

import functools
import importlib.util
import json
import math
import sys
from importlib import metadata
from pathlib import Path

import pytest

from codet5p_jax.training.chips import parse_topology

ROOT = Path(__file__).parents[2]


@functools.cache
def benchmark():
    spec = importlib.util.spec_from_file_location("pods", ROOT / "benchmarks/pods.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pods"] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


SMALL, RELEASED = benchmark().small_jobs(), benchmark().jobs()
FIGURES = json.loads(benchmark().FIGURES.read_text())


def test_jobs_have_the_chips_of_their_names_and_files_that_are_there():
    names = [job.name for job in (*SMALL, *RELEASED)]
    assert len(set(names)) == len(names) == 17
    expected = {job.name: benchmark().of_job(job) for job in (*SMALL, *RELEASED)}
    found = {name: figures["job"] for name, figures in FIGURES.items()}
    assert found == expected, "python benchmarks/pods.py compiles what is missing"
    for job in (*SMALL, *RELEASED):
        chip, sides = parse_topology(job.topology)
        name, units = job.name.rsplit("_", 1)[1].split("-")
        # v5p is named by cores, two a chip.
        name = name.removeprefix("2x" if job.num_slices == 2 else "")
        assert (name, int(units)) == (chip.name, math.prod(sides) * (2 if name == "v5p" else 1))
        assert all((ROOT / "gin_configs" / file).is_file() for file in job.gin_files)


def test_the_page_is_that_of_the_figures(tmp_path, monkeypatch):
    page = benchmark().PAGE.read_text()
    monkeypatch.setattr(benchmark(), "PAGE", tmp_path / "pods.md")
    benchmark().write_page(FIGURES)
    assert page == (tmp_path / "pods.md").read_text()
    for job in RELEASED:
        assert f"| {job.name} | {job.topology} |" in page


def test_a_phase_is_a_row():
    traffic = {"all-reduce": {"count": 1, "num_bytes": 5e9}}
    speed = {"dot_flops": 2.1, "model_flops": 2.0, "hbm_bytes": 6.1e10, "collectives": traffic,
             "between_slices": {}, "step_seconds": 0.5, "mfu": 0.4}  # fmt: skip
    phases = [
        {"mixture": "m", "peak": 3e9, "speed": speed},
        {"mixture": "n", "peak": 3e10, "speed": None},
    ]
    job = benchmark().Job("a", "v5e:4x4", (), ("A=1", "B=2"))
    start = "| a | v5e:4x4 | `A=1` `B=2` |"
    assert benchmark().rows(job, {"phases": phases}) == [
        f"{start} m | 3.00 of 17.18 GB | 1.050 | 61 GB | 5.0 GB | 500 ms | 40.0 % |",
        f"{start} n | 30.00 of 17.18 GB | does not fit |  |  |  |  |",
    ]


def check(job, tmp_path):
    """Memory, what is moved and the time of that to 2 %, FLOPs to 0.1 %, collectives as often."""
    expected = FIGURES[job.name]
    if metadata.version("libtpu") != expected["libtpu"]:
        pytest.skip(f"the figures are of libtpu {expected['libtpu']}")
    found = benchmark().compiled(job, str(tmp_path))
    assert [x["mixture"] for x in found["phases"]] == [x["mixture"] for x in expected["phases"]]
    for ours, theirs in zip(found["phases"], expected["phases"], strict=True):
        assert ours["peak"] == pytest.approx(theirs["peak"], rel=0.02)
        speed, kept = ours["speed"], theirs["speed"]
        assert (speed is None) == (kept is None)
        if speed is None:
            continue
        for exact in ("dot_flops", "model_flops"):
            assert speed[exact] == pytest.approx(kept[exact], rel=0.001)
        for near in ("hbm_bytes", "step_seconds", "mfu"):
            assert speed[near] == pytest.approx(kept[near], rel=0.02)
        for link in ("collectives", "between_slices"):
            counts = [{k: x["count"] for k, x in y[link].items()} for y in (speed, kept)]
            assert counts[0] == counts[1]
            for kind, traffic in kept[link].items():
                moved = speed[link][kind]["num_bytes"]
                assert moved == pytest.approx(traffic["num_bytes"], rel=0.02)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@needs_libtpu
@pytest.mark.parametrize(
    "job",
    [
        pytest.param(job, id=job.name, marks=[pytest.mark.slow] if job.num_slices > 1 else [])
        for job in SMALL
    ],
)
def test_small_steps_compile_as_they_did(job, tmp_path):
    check(job, tmp_path)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("job", RELEASED, ids=lambda job: job.name)
def test_released_sizes_compile_as_they_did(job, tmp_path):
    check(job, tmp_path)
