import ast
import gzip
import json
import random
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codet5p_jax.data.corpora import github_code, stdlib
from codet5p_jax.data.corpora.codesearchnet import codesearchnet_pairs
from codet5p_jax.data.corpora.files import split_of
from codet5p_jax.data.corpora.github_code import (
    GithubCodeFilter,
    github_code_files,
    read_repo_list,
)
from codet5p_jax.data.corpora.jsonl import read_jsonl
from codet5p_jax.data.corpora.languages import BY_KEY, LANGUAGES
from codet5p_jax.data.corpora.malformed import Malformed, TooManyMalformedError
from codet5p_jax.data.corpora.pairs import PairFilter
from codet5p_jax.data.corpora.python_functions import (
    first_paragraph,
    functions,
    parse,
    without_docstring,
)
from codet5p_jax.data.corpora.source_tree import source_files

LENIENT = 1.0


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        for record in records:
            line = record if isinstance(record, bytes) else json.dumps(record).encode()
            file.write(line + b"\n")
    return path


# Splits


def test_split_shares_hold_and_do_not_depend_on_anything_else():
    shares = {"train": 0.8, "validation": 0.08, "test": 0.12}
    names = [f"module{i}" for i in range(5000)]
    splits = [split_of(name, shares) for name in names]
    for split, share in shares.items():
        assert abs(splits.count(split) / len(names) - share) < 0.02
    assert [split_of(n, shares) for n in ("json.decoder", "os", "re")] == ["train"] * 3
    assert split_of("x", {"train": 0.0, "test": 1.0}) == "test"


# Functions of Python modules


MODULE = '''\
import os

def plain(a):
    """Add one.

    More about it.
    """
    return a + 1

class Box:
    @property
    def size(self):
        """Say how big."""  # trailing
        text = """
    stays
"""
        def inner():
            "Only this"
        return text

    async def stub(self): "One line"

    def naïve(self):
        'dös'; return 'é'

    def undocumented(self):
        x = 1  # comment
        return x
'''


def test_functions_of_a_module():
    found = {f.qualname: f for f in functions(MODULE)}
    assert list(found) == [
        "plain", "Box.size", "Box.size.inner", "Box.stub", "Box.naïve", "Box.undocumented",
    ]  # fmt: skip
    assert found["plain"].code == "def plain(a):\n    return a + 1"
    assert found["plain"].docstring == "Add one.\n\nMore about it."
    assert found["plain"].line == 3
    assert found["Box.size"].code == (
        '@property\ndef size(self):\n      # trailing\n    text = """\n    stays\n"""\n'
        '    def inner():\n        "Only this"\n    return text'
    )
    assert found["Box.size"].line == 11
    assert found["Box.size.inner"].code == "def inner():\n    pass"
    assert found["Box.stub"].code == "async def stub(self): pass"
    assert found["Box.naïve"].code == "def naïve(self):\n    return 'é'"
    assert found["Box.naïve"].docstring == "dös"
    assert found["Box.undocumented"].docstring is None
    assert found["Box.undocumented"].code == (
        "def undocumented(self):\n    x = 1  # comment\n    return x"
    )


def test_line_ends_and_form_feeds_survive():
    source = 'def f():\r\n\t"""Doc."""\r\n\x0c\treturn """a\r\n b"""\r\n'
    (function,) = functions(source)
    assert function.code == 'def f():\r\n\x0c\treturn """a\r\n b"""'


def test_without_docstring_of_an_indented_method():
    assert without_docstring('    def f(self):\n        """Doc."""\n        return 1\n') == (
        "def f(self):\n    return 1"
    )
    with pytest.raises(ValueError, match="found none"):
        without_docstring("x = 1")


@pytest.mark.parametrize(
    ("docstring", "text"),
    [("Add.\n  Both.\n\nMore.", "Add. Both."), ("\n \n One", "One"), ("", ""), ("a\n\t\nb", "a")],
)
def test_first_paragraph(docstring, text):
    assert first_paragraph(docstring) == text


# The standard library


@pytest.fixture(scope="module")
def pairs():
    malformed = Malformed()
    pairs = list(stdlib.documented_functions(malformed=malformed))
    assert malformed.count == 0
    assert malformed.seen > 500
    return pairs


def test_stdlib_has_enough_held_out_functions(pairs):
    counts = dict.fromkeys(stdlib.SHARES, 0)
    for pair in pairs:
        counts[split_of(pair["module"], stdlib.SHARES)] += 1
    assert counts["train"] > 4000
    assert counts["validation"] >= 200
    assert counts["test"] >= 500  # retrieval takes 500 candidates of held-out functions


def test_stdlib_pairs_are_unique_and_filtered(pairs):
    assert len({p["code"] for p in pairs}) == len({p["text"] for p in pairs}) == len(pairs)
    assert all(PairFilter().keeps(p["text"], p["code"]) for p in pairs)
    assert not any("\n" in p["text"] for p in pairs)
    (pair,) = (p for p in pairs if p["module"] == "shutil" and p["qualname"] == "copytree")
    assert pair["text"].startswith("Recursively copy a directory tree")
    assert pair["code"].startswith("def copytree(src, dst, symlinks=False")
    assert "Recursively copy" not in pair["code"]
    assert "shutil.py:" in pair["place"]


def test_code_is_the_function_without_its_docstring_and_nothing_else(pairs):
    """The tree of each `code` is the tree of its function in the file, strings included."""
    wanted = {}
    for pair in random.Random(0).sample(pairs, 200):
        path, line = pair["place"].rsplit(":", 1)
        wanted.setdefault(path, {})[int(line)] = pair["code"]
    for path, codes in wanted.items():
        with open(path, "rb") as file:
            tree = parse(file.read().decode())
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            line = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if line not in codes:
                continue
            body = node.body
            node.body = body[1:] or [ast.Pass()]
            (own,) = parse(codes.pop(line)).body
            assert ast.dump(own) == ast.dump(node), f"{path}:{line}"
            node.body = body
        assert not codes


def test_stdlib_splits_are_disjoint_and_complete():
    by_split = {split: [m["module"] for m in stdlib.modules(split)] for split in stdlib.SHARES}
    everything = [m["module"] for m in stdlib.modules()]
    assert sorted(m for modules in by_split.values() for m in modules) == sorted(everything)
    assert len(set(everything)) == len(everything) > 500
    assert "json.decoder" in everything
    assert "json" in everything
    assert not {"test.support", "encodings.cp1252", "idlelib.idle_test.test_run"} & {*everything}
    with pytest.raises(ValueError, match="expected a split among train, validation, test"):
        stdlib.modules("valid")


def test_unreadable_modules_are_counted(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text('def f():\n    """Do the thing."""\n    return 1\n')
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    (tmp_path / "not_utf8.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "no_such_codec.py").write_bytes(b"# -*- coding: klingon -*-\n")
    (tmp_path / "not_python.py").write_text("def (:\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "bad.py").write_text("def (:\n")
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    malformed = Malformed(max_malformed_share=0.8)
    assert [p["qualname"] for p in stdlib.documented_functions(malformed=malformed)] == ["f"]
    assert (malformed.seen, malformed.count) == (6, 4)
    assert {line.split(".py")[0].rsplit("/")[-1] for line in malformed.examples} == {
        "not_utf8", "no_such_codec", "not_python", "nul",
    }  # fmt: skip
    modules = Malformed(max_malformed_share=0.8)
    texts = {m["module"]: m["code"] for m in stdlib.modules(malformed=modules)}
    assert texts["latin"].endswith("x = 'é'\n")
    assert (modules.seen, modules.count) == (6, 2)
    with pytest.raises(TooManyMalformedError, match=r"max_malformed_share=0\.01"):
        list(stdlib.documented_functions())


def test_version_names_the_interpreter():
    assert stdlib.version() == f"cpython {sys.version.split()[0]}"


# JSON lines


def test_jsonl_counts_malformed_lines(tmp_path, caplog):
    path = write_jsonl(
        tmp_path / "a.jsonl.gz",
        [
            {"code": "x"}, b"", b'{"code": ', b"[1]", {"text": 1}, {"code": 2},
            b'{"code": "\xff"}', b'{"code": "\\ud800"}', {"code": "\U0001f389"},
        ],
    )  # fmt: skip
    malformed = Malformed(max_malformed_share=LENIENT)
    records = list(read_jsonl(path, fields={"code": str}, malformed=malformed))
    assert records == [
        {"code": "x", "place": f"{path}:1"},
        {"code": "\U0001f389", "place": f"{path}:9"},
    ]
    assert (malformed.seen, malformed.count) == (8, 6)
    assert malformed.examples[1] == f"{path}:4: expected a JSON object, got list"
    assert "expected field 'code' of type str, got nothing" in malformed.examples[2]
    assert f"{path}:7" in malformed.examples[4]
    assert f"{path}:3" in caplog.text


def test_too_many_malformed_records_stop_the_run(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"i": i} for i in range(98)] + [b"{", b"}"])
    with pytest.raises(
        TooManyMalformedError, match=r"2 of 100 .*max_malformed_share=0\.01"
    ) as error:
        list(read_jsonl(path))
    on_one_line = " ".join(str(error.value).split())  # as the command line shows it
    assert f"(char 2); {path}:100: " in on_one_line
    assert "(char 0). Repair or remove them, or raise max_malformed_share" in on_one_line
    assert len(list(read_jsonl(path, malformed=Malformed(max_malformed_share=0.02)))) == 98
    early = read_jsonl(write_jsonl(tmp_path / "b.jsonl", [b"{"] * 50), malformed=Malformed(grace=9))
    with pytest.raises(TooManyMalformedError, match="9 of 9"):
        list(early)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")  # at once, not at the first record
    path = write_jsonl(tmp_path / "a.jsonl.gz", [{"i": random.random()} for i in range(5000)])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is damaged after line"):
        list(read_jsonl(path))


# CodeSearchNet


def record(**changes):
    return {
        "repo": "o/r",
        "func_name": "f",
        "code": 'def f(x):\n    """Add one to x.\n\n    More.\n    """\n    return x + 1',
        "docstring": "Add one to x.\n\nMore.",
        "code_tokens": ["def", "f", "(", "x", ")", ":"],
        "docstring_tokens": ["Add", "one", "to", "x", "."],
        "url": "u",
    } | changes


def test_codesearchnet_in_both_layouts(tmp_path):
    write_jsonl(tmp_path / "python/final/jsonl/valid/python_valid_0.jsonl.gz", [record()])
    java = record(
        code="int f(int x) { return x + 1; }",
        docstring="Add one\n to {@code x}.\n @param x a number\n @return x + 1",
    )
    write_jsonl(tmp_path / "java/valid.jsonl", [java])
    (pair,) = codesearchnet_pairs(tmp_path, "python", "validation")
    assert pair["text"] == "Add one to x."
    assert pair["code"] == "def f(x):\n    return x + 1"
    assert pair["repo"] == "o/r"
    assert pair["place"].endswith("python_valid_0.jsonl.gz:1")
    (pair,) = codesearchnet_pairs(tmp_path, "java", "validation")
    assert pair["text"] == "Add one to {@code x}."
    assert pair["code"] == "int f(int x) { return x + 1; }"
    with pytest.raises(FileNotFoundError, match=r"where: found no ruby/final/jsonl/train"):
        codesearchnet_pairs(tmp_path, "ruby", "train", setting="where")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        codesearchnet_pairs(tmp_path / "none", "ruby", "train")


def test_codesearchnet_fields_and_filter(tmp_path):
    python2 = 'def f(x):\n    """Print x to the screen."""\n    print x'
    records = [
        record(code=python2),
        record(code=None, function=None, original_string='def g():\n    "Doc"\n    return 2'),
        record(docstring=None),
        record(docstring="Too short"),
        record(docstring="See https://example.org for more."),
        record(docstring="这是一个很长的文档字符串" * 3),
        record(docstring="word " * 300),
        record(code=None),
        record(docstring=None, docstring_tokens=None),
    ]
    write_jsonl(tmp_path / "python/train.jsonl", records)
    malformed = Malformed(max_malformed_share=LENIENT)
    pairs = list(codesearchnet_pairs(tmp_path, "python", "train", malformed=malformed))
    assert [p["code"] for p in pairs] == [
        "def f ( x ) :",
        "def g():\n    return 2",
        "def f(x):\n    return x + 1",
    ]
    assert pairs[2]["text"] == "Add one to x ."
    assert (malformed.seen, malformed.count) == (9, 2)
    assert "python/train.jsonl:8: expected fields docstring and code" in malformed.examples[0]
    kept = PairFilter(min_words=1, max_words=500, min_ascii=0.0, drop_markup=False)
    malformed = Malformed(max_malformed_share=LENIENT)
    assert (
        len([*codesearchnet_pairs(
            tmp_path, "python", "train", pair_filter=kept, malformed=malformed
        )]) == 7
    )  # fmt: skip


# Parquet


def write_parquet(path, rows, **changes):
    table = pa.table(
        {
            "code": pa.array([r["code"] for r in rows], pa.binary()).cast(pa.string(), safe=False)
            if not any(isinstance(r["code"], bytes) for r in rows)
            else invalid_strings([r["code"] for r in rows]),
            "repo_name": [r["repo_name"] for r in rows],
            "path": ["p"] * len(rows),
            "language": [r["language"] for r in rows],
            "license": [r["license"] for r in rows],
            "size": [1] * len(rows),
        }
        | changes
    )
    pq.write_table(table, path, row_group_size=2)


def invalid_strings(values):
    """A string column whose bytes are not all UTF-8, as broken writers leave them."""
    data = [v.encode() if isinstance(v, str) else v for v in values]
    array = pa.array(data, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def row(code="x = 1", language="Python", license="mit", repo_name="o/r"):
    return {"code": code, "language": language, "license": license, "repo_name": repo_name}


def test_github_code_filters_language_licence_and_repository(tmp_path):
    rows = [
        row("a"),
        row("b", language="GO"),
        row("c", license="gpl-3.0"),
        row("d", license="apache-2.0"),
        row("e", repo_name="Owner/Excluded"),
        row(None),
        row(b"\xff"),
        row("h"),
    ]
    (tmp_path / "sub").mkdir()
    write_parquet(tmp_path / "sub" / "0.parquet", rows)
    (tmp_path / "repos.txt").write_text("# names\nowner/excluded\n\n")
    keep = GithubCodeFilter(excluded_repos=read_repo_list(tmp_path / "repos.txt"))
    malformed = Malformed(max_malformed_share=LENIENT)
    files = list(github_code_files(tmp_path, "python", keep=keep, malformed=malformed))
    assert [f["code"] for f in files] == ["a", "d", "h"]
    assert files[2]["place"].endswith("0.parquet:row 7")
    assert files[2]["repo_name"] == "o/r"
    assert (malformed.seen, malformed.count) == (5, 2)  # neither c nor e is kept
    assert "0.parquet:row 5: expected text in column 'code'" in malformed.examples[0]
    assert [f["code"] for f in github_code_files(tmp_path, "go")] == ["b"]
    everything = GithubCodeFilter(licenses=None)
    files = github_code_files(
        tmp_path, "python", keep=everything, malformed=Malformed(max_malformed_share=LENIENT)
    )
    assert [f["code"] for f in files] == ["a", "c", "d", "e", "h"]


def test_code_is_read_only_where_a_row_is_wanted(tmp_path, monkeypatch):
    """Six row groups of two rows; the code of Python is in the first and the last."""
    languages = ["Python", "GO", *["GO"] * 8, "Ruby", "python"]
    rows = [row(str(i), language) for i, language in enumerate(languages)]
    write_parquet(tmp_path / "0.parquet", rows)
    read = []
    own = pq.ParquetFile.iter_batches

    def iter_batches(file, *args, row_groups, **kwargs):
        read.extend(row_groups)
        return own(file, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    files = list(github_code_files(tmp_path, "python"))
    assert [(f["code"], f["place"].rsplit(" ")[-1]) for f in files] == [("0", "0"), ("11", "11")]
    assert read == [0, 5]
    monkeypatch.setattr(github_code, "_BATCH", 1)  # groups of more rows than a batch
    assert [f["code"] for f in github_code_files(tmp_path, "python")] == ["0", "11"]
    split = split_of("o/r", github_code.SHARES)
    (other,) = github_code.SHARES.keys() - {split}
    read.clear()
    assert list(github_code_files(tmp_path, "python", other)) == []
    assert read == []


def test_files_sorted_as_the_page_says_have_the_same_files(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "data.md"
    (recipe,) = re.findall(r"```python\n(from pathlib.*?)```", page.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "github-code").mkdir()
    rows = [row(str(i), language) for i, language in enumerate(["Python", "GO", "C"] * 4)]
    write_parquet(tmp_path / "github-code" / "0.parquet", rows)
    exec(recipe, {})
    for language in ("python", "go", "c"):
        before, after = (
            [f["code"] for f in github_code_files(tmp_path / folder, language)]
            for folder in ("github-code", "sorted")
        )
        assert before == after


def test_github_code_splits_by_repository(tmp_path):
    write_parquet(tmp_path / "0.parquet", [row(repo_name=f"o/r{i % 40}") for i in range(120)])
    shares = {"train": 0.7, "validation": 0.3}
    repos = {
        split: [f["repo_name"] for f in github_code_files(tmp_path, "python", split, shares=shares)]
        for split in shares
    }
    assert not set(repos["train"]) & set(repos["validation"])
    assert len(repos["train"]) + len(repos["validation"]) == 120
    assert len(repos["validation"]) > 0


def test_github_code_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: found no \*\.parquet"):
        github_code_files(tmp_path, "python")
    with pytest.raises(ValueError, match="expected a language among"):
        github_code_files(tmp_path, "Python")
    (tmp_path / "0.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"0\.parquet is not a readable Parquet file"):
        list(github_code_files(tmp_path, "python"))
    pq.write_table(pa.table({"code": ["x"]}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="missing: language, license, path, repo_name"):
        list(github_code_files(tmp_path, "python"))


# Source trees


def test_source_files(tmp_path):
    for name, data in {
        "a.py": b"x = 1\r\n", "lib/b.cc": b"int x;", "lib/c.h": b"int y;", "d.txt": b"no",
        ".git/e.py": b"no", "bad.go": b"\xff", "f.cs": "é".encode(),
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    malformed = Malformed(max_malformed_share=LENIENT)
    files = list(source_files(tmp_path, malformed=malformed))
    assert [(f["path"], f["language"], f["code"]) for f in files] == [
        ("a.py", "python", "x = 1\r\n"),
        ("f.cs", "csharp", "é"),
        ("lib/b.cc", "cpp", "int x;"),
        ("lib/c.h", "c", "int y;"),
    ]
    assert malformed.examples[0].startswith(str(tmp_path / "bad.go"))
    assert [f["path"] for f in source_files(tmp_path, ["cpp"])] == ["lib/b.cc"]
    splits = [s for s in ("train", "validation", "test") for _ in source_files(tmp_path, ["c"], s)]
    assert len(splits) == 1
    with pytest.raises(FileNotFoundError, match="found no files of php"):
        source_files(tmp_path, ["php"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        source_files(tmp_path / "none")


def test_files_that_one_may_not_read_are_counted(tmp_path, monkeypatch):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    read = Path.read_bytes

    def refuse(path):
        if path.name == "a.py":
            raise PermissionError("may not")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    malformed = Malformed(max_malformed_share=LENIENT)
    assert [f["path"] for f in source_files(tmp_path, malformed=malformed)] == ["b.py"]
    assert malformed.count == 1


def test_nine_languages_of_the_paper():
    assert len(LANGUAGES) == 9
    # The paper prints 37,274,876, which is the sum without Ruby.
    assert sum(language.files for language in LANGUAGES) == 37_274_876 + BY_KEY["ruby"].files
    assert sum(language.pairs for language in LANGUAGES) == 1_929_817
