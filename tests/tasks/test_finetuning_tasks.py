"""The tasks over `finetune_dir`: from the published files to rows of their objectives."""

import json

import numpy as np
import pytest
import seqio

from codet5p_jax.data.seqio_tasks import cached_examples, objective_of
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.objectives import OBJECTIVES, Seq2Seq
from codet5p_jax.tasks import finetuning, settings, translation

ALIGNED = {
    "{}.java-cs.txt.java": "int f ( ) { }\n",
    "{}.java-cs.txt.cs": "int F ( ) { }\n",
}
FUNCTION = {"url": "u", "code_tokens": ["f", "(", ")"], "docstring_tokens": ["Do", "it"]}
COSQA = {"doc": "do it", "code_tokens": "f ( )", "label": 1, "retrieval_idx": 0}
PROBLEM = {
    "text": "Do it.",
    "code": "def f():\r\n    pass",
    "task_id": 601,
    "test_list": ["assert f() is None"],
}
HUMAN_EVAL = {
    **dict.fromkeys(("task_id", "entry_point", "test"), "x"),
    "prompt": "def f():\n    '''Do it.'''\n",
    "canonical_solution": "    pass\n",
}
GSM8K = {"question": "How many?", "answer": "<<2+2=4>>4\n#### 4"}
CONTEXT = {"id": "train.jsonl_0", "title": None, "score": "1.0", "has_answer": False}
RETRIEVED = {
    "question": "Do it",
    "answers": "f ( )",
    "ctxs": [{**CONTEXT, "text": text} for text in ("g ( ) _NL_ Go", "f  ( )", *"abcdefghi")],
}
FILES = {  # a task of each form: folder below finetune_dir -> files, all of which hold one example
    "summarize_go": ("summarization", {"go/{}.jsonl": FUNCTION}),
    "retrieve_go": ("csn_retrieval/go", {"{}.jsonl": FUNCTION}),
    "retrieve_advtest": ("advtest", {"{}.jsonl": FUNCTION}),
    "retrieve_cosqa": ("cosqa", {"cosqa-retrieval-train-19604.json": [COSQA]}),
    "retrieve_cosqa_all": ("cosqa", {"cosqa-retrieval-train-19604.json": [COSQA]}),
    "complete_py150": ("line_completion/py150", {"{}.txt": "<s> x <EOL> f ( ) <EOL> </s>\n"}),
    "complete_java": ("line_completion/javaCorpus", {"{}.txt": "<s> x ; f ( ) ; </s>\n"}),
    "generate_java": ("summarization", {"java/{}.jsonl": FUNCTION}),
    "retrieve_generate_java": ("retrieve_generate/java", {"{}.jsonl": RETRIEVED}),
    "retrieve_generate_java_5": ("retrieve_generate/java", {"{}.jsonl": RETRIEVED}),
    "retrieve_generate_java_10": ("retrieve_generate/java", {"{}.jsonl": RETRIEVED}),
    "mathqa_python": (
        "mathqa_python",
        {"{}.jsonl": {"text": "# how many ?", "code": "answer = 1", "answer": 1.0}},
    ),
    "gsm8k_python": ("gsm8k", {"{}.jsonl": GSM8K, "dev.jsonl": GSM8K}),
    "mbpp": ("mbpp", {"mbpp.jsonl": PROBLEM}),
    "human_eval": ("humaneval", {"HumanEval.jsonl": HUMAN_EVAL}),
    "concode": ("concode", {"{}.json": {"nl": "do it", "code": "f ( )"}}),
    "refine_small": (
        "code_refinement/small",
        {"{}.buggy-fixed.buggy": "f (\n", "{}.buggy-fixed.fixed": "f ( )\n"},
    ),
    "refine_medium": (
        "code_refinement/medium",
        {"{}.buggy-fixed.buggy": "f (\n", "{}.buggy-fixed.fixed": "f ( )\n"},
    ),
    "translate_java_cs": ("code_translation", ALIGNED),
    "translate_cs_java": ("code_translation", ALIGNED),
    "defect": ("defect", {"{}.jsonl": {"func": "f (\n)", "target": 1, "idx": 0}}),
    "clone": (
        "clone_bigclonebench",
        {"data.jsonl": {"func": "f (\n)", "idx": "1"}, "{}.txt": "1\t1\t1\n"},
    ),
}  # fmt: skip
LEFT = {  # what the examples say, decoded
    "summarize_go": {"inputs": "<s>f ( )</s>", "targets": "<s>Do it</s>"},
    "generate_java": {"inputs": "<s>Do it</s>", "targets": "<s>f ( )</s>"},
    "retrieve_generate_java": {  # code only, and not that which is to be written
        "inputs": "<s>Do it</s>g ( )</s>",
        "targets": "<s>f ( )</s>",
    },
    "retrieve_generate_java_5": {
        "inputs": "<s>Do it</s>g ( )</s>a</s>b</s>c</s>d</s>",
        "targets": "<s>f ( )</s>",
    },
    "retrieve_cosqa": {"text": "do it", "code": "f ( )"},
    "complete_py150": {"tokens": "x</s>f ( )"},
    "complete_java": {"tokens": "x ; f ( ) ;"},
    "gsm8k_python": {
        "inputs": "<s>How many?</s>",
        "targets": "<s>n0 = 2\nanswer = n0 + n0</s>",
    },
    "mbpp": {
        "inputs": "<s>Do it.\nassert f() is None</s>",
        "targets": "<s>def f():\n    pass</s>",
    },
    "human_eval": {"inputs": "<s>def f():\n\t'''Do it.'''\n</s>", "targets": "<s>\tpass\n</s>"},
    "translate_cs_java": {
        "inputs": "<s>int F ( ) { }</s>",
        "targets": "<s>int f ( ) { }</s>",
    },
    "defect": {"code": "f ( )"},
    "clone": {"code": "f ( )", "other": "f ( )"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A `finetune_dir` with one example for each task, under every name a split may have."""
    root = tmp_path_factory.mktemp("finetune")
    for below, files in FILES.values():
        for name, content in files.items():
            for split in ("train", "valid", "dev", "test"):
                path = root / below / name.format(split)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content if isinstance(content, str) else json.dumps(content))
    train_tokenizer(["def f(x):\n    return x + 23456789\n"] * 9, 512, root / "tokenizer")
    return root


@pytest.fixture(autouse=True)
def configured(folder):
    settings.configure(tokenizer=folder / "tokenizer", finetune_dir=folder)


def test_every_task_is_tried():
    names = ("summarize", "retrieve", "generate", "complete", "refine", "translate")
    others = ("mathqa_python", "gsm8k_python", "mbpp", "human_eval", "concode", "defect", "clone")
    registered = {n for n in seqio.TaskRegistry.names() if n.startswith(names) or n in others}
    languages = ("ruby", "javascript", "python", "java", "php")
    alike = {f"{task}_{lang}" for task in ("summarize", "retrieve") for lang in languages}
    alike |= {name.replace("java", "python") for name in FILES if "generate" in name}
    assert registered == FILES.keys() | alike


@pytest.mark.parametrize("name", FILES)
def test_files_become_rows(name, folder):
    task = seqio.TaskRegistry.get(name)
    (example,) = cached_examples(task, "train" if "train" in task.splits else "test")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    said = {
        key: tokenizer.decode(ids, skip_special=False)
        for key, ids in example.items()
        if ids.ndim == 1
    }
    assert LEFT.get(name, said) == said
    assert all(said.values())
    objective = OBJECTIVES[objective_of(task)]()
    special = (tokenizer if "retrieve" not in name else tokenizer.with_prefixes()).special
    row = objective.features(example, np.random.default_rng(0), special)
    assert {key: value.shape for key, value in row.items()} == {
        key: value.shape for key, value in objective.spec.items()
    }


def test_another_separator(folder):
    before = finetuning._fingerprint_and_separator("retrieve_generate/java")
    settings.configure(code_separator="_CODE_SEP_")
    (example,) = cached_examples(seqio.TaskRegistry.get("retrieve_generate_java"), "train")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    said = tokenizer.decode(example["inputs"], skip_special=False)
    assert said == "<s>Do it _CODE_SEP_ g ( )</s>"
    assert finetuning._fingerprint_and_separator("retrieve_generate/java") != before


@pytest.mark.parametrize("name", ["defect", "clone"])
def test_what_seqio_shows_of_a_class(name, folder):
    task = seqio.TaskRegistry.get(name)
    dataset = task.get_dataset(split="train", sequence_length=None, shuffle=False)
    (shown,) = dataset.as_numpy_iterator()
    special = Tokenizer.load(folder / "tokenizer").special
    assert (shown["inputs"][0], shown["inputs"][-1]) == (special.bos, special.eos)
    assert shown["targets"].tolist() == [1]


def test_the_end_stays_where_a_row_is_cut(folder):
    (example,) = cached_examples(seqio.TaskRegistry.get("mbpp"), "train")
    special = Tokenizer.load(folder / "tokenizer").special
    lengths = {"inputs_length": 6, "targets_length": 5}
    rng = np.random.default_rng(0)
    kept = Seq2Seq(**lengths, keep_eos=True).features(example, rng, special)
    assert kept["encoder_tokens"].tolist() == [*example["inputs"][:5], special.eos]
    assert kept["decoder_targets"].tolist() == [*example["targets"][:4], special.eos]
    cut = Seq2Seq(**lengths).features(example, rng, special)
    assert cut["encoder_tokens"].tolist() == example["inputs"][:6].tolist()
    whole = Seq2Seq(keep_eos=True).features(example, rng, special)
    without = Seq2Seq().features(example, rng, special)
    assert all(np.array_equal(whole[key], without[key]) for key in whole)
    with pytest.raises(ValueError, match="keep_eos is for targets alone in the decoder"):
        Seq2Seq(keep_eos=True, prompt_to_decoder=True)


def test_fingerprints_follow_the_files(folder):
    before, other = finetuning.folder_fingerprint("concode"), finetuning.folder_fingerprint("mbpp")
    path = folder / "concode/train.json"
    text = path.read_text()
    path.write_text(text + "\n" + text)
    assert finetuning.folder_fingerprint("concode") != before
    assert finetuning.folder_fingerprint("mbpp") == other
    path.write_text(text)


def test_a_missing_folder_is_named(tmp_path):
    settings.configure(finetune_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"finetune_dir: .* a folder, but .*concode"):
        next(cached_examples(seqio.TaskRegistry.get("concode"), "train"))


def test_each_language_of_the_translation_is_read_by_itself(folder):
    """Sixteen methods a file, those of one language before the other's; nothing of the test."""
    data = folder / "code_translation"
    text = {end: (data / f"train.java-cs.txt.{end}").read_text().strip() for end in ("java", "cs")}
    read = list(translation._read("train"))
    assert read == [{"code": text["java"]}, {"code": text["cs"]}]
    tokenizer = Tokenizer.load(folder / "tokenizer")
    mixture = seqio.MixtureRegistry.get("translation_stage1")
    assert {objective_of(task) for task in mixture.tasks} == {"span_denoising", "seq2seq_clm"}
    for task in mixture.tasks:
        assert [*task.splits] == ["train", "validation"]
        found = [tokenizer.decode(x["tokens"]) for x in cached_examples(task, "train")]
        assert "".join(found) == text["java"] + text["cs"]


def test_a_file_of_many_methods_is_cut_into_sixteens(folder, tmp_path):
    (tmp_path / "code_translation").mkdir()
    for end in ("java", "cs"):
        lines = "".join(f"{end} {i}\n" for i in range(18))
        (tmp_path / f"code_translation/train.java-cs.txt.{end}").write_text(lines)
    settings.configure(finetune_dir=tmp_path)
    read = [example["code"].split("\n") for example in translation._read("train")]
    assert [(len(lines), lines[0]) for lines in read] == [
        (16, "java 0"),
        (2, "java 16"),
        (16, "cs 0"),
        (2, "cs 16"),
    ]
