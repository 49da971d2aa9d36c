"""The quickstart: part by part, all of it on a small library, and (slow) as a user runs it."""

import json
import re
from html.parser import HTMLParser

import jax
import pytest

from codet5p_jax.cli import child, done_parts, quickstart
from codet5p_jax.cli.done_parts import DoneParts
from codet5p_jax.cli.main import main
from codet5p_jax.cli.quickstart import FULL, SMOKE, Quickstart, Scale


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


# Parts as in the smoke run, of a network and batches that compile and run in seconds.
TINY = Scale(
    candidates=8,
    bindings={
        stage: (
            *("TRAIN_STEPS=2", "WARMUP_STEPS=1", "BATCH_SIZE=6", "VOCAB_SIZE=600", "EMBED_DIM=16"),
            *("configs.t5.d_model=16", "configs.t5.num_heads=2", "configs.t5.head_dim=8"),
            *("configs.t5.d_ff=32", "train.Evaluation.batches=1"),
            *("configs.t5.num_encoder_layers=1", "configs.t5.num_decoder_layers=1"),
            *(("DENOISE_STEPS=1", "DENOISE_BATCH_SIZE=4") if stage == "stage1" else ()),
        )
        for stage in quickstart.STAGES
    },
)


class _Loaded(HTMLParser):
    """What a page loads from elsewhere, or leads to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        names = ("src", "href", "srcset", "data", "action", "poster")
        values = [value for name, value in attrs if name.rpartition(":")[2] in names]
        self.found += [value for value in values if not value.startswith(("#", "data:"))]


def test_every_part_on_a_small_library(tmp_path, small_library, capsys, monkeypatch):
    assert jax.device_count() > 1  # of this process, from now on; its children get one
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(quickstart, "SMOKE", TINY)
    monkeypatch.setattr(quickstart, "VOCAB_SIZE", 600)
    output = tmp_path / "run"
    assert main(["quickstart", "--smoke", "--output_dir", str(output)]) == 0
    check_results(output)

    capsys.readouterr()
    assert main(["search", "--model_dir", str(output / "stage2"), "parse a date", "--k=3"]) == 0
    answers = re.findall(r"^ \d  ", capsys.readouterr().out, re.MULTILINE)
    assert len(answers) == 3


def check_results(output):
    """The names that docs/quickstart.md promises, and a report that is one file."""
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert {
        *("retrieval", "losses", "samples", "seconds", "seconds_partial", "peak_memory_gb"),
        *("corpus", "model", "index", "machine", "versions", "seed", "smoke"),
    } <= summary.keys()
    assert {
        *("candidates", "mrr", "mrr_reranked", "mrr_chance", "mrr_bm25", "mrr_fused"),
        *("fusion_weight", "rerank_weight", "systems"),
    } <= summary["retrieval"].keys()
    assert summary["losses"].keys() == {
        *("span_denoising", "seq2seq_clm", "decoder_clm"),
        *("contrastive", "matching", "text_to_code", "code_to_text"),
    }
    assert all(loss.keys() == {"before", "after"} for loss in summary["losses"].values())
    assert summary["samples"].keys() == {"completions", "docstrings"}
    for samples in summary["samples"].values():
        assert len(samples) == quickstart.SAMPLES
        assert all({"title", "given", "generated", "original"} == s.keys() for s in samples)
    assert summary["seconds"].keys() == {*quickstart.PARTS, "total"}

    report = (output / "report.html").read_text(encoding="utf-8")
    assert "smoke test" in report
    page = _Loaded()
    page.feed(report)
    assert page.found == []
    assert not re.search(r"@import|url\(", report)
    assert "default-src 'none'" in report  # browsers load nothing either


@pytest.mark.slow
def test_smoke(tmp_path, capsys, monkeypatch):
    assert jax.device_count() > 1  # of this process; its children get one, as at a user's
    monkeypatch.delenv("XLA_FLAGS")
    assert main(["quickstart", "--smoke", "--output_dir", str(tmp_path)]) == 0
    assert "Next: codet5p search" in capsys.readouterr().out
    check_results(tmp_path)

    model_dir = str(tmp_path / "stage2")
    assert main(["search", "--model_dir", model_dir, "parse a date string"]) == 0
    assert "date" in capsys.readouterr().out

    assert main(["quickstart", "--smoke", "--output_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("done before") == len(quickstart.PARTS)
