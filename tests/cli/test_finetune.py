"""Gin files of fine-tuning from end to end: published files, a tiny network, two steps."""

import json

import numpy as np
import pytest

from codet5p_jax.cli import main
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.training.checkpoint_files import saved_steps
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.model_dir import ModelDir
from codet5p_jax.training.stored_weights import load_params

NUMBER = 8
FUNCTIONS = [f"int f{i}(int x) {{ return x + {i}; }}" for i in range(NUMBER)]
TINY = {
    **{"configs.t5.d_model": 16, "configs.t5.num_heads": 2, "configs.t5.head_dim": 8},
    **{"configs.t5.d_ff": 32, "configs.t5.num_encoder_layers": 1, "VOCAB_SIZE": 512},
    **{"configs.t5.scan_layers": False, "COMPUTE_DTYPE": "'float32'", "REMAT": "'none'"},
    **{"TRAIN_STEPS": 2, "BATCH_SIZE": 4, "WARMUP_STEPS": 1, "EVAL_PERIOD": 1},
    **{"train.Logging.tensorboard": False, "train.train.init_from": None},
}
DECODER = {"configs.t5.num_decoder_layers": 1}
LENGTHS = "{'inputs': 16, 'targets': 12}"
RUNS = {  # file -> what is smaller in it
    "defect": {"LENGTH": 16},
    "clone": {"LENGTH": 16, "train.Evaluation.batches": 1},
    "complete_py150": {**DECODER, "TARGETS_LENGTH": 16},
    "retrieve_cosqa": {
        **DECODER,
        **{"TEXT_LENGTH": 8, "CODE_LENGTH": 16, "EMBED_DIM": 8},
        "text_code_pairs.TextCodePairs.queue_size": 8,
    },
    "retrieve_generate": {**DECODER, "TASK_FEATURE_LENGTHS": LENGTHS},
    "translate": {**DECODER, "TASK_FEATURE_LENGTHS": LENGTHS},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")

    def write(path, text):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    def lines(*rows):
        return "".join(json.dumps(row) + "\n" for row in rows)

    labelled = [{"func": f, "target": i % 2, "idx": i} for i, f in enumerate(FUNCTIONS)]
    write("clone_bigclonebench/data.jsonl", lines(*labelled))
    pairs = "".join(f"{i}\t{(i + i % 2) % NUMBER}\t{1 - i % 2}\n" for i in range(NUMBER))
    for split in ("train", "valid", "test"):
        write(f"defect/{split}.jsonl", lines(*labelled))
        write(f"clone_bigclonebench/{split}.txt", pairs)
        for end in ("java", "cs"):
            write(f"code_translation/{split}.java-cs.txt.{end}", "\n".join(FUNCTIONS) + "\n")
    found = [
        {"question": f"add {i}", "answers": f, "ctxs": [{"text": g} for g in FUNCTIONS[:2]]}
        for i, f in enumerate(FUNCTIONS)
    ]
    for split in ("train", "valid", "test"):
        write(f"retrieve_generate/python/{split}.jsonl", lines(*found))
    for split in ("train", "dev"):
        files = "".join(f"<s> x = {i} <EOL> </s>\n" for i in range(NUMBER))
        write(f"line_completion/py150/{split}.txt", files)
    cosqa = [{"doc": f"add {i}", "code_tokens": f, "label": 1} for i, f in enumerate(FUNCTIONS)]
    for split in ("train-19604", "dev-500", "test-500"):
        write(f"cosqa/cosqa-retrieval-{split}.json", json.dumps(cosqa))
    train_tokenizer(["int f(int x) { return x + 23456789; }"] * 9, 400, root / "tokenizer")
    return root


@pytest.mark.parametrize(
    "name", ["defect", *(pytest.param(n, marks=pytest.mark.slow) for n in [*RUNS][1:])]
)
def test_a_file_trains_from_the_published_form(name, data, tmp_path, one_device, monkeypatch):
    for variable in ("TOKENIZER", "FINETUNE_DIR"):
        monkeypatch.setenv(f"CODET5P_{variable}", "")
    given = {**TINY, **RUNS[name]}
    paths = {"MODEL_DIR": repr(str(tmp_path / "run")), "CACHE_DIR": repr(str(tmp_path / "cache"))}
    flags = [f"--gin.{key}={value}" for key, value in {**given, **paths}.items()]
    flags += [f"--tokenizer={data / 'tokenizer'}", f"--finetune_dir={data}"]
    assert main.main(["train", f"--gin_file=runs/finetune/{name}.gin", *flags]) == 0
    directory = ModelDir(tmp_path / "run")
    found = [r for r in read_records(directory.metrics) if r["split"] == "validation"]
    assert [record["step"] for record in found] == [0, 1, 2]
    losses = {key: value for key, value in found[-1].items() if key.endswith("/loss")}
    assert losses
    assert np.isfinite(list(losses.values())).all()
    (best,) = saved_steps(directory.best)
    _, config, _ = load_params(directory.best / str(best))
    assert config.encoder.d_model == 16
