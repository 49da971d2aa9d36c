"""Batches are a pure function of seed and step, on any number of hosts and workers."""

import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.data.cache import open_mixture
from codet5p_jax.data.loader import DataError, Loader
from codet5p_jax.data.position import choose, counts, divide_rows, permute
from tests.data.tiny import Array, TinyObjective, make_mixture, write_task

OBJECTIVES = {"one": TinyObjective("one"), "two": TinyObjective("two", length=6)}
RATES = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    tasks = {"a": ("one", 2.0, 31), "b": ("one", 1.0, 17), "c": ("two", 1.0, 23)}
    return make_mixture(tmp_path_factory.mktemp("cache"), tasks)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].keys() == right[name].keys()
        for key in left[name]:
            np.testing.assert_array_equal(left[name][key], right[name][key])


def first_tokens(batch, name="one"):
    return batch[name]["x_tokens"][:, 0].tolist()


# --- position ---


@given(st.integers(1, 3000), st.integers(0, 2**64))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permute_of_a_huge_range_stays_in_it_and_repeats_nothing():
    size = 2**40 + 12345
    result = permute(np.arange(10_000) * 97, size, 5)
    assert len(set(result.tolist())) == 10_000
    assert 0 <= result.min() < size // 100
    assert size - size // 100 < result.max() < size


def test_permutations_are_uniform():
    """Where the first of five goes, and the second, over many keys: chi-square at 4 sigma."""
    orders = Counter(tuple(permute(np.arange(5), 5, key)[:2].tolist()) for key in range(2000))
    assert len(orders) == 20
    chi_square = sum((n - 100) ** 2 / 100 for n in orders.values())
    assert chi_square < 19 + 4 * np.sqrt(2 * 19)


@given(RATES, st.integers(0, 2**40))
def test_choose_gives_every_task_its_own_consecutive_stream(rates, start):
    task, index = choose(np.arange(start, start + 200), rates)
    before = counts(start, rates)
    for i in range(len(rates)):
        mine = index[task == i]
        np.testing.assert_array_equal(mine, before[i] + np.arange(len(mine)))


@given(RATES, st.integers(1, 5000))
def test_rates_are_respected(rates, length):
    shares = np.array(rates) / sum(rates) * length
    found = np.array(counts(length, rates))
    assert found.sum() == length
    # One for rounding at each level before a task's own, and the rates' own rounding.
    assert (np.abs(found - shares) <= 1 + len(rates) + length * 2.0**-19).all()
    assert np.bincount(choose(np.arange(length), rates)[0], minlength=len(rates)).tolist() == [
        *found
    ]


@given(RATES, st.integers(0, 4096))
def test_rows_are_divided_by_largest_remainder(rates, rows):
    divided = divide_rows({str(i): rate for i, rate in enumerate(rates)}, rows)
    shares = np.array(rates) / sum(rates) * rows
    assert sum(divided.values()) == rows
    assert (np.abs(np.array(list(divided.values())) - shares) < 1 + 1e-6).all()


# --- batches ---


@given(seed=st.integers(0, 2**63), step=st.integers(0, 10**9))
def test_batches_depend_on_seed_and_step_alone(mixture, seed, step):
    loader, again = (Loader(mixture, OBJECTIVES, 12, seed) for _ in range(2))
    again.batch_at(step + 1)
    assert_equal(loader.batch_at(step), again.batch_at(step))


@given(hosts=st.sampled_from([2, 3]), step=st.integers(0, 10**6))
def test_hosts_together_make_the_batch_of_one(mixture, hosts, step):
    whole = Loader(mixture, OBJECTIVES, 24, 3).batch_at(step)
    parts = [
        Loader(mixture, OBJECTIVES, 24, 3, parts=[i], num_parts=hosts).batch_at(step)
        for i in range(hosts)
    ]
    joined = {
        name: {key: np.concatenate([p[name][key] for p in parts]) for key in whole[name]}
        for name in whole
    }
    assert_equal(whole, joined)


def test_a_host_makes_any_parts_that_its_devices_hold(mixture):
    whole = Loader(mixture, OBJECTIVES, 24, 3).batch_at(5)
    some = Loader(mixture, OBJECTIVES, 24, 3, parts=[0, 2], num_parts=3).batch_at(5)
    for name, arrays in whole.items():
        for key, value in arrays.items():
            first, _, third = np.split(value, 3)
            np.testing.assert_array_equal(some[name][key], np.concatenate([first, third]))


def test_hosts_read_only_their_own_rows(mixture, monkeypatch):
    read = []
    kind = type(mixture.tasks[0].examples)
    original = kind.__getitem__

    def spy(self, index):
        read.append((self.name, index))
        return original(self, index)

    loaders = [Loader(mixture, OBJECTIVES, 24, 3, parts=[i], num_parts=3) for i in range(3)]
    monkeypatch.setattr(kind, "__getitem__", spy)
    for loader in loaders:
        loader.batch_at(0)
        assert len(read) == 8
        read.clear()


def test_no_example_repeats_within_an_epoch_and_epochs_differ(mixture):
    """Task a has 31 examples and two thirds of 9 rows: five batches are within its first epoch."""
    loader = Loader(mixture, OBJECTIVES, 12, 0)
    assert loader.rows == {"one": 9, "two": 3}
    stream = [t for step in range(100) for t in first_tokens(loader.batch_at(step)) if t < 1000]
    epochs = [stream[i : i + 31] for i in range(0, len(stream) - 31, 31)]
    assert len(epochs) > 15
    assert all(sorted(epoch) == list(range(31)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)


def test_noise_is_new_for_every_epoch_example_and_task(mixture):
    loader = Loader(mixture, OBJECTIVES, 12, 0)
    noise = [x for s in range(50) for sub in loader.batch_at(s).values() for x in sub["noise"]]
    assert len(set(noise)) == 12 * 50


def test_seeds_give_different_orders_and_noise(mixture):
    left, right = (Loader(mixture, OBJECTIVES, 12, seed).batch_at(0) for seed in (0, 1))
    assert first_tokens(left) != first_tokens(right)
    assert not set(left["one"]["noise"].tolist()) & set(right["one"]["noise"].tolist())


@pytest.mark.parametrize("start", [0, 7, 10**6])
def test_iterating_from_anywhere_gives_the_same_batches(mixture, start):
    loader = Loader(mixture, OBJECTIVES, 12, 0)
    batches = loader.iterate(start)
    for step, batch in zip(range(start, start + 4), batches, strict=False):
        assert_equal(batch, loader.batch_at(step))
    batches.close()


def test_workers_make_the_same_batches_in_order(mixture):
    loader = Loader(mixture, OBJECTIVES, 12, 0, num_workers=2)
    batches = loader.iterate(3)
    for step, batch in zip(range(3, 8), batches, strict=False):
        assert_equal(batch, loader.batch_at(step))
    batches.close()


WORKERS = """
import os
import signal
import sys

from codet5p_jax.data.cache import open_mixture
from codet5p_jax.data.loader import Loader
from tests.data.tiny import TinyObjective


class Signalling(TinyObjective):
    def features(self, example, rng, special):
        if os.getpid() != reader:
            os.killpg(0, signal.SIGTERM)
        return super().features(example, rng, special)


reader, arrived = os.getpid(), []
signal.signal(signal.SIGTERM, lambda *_: arrived.append(1))
mixture = open_mixture(sys.argv[1], "mix", "train")
loader = Loader(mixture, {"tiny": OBJECTIVE()}, 4, 0, num_workers=2)
batches = loader.iterate(0)
for _ in range(6):
    next(batches)
"""


def with_workers(cache_dir, objective, then):
    """A process group that reads six batches with two workers and goes on with `then`.

    It has ended, with all its workers, when its output has.
    """
    make_mixture(cache_dir, {"a": ("tiny", 1.0, 8)})
    return subprocess.run(
        [sys.executable, "-c", WORKERS.replace("OBJECTIVE", objective) + then, str(cache_dir)],
        start_new_session=True, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_workers_outlive_a_signal_to_the_process_group(tmp_path):
    then = "batches.close()\nassert arrived\nassert 'PYTHONWARNINGS' not in os.environ\n"
    done = with_workers(tmp_path, "Signalling", then)
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_ignore_signals_from_their_start(tmp_path):
    then = """
from multiprocessing import active_children
from pathlib import Path

for worker in active_children():
    status = dict(
        line.split(":\\t") for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        bit = 1 << (number - 1)
        print(bool(int(status["SigBlk"], 16) & bit), bool(int(status["SigIgn"], 16) & bit))
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
batches.close()
"""
    done = with_workers(tmp_path, "TinyObjective", then)
    assert (done.returncode, done.stderr) == (0, "")
    # Blocked: inherited from the reader, for as long as they import; ignored: ever after.
    assert done.stdout == 6 * "True True\n"


def test_workers_end_with_a_reader_that_is_killed(tmp_path):
    done = with_workers(tmp_path, "TinyObjective", "os.kill(reader, signal.SIGKILL)\n")
    assert done.returncode == -signal.SIGKILL


def test_materialised_epochs_are_read_in_turn(tmp_path):
    """A task materialised twice, with 4 and 6 examples: epoch e reads the (e mod 2)-th."""
    mixture = make_mixture(tmp_path, {"a": ("one", 1.0, 1)})
    write_task(tmp_path, "a", [4, 6])
    mixture = open_mixture(tmp_path, "mix", "train")
    loader = Loader(mixture, OBJECTIVES, 2, 0)
    rows = [r for step in range(10) for r in loader.batch_at(step)["one"]["x_tokens"].tolist()]
    found = [(i, e) for i, e, *_ in rows]
    first, second = [(i, 0) for i in range(4)], [(i, 1) for i in range(6)]
    assert sorted(found[:4]) == sorted(found[10:14]) == first
    assert sorted(found[4:10]) == sorted(found[14:20]) == second
    assert found[:10] != found[10:]


def test_evaluation_batches_are_fixed_and_repeat_nothing(mixture):
    loader = Loader(mixture, OBJECTIVES, 12, 0)
    batches = list(loader.eval_batches())
    # b: 17 examples, a third of 9 rows each; a: 31, two thirds; c: 23, 3 rows each.
    assert len(batches) == 5
    for left, right in zip(batches, loader.eval_batches(), strict=True):
        assert_equal(left, right)
    tokens = [t for batch in batches for t in first_tokens(batch)]
    assert len(set(tokens)) == len(tokens) == 45
    assert len(list(loader.eval_batches(limit=2))) == 2


# --- what does not fit together is said at construction ---


def test_an_objective_without_rows_is_an_error(mixture):
    with pytest.raises(DataError, match=r"batch_size 1 leaves no row for two .*one 3, two 1"):
        Loader(mixture, OBJECTIVES, 1, 0)


def test_a_missing_objective_is_an_error(mixture):
    with pytest.raises(DataError, match="needs the objectives two; configured are one"):
        Loader(mixture, {"one": OBJECTIVES["one"]}, 12, 0)


def test_rows_that_hosts_cannot_share_are_an_error(mixture):
    with pytest.raises(DataError, match=r"into 2 parts, .*: one has 9, two has 3; change "):
        Loader(mixture, OBJECTIVES, 12, 0, num_parts=2)
    with pytest.raises(DataError, match=r"parts \[2\]"):
        Loader(mixture, OBJECTIVES, 12, 0, parts=[2], num_parts=2)


def test_a_task_smaller_than_its_rows_is_an_error(mixture):
    with pytest.raises(DataError, match=r"'a' has 31 examples in split 'train'.*72 rows"):
        Loader(mixture, OBJECTIVES, 96, 0)


@dataclass(frozen=True)
class Wrong(TinyObjective):
    def features(self, example, rng, special):
        row = super().features(example, rng, special)
        return {**row, "x_segments": row["x_segments"].astype(np.float32)}


@dataclass(frozen=True)
class Foreign(TinyObjective):
    def features(self, example, rng, special):
        return {"x": example["inputs"]}


def test_rows_unlike_the_spec_are_an_error(mixture):
    with pytest.raises(DataError, match=r"task 'a': .*x_segments int32\[4\].*x_segments float32"):
        Loader(mixture, {**OBJECTIVES, "one": Wrong("one")}, 12, 0)


def test_examples_without_the_features_of_the_objective_are_an_error(mixture):
    with pytest.raises(DataError, match="needs the feature 'inputs', examples of task 'a' have to"):
        Loader(mixture, {**OBJECTIVES, "one": Foreign("one")}, 12, 0)


def test_a_rate_of_zero_is_an_error(mixture):
    tasks = tuple(replace(task, rate=0.0) for task in mixture.tasks)
    with pytest.raises(DataError, match="rates above 0"):
        Loader(replace(mixture, tasks=tasks), OBJECTIVES, 12, 0)


# --- what a loader brings into a process ---


def test_loading_imports_no_tensorflow(tmp_path):
    make_mixture(tmp_path, {"a": ("tiny", 1.0, 8)})
    code = f"""
import sys
from codet5p_jax.data.cache import open_mixture
from codet5p_jax.data.loader import Loader
from tests.data.tiny import TinyObjective

loader = Loader(open_mixture({str(tmp_path)!r}, "mix", "train"), {{"tiny": TinyObjective()}}, 4, 0)
loader.batch_at(1)
heavy = {{"tensorflow", "seqio", "torch", "transformers", "gin"}}
assert not (heavy | {{"jax", "grain"}}) & sys.modules.keys(), "batch_at"
batches = loader.iterate(0)
next(batches)
batches.close()
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_arrays_are_what_the_spec_says(mixture):
    batch = Loader(mixture, OBJECTIVES, 12, 0).batch_at(0)
    for name, rows in {"one": 9, "two": 3}.items():
        found = {k: Array(v.shape, v.dtype) for k, v in batch[name].items()}
        spec = OBJECTIVES[name].spec
        assert found == {k: Array((rows, *s.shape), np.dtype(s.dtype)) for k, s in spec.items()}
