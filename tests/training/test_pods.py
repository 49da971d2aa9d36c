"""The list of released sizes on pods, and a row of its table."""

import importlib.util
import sys
from pathlib import Path

from codet5p_jax.training.chips import parse_topology

ROOT = Path(__file__).parents[2]


def benchmark():
    spec = importlib.util.spec_from_file_location("pods", ROOT / "benchmarks/pods.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pods"] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


def test_jobs_have_the_chips_of_their_names_and_files_that_are_there():
    jobs = benchmark().jobs()
    assert len({job.name for job in jobs}) == len(jobs) == 12
    for job in jobs:
        chip, sides = parse_topology(job.topology)
        number = 1
        for side in sides:
            number *= side
        name, units = job.name.rsplit("_", 1)[1].split("-")
        # v5p is named by cores, two a chip.
        assert (name, int(units)) == (chip.name, number * (2 if name == "v5p" else 1))
        assert all((ROOT / "gin_configs" / file).is_file() for file in job.gin_files)


def test_a_phase_is_a_row():
    module = benchmark()
    traffic = {"all-reduce": {"count": 1, "num_bytes": 5e9}}
    speed = {"dot_flops": 2.1, "model_flops": 2.0, "collectives": traffic, "between_slices": {},
             "step_seconds": 0.5, "mfu": 0.4}  # fmt: skip
    phases = [
        {"mixture": "m", "memory": {"peak": 3e9}, "speed": speed},
        {"mixture": "n", "memory": {"peak": 3e10}, "speed": None},
    ]
    assert module.rows(module.Job("a", "v5e:4x4", ()), {"phases": phases}) == [
        "| a | v5e:4x4 | m | 3.00 GB | 1.050 | 5.0 GB | 500 ms | 40.0 % |",
        "| a | v5e:4x4 | n | 30.00 GB | does not fit |  |  |  |",
    ]
