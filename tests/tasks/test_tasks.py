import gzip
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seqio
import tensorflow as tf

import codet5p_jax.tasks  # noqa: F401
from codet5p_jax.data.corpora.languages import LANGUAGES
from codet5p_jax.data.corpora.malformed import Malformed
from codet5p_jax.data.seqio_tasks import cached_examples, fingerprint_of, objective_of
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.decoder_clm import DecoderCLM
from codet5p_jax.objectives.span_denoising import SpanDenoising
from codet5p_jax.tasks import preprocessors, settings, stdlib
from codet5p_jax.tasks.github_code import CHUNK_LENGTHS
from codet5p_jax.tasks.stages import STAGE1_OBJECTIVES, STAGE2_OBJECTIVES

SIX = ["ruby", "javascript", "go", "python", "java", "php"]


def rates(mixture):
    mixture = seqio.MixtureRegistry.get(mixture)
    return {task.name: mixture.get_rate(task) for task in mixture.tasks}


def share(rates, end):
    return sum(r for n, r in rates.items() if n.endswith(end)) / sum(rates.values())


# Registration


def test_every_objective_and_language_is_registered():
    for language in LANGUAGES:
        for objective in STAGE1_OBJECTIVES:
            task = seqio.TaskRegistry.get(f"github_code_{language.key}_{objective}")
            assert objective_of(task) == objective
    for language in SIX:
        for objective in STAGE2_OBJECTIVES:
            task = seqio.TaskRegistry.get(f"codesearchnet_{language}_{objective}")
            assert objective_of(task) == objective
    for objective in (*STAGE1_OBJECTIVES, *STAGE2_OBJECTIVES):
        assert objective_of(seqio.TaskRegistry.get(f"stdlib_{objective}")) == objective


def test_chunks_of_github_code_fill_a_row_and_lose_no_token():
    tokens = np.arange(CHUNK_LENGTHS["span_denoising"], dtype=np.int32) + 200
    special = SpecialTokens(
        pad=0, bos=1, eos=2, unk=3, sentinels=tuple(range(199, 99, -1)), decoder_start=0
    )
    example = {"tokens": tokens, "word_starts": np.ones(len(tokens), bool)}
    objective = SpanDenoising()
    assert len(tokens) + 2 == objective.inputs_length  # <s> and </s>
    for seed in range(5):
        row = objective.features(example, np.random.default_rng(seed), special)
        ids = np.concatenate([row["encoder_tokens"], row["decoder_targets"]])
        np.testing.assert_array_equal(np.sort(ids[ids >= 200]), tokens)
    assert CHUNK_LENGTHS["decoder_clm"] + 1 == DecoderCLM().targets_length  # </s>


def test_registration_reads_nothing():
    """In a fresh interpreter, with settings that point nowhere."""
    code = (
        "import os\n"
        "for n in ('TOKENIZER', 'GITHUB_CODE_DIR', 'CODESEARCHNET_DIR'):\n"
        "    os.environ['CODET5P_' + n] = '/nowhere/' + n\n"
        "import seqio, codet5p_jax.data.seqio_tasks, codet5p_jax.data.corpora.stdlib as stdlib\n"
        "stdlib.modules = stdlib.documented_functions = None\n"
        "import codet5p_jax.tasks\n"
        "print(len(seqio.MixtureRegistry.names()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "9"


def test_stage1_rows_come_out_as_in_the_paper():
    for name in ("codet5p_stage1", "stdlib_stage1"):
        for objective, expected in zip(STAGE1_OBJECTIVES, (4 / 6, 1 / 6, 1 / 6), strict=True):
            assert share(rates(name), f"_{objective}") == pytest.approx(expected)
    paper = rates("codet5p_stage1")
    assert len(paper) == 27
    java, go = (paper[f"github_code_{k}_decoder_clm"] for k in ("java", "go"))
    assert java / go == pytest.approx(10_851_759 / 1_501_673)
    assert all(name.endswith("_span_denoising") for name in rates("codet5p_stage1_denoise"))
    assert len(rates("codet5p_stage1_denoise")) == 9
    assert rates("stdlib_stage1_denoise") == {"stdlib_span_denoising": 1.0}
    read = ("span_denoising", "seq2seq_clm")
    assert rates("stdlib_stage1_seq2seq") == {f"stdlib_{name}": 1.0 for name in read}


def test_stage2_objectives_have_equal_rows():
    assert len(rates("codet5p_stage2")) == 18
    for objective in STAGE2_OBJECTIVES:
        assert share(rates("codet5p_stage2"), f"_{objective}") == pytest.approx(1 / 3)


def test_the_quickstart_compares_four_pairs_for_each_one_to_write():
    for objective, rows in zip(STAGE2_OBJECTIVES, (4, 1, 1), strict=True):
        assert share(rates("stdlib_stage2"), f"_{objective}") == pytest.approx(rows / 6)


# Preprocessors


def code_dataset(files):
    return tf.data.Dataset.from_tensor_slices({"code": files, "path": ["p"] * len(files)})


def test_chunks_hold_every_token_in_order(tokenizer_folder):
    settings.configure(tokenizer=tokenizer_folder)
    tokenizer = Tokenizer.load(tokenizer_folder)
    files = ["def f(x, y):\n    return x\n", "", "x", "class A: pass\r\n\t\0</s>🎉"]
    tokens = preprocessors.tokenize_code(code_dataset(files), vocabulary=settings.STAGE1_VOCABULARY)
    chunks = list(preprocessors.cut_into_chunks(tokens, length=7).as_numpy_iterator())
    assert all(set(c) == {"tokens", "word_starts"} for c in chunks)
    assert [len(c["tokens"]) for c in chunks[:-1]] == [7] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1]["tokens"]) <= 7
    assert tokenizer.decode(np.concatenate([c["tokens"] for c in chunks])) == "".join(files)
    assert all(c["word_starts"][0] for c in chunks)
    starts = np.concatenate([c["word_starts"] for c in chunks])
    expected = np.concatenate([tokenizer.encode_words(f)[1] for f in files])
    expected[::7] = True
    np.testing.assert_array_equal(starts, expected)


def test_length_limits_are_inclusive():
    rows = [np.zeros(n, np.int32) for n in (1, 2, 3, 4)]
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"tokens": r} for r in rows),
        output_signature={"tokens": tf.TensorSpec([None], tf.int32)},
    )
    kept = preprocessors.keep_lengths(dataset, shortest=2, longest=3)
    assert [len(e["tokens"]) for e in kept.as_numpy_iterator()] == [2, 3]


# Settings


def test_missing_settings_name_all_ways():
    task = seqio.TaskRegistry.get("codesearchnet_go_text_to_code")
    with pytest.raises(
        ValueError, match=r"--tokenizer=.*CODET5P_TOKENIZER.*configure\(tokenizer=…\)"
    ):
        next(cached_examples(task, "train"))
    with pytest.raises(
        ValueError, match=r"--codesearchnet_dir=.*CODET5P_CODESEARCHNET_DIR.*codesearchnet_dir=…"
    ):
        settings.codesearchnet_dir()
    with pytest.raises(
        ValueError, match=r"--github_code_dir=.*CODET5P_GITHUB_CODE_DIR.*github_code_dir=…"
    ):
        settings.github_code_dir()


def test_missing_folders_are_noticed_before_work_starts(tmp_path, tokenizer_folder):
    settings.configure(
        tokenizer=tokenizer_folder,
        github_code_dir=tmp_path,
        codesearchnet_dir=tmp_path / "nowhere",
    )
    for name, message in (
        ("github_code_c_span_denoising", r"github_code_dir: found no \*\.parquet"),
        ("codesearchnet_go_text_to_code", "codesearchnet_dir: expected a folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            fingerprint_of(seqio.TaskRegistry.get(name))


def test_settings_reach_other_processes_and_relative_paths_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings.configure(tokenizer="here", max_malformed_share=0.25)
    monkeypatch.chdir("/")
    assert settings.tokenizer() == str(tmp_path / "here")
    assert Malformed().max_malformed_share == 0.25
    settings.configure()  # changes nothing
    assert settings.tokenizer() == str(tmp_path / "here")
    for wrong in ("many", "-0.1", "nan"):
        monkeypatch.setenv("CODET5P_MAX_MALFORMED_SHARE", wrong)
        with pytest.raises(ValueError, match=f"CODET5P_MAX_MALFORMED_SHARE: .* found '{wrong}'"):
            Malformed()
    with pytest.raises(ValueError, match="max_malformed_share: expected a share from 0 to 1"):
        settings.configure(max_malformed_share=1.5)


# Tasks over real files


@pytest.fixture
def github_code(tmp_path):
    code = "def f(x, y):\n    return x + y\n" * 8
    rows = {
        "code": [code, "x", code.upper(), code * 400, code],
        "repo_name": ["a/a", "a/a", "a/a", "a/a", "Bad/Repo"],
        "path": ["p"] * 5,
        "language": ["Python", "Python", "GO", "Python", "Python"],
        "license": ["mit"] * 5,
    }
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    (tmp_path / "excluded.txt").write_text("bad/repo\n")
    (tmp_path / "none.txt").write_text("")
    return tmp_path, code


def test_github_code_task(github_code, tokenizer_folder):
    folder, code = github_code
    settings.configure(
        tokenizer=tokenizer_folder,
        github_code_dir=folder,
        excluded_repos=folder / "excluded.txt",
    )
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert 50 < len(tokenizer.encode(code)) < 512
    for objective in STAGE1_OBJECTIVES:
        task = seqio.TaskRegistry.get(f"github_code_python_{objective}")
        texts = [
            tokenizer.decode(e["tokens"])
            for split in ("train", "validation")
            for e in cached_examples(task, split)
        ]
        assert texts == [code]  # not the short, the long, the other language, the excluded one
    task = seqio.TaskRegistry.get("github_code_go_decoder_clm")
    (example,) = (e for s in ("train", "validation") for e in cached_examples(task, s))
    assert tokenizer.decode(example["tokens"]) == code.upper()
    before = fingerprint_of(task)
    settings.configure(excluded_repos=folder / "none.txt")
    assert fingerprint_of(task)["source"] != before["source"]


def test_codesearchnet_task(tmp_path, tokenizer_folder):
    settings.configure(tokenizer=tokenizer_folder, codesearchnet_dir=tmp_path)
    record = {"code": "func f() {}", "docstring": "the sum of two numbers\n\nmore"}
    for split in ("train", "valid", "test"):
        folder = tmp_path / "go/final/jsonl" / split
        folder.mkdir(parents=True)
        with gzip.open(folder / f"go_{split}_0.jsonl.gz", "wt") as file:
            file.write(json.dumps(record) + "\n")
    tokenizer = Tokenizer.load(tokenizer_folder)
    for objective in STAGE2_OBJECTIVES:
        task = seqio.TaskRegistry.get(f"codesearchnet_go_{objective}")
        (example,) = cached_examples(task, "validation")
        assert set(example) == {"text", "code"}
        assert tokenizer.decode(example["text"]) == "the sum of two numbers"
        assert tokenizer.decode(example["code"]) == "func f() {}"
    assert "source" in fingerprint_of(task)


def test_stage2_vocabulary_has_the_prefixes(tokenizer_folder):
    settings.configure(tokenizer=tokenizer_folder)
    assert settings.STAGE2_VOCABULARY.special.enc is not None
    assert settings.STAGE1_VOCABULARY.vocab_size == settings.STAGE2_VOCABULARY.vocab_size


def test_stdlib_tasks(tokenizer_folder, monkeypatch):
    settings.configure(tokenizer=tokenizer_folder)
    tokenizer = Tokenizer.load(tokenizer_folder)
    modules = [m["code"] for m in stdlib.stdlib.modules("validation")]
    for objective in STAGE1_OBJECTIVES[:1]:
        task = seqio.TaskRegistry.get(f"stdlib_{objective}")
        chunks = [e["tokens"] for e in cached_examples(task, "validation")]
        assert {len(c) for c in chunks[:-1]} == {stdlib.CHUNK_LENGTH}
        assert tokenizer.decode(np.concatenate(chunks)) == "".join(modules)

    pairs = (
        {"text": "a b", "code": "c", "module": "re"},
        {"text": "d", "code": "e", "module": "os"},
    )
    monkeypatch.setattr(stdlib, "_pairs", lambda: pairs)
    for objective in STAGE2_OBJECTIVES:
        task = seqio.TaskRegistry.get(f"stdlib_{objective}")
        found = {
            split: [tokenizer.decode(e["text"]) for e in cached_examples(task, split)]
            for split in stdlib.stdlib.SHARES
        }
        assert found == {"train": ["a b", "d"], "validation": [], "test": []}
