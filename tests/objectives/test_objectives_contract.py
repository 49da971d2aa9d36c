"""What every objective promises: its spec, its names, and that loader processes start quickly."""

import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from codet5p_jax.objectives import OBJECTIVES
from tests.objectives.helpers import SPECIAL, stack

NAMES = [
    "span_denoising",
    "seq2seq_clm",
    "decoder_clm",
    "text_to_code",
    "code_to_text",
    "seq2seq",
    "text_code_pairs",
    "classification",
    "pair_classification",
]


def example(size: int) -> dict[str, np.ndarray]:
    """Has the features of every kind of cached example."""
    tokens = np.arange(8, 8 + size, dtype=np.int32)
    names = ("tokens", "text", "code", "other", "inputs", "targets")
    more = {"word_starts": np.ones(size, bool), "label": np.array(1, np.int32)}
    return {name: tokens for name in names} | more


def test_names():
    assert list(OBJECTIVES) == NAMES
    assert all(OBJECTIVES[name]().name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_rows_fit_the_spec_at_any_size(name):
    objective = OBJECTIVES[name]()
    rows = [
        objective.features(example(size), np.random.default_rng(0), SPECIAL)
        for size in (0, 1, 2, 40, 3000)
    ]
    for row in rows:
        assert {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in row.items()} == objective.spec
    assert set(objective.weights(stack(rows))) == set(objective.losses)
    assert all(float(x) > 0 for x in objective.weights(stack(rows)).values())


@pytest.mark.parametrize("name", NAMES)
def test_objectives_travel_to_worker_processes(name):
    objective = OBJECTIVES[name]()
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert hash(objective) == hash(OBJECTIVES[name]())


def test_importing_objectives_loads_no_network():
    """Loader processes need the host halves only; jax itself comes with the spec."""
    code = (
        "import sys, codet5p_jax.objectives; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "jax" in loaded
    assert not {"flax", "optax", "orbax", "tensorflow", "seqio", "torch", "gin"} & set(loaded)
