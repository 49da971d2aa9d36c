"""`codet5p evaluate --benchmark`: every benchmark from published records to a table."""

import fcntl
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.corpora.finetuning import retrieved
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.evaluation import humaneval_x
from codet5p_jax.evaluation.benchmarks.programs import ProgramBenchmark
from codet5p_jax.evaluation.benchmarks.registry import BENCHMARKS
from codet5p_jax.evaluation.metrics import code_bleu
from codet5p_jax.evaluation.sandbox import processes, system_calls
from codet5p_jax.evaluation.sandbox.pool import LayerMissing, Sandbox
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import flatten, init_params
from codet5p_jax.training.model_dir import ModelDir, config_to_json
from codet5p_jax.training.stored_weights import load_params, write_weights

JAVA = ("int f ( int x ) { return x + 1 ; }", "void g ( ) { h ( ) ; }", "boolean ok ( ) { }")
CS = ("int F(int x){return x + 1;}", "void G(){H();}", "bool Ok(){}")
TEXTS = ("adds one", "calls h", "says that it is fine")
PYTHON = {
    "prompt": 'def f(x):\n    """Adds one."""\n',
    "entry_point": "f",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
X = {  # language -> fields of the problem, a solution
    "python": (
        {"prompt": PYTHON["prompt"], "test": "def check(f):\n    assert f(1) == 2\n\ncheck(f)"},
        "    return x + 1\n",
    ),
    "cpp": (
        {
            "prompt": "#include<stdio.h>\nint f(int x){\n",
            "test": "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (f(1) == 2);\n}\n",
        },
        "    return x + 1;\n}\n",
    ),
    "java": (
        {
            "prompt": "class Solution {\n    public int f(int x) {\n",
            "test": "public class Main {\n    public static void main(String[] a) {\n"
            "        if (new Solution().f(1) != 2) throw new AssertionError();\n    }\n}\n",
        },
        "        return x + 1;\n    }\n}",
    ),
    "js": (
        {
            "prompt": "const f = (x) => {\n",
            "test": "const testF = () => { console.assert(f(1) === 2) }\n\ntestF()\n",
        },
        "  return x + 1\n}\n\n",
    ),
    "rust": (
        {
            "prompt": "/* Adds one. */\n",
            "declaration": "use rand::Rng;\nfn f(x:i32) -> i32{\n",
            "test": "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n"
            "    fn test_f() {\n        assert!(f(1) == 2);\n    }\n}\n",
        },
        "    return x + 1;\n}\n",
    ),
}
X_NAMES = {"python": "Python", "cpp": "CPP", "java": "Java", "js": "JavaScript", "rust": "Rust"}
GREEDY = ("--beams=1", "--samples=1", "--temperature=0", "--max_tokens=4", "--batch_size=2")


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def published_files():
    """Name -> text, in the forms of docs/finetuning.md."""
    files = {}
    tokens = [
        {"code_tokens": code.split(), "docstring_tokens": text.split(), "url": f"u{i}", "idx": i}
        for i, (code, text) in enumerate(zip(JAVA, TEXTS, strict=True))
    ]
    for language in ("ruby", "javascript", "go", "python", "java", "php"):
        files[f"summarization/{language}/test.jsonl"] = jsonl(*tokens)
        if language in retrieved.LANGUAGES:
            files[f"summarization/{language}/train.jsonl"] = jsonl(*tokens)
            files[f"retrieve_generate/{language}/test.jsonl"] = jsonl(
                *(
                    {
                        **{"question": text, "answers": code},
                        "ctxs": [{"text": t} for t in (*JAVA, *CS, *("abcdefgh"))],
                    }
                    for code, text in zip(JAVA, TEXTS, strict=True)
                )
            )
        files[f"csn_retrieval/{language}/test.jsonl"] = jsonl(*tokens[:2])
        files[f"csn_retrieval/{language}/codebase.jsonl"] = jsonl(*tokens)
    files["advtest/test.jsonl"] = jsonl(*tokens)
    cosqa = [
        {"idx": f"q{i}", "doc": text, "code_tokens": JAVA[i], "label": 1, "retrieval_idx": i}
        for i, text in enumerate(TEXTS)
    ]
    files["cosqa/cosqa-retrieval-test-500.json"] = json.dumps(cosqa)
    files["cosqa/code_idx_map.txt"] = json.dumps({code: i for i, code in enumerate(JAVA)})
    for size in ("small", "medium"):
        stem = f"code_refinement/{size}/test.buggy-fixed"
        files[f"{stem}.buggy"] = "\n".join(JAVA) + "\n"
        files[f"{stem}.fixed"] = "\n".join(reversed(JAVA)) + "\n"
    files["code_translation/test.java-cs.txt.java"] = "\n".join(JAVA) + "\n"
    files["code_translation/test.java-cs.txt.cs"] = "\n".join(CS) + "\n"
    methods = [{"nl": text, "code": code} for text, code in zip(TEXTS, JAVA, strict=True)]
    files["concode/dev.json"] = jsonl(*methods)
    files["concode/test_no_answers.json"] = jsonl(*({**m, "code": ""} for m in methods))
    lines = [
        {"id": 7, "input": "<s> import os <EOL> x = os .", "gt": "path"},
        {"id": 3, "input": "<s> def f ( x ) : <EOL> return", "gt": "<NUM_LIT:1> + x"},
    ]
    for corpus in ("py150", "javaCorpus"):
        files[f"line_completion/{corpus}/test.json"] = jsonl(*lines)
    functions = [{"func": code, "target": i % 2, "idx": 3 * i} for i, code in enumerate(JAVA)]
    files["defect/test.jsonl"] = jsonl(*functions)
    files["clone_bigclonebench/data.jsonl"] = jsonl(*functions)
    files["clone_bigclonebench/test.txt"] = "0\t3\t1\n3\t6\t0\n0\t6\t0\n"
    problems = [{"task_id": f"HumanEval/{i}", **PYTHON} for i in range(2)]
    files["humaneval/HumanEval.jsonl"] = jsonl(*problems)
    for language, (problem, solution) in X.items():
        files[f"humaneval_x/humaneval_{language}.jsonl"] = jsonl(
            {
                "task_id": f"{X_NAMES[language]}/0",
                **{"canonical_solution": solution, "declaration": problem["prompt"], **problem},
            }
        )
    files["mbpp/mbpp.jsonl"] = jsonl(
        *(
            {
                **{"text": "Write f.", "code": "def f(x):\n    return x", "task_id": task},
                **{"test_list": ["assert f(1) == 1"], "test_setup_code": "y = 2"},
            }
            for task in (10, 11, 12)
        )
    )
    files["mbpp/mbpp_release_v1.jsonl"] = jsonl({"task_id": "MBPP/1", **PYTHON})
    files["mathqa_python/mathqa-test-python_v1.jsonl"] = jsonl({"task_id": "MathQA/0", **PYTHON})
    files["mathqa_python/test.jsonl"] = jsonl(
        {"text": "# what is 2 + 3 ? n0 = 2.0 n1 = 3.0", "code": "answer = 2.0 + 3.0", "answer": 5.0}
    )
    files["gsm8k/test.jsonl"] = jsonl(
        {"question": "How many are 48 and 24?", "answer": "48+24=<<48+24=72>>72\n#### 72"}
    )
    return files


def jsonl_rows(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, text in published_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Model directories with random weights: with every head, and with that of pairs."""
    return {pairs: random_model(tmp_path_factory.mktemp("model"), pairs) for pairs in (False, True)}


def random_model(folder, pairs):
    """A model directory with every head; that of pairs, or else of functions."""
    directory = ModelDir(folder)
    tokenizer = train_tokenizer([*JAVA, *TEXTS], 420, directory.tokenizer)
    config = t5(
        **dict(vocab_size=420, d_model=16, num_heads=2, head_dim=8, d_ff=32, embed_dim=8),
        **dict(num_encoder_layers=1, num_decoder_layers=1, matching_head=True, classes=2),
        **dict(classify_pairs=pairs, tie_embeddings=False),
    )
    params = init_params(CodeT5p(config).specs, jax.random.key(0))
    # Text, rather than special tokens.
    first, last = 5, tokenizer.special.sentinels[-1]
    params["lm_head"] = params["lm_head"].at[:first].mul(0.0).at[last:].mul(0.0)
    directory.config.write_text(json.dumps(config_to_json(config)))
    directory.checkpoints.mkdir()
    arrays = ((path, np.asarray(array)) for path, array in flatten(params))
    meta = {"step": 0, "model": config_to_json(config)}
    write_weights(directory.checkpoints / "0", arrays, meta)
    return directory.root


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """As at most users', and compiled sooner than for eight."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: first)
        yield patch


@pytest.fixture(scope="module")
def sandbox():
    try:
        Sandbox().close()
    except LayerMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def evaluate(data, tmp_path, capsys):
    """Runs the command; returns its folder, or what it says of a mistake."""

    def run(*options, fails=0, out="out"):
        given = [f"--finetune_dir={data}", f"--out={tmp_path / out}"]
        code = main(["evaluate", *given, *map(str, options)])
        said = capsys.readouterr().err
        assert code == fails, said
        return said if fails else tmp_path / out

    return run


def scores(folder, name):
    return json.loads((folder / name / "scores.json").read_text())


def needs(request, name):
    """Skips a benchmark that cannot be scored here."""
    if group_of(name) == "programs":
        request.getfixturevalue("sandbox")
    if not runnable(name):
        pytest.skip("needs a toolchain, or rapidfuzz")


def group_of(name):
    """Benchmarks that one command takes a model through."""
    if isinstance(BENCHMARKS[name], ProgramBenchmark):
        return "programs"
    return "pairs" if name == "clone" else "others"


def runnable(name):
    """Whether what scores it is there."""
    if name.startswith("humaneval_x_"):
        return X_NAMES[name.removeprefix("humaneval_x_")] not in humaneval_x.missing_tools()
    return not name.startswith("complete_") or importlib.util.find_spec("rapidfuzz") is not None


@pytest.fixture(scope="module")
def runs(data, checkpoints, tmp_path_factory):
    """Group of benchmarks -> the folder of a run of them."""

    @cache
    def run(group):
        out = tmp_path_factory.mktemp(group)
        names = [name for name in BENCHMARKS if group_of(name) == group and runnable(name)]
        command = [
            *("evaluate", f"--benchmark={','.join(names)}", f"--finetune_dir={data}"),
            *(f"--checkpoint={checkpoints[group == 'pairs']}", f"--out={out}", *GREEDY),
        ]
        assert main(command) == 0
        return out

    return run


@pytest.mark.parametrize("name", BENCHMARKS)
def test_from_records_to_a_table(name, runs, evaluate, request):
    """And its own predictions, scored without the model, have the same figures."""
    needs(request, name)
    out = runs(group_of(name))
    found = scores(out, name)
    assert found["problems"] == found["of"] == found["predictions"] > 0
    wanted = {metric.name for metric in BENCHMARKS[name].metrics}
    if "code_bleu" in wanted and code_bleu.missing(BENCHMARKS[name].language):
        wanted -= {"code_bleu"}
    programs = group_of(name) == "programs"  # one sample: no pass@10
    assert found["scores"].keys() == ({"pass@1"} if programs else wanted)
    assert np.isfinite(list(found["scores"].values())).all()
    for table in ("table.md", "table.html"):
        assert name in (out / table).read_text()
    if not programs:
        own = out / name / "predictions.jsonl"
        again = evaluate(f"--benchmark={name}", f"--predictions={own}", out="again")
        assert scores(again, name)["scores"] == found["scores"]


def test_several_at_once_with_a_limit(evaluate, checkpoints):
    names = "defect,retrieve_cosqa,summarize_go"
    options = (f"--benchmark={names}", f"--checkpoint={checkpoints[False]}", *GREEDY)
    out = evaluate(*options, "--limit=2", "--size=770M")
    found = json.loads((out / "scores.json").read_text())
    assert sorted(found) == sorted(names.split(","))
    assert {(one["problems"], one["of"]) for one in found.values()} == {(2, 3)}
    lines = (out / "table.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith("| summarize_go |"))
    assert row.endswith("| 19.64 (770M, fine-tuned) | 2 of 3 |")
    assert "published with 5 beams, decoded here with 1" in (out / "table.md").read_text()


def test_many_devices_predict_what_one_does(evaluate, checkpoints, one_device):
    names = ("translate_java_cs", "defect", "retrieve_cosqa")
    options = (
        *(f"--benchmark={','.join(names)}", f"--checkpoint={checkpoints[False]}", *GREEDY),
        "--rerank=2",
    )
    one = evaluate(*options, "--batch_size=8")
    with one_device.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices())
        many = evaluate(*options, "--batch_size=8", out="many")
        assert "--batch_size: axis 'batch' of size 3" in evaluate(
            *options, "--batch_size=3", out="odd", fails=3
        )
    for name in names:
        file = f"{name}/predictions.jsonl"
        assert (one / file).read_text() == (many / file).read_text()


def test_positions_are_counted_before_predicting(evaluate, checkpoints, tmp_path):
    folder = ModelDir(shutil.copytree(checkpoints[False], tmp_path / "few"))
    settings = json.loads(folder.config.read_text())
    for tower, positions in (("encoder", 60), ("decoder", 10)):
        settings[tower] |= {"position": "learned", "max_positions": positions}
    options = (f"--checkpoint={folder.root}", "--max_tokens=4")

    def told(name, **changes):
        folder.config.write_text(json.dumps({**settings, **changes}))
        said = evaluate(f"--benchmark={name}", *options, fails=3)
        assert not (tmp_path / "out").exists()
        return said

    assert "texts of up to 360 tokens are read, and the network's encoder has 60" in told(
        "retrieve_cosqa"
    )
    assert "texts of up to 512 tokens are read" in told("defect")
    said = told("translate_java_cs", prompt_to_decoder=True)
    assert "the network's decoder has 10 positions, too few to read " in said
    settings["encoder"]["max_positions"] = 5
    assert "the network's encoder has 5 positions" in told("translate_java_cs")


def test_reranked_by_the_matching_head(evaluate, checkpoints):
    options = ("--benchmark=retrieve_cosqa", f"--checkpoint={checkpoints[False]}", *GREEDY)
    plain, reranked = evaluate(*options), evaluate(*options, "--rerank=2", out="reranked")
    rankings = [
        jsonl_rows((out / "retrieve_cosqa" / "predictions.jsonl").read_text())
        for out in (plain, reranked)
    ]
    for target, (before, after) in enumerate(zip(*rankings, strict=True)):
        assert before["rank"] == before["answers"].index(target) + 1
        assert after["rank"] == after["answers"].index(target) + 1
        assert sorted(before["answers"][:2]) == sorted(after["answers"][:2])
        assert before["answers"][2] == after["answers"][2]
    assert any(one["answers"] != other["answers"] for one, other in zip(*rankings, strict=True))


def test_the_nearest_function_is_the_prediction(evaluate, checkpoints):
    """But for the one to write, which is in the code base here."""
    out = evaluate("--benchmark=nearest_java", f"--checkpoint={checkpoints[False]}", *GREEDY)
    found = jsonl_rows((out / "nearest_java" / "predictions.jsonl").read_text())
    assert [row["id"] for row in found] == ["0", "1", "2"]
    for row, own in zip(found, JAVA, strict=True):
        assert row["prediction"] in {*JAVA} - {own}
    assert scores(out, "nearest_java")["scores"]["exact_match"] == 0


def test_codebleu_where_it_is_not_installed(evaluate, tmp_path, monkeypatch):
    """The table says what is missing; all else is there."""
    monkeypatch.setattr(code_bleu, "missing", lambda language: True)
    (tmp_path / "found").write_text("".join(f"{code}\n" for code in JAVA))
    out = evaluate("--benchmark=concode", f"--predictions={tmp_path / 'found'}")
    assert scores(out, "concode")["scores"] == {"bleu": 100, "exact_match": 100}
    for table in ("table.md", "table.html"):
        assert "CodeBLEU needs `pip install codet5p_jax[metrics]`" in ((out / table).read_text())


@pytest.mark.parametrize(
    ("name", "lines", "language"),
    [("concode", JAVA, "java"), ("translate_java_cs", CS, "c_sharp"), ("generate_java", JAVA, 0)],
)
def test_codebleu_is_that_of_the_language(name, lines, language, evaluate, tmp_path, monkeypatch):
    if code_bleu.missing(language or "java"):
        pytest.skip("needs codebleu")
    changed = [line.replace("x", "y") for line in (*lines[:2], "int g() {}")]
    (tmp_path / "found").write_text("".join(f"{line}\n" for line in changed))
    out = evaluate(f"--benchmark={name}", f"--predictions={tmp_path / 'found'}")
    found = scores(out, name)["scores"]["code_bleu"]
    assert found == code_bleu.codebleu(lines, changed, language or "java").score
    assert 0.3 < found < 1
    (row,) = (line for line in (out / "table.md").read_text().splitlines() if "code_bleu" in line)
    assert f"| {100 * found:.2f} |" in row
    assert ("20.54 (220M, generation only)" in row) == (name == "generate_java")


def test_goes_on_where_it_stopped(evaluate, checkpoints):
    """After a half-written line; what was there is not asked again."""
    options = ("--benchmark=translate_java_cs", f"--checkpoint={checkpoints[False]}", *GREEDY)
    out = evaluate(*options, "--limit=2")
    file = out / "translate_java_cs" / "predictions.jsonl"
    first, second = file.read_text().splitlines()
    kept = json.dumps({**json.loads(first), "prediction": "kept"})
    file.write_text(f"{kept}\n{second[:-3]}")
    evaluate(*options)
    lines = file.read_text().splitlines()
    assert lines[0] == kept
    assert second in lines[1:]
    assert {json.loads(line)["id"] for line in lines} == {"0", "1", "2"}
    assert scores(out, "translate_java_cs")["problems"] == 3
    before = file.read_bytes()
    evaluate(*options)
    assert file.read_bytes() == before


def test_samples_drawn_after_an_interruption_are_others(evaluate, checkpoints, sandbox):
    options = ("--benchmark=humaneval", f"--checkpoint={checkpoints[False]}", "--limit=1")
    drawn = ("--samples=6", "--temperature=1", "--max_tokens=8", "--batch_size=2")
    out = evaluate(*options, *drawn)
    file = out / "humaneval" / "predictions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len({*lines}) == 6
    file.write_text("".join(lines[:2]))
    evaluate(*options, *drawn)
    again = file.read_text().splitlines(keepends=True)
    assert again[:2] == lines[:2]
    assert len({*again}) == 6
    results = jsonl_rows((out / "humaneval" / "results.jsonl").read_text())
    judged = [result["completion"] for result in results]
    assert len({*judged}) == len(judged) == len({*lines, *again})
    evaluate(*options, "--samples=7", *drawn[1:])
    assert file.read_text().startswith("".join(again))
    assert scores(out, "humaneval")["predictions"] == 7


def test_programs_ranked_by_tests_that_the_model_writes(evaluate, checkpoints, sandbox):
    """What a random model writes is no test; then, two of three programs agree on two of three."""
    command = ("--benchmark=humaneval", f"--checkpoint={checkpoints[False]}", "--code_t=2")
    options = ("--samples=3", "--temperature=1", "--max_tokens=4", "--batch_size=2", "--limit=1")
    out = evaluate(*command, *options)
    assert scores(out, "humaneval")["scores"] == {"pass@1": 0, "code_t_pass@1": 0}
    tests = out / "humaneval" / "tests.jsonl"
    assert len(jsonl_rows(tests.read_text())) == 2

    def put(file, *texts):
        file.write_text(jsonl(*({"task_id": "HumanEval/0", "completion": t} for t in texts)))

    before = (out / "humaneval" / "results.jsonl").read_text()
    put(tests, "f(1) == 2\n    assert f(2) == 3\n", "f(1) == 1")
    programs = ("    return x\n", "    return x + 1\n", "    return 1 + x\n")
    put(out / "humaneval" / "predictions.jsonl", *programs)
    evaluate(*command, *options)
    found = scores(out, "humaneval")["scores"]
    assert found == {"pass@1": pytest.approx(2 / 3), "code_t_pass@1": 1}
    assert (out / "humaneval" / "results.jsonl").read_text().startswith(before)
    # More texts than are asked for, as of an earlier command: the wrong program has these.
    put(
        tests,
        "f(1) == 2\n    assert f(2) == 3\n",
        "f(1) == 1",
        *(f"f({n}) == {n}" for n in range(9)),
    )
    evaluate(*command, *options)
    assert scores(out, "humaneval")["scores"] == found


def test_programs_and_tests_are_not_drawn_with_one_key(evaluate, checkpoints, sandbox, monkeypatch):
    keys, predict = [], ProgramBenchmark.predict

    def spy(*arguments):
        keys.append(jax.random.key_data(arguments[-1]).tolist())
        return predict(*arguments)

    monkeypatch.setattr(ProgramBenchmark, "predict", spy)
    options = ("--benchmark=humaneval", f"--checkpoint={checkpoints[False]}", "--code_t=1")
    evaluate(*options, "--samples=1", "--max_tokens=2", "--batch_size=2", "--limit=1")
    programs, tests = keys
    assert programs != tests


SOLUTIONS = {  # predictions, one right of each two
    "humaneval": [
        {"task_id": f"HumanEval/{task}", "completion": text}
        for task, text in ((0, PYTHON["canonical_solution"]), (0, "    pass"), (1, ""), (1, "("))
    ],
    "mbpp": [
        {"task_id": task, "completion": f"def f(x):\n    return {text}"}
        for task, text in ((11, "x"), (12, "y"))
    ],
    "mathqa_python": [{"task_id": "0", "completion": f"answer = {n}"} for n in (5, 6)],
    "gsm8k_python": [
        {"task_id": "0", "completion": f"t0 = 48\nanswer = t0 + {n}"} for n in (23, 24)
    ],
    **{
        f"humaneval_x_{language}": [
            {"task_id": f"{X_NAMES[language]}/0", "completion": text}
            for text in (solution, solution.replace("1", "2"))
        ]
        for language, (_, solution) in X.items()
    },
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_programs_pass_if_they_are_right(name, evaluate, tmp_path, request):
    needs(request, name)
    (tmp_path / "found").write_text(jsonl(*SOLUTIONS[name]))
    out = evaluate(f"--benchmark={name}", f"--predictions={tmp_path / 'found'}")
    right = {"humaneval": 0.25}.get(name, 0.5)
    assert scores(out, name)["scores"] == {"pass@1": right}
    results = jsonl_rows((out / name / "results.jsonl").read_text())
    assert [result["completion"] for result in results] == [
        prediction["completion"] for prediction in SOLUTIONS[name]
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_verdicts_are_kept_when_it_is_ended_among_endless_programs(number, data, tmp_path, sandbox):
    texts = [PYTHON["canonical_solution"], *(f"    while True: {i}\n" for i in range(9))]
    found, out = tmp_path / "found", tmp_path / "out"
    found.write_text(jsonl(*({"task_id": "HumanEval/0", "completion": t} for t in texts)))
    options = (f"--predictions={found}", f"--finetune_dir={data}", f"--out={out}", "--limit=1")
    command = [sys.executable, "-m", "codet5p_jax.cli.main", "evaluate", "--benchmark=humaneval"]
    child = subprocess.Popen([*command, *options], stderr=subprocess.PIPE)
    results = out / "humaneval" / "results.jsonl"
    wait_for(lambda: results.exists() and results.read_text().endswith("\n"))
    below = processes.descendants(child.pid)[1:]
    assert len(below) > 2, "programs run"
    child.send_signal(number)
    child.communicate(timeout=9)
    assert child.returncode == (128 + number if number == signal.SIGTERM else -number)
    (kept,) = jsonl_rows(results.read_text())
    assert (kept["completion"], kept["passed"]) == (texts[0], True)
    wait_for(lambda: not any(Path("/proc", str(process)).exists() for process in below))


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_weaker_sandbox_has_to_be_allowed(evaluate, tmp_path, monkeypatch, sandbox):
    def missing():
        raise ImportError("no libseccomp")

    monkeypatch.setattr(system_calls, "compiled", missing)
    (tmp_path / "found").write_text(jsonl(*SOLUTIONS["mbpp"]))
    options = ("--benchmark=mbpp", f"--predictions={tmp_path / 'found'}")
    said = evaluate(*options, fails=3)
    assert "no system calls" in said
    assert "give --allow_weaker_sandbox" in said
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="a weaker sandbox: no system calls"):
        out = evaluate(*options, "--allow_weaker_sandbox")
    assert scores(out, "mbpp")["scores"] == {"pass@1": 0.5}


MALFORMED = {  # benchmark, text of the file -> what is said
    ("defect", "0\t1\n3\t2\n"): ":2: expected idx<tab>label of a problem of defect, the label 0",
    ("defect", "0\t1\n4\t1\n"): ":2: expected idx<tab>label",
    ("defect", "0\t1\n3\t1\n"): "expected predictions of 3 problems of defect, 1 have none, '6'",
    ("clone", "0\t3\n"): ":1: expected idx<tab>other_idx<tab>label",
    ("refine_small", "a\nb\nc\nd\n"): ":4: expected a text of one of the 3 problems",
    ("summarize_go", "0\ta\n1\tb\nthird\n"): ":3: expected number<tab>text of one of the 3",
    ("summarize_go", '{"id": "0"}\n'): ":1: expected an object with 'prediction' of type str",
    ("retrieve_cosqa", '{"url": "q0", "answers": [1]\n'): ":1: expected a JSON object",
    ("retrieve_cosqa", '{"url": "q0", "answers": 1}\n'): "'answers' of type list",
    ("retrieve_cosqa", '{"url": "q0", "answers": [], "rank": 0}\n'): "rank to be 1 or more",
    ("retrieve_cosqa", '{"url": "x", "answers": [0]}\n'): "expected a url of a problem",
    ("retrieve_cosqa", '{"url": "q0", "answers": ["0"]}\n'): "answers such as 0, got '0'",
    ("retrieve_cosqa", '{"url": "q0", "answers": [1, 0], "rank": 1}\n'): "rank to be 2 or more",
}


@pytest.mark.parametrize(("benchmark", "text"), MALFORMED)
def test_malformed_predictions_are_an_error(benchmark, text, evaluate, tmp_path):
    (tmp_path / "found").write_text(text)
    given = (f"--benchmark={benchmark}", f"--predictions={tmp_path / 'found'}")
    assert MALFORMED[benchmark, text] in evaluate(*given, fails=3)
    assert not (tmp_path / "out" / benchmark / "scores.json").exists()


def test_programs_of_unknown_tasks_are_an_error(evaluate, tmp_path, sandbox):
    (tmp_path / "found").write_text(jsonl({"task_id": "HumanEval/9", "completion": ""}))
    given = ("--benchmark=humaneval", f"--predictions={tmp_path / 'found'}")
    assert "a task_id of humaneval such as 'HumanEval/0', got" in evaluate(*given, fails=3)


def test_mistakes_are_found_before_any_work(evaluate, checkpoints, tmp_path):
    model = f"--checkpoint={checkpoints[False]}"

    def says(text, *options, how=GREEDY):
        assert text in evaluate(*options, *how, fails=3)
        assert not (tmp_path / "out").exists()

    says("expected some of humaneval, ", "--benchmark=humanevil", model)
    says("either --checkpoint or --predictions", "--benchmark=defect")
    says("takes no gin", "--benchmark=defect", model, "--gin_file=x")
    says("--size: expected one of 110M", "--benchmark=defect", model, "--size=1B")
    says("classify_pairs = True, found 2 and False", "--benchmark=clone", model)
    says("not a model directory", "--benchmark=defect", f"--checkpoint={tmp_path}")
    says("defect does not exist", "--benchmark=defect", model, f"--finetune_dir={tmp_path}")
    says("no reference", "--benchmark=concode", model, "--split=test")
    says("the only one there is", "--benchmark=complete_py150", model, "--split=validation")
    says("beams = 2 are for one text", "--benchmark=humaneval", model, "--beams=2", how=())
    says("defect has no prompt for tests", "--benchmark=defect", model, "--code_t=1")
    two = ("--benchmark=defect,clone", f"--predictions={tmp_path / 'found'}")
    says("--predictions is of one benchmark", *two)


def test_a_folder_holds_one_run(evaluate, checkpoints, data, tmp_path):
    options = ("--benchmark=summarize_go", f"--checkpoint={checkpoints[False]}")
    file = evaluate(*options, *GREEDY) / "summarize_go/run.json"
    run = json.loads(file.read_text())
    assert "code_separator" not in run  # of other benchmarks
    assert run.pop("top_p") is None
    file.write_text(json.dumps(run))  # of before there was that setting
    said = evaluate(*options, *GREEDY, "--max_tokens=3", fails=3)
    assert "holds a run with max_tokens 4, asked for 3; set --out to another folder" in said
    evaluate(*options, *GREEDY, "--batch_size=3", "--split=test")  # of no consequence
    other = data / "summarization/go/test.jsonl"
    before = other.read_text()
    try:
        other.write_text(before.replace("one", "two"))
        assert "holds a run with data" in evaluate(*options, *GREEDY, fails=3)
    finally:
        other.write_text(before)
    with (tmp_path / "out/summarize_go/.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = evaluate(*options, *GREEDY, fails=3)
        assert "another process predicts into" in said
    assert evaluate(*options, *GREEDY)


def test_weights_that_were_written_anew_are_others(evaluate, checkpoints, tmp_path):
    model, options = tmp_path / "model", ("--benchmark=summarize_go", *GREEDY)
    shutil.copytree(checkpoints[False], model)
    evaluate(*options, f"--checkpoint={model}")
    shutil.rmtree(model)
    evaluate(*options, f"--checkpoint={checkpoints[False]}")  # of which it was a copy
    shutil.copytree(checkpoints[False], model)
    params, config, _ = load_params(model)
    shutil.rmtree(model / "checkpoints/0")
    arrays = ((path, np.asarray(array)) for path, array in flatten(params))
    write_weights(model / "checkpoints/0", arrays, {"model": config_to_json(config)})
    said = evaluate(*options, f"--checkpoint={model}", fails=3)
    assert "holds a run with weights '" in said
    (tmp_path / "out/summarize_go/run.json").write_text("{")
    assert "run.json is damaged: " in evaluate(*options, f"--checkpoint={model}", fails=3)
    (tmp_path / "out/summarize_go/run.json").unlink()
    said = evaluate(*options, f"--checkpoint={model}", fails=3)
    assert "has predictions.jsonl, and no run.json that says of what" in said


def test_another_split_is_not_set_beside_the_paper(evaluate, checkpoints, data):
    shutil.copy(data / "summarization/go/test.jsonl", data / "summarization/go/valid.jsonl")
    options = ("--benchmark=summarize_go", f"--checkpoint={checkpoints[False]}", *GREEDY)
    out = evaluate(*options, "--split=validation")
    table = (out / "table.md").read_text()
    assert "| none |" in table
    assert "; of split validation; the paper's figures are of test." in table


def test_equal_samples_are_refused(evaluate, checkpoints, sandbox):
    options = ("--benchmark=humaneval", f"--checkpoint={checkpoints[False]}", "--temperature=0")
    assert "200 samples at temperature 0" in evaluate(*options, fails=3)


def test_list(capsys):
    assert main(["evaluate", "--benchmark=list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*BENCHMARKS]
