"""The quickstart: its parts one by one, and (slow) all of them at a very small scale."""

import json

import jax
import pytest

from codet5p_jax.cli import child, done_parts, quickstart
from codet5p_jax.cli.done_parts import DoneParts
from codet5p_jax.cli.main import main
from codet5p_jax.cli.quickstart import FULL, SMOKE, Quickstart


def test_parts_are_done_once_and_survive_a_failure(tmp_path):
    path, identity, calls = tmp_path / "parts.json", {"seed": 0}, []

    def part(number):
        calls.append(number)
        return {"number": number}

    def failing():
        raise ChildProcessError("killed")

    done = DoneParts(path, identity)
    assert done.do("one", lambda: part(1)) == {"number": 1}
    with pytest.raises(ChildProcessError):
        done.do("two", failing)
    again = DoneParts(path, identity)
    assert again.do("one", lambda: part(-1)) == {"number": 1}
    assert again.do("two", lambda: part(2)) == {"number": 2}
    assert calls == [1, 2]
    costs = again.costs()
    assert costs["seconds"].keys() == {"one", "two", "total"}
    assert costs["peak_memory_gb"] > 0.01


def test_an_interrupted_part_counts_from_its_beginning(tmp_path, monkeypatch):
    clock = iter([0.0, 30.0, 100.0, 105.0, 200.0, 201.0])
    monkeypatch.setattr(done_parts.time, "monotonic", lambda: next(clock))
    path = tmp_path / "parts.json"

    def interrupted():
        raise child.Terminated

    with pytest.raises(SystemExit):
        DoneParts(path, {}).do("one", interrupted)
    DoneParts(path, {}).do("one", dict)
    costs = DoneParts(path, {}).costs()
    assert costs["seconds"] == {"one": 35.0, "total": 35.0}
    assert costs["seconds_partial"] == []

    during = []
    DoneParts(path, {}).do("two", lambda: during.append(path.read_text()) or {})
    path.write_text(during[0])  # as a kill leaves it
    monkeypatch.undo()
    done = DoneParts(path, {})
    done.do("two", dict)
    assert done.costs()["seconds_partial"] == ["two"]


def test_another_run_in_the_folder_is_an_error(tmp_path):
    DoneParts(tmp_path / "parts.json", {"seed": 0}).do("one", dict)
    with pytest.raises(ValueError, match="--output_dir"):
        DoneParts(tmp_path / "parts.json", {"seed": 1})


def test_every_part_is_a_method():
    assert all(callable(getattr(Quickstart, name)) for name in quickstart.PARTS)


@pytest.mark.parametrize("scale", [FULL, SMOKE], ids=["full", "smoke"])
@pytest.mark.parametrize("stage", quickstart.STAGES)
def test_the_gin_files_have_what_is_bound_and_read(tmp_path, stage, scale):
    run = Quickstart(tmp_path, seed=7, scale=scale)
    arguments = run.configuration(stage)
    assert arguments["seed"] == 7
    assert arguments["model_dir"] == str(tmp_path / stage)
    assert arguments["evaluation"].every is not None
    mixtures = {phase.mixture for phase in arguments["phases"]}
    assert mixtures <= set(quickstart.MIXTURES)
    if stage == "stage1":
        assert len(arguments["phases"]) == 2
        assert run._objective("stage1", "seq2seq_clm").inputs_length > 1
    else:
        assert arguments["init_from"].path == str(tmp_path / "stage1")
        assert run._objective("stage2", "text_code_pairs").matching


def test_losses_before_and_after():
    records = [
        {"step": 0, "split": "validation", "a/loss": 9.0, "a/accuracy": 0.0},
        {"step": 1, "split": "train", "a/loss": 8.0},
        {"step": 1, "split": "validation", "a/loss": 7.0},
        {"step": 2, "split": "validation", "a/loss": 5.0},
    ]
    assert quickstart.losses_before_and_after(records, ["a"]) == {
        "a": {"before": 9.0, "after": 5.0}
    }
    with pytest.raises(ValueError, match=r"train\.Evaluation\.every"):
        quickstart.losses_before_and_after(records[:2], ["a"])


def test_a_failing_command_is_named(tmp_path):
    with pytest.raises(ChildProcessError, match="codet5p no-such-command"):
        Quickstart(tmp_path, seed=0, scale=SMOKE)._codet5p("no-such-command")


@pytest.mark.slow
def test_smoke(tmp_path, capsys, monkeypatch):
    assert jax.device_count() > 1  # of this process; its children get one, as at a user's
    monkeypatch.delenv("XLA_FLAGS")
    assert main(["quickstart", "--smoke", "--output_dir", str(tmp_path)]) == 0
    assert "Next: codet5p search" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    names = ("candidates", "mrr", "mrr_reranked", "mrr_chance", "mrr_bm25", "mrr_fused")
    assert set(names) <= summary["retrieval"].keys()
    assert summary["losses"].keys() == {
        *("span_denoising", "seq2seq_clm", "decoder_clm"),
        *("contrastive", "matching", "text_to_code", "code_to_text"),
    }
    assert all(loss.keys() == {"before", "after"} for loss in summary["losses"].values())
    assert [len(some) for some in summary["samples"].values()] == [3, 3]
    assert "smoke test" in (tmp_path / "report.html").read_text(encoding="utf-8")

    model_dir = str(tmp_path / "stage2")
    assert main(["search", "--model_dir", model_dir, "parse a date string"]) == 0
    assert "date" in capsys.readouterr().out

    assert main(["quickstart", "--smoke", "--output_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("done before") == len(quickstart.PARTS)
