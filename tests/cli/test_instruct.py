"""Instruction tuning, from files to a tuned model: runs/instruct_16b.gin with a tiny network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.models import CodeT5p, ModelConfig, StackConfig, codegen_stack
from codet5p_jax.models.params import flatten
from codet5p_jax.sharding import make_mesh
from codet5p_jax.training import train
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.model_dir import config_to_json
from codet5p_jax.training.stored_weights import load_params, write_weights

WORDS = ("red", "blue", "green", "white", "black", "brown", "grey", "pink")
ROWS = [
    {"instruction": f"say {word} {n} times", "input": word * (n % 2), "output": f"{word} " * n}
    for word in WORDS
    for n in (1, 2, 3)
]
CHATS = [
    {"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": w}]}
    for w in WORDS
]
SIZES = ("configs.codet5p_codegen.num_decoder_layers=2", "configs.codet5p_codegen.d_model=32")
BINDINGS = (
    *SIZES,
    *(f"configs.codet5p_codegen.{name}" for name in ("num_heads=4", "rotary_dim=4")),
    *(f"configs.codet5p_codegen.encoder_{name}" for name in ("d_model=16", "num_heads=2")),
    *(f"configs.codet5p_codegen.{name}" for name in ("num_encoder_layers=1", "vocab_size=512")),
    *("configs.codet5p_codegen.encoder_rotary_dim=4", "COMPUTE_DTYPE='float32'"),
    *("TASK_FEATURE_LENGTHS={'inputs': 176, 'targets': 176}", "REMAT='none'"),
    *("TRAIN_STEPS=24", "WARMUP_STEPS=2", "BATCH_SIZE=8", "ACCUMULATE=2", "EVAL_PERIOD=24"),
    *("PEAK_LEARNING_RATE=1e-2", "train.Evaluation.batch_size=4", "train.Logging.every=1"),
    "train.Logging.tensorboard=False",
)


def language_model(folder, tokenizer, seed, **sizes):
    """A model directory of a decoder alone, drawn."""
    decoder = codegen_stack(rotary_dim=4, causal=True, **sizes)
    nothing = StackConfig(num_layers=0, d_model=16, num_heads=1, head_dim=16, d_ff=16)
    config = ModelConfig(
        vocab_size=512,
        encoder=nothing,
        decoder=decoder,
        tie_embeddings=False,
        head_bias=True,
        embedding_stddev=0.02,
        dropout=0.0,
    )
    rng = np.random.default_rng(seed)
    arrays = [
        (path, rng.normal("scale" in path, 0.2, spec.shape).astype(jnp.bfloat16))
        for path, spec in flatten(CodeT5p(config).specs)
    ]
    (folder / "checkpoints").mkdir(parents=True)
    values = config_to_json(config)
    (folder / "config.json").write_text(json.dumps(values))
    write_weights(
        folder / "checkpoints/0",
        arrays,
        {"step": 0, "model": values, "tokenizer": str(tokenizer), "token_ids": {}},
    )
    return folder


def test_a_frozen_model_is_tuned_on_instructions(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(train, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
    data, tokenizer = tmp_path / "data", tmp_path / "tokenizer"
    data.mkdir()
    (data / "code_alpaca_20k.json").write_text(json.dumps(ROWS))
    (data / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    train_tokenizer([json.dumps(row) for row in ROWS] * 3, 512, tokenizer)
    encoder = language_model(
        tmp_path / "small", tokenizer, 0, num_layers=1, d_model=16, num_heads=2
    )
    decoder = language_model(tmp_path / "llm", tokenizer, 1, num_layers=2, d_model=32, num_heads=4)
    start, run = tmp_path / "start", tmp_path / "run"
    parts = [f"--encoder={encoder}", f"--decoder={decoder}", "--cross_attention_layers=last:1"]
    assert main(["compose", *parts, f"--out={start}"]) == 0
    paths = {"MODEL_DIR": run, "CACHE_DIR": tmp_path / "cache", "INITIAL_CHECKPOINT_PATH": start}
    flags = [f"--gin.{name}={str(path)!r}" for name, path in paths.items()]
    flags += [f"--gin.{binding}" for binding in BINDINGS]
    options = [f"--tokenizer={tokenizer}", f"--instruct_dir={data}", "--instruct_held_out=0.2"]
    assert main(["train", "--gin_file=runs/instruct_16b.gin", *flags, *options]) == 0
    assert "instruct/validation" in capfd.readouterr().err

    records = read_records(run / "metrics.jsonl")
    before, after = (r["seq2seq/loss"] for r in records if r["split"] == "validation")
    assert after < 0.9 * before
    rates = [r["learning_rate"] for r in records if r["split"] == "train"]
    assert rates[:3] == pytest.approx([0.5e-2, 1e-2, 1e-2], rel=1e-2)

    first, last = (dict(flatten(load_params(folder)[0])) for folder in (start, run))
    moved = {path for path in first if not np.array_equal(first[path], last[path])}
    assert moved == {p for p in first if p.startswith("encoder") or "/cross_attention/" in p}
