"""Batches from a token cache. Which batch belongs to which step is arithmetic, see `position`.

A batch is a pure function of (mixture, objectives, batch_size, seed, step): it does not depend on
the number of hosts or workers, and there is no state to save but the step. Imports no TensorFlow.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Protocol, runtime_checkable

import numpy as np

from codet5p_jax.data.cache import CachedMixture, MixtureTask
from codet5p_jax.data.position import choose, counts, divide_rows, key_of, permute
from codet5p_jax.data.tokens import SpecialTokens

Batch = dict[str, dict[str, np.ndarray]]  # objective -> array name -> [rows, ...]

_PREFETCHED = 2  # batches ready ahead of the step, for each worker
_WEIGHTS = "decoder_weights"  # 0 where a position is no target
# May come to a whole process group, and are for the process that trains alone.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class DataError(ValueError):
    """The mixture, the objectives and the settings of a loader do not fit together."""


@runtime_checkable
class HostHalf(Protocol):
    """What the loader needs of an objective; see `objectives.base.Objective`."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """Array name -> something with the `shape` and `dtype` of one row."""
        ...

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> dict[str, np.ndarray]:
        """One row."""
        ...


class Loader:
    """Makes the batches of one mixture, or of one phase of training.

    Each objective gets its rows of the batch by the summed rates of its tasks (largest remainder),
    in an order of its own: its tasks are interleaved by rate, each shuffled anew every epoch. A
    host makes some of a number of equal blocks of each objective's rows, and reads no others.

    Attributes:
      rows: rows of each objective in the batch of all hosts.
    """

    def __init__(
        self,
        mixture: CachedMixture,
        objectives: Mapping[str, HostHalf],
        batch_size: int,
        seed: int,
        *,
        parts: Sequence[int] = (0,),
        num_parts: int = 1,
        num_workers: int = 0,
    ):
        """Checks everything that can be checked without making a batch.

        Args:
          mixture: what to read.
          objectives: at least the mixture's objectives, by name.
          batch_size: rows of all objectives on all hosts together.
          seed: of order and noise.
          parts: those of `num_parts` equal blocks of each objective's rows that this host makes.
          num_parts: into how many the batch is divided.
          num_workers: processes that make batches for `iterate`; 0 is a thread of this process.

        Raises:
          DataError: an objective is missing, gets no row, rows that do not divide by `num_parts`,
            or makes arrays other than its `spec`; a task has fewer examples than one batch takes,
            or none with a target.
        """
        _check_objectives(mixture, objectives)
        self._mixture = mixture
        self._objectives = {name: objectives[name] for name in mixture.objectives}
        self._specs = {name: dict(o.spec) for name, o in self._objectives.items()}
        self._seed, self._num_workers = seed, num_workers
        self.rows = _rows(mixture, batch_size)
        _check_parts(self.rows, parts, num_parts)
        self._own = {  # rows that this host makes
            name: np.arange(n, dtype=np.int64).reshape(num_parts, -1)[list(parts)].ravel()
            for name, n in self.rows.items()
        }
        for task in mixture.tasks:
            self._check_size(task)
            self._check_spec(task)
            self._check_targets(task)

    def batch_at(self, step: int) -> Batch:
        """This host's rows of the batch of a step, counted from 0.

        Returns:
          objective -> array name -> array of [rows of the parts, *spec shape].
        """
        return {name: self._sub_batch(name, step) for name in self._objectives}

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of `start_step`, `start_step + 1`, … without end, made ahead of their use.

        With `num_workers`, worker w makes every num_workers-th batch, and a script needs the usual
        `if __name__ == "__main__":`. Closing the iterator ends the workers, and so does the end of
        this process; SIGTERM, SIGINT and SIGUSR1 do not, so that it can make its last save.
        """
        if self._num_workers:
            _start_tracker()
        # Grain brings JAX and Orbax along; reading a cache (`inspect`, `search`) needs neither.
        import grain
        from absl import flags

        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED)
        steps = grain.MapDataset.range(start_step, 2**62).map(self.batch_at)
        batches = steps.to_iter_dataset(ahead)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # Grain 0.2.18 asks absl, which we do not use
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._num_workers, _PREFETCHED)
            batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
        iterator = iter(batches)
        try:
            if self._num_workers:
                with _signals_blocked():  # workers start here, and inherit it
                    first = next(iterator)
                yield first
            yield from iterator
        finally:
            iterator.close()

    def eval_batches(self, limit: int | None = None) -> Iterator[Batch]:
        """A fixed list of batches for evaluation: the same at every call, no example twice.

        Ends after `limit` batches, or where the first task runs out of examples that fill a batch.
        """
        batches = min(map(self._whole_batches, self._mixture.tasks))
        return map(self.batch_at, range(batches if limit is None else min(limit, batches)))

    def _sub_batch(self, name: str, step: int) -> dict[str, np.ndarray]:
        tasks, own = self._mixture.tasks_of(name), self._own[name]
        positions = own + step * self.rows[name]
        chosen, index = choose(positions, [task.rate for task in tasks])
        batch = {
            key: np.empty((len(own), *value.shape), value.dtype)
            for key, value in self._specs[name].items()
        }
        for number, task in enumerate(tasks):
            at = np.flatnonzero(chosen == number)
            for row, (epoch, i) in zip(at.tolist(), self._shuffled(task, index[at]), strict=True):
                for key, value in self._features(task, epoch, i).items():
                    batch[key][row] = value
        return batch

    def _shuffled(self, task: MixtureTask, index: np.ndarray) -> Iterator[tuple[int, int]]:
        """(epoch, number of the example in the cache) at each index of a task's stream.

        A task materialised for E epochs is read in its own order of epochs: e mod E.
        """
        sizes = np.array(task.examples.manifest.epochs, np.int64)
        starts = np.cumsum(sizes) - sizes
        cycle, within = np.divmod(index, sizes.sum())
        stored = np.searchsorted(starts, within, side="right") - 1
        epochs = cycle * len(sizes) + stored
        numbers = np.empty_like(index)
        for epoch in np.unique(epochs).tolist():  # one, or two where an epoch ends
            at, e = epochs == epoch, epoch % len(sizes)
            key = key_of("order", self._seed, task.name, epoch)
            numbers[at] = starts[e] + permute(within[at] - starts[e], int(sizes[e]), key)
        return zip(epochs.tolist(), numbers.tolist(), strict=True)

    def _features(self, task: MixtureTask, epoch: int, index: int) -> dict[str, np.ndarray]:
        # Noise depends on where an example stands in the cache, not on when it is read.
        noise = np.random.Philox(
            key=key_of("noise", self._seed, task.name), counter=[0, 0, epoch, index]
        )
        objective = self._objectives[task.objective]
        features = objective.features(
            task.examples[index], np.random.Generator(noise), self._mixture.special
        )
        spec = self._specs[task.objective]
        if features.keys() != spec.keys() or any(
            value.shape != spec[key].shape or value.dtype != spec[key].dtype
            for key, value in features.items()
        ):
            raise DataError(
                f"objective {task.objective!r}, example {index} of task {task.name!r}: expected "
                f"{_words(spec)}, found {_words(features)}"
            )
        return features

    def _check_size(self, task: MixtureTask) -> None:
        if self._whole_batches(task) == 0:
            raise DataError(
                f"task {task.name!r} has {min(task.examples.manifest.epochs)} examples in split "
                f"{self._mixture.split!r}, fewer than its part of the {self.rows[task.objective]} "
                f"rows of {task.objective!r} in one batch; lower batch_size or its rate, or add "
                "examples"
            )

    def _check_spec(self, task: MixtureTask) -> None:
        try:
            self._features(task, 0, 0)
        except KeyError as error:
            found = ", ".join(name for name, _, _ in task.examples.manifest.layout.features)
            raise DataError(
                f"objective {task.objective!r} needs the feature {error}, examples of task "
                f"{task.name!r} have {found}: give the task another objective"
            ) from error

    def _check_targets(self, task: MixtureTask) -> None:
        """Looks at examples up to the first that has a target, usually the first of all."""
        number, spec = task.examples.manifest.epochs[0], self._specs[task.objective]
        if _WEIGHTS not in spec:
            return
        if any(self._features(task, 0, i)[_WEIGHTS].any() for i in range(number)):
            return
        raise DataError(
            f"task {task.name!r}, split {self._mixture.split!r}: none of its {number:,} examples "
            f"has a target for {task.objective!r} among {spec[_WEIGHTS].shape[0]} positions of the "
            "decoder, so there is no loss; raise targets_length of the objective (targets in "
            "TASK_FEATURE_LENGTHS), which prompt and targets share with prompt_to_decoder, or give "
            "the task targets"
        )

    def _whole_batches(self, task: MixtureTask) -> int:
        """Batches that the first epoch of a task fills."""
        tasks = self._mixture.tasks_of(task.objective)
        number, rates = tasks.index(task), [t.rate for t in tasks]
        rows, size = self.rows[task.objective], task.examples.manifest.epochs[0]
        batches = int(size * sum(rates) / rates[number] / rows) + 1
        while counts(batches * rows, rates)[number] > size:
            batches -= 1
        return batches


def _start_tracker() -> None:
    """Starts Python's process that frees shared memory, before a worker's start would.

    Its start unblocks signals. Of batches that nobody took Grain 0.2.18 leaves some for it to free:
    it does, and is told not to warn the user of it. Only that process has the setting.
    """
    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    ignored = "ignore:resource_tracker:UserWarning"
    os.environ[name] = f"{before},{ignored}" if before else ignored
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """In this thread, and in the processes and threads that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, number: int) -> None:
    """What a worker process does first, once it has imported everything."""
    del index, number
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Grain ends its workers, unless the process that started them is killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _rows(mixture: CachedMixture, batch_size: int) -> dict[str, int]:
    rates = {name: sum(task.rate for task in mixture.tasks_of(name)) for name in mixture.objectives}
    if batch_size < 1 or min(rates.values()) <= 0:
        raise DataError(f"expected batch_size and rates above 0, found {batch_size} and {rates}")
    rows = divide_rows(rates, batch_size)
    empty = [name for name, n in rows.items() if n == 0]
    if empty:
        shares = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        raise DataError(
            f"batch_size {batch_size} leaves no row for {', '.join(empty)} (rates: {shares}); "
            "raise batch_size or the rate"
        )
    return rows


def _check_objectives(mixture: CachedMixture, objectives: Mapping[str, HostHalf]) -> None:
    missing = [name for name in mixture.objectives if name not in objectives]
    if missing:
        raise DataError(
            f"mixture {mixture.name!r} needs the objectives {', '.join(missing)}; configured are "
            f"{', '.join(objectives) or 'none'}"
        )


def _check_parts(rows: Mapping[str, int], parts: Sequence[int], num_parts: int) -> None:
    if not parts or not all(0 <= part < num_parts for part in parts):
        raise DataError(f"parts {[*parts]} are not in range({num_parts})")
    uneven = [f"{name} has {n}" for name, n in rows.items() if n % num_parts]
    if uneven:
        raise DataError(
            f"the rows of each objective have to divide into {num_parts} parts, which the mesh "
            f"divides a batch into: {', '.join(uneven)}; change batch_size or the mesh"
        )


def _words(arrays: Mapping[str, Any]) -> str:
    """`tokens int32[8], …`."""
    items = sorted(arrays.items())
    return ", ".join(f"{k} {np.dtype(v.dtype)}{list(v.shape)}" for k, v in items)
