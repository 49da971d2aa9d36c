"""`codet5p evaluate --benchmark` on real files: predictions give the official scores, and a small
model goes from records to a table.

Files that the data hold under other names, or as parts, are put where the benchmark has them.
"""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.evaluation.benchmarks.registry import BENCHMARKS
from codet5p_jax.evaluation.metrics.bleu import sentence_bleu
from codet5p_jax.evaluation.metrics.pass_at_k import pass_at_k
from codet5p_jax.evaluation.sandbox.pool import LayerMissing, Sandbox
from tests.cli.test_evaluate_benchmarks import GREEDY, random_model, runnable

DATA = Path(__file__).parents[2] / "../shared/data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"needs the benchmarks' files and official_scores.json in {DATA}"
)
EXAMPLES = "codexglue_evaluator_examples/"


def read(name: str) -> str:
    path = DATA / name
    if path.exists():
        return path.read_text("utf-8")
    return gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes()).decode()


def records(name: str) -> list[dict]:
    return [json.loads(line) for line in read(name).split("\n") if line]


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def clones() -> dict[str, str]:
    pairs = records("clone_bigclonebench/test_pairs.part.jsonl")
    functions = {pair[f"id{side}"]: pair[f"code{side}"] for pair in pairs for side in "12"}
    rows = ({"idx": idx, "func": func} for idx, func in functions.items())
    return {
        "clone_bigclonebench/data.jsonl": jsonl(rows),
        "clone_bigclonebench/test.txt": read("clone_bigclonebench/answers.part.txt"),
    }


def adversarial() -> dict[str, str]:
    rows = records(f"{EXAMPLES}NL-code-search-Adv/test.jsonl")
    tokens = {"docstring_tokens": "docstring", "code_tokens": "function"}
    return {
        "advtest/test.jsonl": jsonl(
            {**row, **{name: row[text] for name, text in tokens.items()}} for row in rows
        )
    }


def same(target: str, source: str) -> dict[str, str]:
    return {target: read(source)}


SIDE = "code_translation/test.java-cs.txt"
BLEU, MATCH = "BLEU-4 corpus, smoothed (what the script prints, unrounded)", "exact match %"
# Entry of official_scores.json -> benchmark, predictions, files below finetune_dir (None: as they
# are), more options, our figure -> its name there.
ENTRIES = {
    "refine-small": (
        "refine_small",
        "code_refinement/saved_models/small-model.output",
        None,
        [],
        {"bleu": BLEU, "exact_match": MATCH},
    ),
    "trans-java-cs (data/test file as reference)": (
        "translate_java_cs",
        "code_translation/saved_models/java-cs-model1.output",
        None,
        [],
        {"bleu": BLEU, "exact_match": MATCH},
    ),
    "trans-java-cs": (
        "translate_java_cs",
        "code_translation/saved_models/java-cs-model1.output",
        lambda: {
            **same(f"{SIDE}.cs", "code_translation/saved_models/java-cs-model1.gold"),
            **same(f"{SIDE}.java", f"{SIDE}.java"),
        },
        [],
        {"bleu": BLEU, "exact_match": MATCH},
    ),
    "concode example": (
        "concode",
        f"{EXAMPLES}concode/predictions.txt",
        lambda: same("concode/dev.json", f"{EXAMPLES}concode/answers.json"),
        [],
        {"bleu": "BLEU", "exact_match": "EM %"},
    ),
    "line completion javaCorpus 1000": (
        "complete_java",
        "line_completion/javaCorpus_1000.perturbed_predictions.txt",
        lambda: same(
            "line_completion/javaCorpus/test.json", "line_completion/javaCorpus_1000.answers.json"
        ),
        [],
        {
            "edit_similarity": "edit_sim with python-Levenshtein 0.27.5 installed (usual set-up)",
            "exact_match": "EM %",
        },
    ),
    "Devign part": (
        "defect",
        "defect/heuristic.part.predictions.txt",
        lambda: same("defect/test.jsonl", "defect/devign_test.part.jsonl"),
        [],
        {"accuracy": "Acc"},
    ),
    "BigCloneBench part": (
        "clone",
        "clone_bigclonebench/jaccard0.22.part.predictions.txt",
        clones,
        [],
        {"precision": "Precision", "recall": "Recall", "f1": "F1"},
    ),
    "CosQA retrieval dev-500, TF-IDF ranking": (
        "retrieve_cosqa",
        "cosqa/dev.tfidf_top200.jsonl",
        None,
        ["--split=validation"],
        {"mrr": "MRR (top 200, gold outside counts 0)", "recall@1": "Recall@1"},
    ),
    "NL-code-search-Adv example": (
        "retrieve_advtest",
        f"{EXAMPLES}NL-code-search-Adv/predictions.jsonl",
        adversarial,
        [],
        {"mrr": "MRR"},
    ),
}


def evaluate(benchmark: str, predictions: Path, finetune_dir: Path, out: Path, *options: str):
    names = [predictions, predictions.with_name(f"{predictions.name}.gz")]
    command = [
        "evaluate",
        f"--benchmark={benchmark}",
        f"--predictions={next(name for name in names if name.exists())}",
        f"--finetune_dir={finetune_dir}",
        f"--out={out}",
        *options,
    ]
    assert main(command) == 0
    return json.loads((out / benchmark / "scores.json").read_text())


def put(files: dict[str, str], folder: Path) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def official(entry: str) -> dict[str, float]:
    """Unrounded figures, else those that the script printed."""
    (found,) = (e for e in json.loads(read("official_scores.json")) if e["id"] == entry)
    printed = found.get("official_output", "")
    printed = json.loads(printed.replace("'", '"')) if printed.startswith("{") else {}
    return {**printed, **found.get("metrics", {})}


@pytest.mark.parametrize("entry", ENTRIES)
def test_official_score(entry, tmp_path):
    benchmark, predictions, files, options, names = ENTRIES[entry]
    if benchmark == "complete_java":
        pytest.importorskip("rapidfuzz")
    folder = DATA if files is None else put(files(), tmp_path / "data")
    found = evaluate(benchmark, DATA / predictions, folder, tmp_path / "out", *options)
    wanted = official(entry)
    for ours, theirs in names.items():
        value = found["scores"][ours]
        digits = 4 if entry == "NL-code-search-Adv example" else 12  # printed with 4
        assert round(value, digits) == pytest.approx(wanted[theirs], rel=0, abs=1e-9), ours
    assert found["problems"] == found["of"] == found["predictions"]


def test_official_score_of_summaries(tmp_path):
    """Six of the 2,000 references are empty, which none of the benchmark is: without them."""
    stem = "summarization/python_docstring_valid"
    gold, found = (
        dict(line.split("\t") for line in read(f"{stem}.{end}").split("\n") if line)
        for end in ("gold.txt", "nmt_baseline.predictions.txt")
    )
    kept = [number for number, text in gold.items() if text.strip()]
    functions = ({"code_tokens": ["f"], "docstring_tokens": gold[n].split(" ")} for n in kept)
    lines = (f"{place}\t{found[number]}\n" for place, number in enumerate(kept))
    files = {"summarization/python/test.jsonl": jsonl(functions), "found.txt": "".join(lines)}
    folder = put(files, tmp_path / "data")
    result = evaluate("summarize_python", folder / "found.txt", folder, tmp_path / "out")
    total = 2000 * official("summarization python docstring valid")["smoothed sentence BLEU-4 mean"]
    left_out = sum(sentence_bleu(gold[n], found[n]) for n in gold.keys() - set(kept))
    assert len(kept) == result["of"] == 1994
    assert result["scores"]["bleu"] == pytest.approx((total - left_out) / 1994, rel=0, abs=1e-9)


# Benchmark -> predictions, recorded verdicts, file of problems, limit.
PROGRAMS = {
    "humaneval": ("humaneval/codegen16b_T0.8_first5", None, 12),
    "mbpp_mxeval": ("mbpp/mbpp_samples.part", None, 40),
    "mathqa_mxeval": (
        "mathqa_python/samples.part",
        ("mathqa_python/mathqa-test-python.jsonl", "mathqa_python/mathqa-test-python.part.jsonl"),
        30,
    ),
}


@pytest.fixture
def sandbox():
    try:
        Sandbox().close()
    except LayerMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("benchmark", PROGRAMS)
def test_recorded_verdicts_of_programs(benchmark, whole, tmp_path, sandbox):
    """Those of the first problems; slow: all."""
    stem, problems, limit = PROGRAMS[benchmark]
    folder = DATA if problems is None else put(same(*problems), tmp_path / "data")
    recorded = records(f"{stem}.official_results.jsonl")
    tasks = list(dict.fromkeys(result["task_id"] for result in recorded))
    limit = len(tasks) if whole else limit
    found = evaluate(
        benchmark, DATA / f"{stem}.jsonl", folder, tmp_path / "out", f"--limit={limit}"
    )
    some = [result for result in recorded if result["task_id"] in tasks[:limit]]
    samples = Counter(result["task_id"] for result in some)
    passed = Counter(result["task_id"] for result in some if result["passed"])
    counts = list(samples.values()), [passed[task] for task in samples]
    assert found["scores"]["pass@1"] == pytest.approx(pass_at_k(*counts, 1), rel=0, abs=1e-9)
    assert found["predictions"] == len(some)


def test_humanevals_own_solutions_pass(tmp_path, sandbox):
    problems = records("humaneval/HumanEval.jsonl")
    own = ({"task_id": p["task_id"], "completion": p["canonical_solution"]} for p in problems)
    folder = put({"own.jsonl": jsonl(own)}, tmp_path)
    found = evaluate("humaneval", folder / "own.jsonl", DATA, tmp_path / "out")
    assert found["problems"] == 164
    assert found["scores"]["pass@1"] == official("HumanEval canonical solutions")["pass@1"]


def as_published(folder: Path) -> None:
    """Every benchmark's real files, where it has them: links, or what was put together."""
    functions = records("summarization/python_docstring_valid.jsonl")
    code = "mathqa_python/mathqa-test-python"
    made = {
        **clones(),
        **adversarial(),
        **same("defect/test.jsonl", "defect/devign_test.part.jsonl"),
        **same(
            "line_completion/javaCorpus/test.json", "line_completion/javaCorpus_1000.answers.json"
        ),
        **same(f"{code}_v1.jsonl", f"{code}.part.jsonl"),
        **same("mbpp/mbpp_release_v1.jsonl", "mbpp/mbpp_release_v1.mxeval.jsonl"),
        **same("mbpp/mbpp.jsonl", "mbpp/mbpp.jsonl"),
        "summarization/python/test.jsonl": jsonl(
            {"code_tokens": f["code"].split(), "docstring_tokens": f["docstring"].split()}
            for f in functions
            if f["docstring"].strip() and f["code"].strip()
        ),
    }
    put(made, folder)
    for name in ("humaneval", "humaneval_x", "gsm8k", "concode", "code_refinement", "cosqa",
                 "code_translation"):  # fmt: skip
        (folder / name).symlink_to((DATA / name).resolve())


X = tuple(name for name in BENCHMARKS if name.startswith("humaneval_x_"))
# Whether of pairs, benchmarks, options.
REAL = [
    (
        False,
        [
            *("humaneval", "humaneval_instruct", *X, "gsm8k_python", "mbpp", "mbpp_mxeval"),
            *("mathqa_mxeval", "summarize_python", "complete_java", "concode", "refine_small"),
            *("translate_java_cs", "translate_cs_java", "defect", "generate_python"),
            "retrieve_advtest",
        ],
        [],
    ),
    (False, ["retrieve_cosqa"], ["--split=validation"]),
    (True, ["clone"], []),
]


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "names", "options"), REAL)
def test_from_real_records_to_a_table(pairs, names, options, tmp_path, sandbox):
    as_published(tmp_path / "data")
    (tmp_path / "model").mkdir()
    model = random_model(tmp_path / "model", pairs)
    names = [name for name in names if runnable(name)]
    command = [
        *("evaluate", f"--benchmark={','.join(names)}", f"--checkpoint={model}", "--limit=2"),
        *(f"--finetune_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", *options, *GREEDY),
    ]
    assert main([*command, "--batch_size=8"]) == 0  # of eight devices
    found = json.loads((tmp_path / "out/scores.json").read_text())
    assert sorted(found) == sorted(names)
    assert {(one["problems"], one["predictions"]) for one in found.values()} == {(2, 2)}
    table = (tmp_path / "out/table.md").read_text()
    assert all(f"| {name} |" in table for name in names)
