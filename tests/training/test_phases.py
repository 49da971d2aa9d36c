import dataclasses
import json

import pytest

from codet5p_jax.objectives import SpanDenoising, TextCodePairs
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.batches import open_loaders
from codet5p_jax.training.model_dir import differences
from codet5p_jax.training.phases import (
    Phase,
    check_rows,
    data_seed,
    identity_defaults,
    locate,
    run_identity,
    select_objectives,
    total_steps,
)
from tests.training import synthetic

PHASES = [Phase("a", 3, 8), Phase("b", 2, 8)]
OBJECTIVES = [SpanDenoising(), TextCodePairs()]


def test_steps_are_located_by_arithmetic():
    assert [locate(PHASES, n) for n in range(6)] == [
        *((0, 0), (0, 1), (0, 2)),
        *((1, 0), (1, 1), (1, 2)),
    ]
    assert total_steps(PHASES) == 5
    assert len({data_seed(s, p) for s in range(5) for p in range(5)}) == 25


def test_objectives_come_in_the_order_asked_for():
    assert select_objectives(OBJECTIVES, ["text_code_pairs"]) == [OBJECTIVES[1]]
    with pytest.raises(ValueError, match=r"need the objectives \['decoder_clm'\]; configured"):
        select_objectives(OBJECTIVES, ["decoder_clm"])


def test_phases_share_one_tokenizer(tmp_path):
    synthetic.write_cache(tmp_path)
    phases, mesh = [Phase("denoise", 3, 8), Phase("both", 2, 8)], make_mesh(MeshConfig())
    assert len(open_loaders(phases, synthetic.objectives(), tmp_path, "train", 0, mesh)) == 2
    file = tmp_path / "mixtures" / "both.json"
    file.write_text(file.read_text().replace("tokenizers/made-up", "tokenizers/another"))
    with pytest.raises(
        ValueError,
        match=r"'denoise' .*tokenizers/made-up and 'both' .*tokenizers/another; prep",
    ):
        open_loaders(phases, synthetic.objectives(), tmp_path, "train", 0, mesh)


def test_rows_divide_over_devices_and_micro_batches():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    check_rows({"a": 8, "b": 4}, mesh.shape, 1)
    with pytest.raises(ValueError, match=r"b has 4 rows.* 4 data-parallel devices times 2"):
        check_rows({"a": 8, "b": 4}, mesh.shape, 2)


def test_the_last_phase_may_be_made_longer_and_nothing_else():
    mine = run_identity(0, PHASES, OBJECTIVES, "digest")
    longer = run_identity(0, [PHASES[0], Phase("b", 20, 8)], OBJECTIVES, "digest")
    assert differences(mine, longer) == []
    other = run_identity(
        0, [Phase("a", 4, 8), PHASES[1]], [SpanDenoising(inputs_length=64)], "other"
    )
    found = differences(mine, other)
    assert "phases.0.steps: 3, now 4" in found
    assert "tokenizer: 'digest', now 'other'" in found
    assert "objectives.span_denoising.inputs_length: 512, now 64" in found


def test_an_identity_is_json_that_names_every_field_of_the_objectives():
    objectives = [SpanDenoising(inputs_length=64)]
    mine = run_identity(0, PHASES, objectives, "digest")
    assert json.loads(json.dumps(mine)) == mine
    stored = mine["objectives"]["span_denoising"]
    fields = {f.name for f in dataclasses.fields(SpanDenoising)}
    assert stored.keys() == {"class", *fields}
    assert (stored["class"], stored["inputs_length"]) == ("SpanDenoising", 64)
    defaults = identity_defaults(objectives)["objectives"]["span_denoising"]
    assert defaults == {f.name: f.default for f in dataclasses.fields(SpanDenoising)}


@pytest.mark.parametrize("settings", [("a", 0, 1), ("a", 1, 0)])
def test_a_phase_has_steps_and_rows(settings):
    with pytest.raises(ValueError, match="of 1 or more"):
        Phase(*settings)
