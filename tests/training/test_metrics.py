import json
import resource

import jax.numpy as jnp
import pytest

from codet5p_jax.training import metrics
from codet5p_jax.training.metrics import (
    Accumulator,
    JsonlWriter,
    TensorBoardWriter,
    WandbWriter,
    read_records,
)


def pair(total, weight):
    return jnp.float32(total), jnp.float32(weight)


def test_means_are_weighted_over_steps_and_fetches_lag_behind():
    accumulator = Accumulator(lag=2)
    assert accumulator.add({"loss": pair(6, 2)}) == []
    assert accumulator.add({"loss": pair(1, 2)}) == []
    assert accumulator.add({"loss": pair(0, 0), "skipped": pair(1, 1)}) == [{"loss": 3.0}]
    assert accumulator.drain() == [{"loss": 0.5}, {"skipped": 1.0}]
    assert accumulator.means() == {"loss": 7 / 4, "skipped": 1.0}
    accumulator.clear()
    assert accumulator.means() == {}


def test_an_interrupted_interval_goes_on_to_the_same_digits():
    values = [0.1, 0.7, 1.3, 2.9, 3.3]
    whole = Accumulator()
    for v in values:
        whole.add({"loss": pair(v, 3)})
    whole.drain()
    first = Accumulator()
    for v in values[:2]:
        first.add({"loss": pair(v, 3)})
    first.drain()
    second = Accumulator(json.loads(json.dumps(first.totals)))
    for v in values[2:]:
        second.add({"loss": pair(v, 3)})
    second.drain()
    assert second.means() == whole.means()


def write(path, last_step, steps):
    writer = JsonlWriter(path, last_step)
    for step in steps:
        writer.write({"step": step, "split": "train", "loss": step / 3, "timing": {"seconds": 1.0}})
    writer.close()


def test_a_resumed_file_is_the_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    write(whole, -1, range(6))
    write(parts, -1, range(4))
    with parts.open("a") as file:
        file.write('{"step": 4, "split": "tr')  # killed in the middle of a line
    write(parts, 2, range(3, 6))
    assert parts.read_text() == whole.read_text()
    write(parts, -1, range(1))
    assert [r["step"] for r in read_records(parts)] == [0]


def test_a_run_that_is_killed_before_its_first_record_leaves_those_before(tmp_path):
    """Among them what is known of the time: else a job that fails again and again looks busy."""
    path = tmp_path / "m.jsonl"
    write(path, -1, range(4))
    before = path.read_text()
    JsonlWriter(path, 1)
    assert path.read_text() == before
    write(path, 1, [])
    assert path.read_text() == before


def test_a_line_that_cannot_be_written_names_its_file(tmp_path):
    with pytest.raises(OSError, match=r"m\.jsonl"):
        JsonlWriter(tmp_path / "missing" / "m.jsonl", -1)
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path, -1)
    writer.write({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        for call in (lambda: writer.write({"step": 2}), writer.close):
            with pytest.raises(OSError, match=r"m\.jsonl"):
                call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_not_finite_is_null(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl", -1)
    writer.write({"step": 1, "loss": float("nan"), "timing": {"rate": float("inf")}})
    writer.close()
    assert (tmp_path / "m.jsonl").read_text() == (
        '{"step": 1, "loss": null, "timing": {"rate": null}}\n'
    )


def test_a_file_that_is_not_there_has_no_records(tmp_path):
    assert read_records(tmp_path / "m.jsonl") == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # protobuf, inside tensorboardX
def test_tensorboard_gets_every_number(tmp_path):
    writer = TensorBoardWriter(tmp_path / "tb", last_step=-1)
    assert not (tmp_path / "tb").exists()  # made with the first record
    record = {"step": 2, "split": "train", "loss": 1.5, "timing": {"seconds": 2.0}}
    writer.write(record)
    writer.close()
    [file] = (tmp_path / "tb").iterdir()
    content = file.read_bytes()
    assert b"train/loss" in content
    assert b"train/timing/seconds" in content
    assert b"train/step" not in content


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_full_disk_is_an_error_of_tensorboard_not_the_end_of_all_writing(tmp_path):
    writer = TensorBoardWriter(tmp_path / "tb", last_step=4)
    record = {"step": 5, "split": "train", **{f"metric{i}": 1.5 for i in range(30)}}
    writer.write(record)
    [file] = (tmp_path / "tb").iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, hard))
    try:
        for act in (lambda: writer.write(record), writer.close):
            with pytest.raises(OSError, match=r"File too large: '.*/tb'"):
                act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_events_are_framed_as_tensorboardx_does(tmp_path):
    from tensorboardX.record_writer import RecordWriter

    theirs = RecordWriter(str(tmp_path / "records"))
    for data in (b"", b"an event", bytes(range(256))):
        theirs.write(data)
    theirs.close()
    ours = [metrics._framed(data) for data in (b"", b"an event", bytes(range(256)))]
    assert b"".join(ours) == (tmp_path / "records").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_purges_what_a_resumed_run_writes_again(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    writer = TensorBoardWriter(tmp_path / "tb", last_step=4)
    writer.write({"step": 5, "split": "train", "loss": 1.5})
    writer.close()
    [file] = (tmp_path / "tb").iterdir()
    content, events = file.read_bytes(), []
    while content:  # length, checksum, event, checksum
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    version, purge, loss = events
    assert version.file_version == "brain.Event:2"
    assert (purge.step, purge.session_log.status) == (5, SessionLog.START)
    [value] = loss.summary.value
    assert (loss.step, value.tag, value.simple_value) == (5, "train/loss", 1.5)


def test_wandb_is_an_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install codet5p_jax\[wandb\]"):
        WandbWriter("project", tmp_path, {})


def test_a_line_that_is_no_record_costs_no_other(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = [{"step": n, "split": "train", "loss": 1.0} for n in (1, 2)]
    lines = ["garbage", json.dumps(whole[0]), "5", "{}", json.dumps(whole[1]), '{"step": 3, "sp']
    lines[3:3] = ['{"step": "1", "split": "train"}', '{"step": 1, "split": "t", "timing": null}']
    file.write_bytes(b"\xff\n" + "\n".join(lines).encode())
    assert read_records(file) == whole
