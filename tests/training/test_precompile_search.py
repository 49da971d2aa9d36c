"""Which trials a search makes, and how it ranks them; nothing is compiled."""

import dataclasses
import doctest

from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training import precompile_search
from codet5p_jax.training.chips import CHIPS, GIB
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.precompile import Memory, PhaseReport, Report, Speed
from codet5p_jax.training.precompile_report import trial_text
from codet5p_jax.training.precompile_search import REMATS, ranked, search
from tests.training.synthetic import tiny_config

PEAK = {"none": 40, "dots": 20, "full": 10}  # GiB without micro-batches
SECONDS = {"none": 1.0, "dots": 1.0, "full": 1.25}
ROWS = 4 * 32  # 4 a device
PHASES = [Phase("m", 100, ROWS)]


def fake_step(*, model, mesh, accumulate, rows, num_slices, topology, phases) -> Report:
    """Needs memory and time as the tables say; a tensor axis of 4 does not divide.

    Moving parameters hides all of the time that computing with up to 16 rows a device takes.
    """
    ((name, number),) = rows[0].items()
    assert (name, num_slices, topology, phases) == ("a", 2, "v5e:4x4", PHASES)
    if mesh.tensor == 4:
        raise ValueError("heads do not divide by 4")
    peak = PEAK[model.remat] * GIB * number // (ROWS * accumulate)
    seconds = SECONDS[model.remat] * max(number / (4 * ROWS), 1.0)
    fits = peak < 16 * GIB
    speed = Speed(1.0, 1.0, 1.0, 1.0, {}, {}, seconds, seconds, seconds, 0.0, seconds, 0.5)
    memory = Memory({}, 0, peak=peak, available=None if fits else 16 * GIB)
    phase = PhaseReport("m", {"a": number}, 2.0, fits, memory, (), speed if fits else None)
    return Report(topology, 2, CHIPS["v5e"], 32, {}, "0", 1, 1, (phase,))


SETTINGS = {
    "model": tiny_config(),
    "phases": PHASES,
    "rows": [{"a": ROWS}],
    "topology": "v5e:4x4",
    "num_slices": 2,
    "compile_step": fake_step,
}


def test_micro_batches_are_doubled_until_a_step_fits_and_the_best_comes_first():
    trials = [trial for trial in search(**SETTINGS) if trial.batch == 1]
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
    best = ranked(trials, PHASES)
    assert [(s, p // GIB, t.remat) for s, p, t in best[:4]] == [
        *[(100.0, 10, "none"), (100.0, 10, "dots")] * 2
    ]
    assert best[-1][2].remat == "full"
    assert len(best) == sum(t.fits for t in trials) == 12


def test_the_batch_is_doubled_while_that_makes_a_row_faster():
    trials = list(search(**SETTINGS))
    larger = [trial for trial in trials if trial.batch > 1]
    # 32 rows a device take twice the time of 16. Each fits in as many at a time as the first did.
    assert [(t.batch, t.accumulate, t.fits) for t in larger] == [
        *((2, 4, False), (2, 8, True), (4, 8, False), (4, 16, True), (8, 16, False), (8, 32, True)),
    ]
    assert {(t.mesh, t.remat) for t in larger} == {(MeshConfig(replica=2), "none")}
    assert [(s, t.batch) for s, _, t in ranked(trials, PHASES)[:3]] == [(25, 4), (25, 8), (50, 2)]
    assert larger[1].name == "replica 2, fsdp -1; remat none; accumulate 8; 2 times the batch"


def test_micro_batches_divide_the_rows_of_a_device():
    """Of 3 rows, which no power of 2 divides, each may be one. A compiler may fail."""

    def three_at_most(*, accumulate, mesh, **_) -> Report:
        if mesh.replica == -1:
            raise ValueError("INTERNAL: the\ncompiler is out of words")
        peak = 40 * GIB // accumulate
        phase = PhaseReport(
            "m", {"a": 96}, 2.0, peak < 16 * GIB, Memory({}, 0, peak=peak), (), None
        )
        return Report("v5e:4x4", 2, CHIPS["v5e"], 32, {}, "0", 1, 1, (phase,))

    settings = {**SETTINGS, "rows": [{"a": 96}], "compile_step": three_at_most}
    trials = [trial for trial in search(**settings) if trial.batch == 1]
    by_mesh = {trial.mesh: [] for trial in trials}
    for trial in trials:
        by_mesh[trial.mesh].append((trial.accumulate, trial.fits, trial.error))
    failed = (1, False, "INTERNAL: the compiler is out of words")
    assert by_mesh[MeshConfig(replica=2)] == 3 * [(1, False, ""), (3, True, "")]
    assert by_mesh[MeshConfig(replica=-1, fsdp=1)] == 3 * [failed]


def test_nothing_larger_is_tried_where_nothing_fits():
    def too_large(**settings) -> Report:
        report = fake_step(**settings)
        (phase,) = report.phases
        return dataclasses.replace(report, phases=(dataclasses.replace(phase, fits=False),))

    assert {t.batch for t in search(**{**SETTINGS, "compile_step": too_large})} == {1}


def test_examples():
    assert doctest.testmod(precompile_search).failed == 0


def test_a_trial_is_a_line():
    trials = search(**SETTINGS)
    first, _, third = (next(trials) for _ in range(3))
    assert trial_text(first) == (
        "replica 2, fsdp -1; remat none; accumulate 1: does not fit, 42.95 GB needed; at best - ms "
        "a step; compiled in 2 s"
    )
    assert "accumulate 4: peak 10.74 GB; at best 1000 ms a step" in trial_text(third)
    refused = dataclasses.replace(first, report=None, error="why")
    assert trial_text(refused).endswith("accumulate 1: why")
