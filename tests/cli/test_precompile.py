"""`codet5p precompile` as a user types it."""

import importlib.util
import json
from pathlib import Path

import pytest

from codet5p_jax.cli import main
from tests.data.tiny import make_mixture

FLAGS = ("precompile", "--gin_file=runs/quickstart_stage1.gin", "--gin_file=meshes/fsdp.gin")
# models/tiny.gin with a layer a tower, one phase of a mixture that is there.
SMALL = (
    *("--gin.configs.t5.num_encoder_layers=1", "--gin.configs.t5.num_decoder_layers=1"),
    *("--gin.train.train.phases=(@joint/phases.Phase(),)", "--gin.MIXTURE_OR_TASK_NAME='made'"),
)


def failing(capsys, *words: str) -> str:
    """The message of a command that ends with exit code 3."""
    assert main.main([*FLAGS, *words]) == 3
    return capsys.readouterr().err.splitlines()[-1]


def test_mistakes_are_found_before_anything_is_compiled(tmp_path: Path, capsys):
    assert "chips known: v4, v5e, v5p, v6e, tpu7x" in failing(capsys, "--topology=v9:2x2")
    missing = tmp_path / "none" / "report.json"
    with pytest.raises(SystemExit, match="2"):
        main.main([*FLAGS, "--topology=v5e:2x2", f"--json={missing}"])
    assert f"--json: there is no folder {missing.parent}" in capsys.readouterr().err
    assert main.main(["precompile", "--topology=v5e:2x2"]) == 3
    assert "--gin_file is missing" in capsys.readouterr().err
    assert "such as 64x512x128" in failing(capsys, "--topology=v5e:2x2", "--generate=64")
    both = ("--topology=v5e:2x2", "--search", "--generate=8x8x8")
    assert "--search compares training steps" in failing(capsys, *both)


@pytest.fixture
def cache(tmp_path: Path) -> str:
    make_mixture(tmp_path / "cache", {"t": ("span_denoising", 1.0, 8)}, "made")
    return f"--gin.CACHE_DIR='{tmp_path / 'cache'}'"


def test_without_libtpu_it_says_what_to_install(cache: str, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *x: None if name == "libtpu" else find(name, *x)
    )
    assert main.main([*FLAGS, *SMALL, cache, "--topology=v5e:2x2"]) == 1
    assert "pip install -e '.[precompile]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_tiny_model_on_four_chips(tmp_path: Path, cache: str, capsys):
    bad = ("--gin.sharding.MeshConfig.fsdp=3", "--topology=v5e:2x2")
    assert "fsdp=3" in failing(capsys, *SMALL, cache, *bad)
    file = tmp_path / "report.json"
    assert main.main([*FLAGS, *SMALL, cache, "--topology=v5e:2x2", f"--json={file}"]) == 0
    out = capsys.readouterr().out
    assert "v5e:2x2: 4 chips, mesh replica 1 x fsdp 4 x sequence 1 x tensor 1" in out
    assert "phase made: span_denoising 48 rows" in out
    assert "fits: peak" in out
    report = json.loads(file.read_text())
    (phase,) = report["phases"]
    assert report["chip"]["name"] == "v5e"
    assert phase["fits"]
    # Nothing is computed twice in this model, and nothing is left out of the count.
    speed = phase["speed"]
    assert speed["dot_flops"] == pytest.approx(speed["model_flops"], rel=0.01)
    assert f"all-gather{speed['collectives']['all-gather']['count']:>20,}" in out


def test_a_search_needs_neither_mesh_nor_micro_batches_of_the_run(cache: str, capsys, monkeypatch):
    from codet5p_jax.training import precompile_search

    given = {}
    monkeypatch.setattr(precompile_search, "search", lambda **x: given.update(x) or [])
    run = ("precompile", "--gin_file=runs/quickstart_stage1.gin", "--topology=v5e:2x2", "--search")
    assert main.main([*run, *SMALL, cache]) == 0
    assert main.main([*run, *SMALL, cache, "--gin_file=meshes/fsdp.gin"]) == 0
    assert "none fits" in capsys.readouterr().out
    assert {"model", "rows", "topology"} <= given.keys()
    assert not {"mesh", "accumulate"} & given.keys()


def test_a_search_writes_what_does_not_fit_too(cache: str, capsys, monkeypatch, tmp_path: Path):
    from codet5p_jax.sharding import MeshConfig
    from codet5p_jax.training import precompile_search

    trials = [precompile_search.Trial(MeshConfig(), "none", 1, 1, None, "3 rows on 4 devices")]
    monkeypatch.setattr(precompile_search, "search", lambda **_: trials)
    run = ("precompile", "--gin_file=runs/quickstart_stage1.gin", "--topology=v5e:2x2", "--search")
    assert main.main([*run, *SMALL, cache, f"--json={tmp_path / 'found.json'}"]) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert (found["fits"], found["error"]) == (False, "3 rows on 4 devices")
