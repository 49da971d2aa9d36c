"""Metrics: summed without waiting for the device, written as JSON lines and to optional services.

A record is one line of `metrics.jsonl`:

    {"step": 20, "split": "train", "span_denoising/loss": 9.17, ..., "timing": {"seconds": 4.1}}

Everything outside `timing` is the same whether or not the run was interrupted.
"""

import contextlib
import json
import math
import os
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import jax
import numpy as np

from codet5p_jax.files import write_text
from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.training.model_dir import ModelDir, config_to_json

Record = dict[str, Any]  # step, split, values by name, timing
Totals = dict[str, list[float]]  # name -> [sum, weight]

GOODPUT = "goodput"  # split of the last record: what the time of the whole run went into


class Accumulator:
    """Sums (sum, weight) pairs over steps.

    The pairs of a step are fetched only once `lag` later steps have been handed over, so the host
    runs ahead of the device; copies start at once.
    """

    def __init__(self, totals: Totals | None = None, lag: int = 2):
        self.totals: Totals = {k: list(v) for k, v in (totals or {}).items()}
        self.lag = lag
        self._waiting: deque[Mapping[str, tuple[jax.Array, jax.Array]]] = deque()

    def add(self, metrics: Mapping[str, tuple[jax.Array, jax.Array]]) -> list[dict[str, float]]:
        """Takes the metrics of the next step; returns the means of the steps fetched meanwhile."""
        for array in jax.tree.leaves(metrics):
            array.copy_to_host_async()
        self._waiting.append(metrics)
        return self._fetch(self.lag)

    def drain(self) -> list[dict[str, float]]:
        """Waits for every step handed over; returns the means of those not yet fetched."""
        return self._fetch(0)

    def means(self) -> dict[str, float]:
        """Sum over weight of each metric; those without weight are left out. Drain it first."""
        return {name: s / w for name, (s, w) in self.totals.items() if w}

    def clear(self) -> None:
        """Starts a new interval. Drain it first."""
        self.totals = {}

    def _fetch(self, leave: int) -> list[dict[str, float]]:
        fetched = []
        while len(self._waiting) > leave:
            # Summed in double precision and step by step: a run that was interrupted between two
            # records continues from saved totals to the same digits.
            pairs = {
                name: (float(np.asarray(s)), float(np.asarray(w)))
                for name, (s, w) in self._waiting.popleft().items()
            }
            for name, (s, w) in pairs.items():
                total = self.totals.setdefault(name, [0.0, 0.0])
                total[0] += s
                total[1] += w
            fetched.append({name: s / w for name, (s, w) in pairs.items() if w})
        return fetched


@runtime_checkable
class Writer(Protocol):
    """Takes records."""

    def write(self, record: Record) -> None:
        """Writes one record."""
        ...

    def close(self) -> None:
        """Flushes and lets go."""
        ...


class JsonlWriter:
    """Appends records to a file, one line each, flushed.

    Args:
      path: made if missing.
      last_step: records after it are cut off before the first is written, as are a half-written
        last line and the sums of the time: a run that is resumed from step n writes everything
        after n again. Killed before it does, it leaves to the next what was known of the time.
    """

    def __init__(self, path: Path, last_step: int):
        path.open("a", encoding="utf-8").close()  # whether it can be written is known at once
        self._path, self._last_step = path, last_step
        self._file: IO[str] | None = None

    def write(self, record: Record) -> None:
        """Writes one line; values that are not finite become null."""
        with _named(self._path):
            if self._file is None:
                self._file = self._opened()
            self._file.write(_line(record))
            self._file.flush()

    def close(self) -> None:
        """Makes the lines durable and closes the file."""
        if self._file is not None:
            with _named(self._path), self._file:
                os.fsync(self._file.fileno())

    def _opened(self) -> IO[str]:
        before = read_records(self._path)
        kept = [r for r in before if r["step"] <= self._last_step and r["split"] != GOODPUT]
        write_text(self._path, "".join(_line(r) for r in kept))
        return self._path.open("a", encoding="utf-8")


class TensorBoardWriter:
    """Scalars under `<split>/<name>` in a TensorBoard folder; records after `last_step` vanish.

    tensorboardX makes the events, and they are written here: its own writer does that in a thread,
    which a full disk ends, and then waits for that thread for ever.
    """

    def __init__(self, directory: Path, last_step: int):
        self._directory, self._last_step = directory, last_step
        self._file: IO[bytes] | None = None

    def write(self, record: Record) -> None:
        """Writes every number of the record."""
        # Takes a second, better after the first step.
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        protos: Any = event_pb2  # made at run time
        now, step = time.time(), record["step"]
        events = [
            protos.Event(wall_time=now, step=step, summary=scalar(name, value))
            for name, value in _scalars(record)
        ]
        with _named(self._directory):
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
                self._file = (self._directory / name).open("wb")
                start = protos.SessionLog(status=protos.SessionLog.START)
                purge = protos.Event(wall_time=now, step=self._last_step + 1, session_log=start)
                version = protos.Event(wall_time=now, file_version="brain.Event:2")
                events = [version, *[purge] * (self._last_step >= 0), *events]
            self._file.write(b"".join(_framed(event.SerializeToString()) for event in events))
            self._file.flush()

    def close(self) -> None:
        """Makes the events durable and closes the file."""
        if self._file is not None:
            with _named(self._directory), self._file:
                os.fsync(self._file.fileno())


def _framed(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    size = struct.pack("<Q", len(data))
    check = [struct.pack("<I", masked_crc32c(part)) for part in (size, data)]
    return size + check[0] + data + check[1]


class WandbWriter:
    """Weights & Biases; needs the extra `codet5p_jax[wandb]`. A resumed run continues its page."""

    def __init__(self, project: str, model_dir: Path, config: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise ImportError("logging to W&B needs `pip install codet5p_jax[wandb]`") from e
        identity = f"{model_dir.name}-{zlib.crc32(str(model_dir.resolve()).encode()):08x}"
        self._run = wandb.init(
            project=project,
            dir=str(model_dir),
            id=identity,
            name=model_dir.name,
            config=dict(config),
            resume="allow",
        )

    def write(self, record: Record) -> None:
        """Writes every number of the record."""
        self._run.log(dict(_scalars(record)), step=record["step"])

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of writing say to where."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def open_writers(
    directory: ModelDir,
    model: ModelConfig,
    last_step: int,
    tensorboard: bool,
    wandb_project: str | None,
) -> list[Writer]:
    """The writers of a run; records after `last_step` go from what they wrote before."""
    writers: list[Writer] = [JsonlWriter(directory.metrics, last_step)]
    if tensorboard:
        writers.append(TensorBoardWriter(directory.tensorboard, last_step))
    if wandb_project:
        writers.append(WandbWriter(wandb_project, directory.root, config_to_json(model)))
    return writers


def read_records(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl`, but for lines that are none, such as one not whole."""
    records: list[Record] = []
    if not path.exists():
        return records
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):  # no JSON, or no text
                record = json.loads(line)
                if _is_record(record):
                    records.append(record)
    return records


def _is_record(value: Any) -> bool:
    types = {"step": int, "split": str}
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), of) for name, of in types.items())
        and isinstance(value.get("timing", {}), dict)
    )


def metrics_at(records: Sequence[Record], split: str, step: int) -> dict[str, float]:
    """The metrics of the record of a split at a step; empty without one."""
    found = (r for r in records if (r["split"], r["step"]) == (split, step))
    return _metrics(next(found, {}))


def first_and_last(
    records: Sequence[Record], split: str
) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of the first and the last record of a split; empty without one."""
    found = [r for r in records if r["split"] == split] or [{}]
    return _metrics(found[0]), _metrics(found[-1])


def _metrics(record: Record) -> dict[str, float]:
    return {k: v for k, v in record.items() if k not in ("step", "split", "timing")}


def _line(record: Record) -> str:
    clean = {k: _finite(v) for k, v in record.items()}
    if "timing" in clean:
        clean["timing"] = {k: _finite(v) for k, v in clean["timing"].items()}
    return json.dumps(clean, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: Record) -> list[tuple[str, float]]:
    values = {**record, **{f"timing/{k}": v for k, v in record.get("timing", {}).items()}}
    return [
        (f"{record['split']}/{name}", value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and name != "step"
    ]
