"""Which trials a search makes, and how it ranks them; nothing is compiled."""

import dataclasses

from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training.chips import CHIPS, GIB
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.precompile import Memory, PhaseReport, Report, Speed
from codet5p_jax.training.precompile_report import trial_text
from codet5p_jax.training.precompile_search import REMATS, ranked, search
from tests.training.synthetic import tiny_config

PEAK = {"none": 40, "dots": 20, "full": 10}  # GiB without micro-batches
SECONDS = {"none": 1.0, "dots": 1.0, "full": 1.25}


def fake_step(*, model, mesh, accumulate, rows, num_slices, topology) -> Report:
    """Needs memory and time as the tables say; a tensor axis of 4 does not divide."""
    assert (rows, num_slices, topology) == ([{"a": 4}], 2, "v5e:4x4")
    if mesh.tensor == 4:
        raise ValueError("heads do not divide by 4")
    peak, seconds = PEAK[model.remat] * GIB // accumulate, SECONDS[model.remat]
    fits = peak < 16 * GIB
    speed = Speed(1.0, 1.0, 1, 1.0, {}, {}, seconds, seconds, seconds, 0.0, seconds, 0.5)
    memory = Memory({}, 0, peak=peak, available=None if fits else 16 * GIB)
    phase = PhaseReport("m", {"a": 4}, 2.0, fits, memory, (), speed if fits else None)
    return Report(topology, 2, CHIPS["v5e"], 32, {}, "0", 1, 1, (phase,))


def test_micro_batches_are_doubled_until_a_step_fits_and_the_best_comes_first():
    settings = {"model": tiny_config(), "rows": [{"a": 4}], "topology": "v5e:4x4"}
    trials = list(search(num_slices=2, compile_step=fake_step, **settings))
    plain = [t for t in trials if t.mesh == MeshConfig(replica=2)]
    tried = [(t.remat, t.accumulate, t.fits) for t in plain]
    assert tried == [
        *(("none", 1, False), ("none", 2, False), ("none", 4, True)),
        *(("dots", 1, False), ("dots", 2, True), ("full", 1, True)),
    ]
    # What does not divide does not with more micro-batches either.
    refused = [t for t in trials if t.mesh.tensor == 4]
    assert [t.remat for t in refused] == list(REMATS)
    assert {t.error for t in refused} == {"heads do not divide by 4"}
    assert {(t.mesh.replica, t.mesh.fsdp) for t in trials} == {(2, -1), (8, -1), (-1, 1)}
    best = ranked(trials, [Phase("m", 100, 4)])
    assert [(s, p // GIB, t.remat) for s, p, t in best[:4]] == [
        *[(100.0, 10, "none"), (100.0, 10, "dots")] * 2
    ]
    assert best[-1][2].remat == "full"
    assert len(best) == sum(t.fits for t in trials) == 12


def test_a_trial_is_a_line():
    trials = search(
        model=tiny_config(), rows=[{"a": 4}], topology="v5e:4x4", num_slices=2,
        compile_step=fake_step,
    )  # fmt: skip
    first, _, third = (next(trials) for _ in range(3))
    assert trial_text(first) == (
        "replica 2, fsdp -1; remat none; accumulate 1: does not fit, 42.95 GB needed; at best - ms "
        "a step; compiled in 2 s"
    )
    assert "accumulate 4: peak 10.74 GB; at best 1000.0 ms a step" in trial_text(third)
    refused = dataclasses.replace(first, report=None, error="why")
    assert trial_text(refused).endswith("accumulate 1: why")
