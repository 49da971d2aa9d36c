"""`codet5p train` from folders that transformers made, whose network no gin file describes."""

import json

import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.interop.weights import open_hugging_face
from codet5p_jax.models import CodeT5p
from codet5p_jax.models.params import flatten
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.init_from import network_of, plan_init
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.stored_weights import load_params
from tests.training.synthetic import SPECIAL, VOCAB

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

INPUTS, TARGETS = [5, 9, 17, 30, 1], [12, 7, 21, 1]
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES = {
    "T5 v1.0": ("T5", {}),
    "T5 v1.1": ("T5", GATED),
    "mT5": ("MT5", {**GATED, "vocab_size": VOCAB + 8}),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A plain task of one example, again and again."""
    folder = tmp_path_factory.mktemp("cache")
    with CacheWriter(folder, "one", "train", {"made": "up"}) as writer:
        for _ in range(8):
            example = {"inputs": INPUTS, "targets": TARGETS}
            writer.write({name: np.array(ids, np.int32) for name, ids in example.items()})
    write_mixture(
        folder,
        "one",
        [("one", "seq2seq", 1.0)],
        special=SPECIAL,
        vocab_size=VOCAB,
        tokenizer_digest="none",
        save_tokenizer=lambda folder: None,
    )
    return folder


def make(folder, family, published):
    """A folder as transformers 5 saves it or, `published`, with the config.json of earlier ones."""
    name, settings = FAMILIES[family]
    sizes = {"vocab_size": VOCAB, "d_model": 16, "num_heads": 2, "d_kv": 6, "d_ff": 24}
    sizes |= {"num_layers": 2, "num_decoder_layers": 1, "decoder_start_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**{**sizes, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    if settings.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, 16))
    model.save_pretrained(folder)
    if published:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        values.pop("scale_decoder_outputs", None)
        values["tie_word_embeddings"] = settings.get("tie_word_embeddings", True)
        path.write_text(json.dumps(values))
    return model


def flags(cache, run, source):
    paths = {"MODEL_DIR": run, "CACHE_DIR": cache, "INITIAL_CHECKPOINT_PATH": source}
    return [
        *("--gin_file=runs/finetune_seq2seq.gin", "--gin_file=models/of_weights.gin"),
        *(f"--gin.{name}='{path}'" for name, path in paths.items()),
        *("--gin.MIXTURE_OR_TASK_NAME='one'", "--gin.USE_CACHED_TASKS=True"),
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 6, 'targets': 5}",
        *("--gin.TRAIN_STEPS=1", "--gin.WARMUP_STEPS=0", "--gin.BATCH_SIZE=8"),
        *("--gin.PEAK_LEARNING_RATE=1e-3", "--gin.EVAL_PERIOD=None"),
        *("--gin.DROPOUT_RATE=0.0", "--gin.COMPUTE_DTYPE='float32'", "--gin.REMAT='none'"),
        *("--gin.train.Logging.tensorboard=False", "--gin.init_from.network_of.scan_layers=False"),
    ]


@pytest.mark.parametrize(
    ("family", "published"),
    [("T5 v1.1", True), pytest.param("mT5", False, marks=pytest.mark.slow)],
)
def test_a_step_from_the_weights_of(cache, tmp_path, family, published):
    """Its loss is transformers' own, and what it saves is theirs but for the update."""
    model = make(tmp_path / "theirs", family, published)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor([INPUTS]), labels=torch.tensor([TARGETS])
        ).loss.item()
    assert main(["train", *flags(cache, tmp_path / "run", f"hf:{tmp_path / 'theirs'}")]) == 0
    record, _ = read_records(tmp_path / "run/metrics.jsonl")
    assert record["seq2seq/loss"] == pytest.approx(expected, abs=1e-4)
    params, config, _ = load_params(tmp_path / "run")
    theirs = open_hugging_face(tmp_path / "theirs")
    assert (config.vocab_size, config.dropout) == (model.config.vocab_size, 0.0)
    found = dict(flatten(params))
    assert found.keys() == theirs.shapes.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, theirs.read(name), atol=2e-3)
    assert not np.array_equal(found["lm_head"], theirs.read("lm_head"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("published", [True, False], ids=["published", "saved by v5"])
def test_the_network_of(tmp_path, family, published):
    make(tmp_path, family, published)
    network = network_of(f"hf:{tmp_path}", dtype="bfloat16", remat="full")
    assert (network.dtype, network.remat, network.dropout) == ("bfloat16", "full", 0.1)
    assert (network.encoder.num_layers, network.decoder.num_layers) == (2, 1)
    assert network.encoder.gated == (family != "T5 v1.0")
    assert network.tie_embeddings == (family == "T5 v1.0")
    plan = plan_init(InitFrom(f"hf:{tmp_path}"), CodeT5p(network).specs, model=network)
    assert (plan.rows, plan.fresh) == ({}, ())


def test_rows_heads_and_dropout_are_settings_still(tmp_path):
    make(tmp_path, "T5 v1.1", True)
    wider = network_of(
        f"hf:{tmp_path}", vocab_size=VOCAB + 3, embed_dim=4, matching_head=True, dropout=0.2
    )
    assert (wider.vocab_size, wider.embed_dim, wider.matching_head) == (VOCAB + 3, 4, True)
    assert wider.dropout == 0.2
    new = ("projection/.*", "log_temperature", "matching_head/.*")
    plan = plan_init(InitFrom(f"hf:{tmp_path}", new=new), CodeT5p(wider).specs, model=wider)
    rows = (VOCAB, VOCAB + 3)
    assert plan.rows == {"embedding": rows, "lm_head": rows}


def test_weights_that_are_not_there(tmp_path, capsys):
    assert main(["train", *flags(tmp_path, tmp_path / "run", "nowhere")]) == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no checkpoint in nowhere" in error
    assert "expected them as path (INITIAL_CHECKPOINT_PATH), found 'nowhere'" in error
