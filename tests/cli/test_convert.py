"""`codet5p convert`: folder to model directory, back, and compared."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.cli.convert import ARCHITECTURES, EXPORTED, READ
from codet5p_jax.cli.main import main
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.interop import hf_config, sentence_transformers, torch_outputs
from codet5p_jax.interop.safetensors_files import SafetensorsFolder, SafetensorsWriter
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face, open_hugging_face
from codet5p_jax.models import CodeT5p, Lora, init_params, t5
from codet5p_jax.models.params import flatten
from codet5p_jax.training.model_dir import config_to_json
from codet5p_jax.training.stored_weights import load_params, write_weights

SIZES = {
    **{"d_model": 8, "num_heads": 2, "head_dim": 4, "d_ff": 16},
    **{"num_encoder_layers": 2, "num_decoder_layers": 1},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(["def f(x): return x"] * 9, 330, folder, num_sentinels=4), folder


def make(folder, tokenizer, dtype=None, **settings):
    vocab = tokenizer[0].vocab_size
    config = t5(**{"vocab_size": vocab, **SIZES, **settings})
    params = init_params(CodeT5p(config).specs, jax.random.key(0))
    arrays = {path: np.array(array) for path, array in flatten(params)}
    export_hugging_face(folder, ArrayWeights(config, arrays), dtype=dtype, tokenizer=tokenizer[1])
    return arrays


def convert(*args):
    return main(["convert", *map(str, args)])


@pytest.mark.parametrize("settings", [{}, {"embed_dim": 4, "matching_head": True}])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back_is_the_same_file(tmp_path, tokenizer, capsys, settings, dtype):
    make(tmp_path / "a", tokenizer, dtype, **settings)
    assert convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run") == 0
    assert convert("export", "--from", tmp_path / "run", "--to", tmp_path / "b") == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "b").iterdir())) == len(list((tmp_path / "a").iterdir()))
    assert not list(tmp_path.glob(".*"))
    assert "parameters from" in capsys.readouterr().out


def test_what_is_imported_runs_here(tmp_path, tokenizer):
    arrays = make(tmp_path / "a", tokenizer, "float32")
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    params, config, folder = load_params(tmp_path / "run")
    assert config.encoder.d_model == 8
    for path, array in flatten(params):
        np.testing.assert_array_equal(array, arrays[path])
    assert Tokenizer.load(folder).fingerprint == tokenizer[0].fingerprint


def test_narrow_weights_are_loaded_as_fp32(tmp_path, tokenizer):
    arrays = make(tmp_path / "a", tokenizer, "bfloat16")
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    params, _, _ = load_params(tmp_path / "run")
    assert params["embedding"].dtype == np.float32
    np.testing.assert_allclose(params["embedding"], arrays["embedding"], rtol=2**-8)


def test_verify_agrees_and_compares_outputs(tmp_path, tokenizer, capsys):
    pytest.importorskip("transformers")
    make(tmp_path / "a", tokenizer, embed_dim=4, matching_head=True)
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    assert convert("verify", tmp_path / "a", tmp_path / "run") == 0
    out = capsys.readouterr().out
    for name in ("encoder states", "embeddings", "logits", "matching logits"):
        assert f"largest difference of {name}: " in out
    assert ", 0 differences" in out


def test_verify_names_what_differs(tmp_path, tokenizer, capsys):
    make(tmp_path / "a", tokenizer)
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    file = tmp_path / "a/model.safetensors"
    source = SafetensorsFolder(tmp_path / "a")
    info = source.tensors["encoder.final_layer_norm.weight"]
    data = bytearray(file.read_bytes())
    data[info.offset : info.offset + 4] = np.float32(3).tobytes()
    file.write_bytes(data)
    assert convert("verify", tmp_path / "a", tmp_path / "run") == 1
    out = capsys.readouterr().out
    assert "DIFFERS  encoder/final_norm/scale: sha256" in out
    assert "largest difference 2" in out


def imported(tmp_path, tokenizer, *args, **settings):
    make(tmp_path / "a", tokenizer, **settings)
    assert convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run", *args) == 0


def exported(tmp_path, *args):
    assert convert("export", "--from", tmp_path / "run", "--to", tmp_path / "b", *args) == 0


@pytest.mark.parametrize(
    ("arch", "pooling"),
    [
        ("t5", "first"),
        ("t5_encoder", "first"),
        ("codet5p_embedding", "mean"),
        ("sentence_transformers", "mean"),
    ],
)
def test_a_part_is_verified_as_the_part_that_it_is(tmp_path, tokenizer, capsys, arch, pooling):
    pytest.importorskip("transformers")
    imported(tmp_path, tokenizer, embed_dim=4, matching_head=True, pooling=pooling)
    exported(tmp_path, "--arch", arch)
    assert convert("verify", tmp_path / "b", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert re.search(r"note: .* has no place for .*matching_head/kernel", out)
    assert ", 0 differences" in out
    if arch == "sentence_transformers":
        from safetensors.numpy import load_file, save_file

        file = tmp_path / "b/2_Dense/model.safetensors"
        tensors = load_file(file)
        tensors["linear.bias"][1] += 1
        save_file(tensors, file)
        assert convert("verify", tmp_path / "b", tmp_path / "run") == 1
        assert "DIFFERS  projection/bias" in capsys.readouterr().out


def test_added_rows_are_verified_without(tmp_path, tokenizer, capsys):
    imported(tmp_path, tokenizer, "--pad_vocab_to_multiple", 128)
    assert convert("verify", tmp_path / "a", tmp_path / "run") == 0
    assert re.search(r"note: \d+ rows of the vocabulary are not in .*a\n", capsys.readouterr().out)
    exported(tmp_path)
    shutil.rmtree(tmp_path / "run")
    rows = tokenizer[0].vocab_size
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run", "--vocab_size", rows - 3)
    assert convert("verify", tmp_path / "b", tmp_path / "run") == 1
    assert "DIFFERS  embedding: shape (384, 8) there, " in capsys.readouterr().out


def test_another_dtype_is_a_difference_unless_ignored(tmp_path, tokenizer, capsys):
    imported(tmp_path, tokenizer)
    exported(tmp_path, "--dtype", "bfloat16")
    assert convert("verify", tmp_path / "b", tmp_path / "run") == 1
    assert "DIFFERS  embedding: bfloat16 there, float32 here" in capsys.readouterr().out
    assert convert("verify", tmp_path / "b", tmp_path / "run", "--ignore_dtype") == 0
    out = capsys.readouterr().out
    assert re.search(r"note: \d+ dtypes differ, compared after rounding", out)
    if torch_outputs.available():
        assert re.search(r"largest difference of logits: .*\nthese are not judged, since dtyp", out)
    assert "expected 0.0001 at most" not in out


def with_additions(folder):
    """A model directory whose bfloat16 kernels have low-rank additions, and its parameters."""
    config = t5(vocab_size=40, **SIZES)
    lora = Lora(rank=2, alpha=4.0, targets=("q", "wo"))
    towers = {t: dataclasses.replace(getattr(config, t), lora=lora) for t in ("encoder", "decoder")}
    config = dataclasses.replace(config, **towers)
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(size=spec.shape).astype(np.float32 if "_lora_" in path else jnp.bfloat16)
        for path, spec in flatten(CodeT5p(config).specs)
    }
    (folder / "checkpoints").mkdir(parents=True)
    values = config_to_json(config)
    (folder / "config.json").write_text(json.dumps(values))
    meta = {"step": 0, "model": values, "token_ids": {"pad": 0, "eos": 1}}
    write_weights(folder / "checkpoints/0", params.items(), meta)
    return params


def test_low_rank_additions_are_merged_as_is_said_and_verified(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    params = with_additions(tmp_path / "run")
    exported(tmp_path)
    told = "merged into 4 kernels, and the sums rounded to the bfloat16 of these; --dtype=float32"
    assert told in capsys.readouterr().out
    assert convert("verify", tmp_path / "b", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "largest difference of logits" in out
    assert ", 0 differences" in out

    # With a dtype chosen, the sum is rounded once, to that.
    path = "encoder/layers/attention/q"
    low, high = (params[path + end] for end in ("_lora_a", "_lora_b"))
    added = 2 * np.einsum("...dr,...rhk->...dhk", low, high)
    exact = params[path].astype(np.float32) + added
    monkeypatch.setattr(torch_outputs, "available", lambda: False)  # they were compared
    for dtype, rtol in (("float32", 1e-6), ("float16", 2**-11)):  # of bfloat16 it is 2**-9
        shutil.rmtree(tmp_path / "b")
        exported(tmp_path, "--dtype", dtype)
        assert "low-rank" not in capsys.readouterr().out
        found = open_hugging_face(tmp_path / "b").read(path)
        np.testing.assert_allclose(found.astype(np.float32), exact, rtol=rtol, atol=1e-6)
        words = ("verify", tmp_path / "b", tmp_path / "run", "--ignore_dtype")
        assert convert(*words) == 0, capsys.readouterr().out

    # Something else is still a difference.
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace('"alpha": 4.0', '"alpha": 5.0'))
    assert convert(*words) == 1
    out = capsys.readouterr().out
    assert "4 differences" in out
    assert f"DIFFERS  {path}: sha256" in out


def test_another_network_with_the_same_tensors_is_a_difference(tmp_path, tokenizer, capsys):
    imported(tmp_path, tokenizer)
    path = tmp_path / "a/config.json"
    values = json.loads(path.read_text()) | {"relative_attention_max_distance": 64}
    path.write_text(json.dumps(values))
    assert convert("verify", tmp_path / "a", tmp_path / "run") == 1
    out = capsys.readouterr().out
    assert "DIFFERS  encoder.relative_max_distance: 64 there, 128 here" in out


def test_special_ids_are_those_of_the_folder(tmp_path, tokenizer):
    """Flan-T5 ends with 1 and has no token that begins."""
    make(tmp_path / "a", tokenizer)
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "a" / name
        values = json.loads(path.read_text()) | {"eos_token_id": 1}
        del values["bos_token_id"]
        path.write_text(json.dumps(values, indent=2) + "\n")
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    exported(tmp_path)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "b" / name).read_text()) == json.loads(
            (tmp_path / "a" / name).read_text()
        )


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("eos_token_id", [], "names no eos token; `generate`"),
        ("pad_token_id", -1, "names no pad token; `generate`"),
        ("eos_token_id", 10_000, "names no eos token; `generate`"),
    ],
)
def test_special_ids_that_are_none_are_said(tmp_path, tokenizer, capsys, key, value, told):
    make(tmp_path / "a", tokenizer)
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "a" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    out = capsys.readouterr().out
    assert f"WARNING: {tmp_path / 'a'} {told}" in out
    assert ("eos 10,000, since its embedding" in out) == (value == 10_000)
    exported(tmp_path)
    assert f"WARNING: {tmp_path / 'run'} {told}" in capsys.readouterr().out
    assert key not in json.loads((tmp_path / "b/generation_config.json").read_text())


def test_rows_for_the_prefixes_bring_their_tokens(tmp_path, tokenizer, capsys):
    full, _ = tokenizer
    make(tmp_path / "a", tokenizer)
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    exported(tmp_path, "--vocab_size", full.vocab_size - 3)
    shutil.rmtree(tmp_path / "run")
    source = ("--from", tmp_path / "b", "--to", tmp_path / "run")
    convert("import", *source, "--vocab_size", full.vocab_size)
    assert "the tokenizer has [ENC], [TDEC] and [CDEC] now" in capsys.readouterr().out
    assert Tokenizer.load(tmp_path / "run/tokenizer").fingerprint == full.fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (10_000, "vocab_size 10,000 is more than the .* rows"),
        (0, "vocab_size has to be 1 or more, found 0"),
        (2, "the eos token has id 2, but the embedding has 2 rows"),
    ],
)
def test_rows_that_cannot_be_exported(tmp_path, tokenizer, capsys, rows, message):
    imported(tmp_path, tokenizer)
    target = ("--to", tmp_path / "b", "--vocab_size", rows)
    assert convert("export", "--from", tmp_path / "run", *target) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "b").exists()


def test_rows_that_are_cut_take_their_tokens(tmp_path, tokenizer, capsys):
    full, _ = tokenizer
    make(tmp_path / "a", tokenizer)
    source = ("--from", tmp_path / "a", "--to", tmp_path / "run")
    assert convert("import", *source, "--vocab_size", full.vocab_size - 3) == 0
    first, last = full.vocab_size - 3, full.vocab_size - 1
    assert f"left out: rows {first:,} to {last:,} of the vocab" in capsys.readouterr().out
    assert Tokenizer.load(tmp_path / "run/tokenizer").vocab_size == first
    shutil.rmtree(tmp_path / "run")
    assert convert("import", *source, "--vocab_size", 100) == 1
    assert re.search("of the tokenizer has id .*, but 100 rows", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_prefixes_that_take_old_rows_or_cannot_be_added(tmp_path, tokenizer, capsys):
    full, _ = tokenizer
    make(tmp_path / "a", tokenizer)
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    exported(tmp_path, "--vocab_size", full.vocab_size - 3)
    make(tmp_path / "c", tokenizer, vocab_size=full.vocab_size + 5)  # rows, and no tokens
    for file in (tmp_path / "b").glob("*token*"):
        shutil.copy(file, tmp_path / "c")
    shutil.copy(tmp_path / "b/roles.json", tmp_path / "c")
    source = ("--from", tmp_path / "c", "--vocab_size", full.vocab_size)
    assert convert("import", *source, "--to", tmp_path / "old") == 0
    assert "3 of their rows are those that the embedding had" in capsys.readouterr().out
    (tmp_path / "c/tokenizer.json").unlink()
    assert convert("import", *source, "--to", tmp_path / "without") == 0
    assert "copied as it is, without [ENC], [TDEC] and [CDEC]: no tok" in capsys.readouterr().out


def test_layers_of_several_dtypes_become_float32_and_that_is_said(tmp_path, tokenizer, capsys):
    make(tmp_path / "a", tokenizer)
    folder = SafetensorsFolder(tmp_path / "a")
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    tensors = {n: np.array(folder.read(n)) for n in folder.tensors}
    tensors[name] = tensors[name].astype(np.float16)
    kinds = {n: (x.dtype, x.shape) for n, x in tensors.items()}
    with SafetensorsWriter(tmp_path / "a", kinds, 10**9) as writer:
        for n, x in tensors.items():
            writer.write(n, x)
    assert convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run") == 0
    told = "layers of encoder/layers/attention/q are float16 and float32; they become float32"
    assert told in capsys.readouterr().out
    assert convert("verify", tmp_path / "a", tmp_path / "run") == 1
    told = "DIFFERS  encoder/layers/attention/q: float16 and float32 there, float32 here"
    assert told in capsys.readouterr().out
    assert convert("verify", tmp_path / "a", tmp_path / "run", "--ignore_dtype") == 0


def test_what_is_not_kept_is_said(tmp_path, tokenizer, capsys):
    make(tmp_path / "a", tokenizer)
    file = tmp_path / "a/generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "top_p": 0.9, "temperature": 2}))
    assert convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run") == 0
    assert "not kept of generation_config.json: temperature, top_p" in capsys.readouterr().out


def test_rows_and_dtype(tmp_path, tokenizer, capsys):
    arrays = make(tmp_path / "a", tokenizer)
    rows = len(arrays["embedding"])
    convert(
        *("import", "--from", tmp_path / "a", "--to", tmp_path / "run"),
        *("--pad_vocab_to_multiple", 64, "--dtype", "bfloat16"),
    )
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["vocab_size"] == -(-rows // 64) * 64 > rows
    convert(
        *("export", "--from", tmp_path / "run", "--to", tmp_path / "b"),
        *("--vocab_size", rows, "--dtype", "float16", "--max_shard_size", "4KB"),
    )
    source = SafetensorsFolder(tmp_path / "b")
    assert source.tensors["shared.weight"].shape == (rows, 8)
    assert {info.dtype.name for info in source.tensors.values()} == {"float16"}
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1


def test_values_that_are_not_finite_are_reported(tmp_path, tokenizer, capsys):
    config = t5(vocab_size=9, **SIZES)
    params = init_params(CodeT5p(config).specs, jax.random.key(0))
    arrays = {path: np.array(array) for path, array in flatten(params)}
    arrays["encoder/layers/attention/q"][1, 0, 0, 0] = np.nan
    arrays["embedding"][3, 2] = np.inf
    export_hugging_face(tmp_path / "a", ArrayWeights(config, arrays))
    convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run")
    convert("export", "--from", tmp_path / "run", "--to", tmp_path / "b")
    out = capsys.readouterr().out
    assert out.count("WARNING: embedding has 1 values that are NaN or infinite") == 2
    assert out.count("WARNING: encoder/layers/attention/q has 1 values") == 2
    assert convert("verify", tmp_path / "a", tmp_path / "run") == 1
    out = capsys.readouterr().out
    assert "note: embedding has 1 values that are NaN or infinite, in both" in out
    assert ", 0 differences" in out
    assert re.search("expected 0.0001 at most, of .*; that of .*logits.* is NaN", out)


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, tokenizer, capsys):
    make(tmp_path / "a", tokenizer)
    file = tmp_path / "a/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert convert("import", "--from", tmp_path / "a", "--to", tmp_path / "run") == 1
    assert "model.safetensors is truncated" in capsys.readouterr().err
    assert convert("export", "--from", tmp_path / "run", "--to", tmp_path / "b") == 1
    assert "is not a model directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_step_beside_a_checkpoint_is_refused(tmp_path, tokenizer, capsys):
    imported(tmp_path, tokenizer)
    one, words = tmp_path / "run/checkpoints/0", ("--step", 0)
    for command in (
        ("export", "--from", one, "--to", tmp_path / "b", *words),
        ("export", "--from", one, "--to", tmp_path / "b", "--adapter", *words),
        ("verify", tmp_path / "a", one, *words),
    ):
        assert convert(*command) == 1
        assert "is itself a checkpoint or snapshot; leave the step" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_neither_torch_nor_transformers_nor_tensorflow_is_loaded(tmp_path, tokenizer):
    make(tmp_path / "a", tokenizer)
    code = (
        "import sys\n"
        "from codet5p_jax.cli.main import main\n"
        f"a, run, b = {[str(tmp_path / name) for name in ('a', 'run', 'b')]!r}\n"
        "assert main(['convert', 'import', '--from', a, '--to', run]) == 0\n"
        "assert main(['convert', 'export', '--from', run, '--to', b]) == 0\n"
        "heavy = {'torch', 'transformers', 'tensorflow', 'seqio', 'gin'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_the_table_of_the_readme_is_what_converts():
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`.*?\| (\w*)\W*\| (\w*)\W*\|(.*)\|$", page, re.MULTILINE)
    assert sorted(name for name, into, _, _ in rows if into == "yes") == sorted(READ)
    assert sorted(name for name, _, out, _ in rows if out == "yes") == sorted(EXPORTED)
    assert sorted(READ) == sorted(hf_config.ARCHITECTURES)
    written = [arch for arch, (_, cls) in hf_config.ARCHITECTURES.items() if cls]
    assert sorted(ARCHITECTURES) == sorted(written)
    classes = {name: cls for name, _, _, cls in rows}
    for arch in ARCHITECTURES:
        assert f"`{hf_config.ARCHITECTURES[arch][1]}`" in classes[arch]
    assert set(EXPORTED) - set(ARCHITECTURES) == {sentence_transformers.ARCHITECTURE}
