import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from codet5p_jax.training.model_dir import (
    ModelDir,
    claim,
    config_from_json,
    config_to_json,
    load_config,
    locked,
    require_space,
)
from tests.training.synthetic import tiny_config

RUN = {"seed": 0, "phases": {"0": {"mixture": "m"}}}


def test_a_configuration_survives_json():
    config = tiny_config(dtype=jnp.bfloat16, embed_dim=8, remat="dots")
    decoder = dataclasses.replace(config.decoder, cross_attention=(0, 1), rotary_dim=4)
    config = dataclasses.replace(config, decoder=decoder)
    text = json.dumps(config_to_json(config))
    assert '"dtype": "bfloat16"' in text
    assert config_from_json(json.loads(text)) == config


def test_an_unknown_field_names_the_nearest():
    values = config_to_json(tiny_config())
    values["encoder"]["d_modle"] = 3
    with pytest.raises(ValueError, match="no field 'd_modle'; did you mean 'd_model'"):
        config_from_json(values)


def test_a_claimed_directory_can_be_claimed_again_but_not_by_another_run(tmp_path):
    directory = ModelDir(tmp_path / "deep" / "model")
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    claim(directory, tiny_config(), RUN, "a = 1\n", tokenizer)
    assert load_config(directory.root) == tiny_config()
    assert (directory.tokenizer / "tokenizer.json").read_text() == "{}"
    claim(directory, tiny_config(), RUN, "a = 2\n", tokenizer)
    assert directory.operative_config.read_text() == "a = 2\n"
    assert not list(directory.root.glob(".*")), "nothing temporary stays behind"

    with pytest.raises(ValueError, match=r"config.json differs in vocab_size: 64, now 65"):
        claim(directory, tiny_config(vocab_size=65), RUN, "", None)
    with pytest.raises(ValueError, match=r"run.json differs in seed: 0, now 1"):
        claim(directory, tiny_config(), {**RUN, "seed": 1}, "", None)
    assert directory.operative_config.read_text() == "a = 2\n"


def test_a_field_that_is_new_and_at_its_default_does_not_make_another_run(tmp_path):
    directory = ModelDir(tmp_path / "model")
    older = {**RUN, "objectives": {"a": {"class": "A", "length": 8}}}
    claim(directory, tiny_config(), older, "", None)
    defaults = {"objectives": {"a": {"length": 9, "new": 0.0}}}

    def again(**fields):
        newer = {**RUN, "objectives": {"a": {"class": "A", **fields}}}
        claim(directory, tiny_config(), newer, "", None, defaults)

    for fields, message in (
        ({"length": 8, "new": 0.5}, r"objectives.a.new: 0.0, now 0.5\."),
        ({"length": 9, "new": 0.0}, r"objectives.a.length: 8, now 9\."),
    ):
        with pytest.raises(ValueError, match=message):
            again(**fields)
    again(length=8, new=0.0)
    assert json.loads(directory.run.read_text())["objectives"]["a"]["new"] == 0.0


def test_a_configuration_without_newer_fields_is_read_with_their_defaults(tmp_path):
    directory = ModelDir(tmp_path / "model")
    claim(directory, tiny_config(), RUN, "", None)
    whole = json.loads(directory.config.read_text())
    older = json.loads(directory.config.read_text())
    del older["loss_chunk"], older["encoder"]["rotary_base"]
    directory.config.write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"config.json differs in loss_chunk: 128, now 64\."):
        claim(directory, tiny_config(loss_chunk=64), RUN, "", None)
    claim(directory, tiny_config(), RUN, "", None)
    assert json.loads(directory.config.read_text()) == whole


def test_a_directory_that_cannot_be_made_says_which_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to MODEL_DIR"):
        claim(ModelDir(tmp_path / "file" / "model"), tiny_config(), RUN, "", None)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_one_process_trains_in_a_directory_at_a_time(tmp_path):
    directory = ModelDir(tmp_path / "deep" / "model")
    with (
        locked(directory),
        pytest.raises(OSError, match="another process is training in MODEL_DIR"),
    ):
        locked(directory).__enter__()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory.lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(OSError, match="set MODEL_DIR to another folder"):
            locked(directory).__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locked(directory):
            pass  # whoever was killed holds no lock


def test_a_directory_that_cannot_be_locked_says_which_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to MODEL_DIR"):
        locked(ModelDir(tmp_path / "file" / "model")).__enter__()


def test_too_little_space_is_found_before_it_is_needed(tmp_path, monkeypatch):
    require_space(ModelDir(tmp_path), 1, 2)
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"1.00 GB free; 3 checkpoints of 0.50 GB"):
        require_space(ModelDir(tmp_path), 5 * 10**8, 3)
    small = usage._replace(free=12_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    with pytest.raises(OSError, match=r"12.00 MB free; 5 checkpoints of 2.89 MB"):
        require_space(ModelDir(tmp_path), 2_890_276, 5)
    with pytest.raises(OSError, match=r"1 checkpoints of 9.00 MB and 4 snapshots of 1.00 MB are"):
        require_space(ModelDir(tmp_path), 9_000_000, 1, 1_000_000, 4)
    require_space(ModelDir(tmp_path), 9_000_000, 1, 1_000_000, 3)


def test_what_is_no_model_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json; set MODEL_DIR"):
        load_config(tmp_path)
