"""The page docs/custom_task.md is run as it stands."""

import json
import re
import shlex
from pathlib import Path

import pytest
import seqio

from codet5p_jax.cli import main
from codet5p_jax.data.cache import open_mixture
from codet5p_jax.data.seqio_tasks import cached_examples, fingerprint_of, objective_of
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.tasks import settings

PAGE = Path(__file__).parents[2] / "docs" / "custom_task.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
PAIRS_BLOCK, FILES_BLOCK, OTHER_BLOCK = BLOCKS
PAIRS = {
    "train": [("the sum of two numbers", "def f(x, y):\n    return x + y"), ("</s>", "\t<s>\r\n")],
    "validation": [("a class", "class A: pass")],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "pairs").mkdir()
    for split, pairs in PAIRS.items():
        lines = [json.dumps({"question": q, "solution": s}) for q, s in pairs]
        (tmp_path / "pairs" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pairs"


@pytest.fixture
def registry(monkeypatch):
    """Tasks that the page registers are forgotten afterwards."""
    for kind in (seqio.TaskRegistry, seqio.MixtureRegistry):
        monkeypatch.setattr(kind, "_REGISTRY", dict(kind._REGISTRY))


def command_of_the_page(name, tokenizer_folder):
    """Its words, without `codet5p`."""
    commands = re.findall(r"^    codet5p ((?:.*\\\n)*.*)", PAGE.read_text("utf-8"), re.MULTILINE)
    (command,) = (c for c in commands if c.startswith(name))
    command = command.replace("\\\n", "")  # shlex does not join lines
    return shlex.split(command.replace("FOLDER_OF_THE_TOKENIZER", str(tokenizer_folder)))


def test_page_in_fifteen_lines(folder, registry, tokenizer_folder):
    code = PAIRS_BLOCK
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, {})

    settings.configure(tokenizer=tokenizer_folder)
    tokenizer = Tokenizer.load(tokenizer_folder)
    mixture = seqio.MixtureRegistry.get("my_mixture")
    assert {task.name: objective_of(task) for task in mixture.tasks} == {
        "my_pairs_text_code_pairs": "text_code_pairs",
        "my_pairs_text_to_code": "text_to_code",
        "my_pairs_code_to_text": "code_to_text",
    }
    for task in mixture.tasks:
        for split, pairs in PAIRS.items():
            examples = list(cached_examples(task, split))
            decoded = [(tokenizer.decode(e["text"]), tokenizer.decode(e["code"])) for e in examples]
            assert decoded == pairs
        shown = next(task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator())
        assert tokenizer.decode(shown["inputs"]) in PAIRS["validation"][0]

    # As the page says, a change of the files shows in the fingerprint.
    before = fingerprint_of(mixture.tasks[0])
    assert fingerprint_of(mixture.tasks[0]) == before
    (folder / "train.jsonl").write_text('{"question": "a", "solution": "b"}\n')
    assert fingerprint_of(mixture.tasks[0])["source"] != before["source"]


def test_command_of_the_page(folder, registry, tokenizer_folder, tmp_path):
    (tmp_path / "my_tasks.py").write_text(PAIRS_BLOCK)
    words = command_of_the_page("prepare", tokenizer_folder)
    assert main.main(words) == 0
    objectives = [task.objective for task in open_mixture("CACHE", "my_mixture", "train").tasks]
    assert sorted(objectives) == ["code_to_text", "text_code_pairs", "text_to_code"]


def test_the_share_of_malformed_lines_reaches_the_reader_of_the_page(
    folder, registry, tokenizer_folder, tmp_path, capsys
):
    (tmp_path / "my_tasks.py").write_text(PAIRS_BLOCK)
    with (folder / "train.jsonl").open("a") as file:
        file.write("no JSON\n")
    words = ["prepare", "my_mixture", "--module=my_tasks", "--cache_dir=CACHE"]
    words.append(f"--tokenizer={tokenizer_folder}")
    assert main.main(words) == 1
    assert "1 of 3 records are malformed, more than max_malformed_share=0.01" in (
        capsys.readouterr().err
    )
    assert main.main([*words, "--max_malformed_share=0.4"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main.main([*words, "--max_malformed_share=1.4"])
    assert "expected a number from 0 to 1, got '1.4'" in capsys.readouterr().err


def test_other_preprocessing_of_the_page(folder, registry, tokenizer_folder):
    scope = {}
    exec(PAIRS_BLOCK, scope)
    exec(OTHER_BLOCK, scope)
    settings.configure(tokenizer=tokenizer_folder)
    task = seqio.TaskRegistry.get("my_summaries")
    assert objective_of(task) == "code_to_text"
    assert len(list(cached_examples(task, "train"))) == 2


FILES = {
    "a.py": "def f(x, y):\n    return x + y\n" * 200,
    "lib/b.c": "int f(int x) {\r\n  return x;\r\n}\n",
    **{f"lib/c{i}.py": f"x = {i}\n" for i in range(30)},
    "d.go": "package d",  # not among the languages that the page names
    ".git/e.py": "hidden",
}


@pytest.fixture
def source_folder(tmp_path, monkeypatch):
    for name, code in FILES.items():
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(code.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "src"


def test_a_folder_of_source_files_of_the_page(source_folder, registry, tokenizer_folder):
    exec(FILES_BLOCK, {})
    settings.configure(tokenizer=tokenizer_folder)
    tokenizer = Tokenizer.load(tokenizer_folder)
    task = seqio.TaskRegistry.get("my_code_span_denoising")
    read = {}
    for split in ("train", "validation"):
        chunks = [example["tokens"] for example in cached_examples(task, split)]
        assert all(len(chunk) == 510 for chunk in chunks[:-1])
        read[split] = tokenizer.decode([i for chunk in chunks for i in chunk])
    wanted = [code for name, code in FILES.items() if name not in ("d.go", ".git/e.py")]
    assert all(sum(code in text for text in read.values()) == 1 for code in wanted)
    assert len("".join(read.values())) == sum(map(len, wanted))  # and nothing else

    # A change of the files shows in the fingerprint.
    before = fingerprint_of(task)
    (source_folder / "new.py").write_text("y = 1\n")
    assert fingerprint_of(task)["source"] != before["source"]


def test_the_run_over_source_files_of_the_page(
    source_folder, registry, tokenizer_folder, tmp_path, capsys
):
    (tmp_path / "my_code.py").write_text(FILES_BLOCK)
    words = command_of_the_page("train", tokenizer_folder)
    assert main.main([*words, "--dry_run", "--num_devices=16"]) == 0
    out = capsys.readouterr().out
    assert "phase my_code_stage1_denoise: 10,000 steps" in out
    (rows,) = re.findall(r"phase my_code_stage1: .*\n(?:  .* rows x .*\n)+", out)
    assert dict(re.findall(r"^  (\w+) +([\d,]+) rows x", rows, re.MULTILINE)) == {
        "span_denoising": "2,048", "seq2seq_clm": "512", "decoder_clm": "512",
    }  # fmt: skip
