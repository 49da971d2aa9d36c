"""`codet5p report` on folders of runs."""

import json
from pathlib import Path

import pytest

from codet5p_jax.cli import gin_config, main
from codet5p_jax.cli.report import names
from codet5p_jax.evaluation.runs_report import settings
from codet5p_jax.training.train import train

RECORD = {"step": 5, "split": "train", "loss": 2.5, "tokens": 10.0, "timing": {"goodput": 0.5}}


def write_run(folder: Path, steps: int) -> None:
    """A run with the operative configuration of a real one."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    bindings = [f"TRAIN_STEPS={steps}", f"MODEL_DIR={str(folder)!r}", "CACHE_DIR='cache'"]
    config = gin_config.load(train, ["runs/quickstart_stage1.gin"], bindings)
    (folder / "operative_config.gin").write_text(config.text)


def test_writes_one_page(tmp_path, capsys):
    for name, steps in (("short", 700), ("long", 900)):
        write_run(tmp_path / name, steps)
    page = tmp_path / "page.html"
    folders = [str(tmp_path / name) for name in ("short", "long")]
    assert main.main(["report", *folders, f"--output={page}"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    html = page.read_text()
    table = html.partition("How the configurations differ")[2].partition("</section>")[0]
    assert table.count("<tr>") == 2, "the header, and the one setting that differs"
    assert ">TRAIN_STEPS</td>" in table
    assert ">700</td>" in table

    text = (tmp_path / "short" / "operative_config.gin").read_text()
    found = settings(text)
    again = "\n".join(f"{name} = {value}" for name, value in found.items())
    imports = "\n".join(line for line in text.splitlines() if "import" in line)
    (tmp_path / "again.gin").write_text(f"{imports}\n{again}\n")
    config = gin_config.load(train, [str(tmp_path / "again.gin")])
    assert settings(config.text) == found, "nothing of a setting was lost"


def test_mistakes(tmp_path, capsys):
    assert main.main(["report", str(tmp_path)]) == 3
    assert f"{tmp_path} has no metrics.jsonl; name folders that" in capsys.readouterr().err
    write_run(tmp_path / "run", 700)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for output, why in [
        (f"{tmp_path}/no/page.html", f"there is no folder {tmp_path}/no"),
        (str(tmp_path), "expected a file, found a folder or device"),
        ("/dev/null", "expected a file, found a folder or device"),
        (f"{tmp_path}/circle", ""),  # Python's own words, which differ
    ]:
        with pytest.raises(SystemExit, match="2"):
            main.main(["report", str(tmp_path / "run"), f"--output={output}"])
        assert f"argument --output: {why}" in capsys.readouterr().err.replace(f"{output}: ", "")
    twice = [str(tmp_path / "run"), f"{tmp_path}/./run"]
    assert main.main(["report", *twice, f"--output={tmp_path}/p.html"]) == 3
    assert "a run is named twice" in capsys.readouterr().err
    for number in range(9):
        write_run(tmp_path / str(number), 700)
    nine = [str(tmp_path / str(number)) for number in range(9)]
    assert main.main(["report", *nine, f"--output={tmp_path}/p.html"]) == 3
    assert "at most 8 runs" in capsys.readouterr().err


def test_runs_are_told_apart():
    assert names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert names([Path("/a"), Path("/b/a")]) == ["/a", "/b/a"]
