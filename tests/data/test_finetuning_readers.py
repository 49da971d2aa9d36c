"""Readers of the published files of the benchmarks: literal files, and real ones where they are."""

import gzip
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codet5p_jax.data.corpora.finetuning import calculator
from codet5p_jax.data.corpora.finetuning.aligned import refinement, translation
from codet5p_jax.data.corpora.finetuning.completion import completion_files, completion_questions
from codet5p_jax.data.corpora.finetuning.concode import concode
from codet5p_jax.data.corpora.finetuning.labelled import clones, defects
from codet5p_jax.data.corpora.finetuning.math_programs import gsm8k, mathqa
from codet5p_jax.data.corpora.finetuning.programs import MBPP_IDS, human_eval, mbpp
from codet5p_jax.data.corpora.finetuning.retrieval import cosqa, cosqa_codebase, functions
from codet5p_jax.data.corpora.finetuning.summarization import summaries
from codet5p_jax.data.corpora.malformed import Malformed, TooManyMalformedError

DATA = Path(__file__).parents[2] / "../shared/data"


def real(*parts: str) -> Path:
    folder = DATA.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"no real files: {folder} does not exist")
    return folder


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def texts(examples, *names):
    return [tuple(example[name] for name in names) for example in examples]


def assert_malformed(read, place, reason):
    """The first bad record is an error that names its place; allowed, it is left out."""
    with pytest.raises(TooManyMalformedError, match=f"{re.escape(str(place))}: .*{reason}"):
        list(read())
    allowing = Malformed(max_malformed_share=1.0)
    left = list(read(malformed=allowing))
    assert allowing.count == 1
    return left


# Aligned lines


@pytest.mark.parametrize("end", ["", ".gz"])
def test_refinement(tmp_path, end):
    write(tmp_path / f"valid.buggy-fixed.buggy{end}", " int f ( ) { } \nvoid g ( )\n")
    write(tmp_path / f"valid.buggy-fixed.fixed{end}", "int f ( ) { return 1 ; }\nvoid g ( ) { }")
    assert texts(refinement(tmp_path, "validation"), "source", "target") == [
        ("int f ( ) { }", "int f ( ) { return 1 ; }"),
        ("void g ( )", "void g ( ) { }"),
    ]


def test_translation_goes_both_ways(tmp_path):
    write(tmp_path / "train.java-cs.txt.java", "int a ;\nint b ;\n")
    write(tmp_path / "train.java-cs.txt.cs", "int A ;\nint B ;\n")
    there = texts(translation(tmp_path, "train"), "source", "target")
    back = texts(translation(tmp_path, "train", source="cs"), "target", "source")
    assert there == back == [("int a ;", "int A ;"), ("int b ;", "int B ;")]
    with pytest.raises(ValueError, match="expected source to be 'java' or 'cs', got 'c'"):
        translation(tmp_path, "train", source="c")


@pytest.mark.parametrize(
    ("java", "cs", "message"),
    [
        ("a\nb\n", "A\n", r"\.java goes on after line 1, the last of"),
        ("a\n", "A\nB\n", r"\.cs goes"),
    ],
)
def test_files_of_unequal_length(tmp_path, java, cs, message):
    write(tmp_path / "test.java-cs.txt.java", java)
    write(tmp_path / "test.java-cs.txt.cs", cs)
    with pytest.raises(ValueError, match=message):
        list(translation(tmp_path, "test"))


def test_an_empty_line_is_malformed(tmp_path):
    source = write(tmp_path / "test.java-cs.txt.java", "a\nb\nc\n")
    write(tmp_path / "test.java-cs.txt.cs", "A\n\nC\n")
    read = lambda **more: translation(tmp_path, "test", **more)  # noqa: E731
    left = assert_malformed(read, f"{source}:2", "expected a target, got ''")
    assert texts(left, "source", "target") == [("a", "A"), ("c", "C")]


@given(st.lists(st.tuples(*[st.text("ab {}=;\u00e9", min_size=1)] * 2), min_size=1))
def test_aligned_lines_stay_aligned(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("aligned")
    pairs = [(one, other) for one, other in pairs if one.strip() and other.strip()]
    for side, end in enumerate(("buggy", "fixed")):
        write(folder / f"test.buggy-fixed.{end}", "".join(pair[side] + "\n" for pair in pairs))
    found = texts(refinement(folder, "test"), "source", "target")
    assert found == [(one.strip(), other.strip()) for one, other in pairs]


# JSON of two texts


def test_concode(tmp_path):
    row = {"nl": " adds concode_field_sep int x ", "code": "int f ( ) { }"}
    path = write(tmp_path / "dev.json", lines(row, {"nl": "adds", "code": ""}))
    left = assert_malformed(
        lambda **more: concode(tmp_path, "validation", **more), f"{path}:2", "expected a code"
    )
    assert texts(left, "source", "target") == [("adds concode_field_sep int x", "int f ( ) { }")]
    write(tmp_path / "test.json", lines({"nl": "adds", "code": ""}))
    assert texts(concode(tmp_path, "test"), "source", "target") == [("adds", "")]


def test_summaries(tmp_path):
    rows = [
        {"code_tokens": ["def", "f", "(", ")"], "docstring_tokens": ["Do", "\n", "it", "."]},
        {"function_tokens": ["g"], "docstring_tokens": ["Go"]},
        {"code_tokens": "def", "docstring_tokens": 7},
    ]
    path = write(tmp_path / "go/test.jsonl", lines(*rows))
    left = assert_malformed(
        lambda **more: summaries(tmp_path, "go", "test", **more),
        f"{path}:3",
        "expected field 'docstring_tokens' with a list of tokens, got int",
    )
    assert texts(left, "source", "target") == [("def f ( )", "Do it ."), ("g", "Go")]


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "go").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"finetune_dir: expected go/valid\.jsonl \(\.gz too"
    ):
        summaries(tmp_path, "go", "validation", setting="finetune_dir")
    with pytest.raises(
        ValueError, match="expected a split among train, validation, test, got 'dev'"
    ):
        summaries(tmp_path, "go", "dev")


# Retrieval


def test_functions(tmp_path):
    row = {"url": "u", "code_tokens": ["print", "'</s>'"], "docstring_tokens": ["the", "<pad>"]}
    write(tmp_path / "train.jsonl", lines(row, {**row, "function_tokens": ["Func", "arg_0"]}))
    write(tmp_path / "codebase.jsonl", lines({"url": "v", "function_tokens": ["g"]}))
    assert texts(functions(tmp_path, "train"), "text", "code", "url") == [
        ("the </pad>", "print '</ss>'", "u"),
        ("the </pad>", "Func arg_0", "u"),
    ]
    assert texts(functions(tmp_path, "codebase"), "text", "code", "url") == [("", "g", "v")]


def test_cosqa(tmp_path):
    row = {"doc": "sort  a list", "code_tokens": "def f ( )", "label": 1, "retrieval_idx": 4}
    rows = [row, {**row, "label": 0, "doc": "no"}]
    write(tmp_path / "cosqa-retrieval-train-19604.json", json.dumps(rows))
    names = ("text", "code", "retrieval_idx")
    matching = texts(cosqa(tmp_path, "train"), *names)
    assert matching == [("sort a list", "def f ( )", 4)]
    everything = texts(cosqa(tmp_path, "train", only_matching=False), *names)
    assert everything == [*matching, ("no", "def f ( )", 4)]
    write(tmp_path / "code_idx_map.txt", json.dumps({"def f():\n  pass": 4}))
    assert cosqa_codebase(tmp_path) == {4: "def f():\n  pass"}


# Completion


def test_completion(tmp_path):
    path = write(tmp_path / "train.txt", "<s> import os <EOL> x = 1 <EOL> </s>\n\nx = 1\n")
    left = assert_malformed(
        lambda **more: completion_files(tmp_path, "train", **more),
        f"{path}:3",
        "expected '<s> … </s>', got 'x = 1'",
    )
    assert texts(left, "code") == [("import os <EOL> x = 1 <EOL>",)]
    write(tmp_path / "test.json", lines({"id": 3, "input": "<s> import os <EOL> x", "gt": "= 1"}))
    assert texts(completion_questions(tmp_path), "prefix", "target", "id") == [
        ("import os <EOL> x", "= 1", 3)
    ]


# Programs


def problem(task_id, **more):
    return {
        "text": "Add.",
        "code": "def f(x): \r\n\treturn x\r\n",
        "task_id": task_id,
        "test_list": ["assert f(1) == 1"],
        **more,
    }


def test_mbpp(tmp_path):
    path = write(tmp_path / "mbpp.jsonl", lines(*map(problem, (10, 11, 601)), problem(12, text="")))
    left = assert_malformed(
        lambda **more: mbpp(tmp_path, "test", **more), f"{path}:4", "expected a text, got ''"
    )
    assert texts(left, "task_id", "source", "target") == [
        (11, "Add.\nassert f(1) == 1", "def f(x):\n\treturn x")
    ]


def test_human_eval(tmp_path):
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    path = write(tmp_path / "HumanEval.jsonl.gz", lines(dict.fromkeys(names, "x"), {"prompt": "x"}))
    left = assert_malformed(
        lambda **more: human_eval(tmp_path, **more), f"{path}:2", "expected field 'task_id'"
    )
    assert texts(left, *names) == [("x",) * 5]


# Mathematics


def test_mathqa(tmp_path):
    row = {"text": "# how many ? n0 = 2.0", "code": "n0 = 2.0\nanswer = n0", "answer": 2.0}
    for name in ("dev.jsonl", "test.json"):
        write(tmp_path / name, lines(row) if name.endswith("l") else json.dumps([row]))
    for split in ("validation", "test"):
        assert texts(mathqa(tmp_path, split), "source", "target", "answer") == [
            ("how many ? n0 = 2.0", "n0 = 2.0\nanswer = n0", 2.0)
        ]
    path = write(tmp_path / "train.jsonl", lines(row, {**row, "answer": "2"}))
    assert_malformed(
        lambda **more: mathqa(tmp_path, "train", **more), f"{path}:2", "expected field 'answer'"
    )


def test_gsm8k(tmp_path):
    rows = [
        {"question": "How many? ", "answer": "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>\n#### 72"},
        {"question": "And now?", "answer": "Who knows.\n#### 3"},
        {"question": "Given?", "answer": "So.\n#### 1,003", "code": "answer = 1003"},
    ]
    write(tmp_path / "train.jsonl", lines(*rows))
    path = write(tmp_path / "test.jsonl", lines(*rows, {"question": "?", "answer": "no"}))
    program = "n0 = 48\nn1 = 2\nt0 = n0 / n1\nanswer = n0 + t0"
    train = texts(gsm8k(tmp_path, "train", held_out=0.0), "source", "target", "answer")
    assert train == [("How many?", program, 72.0), ("Given?", "answer = 1003", 1003.0)]
    assert not list(gsm8k(tmp_path, "validation", held_out=0.0))
    left = assert_malformed(
        lambda **more: gsm8k(tmp_path, "test", **more), f"{path}:4", "'#### number', got 'no'"
    )
    assert texts(left, "target", "answer") == [
        (program, 72.0),
        ("", 3.0),
        ("answer = 1003", 1003.0),
    ]
    write(tmp_path / "dev.jsonl", lines(rows[0]))
    assert len(list(gsm8k(tmp_path, "validation"))) == 1
    assert len(list(gsm8k(tmp_path, "train"))) == 2


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("four\n#### 4", "no marks"),
        ("<<2+2=4>>\n#### 5", "the last result is"),
        ("<<2+2=5>>\n#### 5", "is 4.0, not 5"),
        ("<<2/0=5>>\n#### 5", "division by zero"),
        ("<<x+2=5>>\n#### 5", "is no arithmetic"),
        ("<<f(2)=5>>\n#### 5", "is no arithmetic"),
        ("<<2**9=512>>\n#### 512", "is no arithmetic"),
        ("<<2+=2>>\n#### 2", "invalid syntax"),
    ],
)
def test_solutions_that_are_no_programs(solution, reason):
    with pytest.raises(calculator.NotAProgramError, match=reason):
        calculator.program(solution)


_NUMBERS = st.integers(1, 1000)


@given(_NUMBERS, st.lists(st.tuples(st.sampled_from("+-*/"), _NUMBERS), min_size=1, max_size=6))
def test_a_program_computes_what_the_solution_does(first, steps):
    """A chain of marks, each beginning with the result of the one before."""
    value, marks = float(first), ""
    for sign, number in steps:
        expression = f"{value!r}{sign}{number}" if value >= 0 else f"0{value!r}{sign}{number}"
        value = eval(expression)
        marks += f"<<{expression}={value!r}>>"
        if "e" in marks:
            return  # no solution writes numbers so
    scope: dict[str, float] = {}
    exec(calculator.program(f"{marks}\n#### {value!r}"), {}, scope)
    assert scope["answer"] == pytest.approx(value, rel=1e-9)


# Labels


def test_defects_of_either_form(tmp_path):
    rows = [{"func": f"int f{i}()\n{{ }}", "target": i % 2, "project": "p"} for i in range(3)]
    write(tmp_path / "raw/function.json", json.dumps(rows))
    path = write(tmp_path / "raw/train.txt", "2\n1\n3\n")
    write(tmp_path / "done/train.jsonl", lines({**rows[2], "idx": 2}, {**rows[1], "idx": 1}))
    left = assert_malformed(
        lambda **more: defects(tmp_path / "raw", "train", **more),
        f"{path}:3",
        "expected a number below 3, a row of .*function.json, got '3'",
    )
    names = ("code", "label", "idx")
    assert texts(left, *names) == [("int f2() { }", 0, 2), ("int f1() { }", 1, 1)]
    assert texts(defects(tmp_path / "done", "train"), *names) == texts(left, *names)
    with pytest.raises(FileNotFoundError, match=r"expected train\.jsonl or function\.json"):
        defects(tmp_path, "train")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1\t3\t1", r"expected an idx of .*data\.jsonl, got '3'"),
        ("1\t2", r"expected two idx and a label, a tab apart, got '1\\t2'"),
        ("1\t2\t2", "expected a label of 0 or 1, got 2"),
        ("1\t2\tx", "expected a label of 0 or 1, got 'x'"),
    ],
)
def test_clones(tmp_path, line, reason):
    write(tmp_path / "data.jsonl", lines(*({"func": f"f{i} (\n)", "idx": str(i)} for i in (1, 2))))
    path = write(tmp_path / "valid.txt", f"1\t2\t0\n2\t2\t1\n{line}\n")
    left = assert_malformed(
        lambda **more: clones(tmp_path, "validation", **more), f"{path}:3", reason
    )
    assert texts(left, "code", "other", "label", "idx", "other_idx") == [
        ("f1 ( )", "f2 ( )", 0, "1", "2"),
        ("f2 ( )", "f2 ( )", 1, "2", "2"),
    ]


# Real files: their known numbers of records, and what each must satisfy


def test_real_translation_and_refinement():
    numbers = {"train": 10_295, "validation": 499, "test": 1_000}
    for split, number in numbers.items():
        assert len(list(translation(real("code_translation"), split))) == number
    for split in ("validation", "test"):
        assert len(list(refinement(real("code_refinement", "small"), split))) == 5_835


def test_real_concode():
    examples = list(concode(real("concode"), "validation"))
    assert len(examples) == 2_000
    assert all("concode_" in example["source"] for example in examples)


def test_real_cosqa():
    folder = real("cosqa")
    pairs, candidates = list(cosqa(folder, "validation")), cosqa_codebase(folder)
    assert (len(pairs), sorted(candidates)) == (500, list(range(6_267)))
    assert all(pair["retrieval_idx"] in candidates for pair in pairs)


def test_real_completion(tmp_path):
    with gzip.open(real("line_completion") / "javaCorpus_1000.answers.json.gz") as file:
        (tmp_path / "test.json").write_bytes(file.read())
    questions = list(completion_questions(tmp_path))
    assert len(questions) == 1_000
    assert not any(question["prefix"].startswith("<s>") for question in questions)
    # The same files as lines to learn from.
    files = "".join(f"<s> {q['prefix']} {q['target']} </s>\n" for q in questions)
    write(tmp_path / "train.txt", files)
    again = list(completion_files(tmp_path, "train"))
    assert [f["code"] for f in again] == [f"{q['prefix']} {q['target']}" for q in questions]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_real_programs():
    assert len(list(human_eval(real("humaneval")))) == 164
    sizes = {split: len(list(mbpp(real("mbpp"), split))) for split in MBPP_IDS}
    assert sizes == {"prompt": 10, "test": 500, "validation": 90, "train": 374}
    for example in mbpp(real("mbpp"), "train"):
        compile(example["target"], "mbpp", "exec")


def test_real_gsm8k():
    """Programs run and give the answer."""
    examples = list(gsm8k(real("gsm8k"), "train", held_out=0.0))
    assert len(examples) == 7_001  # of 7,473; the paper has 5,861
    for example in examples[::7]:
        scope: dict[str, float] = {}
        exec(example["target"], {}, scope)
        assert math.isclose(scope["answer"], example["answer"], rel_tol=1e-6)


def test_real_mathqa(tmp_path):
    """Records of mxeval, back in the form that trax gives."""
    with gzip.open(real("mathqa_python") / "mathqa-test-python.part.jsonl.gz") as file:
        theirs = [json.loads(line) for line in file]
    rows = [
        {
            "text": "# " + record["prompt"].split('"""')[1].strip(),
            "code": re.sub(r"\s*return answer\s*$", "", record["canonical_solution"]),
            "answer": 0.0,
        }
        for record in theirs
    ]
    write(tmp_path / "test.jsonl", lines(*rows))
    examples = list(mathqa(tmp_path, "test"))
    assert len(examples) == 942
    assert all(
        example["source"].startswith(r["description"])
        for example, r in zip(examples, theirs, strict=True)
    )


def test_real_defects_and_clones(tmp_path):
    with gzip.open(real("defect") / "devign_test.part.jsonl.gz") as file:
        (tmp_path / "test.jsonl").write_bytes(file.read())
    labels = [example["label"] for example in defects(tmp_path, "test")]
    assert (len(labels), set(labels)) == (1_600, {0, 1})
    with gzip.open(real("clone_bigclonebench") / "test_pairs.part.jsonl.gz") as file:
        pairs = [json.loads(line) for line in file]
    code = {p[f"id{i}"]: p[f"code{i}"] for p in pairs for i in (1, 2)}
    write(tmp_path / "data.jsonl", lines(*({"idx": i, "func": f} for i, f in code.items())))
    listed = (f"{p['id1']}\t{p['id2']}\t{p['label']}\n" for p in pairs)
    write(tmp_path / "test.txt", "".join(listed))
    assert len(list(clones(tmp_path, "test"))) == 1_500


def test_real_summaries(tmp_path):
    with gzip.open(real("summarization") / "python_docstring_valid.jsonl.gz") as file:
        records = [json.loads(line) for line in file]
    rows = [{"code_tokens": r["code"], "docstring_tokens": r["docstring"]} for r in records]
    rows = [row for row in rows if row["docstring_tokens"].strip()]  # CodeXGLUE has none without
    write(tmp_path / "python/valid.jsonl", lines(*rows))
    found = list(summaries(tmp_path, "python", "validation"))
    assert len(found) == len(rows) > 1_990
    assert not any("\n" in e["source"] + e["target"] for e in found)
