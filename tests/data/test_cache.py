"""The cache on disk: exact round trips, damage that is noticed, no half folders."""

import dataclasses
import functools
import json
import pickle
import resource
import signal
import string
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codet5p_jax.data import fingerprint
from codet5p_jax.data.cache import (
    CacheError,
    Layout,
    open_mixture,
    open_task,
    read_manifest,
)
from codet5p_jax.data.cache_writer import CacheWriter, share_examples, write_mixture
from tests.data.tiny import SPECIAL, make_mixture, write_task

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=5)
DTYPES = st.sampled_from(["int32", "bool", "int64", "uint16", "float32", "uint8", "float64"])


@st.composite
def ragged_examples(draw):
    """Examples with the same names, dtypes and ranks, and shapes of their own."""
    kinds = draw(st.dictionaries(NAMES, st.tuples(DTYPES, st.integers(0, 3)), min_size=1))
    return [
        {
            name: draw(
                hnp.arrays(dtype, hnp.array_shapes(min_dims=rank, max_dims=rank, min_side=0))
            )
            for name, (dtype, rank) in kinds.items()
        }
        for _ in range(draw(st.integers(1, 4)))
    ]


def write(cache_dir, examples, **settings):
    with CacheWriter(cache_dir, "t", "train", {}, **settings) as writer:
        for example in examples:
            writer.write(example)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name], strict=True)


@given(ragged_examples())
def test_records_keep_any_ragged_arrays(examples):
    layout = Layout.of(examples[0])
    for example in examples:
        assert_same(layout.decode(layout.encode(example)), example)


@given(ragged_examples(), st.sampled_from([1, 100, 10**6]))
def test_the_disk_keeps_any_ragged_arrays(examples, shard_bytes):
    with tempfile.TemporaryDirectory() as folder:
        write(folder, examples, shard_bytes=shard_bytes)
        task = open_task(folder, "t", "train")
        assert len(task) == len(examples)
        assert len(task.manifest.shards) == (len(examples) if shard_bytes == 1 else 1) or (
            shard_bytes == 100
        )
        for i in reversed(range(len(examples))):
            assert_same(task[i], examples[i])
        assert_same(pickle.loads(pickle.dumps(task))[0], examples[0])


def test_what_is_read_cannot_be_written_to(tmp_path):
    write_task(tmp_path, "t", [2])
    with pytest.raises(ValueError, match="read-only"):
        open_task(tmp_path, "t", "train")[0]["tokens"][0] = 1


def test_positions_outside_are_index_errors(tmp_path):
    write_task(tmp_path, "t", [2])
    task = open_task(tmp_path, "t", "train")
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"t: example {index} of 2"):
            task[index]


def test_the_manifest_counts_records_tokens_and_lengths(tmp_path):
    with CacheWriter(tmp_path, "t", "train", {"source": "s"}) as writer:
        for length in [0] + [10] * 50 + [33] * 45 + [64] * 3 + [100]:
            writer.write({"tokens": np.zeros(length, np.int32)})
    manifest = read_manifest(tmp_path, "t", "train")
    assert manifest == writer.manifest
    assert manifest.records == 100
    assert manifest.lengths["tokens"] == {
        "total": 50 * 10 + 45 * 33 + 3 * 64 + 100,
        "p50": 10,
        "p95": 33,
        "max": 100,
        "histogram": {"1": 1, "16": 50, "64": 48, "128": 1},
    }


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"tokens": np.zeros(2, np.int64)}, "i4.*found.*i8"),
        ({"tokens": np.zeros((2, 2), np.int32)}, "as before"),
        ({"other": np.zeros(2, np.int32)}, "as before"),
        ({}, "as before"),
    ],
)
def test_examples_unlike_the_first_are_errors_and_leave_nothing(tmp_path, second, message):
    with pytest.raises(CacheError, match=message):
        write(tmp_path, [{"tokens": np.zeros(2, np.int32)}, second])
    assert list((tmp_path / "t").iterdir()) == []


def test_text_is_refused():
    with pytest.raises(CacheError, match="feature 'code': expected numbers, found dtype <U3"):
        Layout.of({"code": np.array(["def"])})


def test_a_split_without_examples_is_an_error(tmp_path):
    with pytest.raises(CacheError, match="'t' has no examples in split 'train'"):
        write(tmp_path, [])
    assert not (tmp_path / "t" / "train").exists()


# --- damage ---


def test_a_truncated_shard_is_an_error_when_opened(tmp_path):
    write_task(tmp_path, "t", [9])
    shard = next((tmp_path / "t/train").glob("*.array_record"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(CacheError, match=rf"has {len(content) - 10:,} bytes, .* {len(content):,}"):
        open_task(tmp_path, "t", "train")


def test_a_missing_shard_is_an_error_when_opened(tmp_path):
    write_task(tmp_path, "t", [9])
    next((tmp_path / "t/train").glob("*.array_record")).unlink()
    with pytest.raises(CacheError, match="array_record is missing"):
        open_task(tmp_path, "t", "train")


def test_flipped_bytes_are_an_error_when_read(tmp_path):
    write(tmp_path, [{"tokens": np.random.default_rng(0).integers(0, 2**31, 50_000, np.int32)}])
    shard = next((tmp_path / "t/train").glob("*.array_record"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    task = open_task(tmp_path, "t", "train")
    with pytest.raises(CacheError, match=r"is damaged at record 0 .*--rebuild"):
        task[0]


@pytest.mark.parametrize("text", ["{", '{"version": 1}', '{"version": 1, "layout": 3}'])
def test_a_damaged_manifest_is_an_error(tmp_path, text):
    write_task(tmp_path, "t", [1])
    (tmp_path / "t/train/manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"manifest.json is damaged .*--rebuild"):
        open_task(tmp_path, "t", "train")


def test_another_version_is_an_error(tmp_path):
    write_task(tmp_path, "t", [1])
    path = tmp_path / "t/train/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(CacheError, match="has version 99, this program reads version 1"):
        open_task(tmp_path, "t", "train")


def test_what_is_not_there_is_named(tmp_path):
    mixture = make_mixture(tmp_path, {"a": ("one", 1.0, 2)}, name="stdlib_stage1")
    assert mixture.special == SPECIAL
    assert [(t.name, t.objective, t.rate) for t in mixture.tasks] == [("a", "one", 1.0)]
    with pytest.raises(CacheError, match=r"'a', split 'test', .*\(prepared splits: train\)"):
        open_mixture(tmp_path, "stdlib_stage1", "test")
    with pytest.raises(CacheError, match=r"did you mean 'stdlib_stage1'.*codet5p prepare"):
        open_mixture(tmp_path, "stdlib_stage", "train")
    with pytest.raises(CacheError, match="nothing of it is prepared"):
        open_task(tmp_path / "elsewhere", "a", "train")


# --- writing ---


def test_a_killed_writer_leaves_nothing_that_looks_complete(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, ".")
import numpy as np
from codet5p_jax.data.cache_writer import CacheWriter
with CacheWriter({str(tmp_path)!r}, "t", "train", {{}}, shard_bytes=1000) as writer:
    for i in range(10**9):
        writer.write({{"tokens": np.arange(100, dtype=np.int32)}})
        if i == 50: print("going", flush=True)
        if i > 50: time.sleep(0.01)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"going\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert list((tmp_path / "t/.train.partial").glob("*.array_record"))  # it was well under way
    with pytest.raises(CacheError, match="nothing of it is prepared"):
        open_task(tmp_path, "t", "train")
    write_task(tmp_path, "t", [3])
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["train"]
    assert len(open_task(tmp_path, "t", "train")) == 3


@contextmanager
def largest_file(size):
    """A limit on the size of files stands in for the full disk: writes fail in the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_an_error_that_cleans_up(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2**31, 10_000, np.int32)
    with (
        largest_file(100_000),
        pytest.raises(CacheError, match=r"could not write .*t/train: .*Free some space"),
    ):
        write(tmp_path, [{"tokens": noise}] * 100)
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.parametrize(("tokenizer", "file"), [(1000, "tokenizers/digest"), (10, "mix.json")])
def test_a_disk_that_is_full_at_the_end_is_an_error_that_cleans_up(tmp_path, tokenizer, file):
    def save(folder):
        (folder / "tokenizer.json").write_bytes(bytes(tokenizer))

    with (
        largest_file(100),
        pytest.raises(CacheError, match=f"could not write .*{file}: .*choose another --cache_dir"),
    ):
        write_mixture(
            tmp_path, "mix", [], special=SPECIAL, vocab_size=9, tokenizer_digest="digest",
            save_tokenizer=save,
        )  # fmt: skip
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ([] if tokenizer > 100 else ["tokenizers/digest/tokenizer.json"])


def test_a_rewritten_split_replaces_the_old_one(tmp_path):
    write_task(tmp_path, "t", [3])
    write_task(tmp_path, "t", [5], first=70)
    task = open_task(tmp_path, "t", "train")
    assert [int(task[i]["tokens"][0]) for i in range(len(task))] == [70, 71, 72, 73, 74]
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["train"]


def test_tasks_share_shards_until_their_holder_changes(tmp_path):
    write_task(tmp_path, "a", [3])
    share_examples(tmp_path, read_manifest(tmp_path, "a", "train"), "b")
    a, b = open_task(tmp_path, "a", "train"), open_task(tmp_path, "b", "train")
    assert b.manifest.examples_in == "a"
    assert b.name == b.manifest.task == "b"
    assert_same(a[2], b[2])
    assert not list((tmp_path / "b").rglob("*.array_record"))
    with CacheWriter(tmp_path, "a", "train", {"source": "new"}) as writer:
        writer.write({"tokens": np.zeros(1, np.int32)})
    with pytest.raises(CacheError, match=r"'b' uses the examples of 'a'.*was rebuilt"):
        open_task(tmp_path, "b", "train")


# --- fingerprints ---

LIMIT = 3


def helper(x):
    return x + LIMIT


def same_helper(x):
    """The same, explained."""
    # and commented
    return x + LIMIT


def clean(x, k=1):
    return helper(x) * k


@functools.cache
def remembered(x):
    return x * LIMIT


def outer(n):
    def inner(x):
        return x + n

    return inner


class Step:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return x + self.n


@dataclasses.dataclass
class Settings:
    n: int


def test_functions_differ_by_what_they_do():
    lambdas = [lambda x: x + 1, lambda x: x + 2]
    distinct = [
        *lambdas,
        clean,
        functools.partial(clean, k=2),
        functools.partial(clean, k=3),
        outer(1),
        outer(2),
        outer(Settings(2)),
        outer({"a": [np.arange(3)]}),
        outer({"a": [np.arange(4)]}),
        Step(1),
        Step(2),
        Step(1).__call__,
        remembered,
        np.add,
        np.subtract,
        len,
    ]
    digests = [fingerprint.digest(f) for f in distinct]
    assert len(set(digests)) == len(distinct)
    assert digests == [fingerprint.digest(f) for f in distinct]
    assert fingerprint.digest(outer(1)) == digests[5]
    assert fingerprint.digest(Step(1)) == digests[10]


def test_comments_and_docstrings_do_not_count():
    left, right = fingerprint.digest(helper), fingerprint.digest(same_helper)
    assert left != right  # only for the name
    source = fingerprint._code(same_helper.__code__).replace("same_helper", "helper")
    assert source == fingerprint._code(helper.__code__)


def test_what_a_function_calls_counts(monkeypatch):
    def through_a_cache(x):
        return remembered(x)

    functions = [clean, remembered, through_a_cache]
    before = [fingerprint.digest(function) for function in functions]
    monkeypatch.setitem(globals(), "LIMIT", 4)
    for function, digest in zip(functions, before, strict=True):
        assert fingerprint.digest(function) != digest


def test_functions_of_libraries_count_by_name_in_whatever_environment(tmp_path, monkeypatch):
    """Also those that an environment sees of another one, whose folder it does not call its own."""
    folder = tmp_path / "other" / "site-packages"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    digests = []
    for text in ("x + 1", "x + 2"):
        code = compile(f"def f(x): return {text}", str(folder / "library.py"), "exec")
        scope = {"__name__": "library"}
        exec(code, scope)
        fingerprint._library_folders.cache_clear()
        digests.append(fingerprint.digest(scope["f"]))
    fingerprint._library_folders.cache_clear()
    assert digests[0] == digests[1]


def test_functions_without_source_count_by_their_bytecode():
    scopes = [{}, {}, {}]
    for scope, text in zip(scopes, ["x + 1", "x + 1", "x + 2"], strict=True):
        exec(f"def f(x): return {text}", scope)
    one, same, other = (fingerprint.digest(scope["f"]) for scope in scopes)
    assert one == same != other


def test_recursion_and_caches_that_fill_do_no_harm():
    def countdown(n):
        return countdown(n - 1) if n else 0

    assert fingerprint.digest(countdown) == fingerprint.digest(countdown)
    step = Step(1)
    step.handle = None
    before = fingerprint.digest(step)
    step.handle = object()
    assert fingerprint.digest(step) == before


def test_digests_are_the_same_in_another_process():
    code = (
        "from tests.data.test_cache import *; print(fingerprint.digest([clean, outer({1, 2}), "
        "Step(3), {'b': 1, 'a': {'x', 'y', 'z'}}]))"
    )
    here = fingerprint.digest([clean, outer({1, 2}), Step(3), {"b": 1, "a": {"x", "y", "z"}}])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == here


def test_changes_are_named():
    old = {"source": "1", "tokenizer": "1", "preprocessor 1 (clean)": "1", "gone": "1"}
    new = {"source": "1", "tokenizer": "2", "preprocessor 1 (clean)": "2", "added": "1"}
    assert fingerprint.changes(old, old) == []
    assert fingerprint.changes(old, new) == [
        "tokenizer changed",
        "preprocessor 1 (clean) changed",
        "gone removed",
        "added added",
    ]
