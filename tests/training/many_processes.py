"""One of several processes of a run on made-up examples, with what may befall it.

    python -m tests.training.many_processes SETTINGS

SETTINGS is JSON: `cache`, `model_dir`, `process`, `of`, `port`; optional `denoise` (that alone, and
evaluated only with `evaluate`, steps between two evaluations), `steps`, `tensor` (size of that mesh
axis), `rows` (a folder for what the process reads and trains on), `data_timeout`, `pause` (seconds
before the first step), and one of `EVENTS` or `SIGNALS` at a step: `kill: 3`; a signal at step 0
comes before that pause, whatever step the run goes on from.
"""

import errno
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codet5p_jax.cli.main import REPORTED, one_line
from codet5p_jax.data.cache import CachedTask
from codet5p_jax.data.loader import Loader
from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training import failed_saves, train
from codet5p_jax.training.checkpoints import CheckpointPolicy, Checkpoints
from codet5p_jax.training.cluster import Cluster
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.hosts import joined
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.progress import PlainProgress, SilentProgress
from codet5p_jax.training.train import Logging
from tests.training import synthetic


class Told(SilentProgress):
    """Sends this process a signal when the metrics of a step have come in, or before any step."""

    def __init__(self, main: bool, at: int, number: int, pause: float):
        super().__init__()
        self._main, self._at, self._number, self._pause = main, at, number, pause

    def begin(self, step, total):
        if self._at == 0:
            os.kill(os.getpid(), self._number)
        time.sleep(self._pause)

    def say(self, line):
        if self._main:
            PlainProgress.say(self, line)

    def advance(self, step, values):
        time.sleep(0.1)  # a step; JAX looks for signals once a second
        if step == self._at:
            os.kill(os.getpid(), self._number)


def full_disk(at: int) -> None:
    """The save of a step fails in this process, as on a disk that is full."""
    save = Checkpoints.save

    def fail(self, state, step, meta):
        if step == at:
            with failed_saves.explained(self._directory):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, state, step, meta)

    Checkpoints.save = fail


def full_disk_later(at: int) -> None:
    """Of the save of a step, what is written in the background fails in this process: no file may
    grow beyond a few bytes."""
    save = Checkpoints.save

    def limit(self, state, step, meta):
        if step == at:
            self.wait()
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, most))
        save(self, state, step, meta)

    Checkpoints.save = limit


def terminate_in_save(at: int) -> None:
    """SIGTERM comes while a step is saved, which takes longer than JAX to look for signals."""
    save = Checkpoints.save

    def slow(self, state, step, meta):
        save(self, state, step, meta)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3)

    Checkpoints.save = slow


def bad_shard(at: int) -> None:
    """The rows of a step cannot be read."""
    batch_at = Loader.batch_at

    def fail(self, step):
        if step == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "shard-00000")
        return batch_at(self, step)

    Loader.batch_at = fail


def stuck(at: int) -> None:
    """The rows of a step never come."""
    batch_at = Loader.batch_at

    def hang(self, step):
        if step == at:
            time.sleep(1000)
        return batch_at(self, step)

    Loader.batch_at = hang


def stuck_evaluation(at: int) -> None:
    """The rows of the evaluation after a step, where there is one every 3 steps, never come."""
    eval_batches, calls = Loader.eval_batches, iter(range(10_000))

    def hang(self, limit=None):
        batches, evaluated = eval_batches(self, limit), 3 * next(calls)
        if evaluated < at:
            return batches
        return (time.sleep(1000) for _ in batches)

    Loader.eval_batches = hang


def record_rows(folder: Path, process: int) -> None:
    """Keeps what this process restores and reads, and its rows of every step of training."""
    folder.mkdir(parents=True, exist_ok=True)
    get, place, steps = CachedTask.__getitem__, train.place, iter(range(10_000))

    def read(self, index):
        with (folder / f"reads-{process}").open("a") as file:
            file.write(f"{index}\n")
        return get(self, index)

    def keep(batch, mesh):
        flat = {f"{o}/{name}": x for o, arrays in batch.items() for name, x in arrays.items()}
        np.savez(folder / f"{process}-{next(steps)}.npz", **flat)
        return place(batch, mesh)

    restore = train.restore_latest

    def restored(*args):
        found = restore(*args)
        if found is not None:
            for i, x in enumerate(jax.tree.leaves(found[0])):
                for j, shard in enumerate(x.addressable_shards):
                    at = [part.indices(n)[:2] for part, n in zip(shard.index, x.shape, strict=True)]
                    np.savez(folder / f"state-{i}-{process}-{j}.npz", at=at, data=shard.data)
        return found

    CachedTask.__getitem__, train.place, train.restore_latest = read, keep, restored


EVENTS = {
    "full_disk": full_disk,
    "full_disk_later": full_disk_later,
    "terminate_in_save": terminate_in_save,
    "bad_shard": bad_shard,
    "stuck": stuck,
    "stuck_evaluation": stuck_evaluation,
}
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}


def main(settings: dict[str, Any]) -> None:
    process = settings["process"]
    for name, event in EVENTS.items():
        if name in settings:
            event(settings[name])
    if "rows" in settings:
        record_rows(Path(settings["rows"]), process)
    [(at, number)] = [
        (settings[name], number) for name, number in SIGNALS.items() if name in settings
    ] or [(-1, 0)]
    cluster = Cluster(f"localhost:{settings['port']}", settings["of"], process)
    changes: dict[str, Any] = {}
    if settings.get("denoise"):
        changes["evaluation"] = Evaluation(every=settings.get("evaluate"))
        changes["phases"] = [Phase("denoise", settings["steps"], 8)]
    with joined(cluster, 60) as party:
        party.connect()
        result = synthetic.run(
            settings["cache"],
            settings["model_dir"],
            mesh=MeshConfig(tensor=settings.get("tensor", 1)),
            checkpoints=CheckpointPolicy(every=3, keep_last=9),
            logging=Logging(every=1, tensorboard=False),
            data_timeout=settings.get("data_timeout"),
            progress=Told(process == 0, at, number, settings.get("pause", 0)),
            **changes,
        )
    print("finished at step", result.step, "interrupted" if result.interrupted else "")


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except REPORTED as error:
        sys.exit(f"failed: {one_line(error)}")
