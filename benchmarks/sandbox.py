"""Short Python programs a second through the sandbox, against starting Python itself.

    python benchmarks/sandbox.py
    python benchmarks/sandbox.py --programs 2000 --workers 4

The floor is `python -I -S -c pass`, as often and as many at a time, without any protection. The two
take turns, as other work on the machine changes what both can do. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from codet5p_jax.evaluation.progress import progress_bar
from codet5p_jax.evaluation.sandbox.pool import run_programs
from codet5p_jax.evaluation.sandbox.program import PythonSource

# Of the length and kind of HumanEval's: a function, and a test that calls it.
PROGRAM = """
from typing import List

def below_zero(operations: List[int]) -> bool:
    balance = 0
    for op in operations:
        balance += op
        if balance < 0:
            return True
    return False

def check(candidate):
    assert candidate([]) == False
    assert candidate([1, 2, -3, 1, 2, -3]) == False
    assert candidate([1, 2, -4, 5, 6]) == True

check(below_zero)
"""


def sandboxed(programs: int, workers: int, progress) -> float:
    """Programs a second, starting the sandboxes included."""
    began = time.perf_counter()
    sources = [PythonSource(PROGRAM)] * programs
    for outcome in run_programs(sources, workers=workers, progress=progress):
        assert outcome.status == "finished", outcome
    return programs / (time.perf_counter() - began)


def bare(programs: int, workers: int) -> float:
    """Starts of Python a second."""

    def start(_) -> None:
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(start, range(programs)))
    return programs / (time.perf_counter() - began)


def main() -> None:
    """Measures in turns and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=500, help="in each turn")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    rates, floors = [], []
    with progress_bar("programs", args.turns * args.programs) as progress:
        for _ in range(args.turns):
            rates.append(sandboxed(args.programs, args.workers, progress))
            floors.append(bare(args.programs, args.workers))
    rate, floor = statistics.median(rates), statistics.median(floors)
    print(f"{args.workers} at a time on {len(os.sched_getaffinity(0))} cores")
    print(f"sandbox: {rate:.0f} programs/s ({min(rates):.0f} to {max(rates):.0f})")
    print(f"floor: {floor:.0f} starts of Python/s ({min(floors):.0f} to {max(floors):.0f})")
    print(f"{rate / floor:.2f} times the floor")
    print(json.dumps({"programs_per_second": rate, "floor_per_second": floor}))


if __name__ == "__main__":
    main()
