"""A frozen language model the whole way: from a file of `transformers`, trained, and back."""

import dataclasses
import re

import numpy as np
import pytest

from codet5p_jax.cli.main import main
from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.interop.causal_families import FAMILIES
from codet5p_jax.interop.weights import open_hugging_face
from codet5p_jax.models import t5
from codet5p_jax.models.params import flatten
from codet5p_jax.objectives import Seq2SeqCLM
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.composition import compose
from codet5p_jax.training.conversion import import_weights
from codet5p_jax.training.freezing import Trainable
from codet5p_jax.training.metrics import read_records
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.schedules import Linear
from codet5p_jax.training.stored_weights import load_params
from codet5p_jax.training.train import Evaluation, Logging
from tests.interop.test_causal_lms import CASES, SPECIAL, model_of
from tests.interop.test_composed import (
    ATOL,
    assert_a_cache_changes_nothing,
    assert_same_outputs,
    load,
    rows_of,
)
from tests.interop.test_parity import export, params_of
from tests.interop.test_tables import assert_same_bits
from tests.training import synthetic

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("offline")
# decoder -> encoder, layers that read it, whether they do beside self-attention
CHAINS = {
    "codegen": ("llama", "last:1", None),
    "llama": ("t5", "all", None),
    "llama, grouped queries, biases": ("gpt2", "0", None),
    "qwen2": ("codegen", "last:1", False),
    "qwen2, window": ("t5", "all", False),
    "gpt2": ("gpt_neox", "0", False),
    "gpt_bigcode": ("t5", "last:1", True),
    "gpt_neox": ("codegen", "all", True),
    "starcoder2": ("llama, scaled, tied", "0", True),
    "gemma": ("gemma, biases", "last:1", None),
}


def test_every_family_is_a_decoder_once():
    written = {arch for arch, family in FAMILIES.items() if family.cls}
    assert {CASES[name][0] for name in CHAINS} == written


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A cache of two rows of random tokens, which are a batch: each step sees the same."""
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    with CacheWriter(folder, "files", "train", {"made": "up"}) as writer:
        for _ in range(2):
            writer.write({"tokens": rng.integers(5, 80, 8).astype(np.int32)})
    write_mixture(
        folder, "clm", [("files", "seq2seq_clm", 1.0)],
        special=dataclasses.replace(SPECIAL, decoder_start=1), vocab_size=80,
        tokenizer_digest="made-up", save_tokenizer=lambda _: None,
    )  # fmt: skip
    return folder


def encoder_in(folder, case):
    """One layer is enough of it."""
    if case != "t5":
        arch, settings = CASES[case]
        layers = "n_layer" if "n_layer" in settings else "num_hidden_layers"
        model_of(arch, {**settings, layers: 1}).save_pretrained(folder)
        return
    config = t5(
        **dict(vocab_size=80, d_model=12, num_heads=2, head_dim=6, d_ff=20),
        **dict(num_encoder_layers=1, num_decoder_layers=1),
    )
    export(folder, config, params_of(config), arch="t5_encoder")


def assert_the_decoder_is_the_file(params, file):
    """Bit for bit. Layers that read the encoder are stored apart from the others."""
    for path in file.shapes:
        pattern = path.replace("decoder/layers/", r"decoder/layers(_\d+)?/")
        parts = [params[p] for p in sorted(params) if re.fullmatch(pattern, p)]
        assert_same_bits(np.concatenate(parts), file.read(path), path)


@pytest.mark.parametrize("case", CHAINS)
def test_the_whole_way(tmp_path, rows, one_device, case):
    encoder, layers, parallel = CHAINS[case]
    alone = model_of(*CASES[case])
    alone.save_pretrained(tmp_path / "decoder")
    encoder_in(tmp_path / "encoder", encoder)
    import_weights(tmp_path / "decoder", tmp_path / "imported", say=lambda _: None)
    compose(
        f"hf:{tmp_path / 'encoder'}",
        str(tmp_path / "imported"),
        tmp_path / "composed",
        layers=layers,
        parallel=parallel,
        say=lambda _: None,
    )
    start, config, _ = load_params(tmp_path / "composed")
    result = synthetic.run(
        rows,
        tmp_path / "run",
        model=config,
        objectives=[Seq2SeqCLM(inputs_length=5, targets_length=5, min_pivot=0.5, max_pivot=0.5)],
        trainable=Trainable(("encoder.*", ".*/cross_attention.*"), "float32"),
        init_from=InitFrom(str(tmp_path / "composed")),
        phases=[Phase("clm", 20, 2)],
        schedule=Linear(5e-2, warmup_steps=2),
        save_every=20,
        evaluation=Evaluation(),
        logging=Logging(every=1, tensorboard=False),
    )
    records = read_records(result.metrics)
    losses = [r["seq2seq_clm/loss"] for r in records if r["split"] == "train"]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 1

    params = load_params(tmp_path / "run")[0]
    found = {path: np.asarray(x) for path, x in flatten(params)}
    assert_the_decoder_is_the_file(found, open_hugging_face(tmp_path / "decoder"))
    moved = {path for path, x in flatten(start) if not np.array_equal(found[path], x)}
    assert moved == {p for p in found if p.startswith("encoder") or "/cross_attention" in p}

    command = ["convert", "export", "--from", tmp_path / "run", "--to", tmp_path / "m"]
    assert main([str(word) for word in command]) == 0
    model = load(tmp_path / "m")
    assert_same_outputs(model, config, params)
    assert_a_cache_changes_nothing(model, config)
    shifted = torch.tensor(rows_of(config)[2]).long()
    with torch.no_grad():
        without = model(decoder_input_ids=shifted).logits
        torch.testing.assert_close(without, alone(shifted).logits, atol=ATOL, rtol=0)
    back = open_hugging_face(tmp_path / "m")
    for path, array in found.items():
        np.testing.assert_array_equal(back.read(path), array)
