"""Folders that are not what they claim: each is one error that names tensor and file."""

import dataclasses
import json
import re
import shutil
import struct
from collections import Counter

import numpy as np
import pytest

from codet5p_jax.files import new_folder
from codet5p_jax.interop import causal_lms, torch_files
from codet5p_jax.interop.causal_families import FAMILIES
from codet5p_jax.interop.safetensors_files import FLOATS, SafetensorsFolder, parse_size
from codet5p_jax.interop.token_ids import TokenIds
from codet5p_jax.interop.tokenizer_files import copy_tokenizer
from codet5p_jax.interop.weights import (
    ArrayWeights,
    export_hugging_face,
    nonfinite,
    open_hugging_face,
)
from codet5p_jax.models import CodeT5p, t5
from codet5p_jax.models.params import flatten

CONFIG = t5(
    vocab_size=7, d_model=4, num_heads=2, head_dim=3, d_ff=6,
    num_encoder_layers=2, num_decoder_layers=1,
)  # fmt: skip
SINGLE = "model.safetensors"
SHARDED = f"{SINGLE}.index.json"


def params(config=CONFIG):
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(size=spec.shape).astype(np.float32)
        for path, spec in flatten(CodeT5p(config).specs)
    }


@pytest.fixture
def folder(tmp_path):
    values = params()
    export_hugging_face(tmp_path / "model", ArrayWeights(CONFIG, values))
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path):
    values = params()
    export_hugging_face(tmp_path / "shards", ArrayWeights(CONFIG, values), max_shard_bytes=600)
    return tmp_path / "shards"


def tensors_of(folder):
    source = SafetensorsFolder(folder)
    return {name: np.array(source.read(name)) for name in source.tensors}


def write(folder, tensors):
    """A file of our own making, with whatever is in it."""
    from safetensors.numpy import save_file

    save_file(tensors, folder / SINGLE)


def edit_header(path, edit):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def fails(folder, pattern, error=ValueError):
    with pytest.raises(error, match=pattern):
        open_hugging_face(folder)


def test_what_safetensors_writes_is_read_and_the_reverse(folder):
    from safetensors.numpy import load_file

    theirs = load_file(folder / SINGLE)
    mine = tensors_of(folder)
    assert theirs.keys() == mine.keys()
    for name in mine:
        np.testing.assert_array_equal(theirs[name], mine[name])
    write(folder, theirs)
    np.testing.assert_array_equal(
        open_hugging_face(folder).read("embedding"), theirs["shared.weight"]
    )


def test_a_missing_tensor(folder):
    tensors = tensors_of(folder)
    del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
    write(folder, tensors)
    fails(
        folder,
        r"model: .*block.1.layer.0.SelfAttention.q.weight is missing from model.safetensors",
    )


def test_an_unexpected_tensor(folder):
    write(folder, tensors_of(folder) | {"surprise": np.zeros(3, np.float32)})
    fails(folder, r"surprise in model.safetensors is unexpected")
    tensors = {name: x for name, x in tensors_of(folder).items() if name != "surprise"}
    write(folder, tensors | {"1²": np.zeros(3, np.float32)})
    fails(folder, r"1² in model.safetensors is unexpected")


def test_a_tensor_that_no_t5_reads_is_no_surprise(folder):
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    write(folder, tensors_of(folder) | {name: np.zeros((32, 2), np.float32)})
    open_hugging_face(folder)


def test_a_wrong_shape(folder):
    name = "encoder.final_layer_norm.weight"
    write(folder, tensors_of(folder) | {name: np.zeros(5, np.float32)})
    fails(folder, rf"{name} has shape \(5,\) in model.safetensors, expected \(4,\)")


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"d_ff": 8}, r"DenseReluDense.wi.weight has shape \(6, 4\).*expected \(8, 4\)"),
        ({"num_layers": 3}, r"encoder.block.2.* is missing"),
        ({"num_layers": 1}, r"encoder.block.1.* is unexpected"),
        ({"vocab_size": 9}, r"shared.weight has shape \(7, 4\).*expected \(9, 4\)"),
        ({"feed_forward_proj": "gated-gelu"}, r"DenseReluDense.wi_0.weight is missing"),
        ({"tie_word_embeddings": False}, r"lm_head.weight is missing"),
        ({"num_layers": 10**12}, r"has 1,000,000,000,000 layers, but there are \d+ tensors"),
        ({"model_type": ["t5"]}, r"config.json: expected a name as model_type"),
        ({"d_model": 10**400}, r"config.json: expected a number as d_model"),
        ({"architectures": "T5"}, r"config.json: expected a list of names as architectures"),
        ({"layer_norm_epsilon": -1.0}, r"expected a small number as layer_norm_epsilon, found -1"),
        ({"layer_norm_epsilon": float("nan")}, r"as layer_norm_epsilon, found nan"),
        ({"d_model": "4"}, r"config.json: expected a number as d_model, found '4'"),
        ({"d_model": None}, r"config.json: expected a number as d_model, found None"),
        ({"d_kv": True}, r"config.json: expected a number as d_kv, found True"),
        ({"num_heads": 0}, r"config.json: num_heads has to be 1 or more, found 0"),
        ({"feed_forward_proj": "tanh"}, r"config.json: feed_forward_proj 'tanh' is unknown"),
        ({"model_type": "bert"}, r"config.json: model_type 'bert' does not convert"),
        ({"dense_act_fn": "silu"}, r"dense_act_fn 'silu' contradicts feed_forward_proj 'relu'"),
        ({"is_gated_act": True}, r"is_gated_act True contradicts feed_forward_proj 'relu'"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers 1 contradicts num_layers 2"),
        ({"head_dim": 4}, r"head_dim 4 contradicts d_kv 3"),
        ({"model_type": None, "encoder": {}, "decoder": {}}, r"is of a model directory; expected"),
        ({"tie_word_embeddings": 0}, r"expected true or false as tie_word_embeddings, found 0"),
        ({"scale_decoder_outputs": "no"}, r"true or false as scale_decoder_outputs, found 'no'"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors(folder, values, pattern):
    edit_json(folder / "config.json", **values)
    fails(folder, pattern)


@pytest.mark.parametrize("value", [True, "1", float("nan"), 1000])
def test_a_temperature_that_is_none(tmp_path, value):
    config = dataclasses.replace(CONFIG, embed_dim=4, matching_head=True)
    folder = tmp_path / "bimodal"
    export_hugging_face(folder, ArrayWeights(config, params(config)))
    edit_json(folder / "config.json", log_temperature=-2)
    assert open_hugging_face(folder).read("log_temperature") == -2
    edit_json(folder / "config.json", log_temperature=value)
    fails(folder, "config.json: expected a number between -100 and 100 as log_temperature, found")


def test_special_tokens_are_those_of_generation_then_of_the_configuration(folder):
    assert TokenIds.read(folder) == TokenIds()
    edit_json(folder / "config.json", eos_token_id=[5, 6], pad_token_id=None, bos_token_id=-1)
    (folder / "generation_config.json").unlink()
    assert TokenIds.read(folder) == TokenIds(pad=0, bos=None, eos=5, other_eos=(6,))
    generation = folder / "generation_config.json"
    generation.write_text('{"eos_token_id": [3, 4], "decoder_start_token_id": 1}')
    found = TokenIds.read(folder)
    assert found == TokenIds(pad=0, bos=None, eos=3, decoder_start=1, other_eos=(4,))
    assert found.to_generation_config()["eos_token_id"] == [3, 4]
    with pytest.raises(ValueError, match="model: the other_eos token has id 4"):
        found.require_rows(4, folder)
    assert found.within(5) == (found, [])
    assert found.within(4) == (dataclasses.replace(found, other_eos=()), ["eos 4"])
    assert found.within(1) == (
        TokenIds(pad=0, bos=None, eos=None, decoder_start=None),
        ["eos 3", "eos 4", "decoder_start 1"],
    )
    ends = TokenIds(eos=9, other_eos=(3,))
    assert ends.within(5) == (TokenIds(eos=3), ["eos 9"])
    for value in ("2", 1.5, True, [2, "3"], 2**40):
        edit_json(generation, eos_token_id=value)
        with pytest.raises(ValueError, match=r"generation_config.json: expected an id as eos_tok"):
            TokenIds.read(folder)
    edit_json(generation, eos_token_id=2, pad_token_id=[0, 1])
    with pytest.raises(
        ValueError, match=r"generation_config.json: expected one id as pad_token_id"
    ):
        TokenIds.read(folder)
    generation.write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config.json: expected a JSON object"):
        TokenIds.read(folder)
    generation.unlink()
    generation.symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"generation_config.json: .*a link that leads nowhere"):
        TokenIds.read(folder)


def test_a_configuration_that_is_absent_or_no_object(folder):
    (folder / "config.json").write_text("[]")
    fails(folder, r"config.json: expected a JSON object, found list")
    (folder / "config.json").write_text("{")
    fails(folder, r"config.json: expected JSON")
    (folder / "config.json").unlink()
    fails(folder, r"has no config.json", FileNotFoundError)


@pytest.mark.parametrize("left", [0, 5, 8, 40, -1])
def test_a_truncated_file(folder, left):
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:left])
    fails(folder, rf"{re.escape(str(path))} is truncated")


@pytest.mark.parametrize(
    ("edit", "pattern"),
    [
        (lambda h: h["shared.weight"].update(shape=[7, 5]), "shared.weight of shape .* is said"),
        (lambda h: h["shared.weight"].update(shape=[-7, -4]), "shared.weight lacks a sound"),
        (lambda h: h["shared.weight"].update(shape="x"), "shared.weight lacks a sound"),
        (lambda h: h["shared.weight"].update(data_offsets=[0, 10**15]), "shared.weight"),
        (lambda h: h["shared.weight"].update(data_offsets=[4, 0]), "shared.weight lacks a sound"),
        (lambda h: h.update({"shared.weight": 3}), "shared.weight lacks a sound"),
        (lambda h: h["shared.weight"].pop("dtype"), "shared.weight lacks a sound"),
        (lambda h: h["shared.weight"].update(dtype=["F32"]), "shared.weight lacks a sound"),
        (lambda h: h["shared.weight"].update(data_offsets=[0, 112]), "leave a gap or overlap"),
    ],
)
def test_a_header_that_lies(folder, edit, pattern):
    edit_header(folder / SINGLE, edit)
    fails(folder, rf"{re.escape(str(folder / SINGLE))}.*{pattern}")


def test_a_header_that_is_no_json(folder):
    (folder / SINGLE).write_bytes(struct.pack("<Q", 4) + b"\xff{{{")
    fails(folder, "header is no JSON object")
    (folder / SINGLE).write_bytes(struct.pack("<Q", 2) + b"[]")
    fails(folder, "header is no JSON object")


def test_a_header_with_a_name_twice(folder):
    data = (folder / SINGLE).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    text = data[8 : 8 + length].replace(b'"shared.weight"', b'"encoder.final_layer_norm.weight"')
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    fails(folder, "its header has 'encoder.final_layer_norm.weight' twice")


def test_a_single_file_goes_before_an_index(folder, sharded):
    """As in transformers, whose folders may keep the index of an earlier save."""
    shutil.copy(sharded / SHARDED, folder)
    np.testing.assert_array_equal(
        open_hugging_face(folder).read("embedding"), params()["embedding"]
    )


@pytest.mark.parametrize("name", ["config.json", SINGLE])
def test_a_file_that_is_a_link_out_of_the_folder(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")
    fails(folder, rf"{name} is a link out of the folder, to .*secret")


def test_a_shard_that_is_a_link_out_of_the_folder(sharded, tmp_path):
    shard = min(sharded.glob("*.safetensors"))
    shard.rename(tmp_path / "secret")
    shard.symlink_to(tmp_path / "secret")
    fails(sharded, rf"{shard.name} is a link out of the folder, to .*secret")


def test_names_that_steer_a_terminal_are_shown_escaped(folder):
    write(folder, tensors_of(folder) | {"\x1b[2Jgone": np.zeros(3, np.float32)})
    fails(folder, r"printable characters, found '\\x1b\[2Jgone'")
    write(folder, {"a" * 10_000: np.zeros(3, np.float32)})
    fails(folder, r"at most 500 printable characters, found 'aaa")


def test_a_tokenizer_file_that_is_a_link_out_of_the_folder(folder, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (folder / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"vocab.json is a link out of the folder, to .*secret"):
        copy_tokenizer(folder, tmp_path / "t")


def test_the_cache_of_a_hub_is_links(folder, tmp_path):
    snapshot, blob = tmp_path / "snapshots/abc", tmp_path / "blobs/0123"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_text("{}")
    (snapshot / "vocab.json").symlink_to(blob)
    # <model>/snapshots/<commit>/file -> <model>/blobs/<hash>
    assert copy_tokenizer(snapshot, tmp_path / "t")
    assert (tmp_path / "t/vocab.json").read_text() == "{}"


def test_a_dtype_that_weights_do_not_have(folder):
    name = "encoder.final_layer_norm.weight"
    write(folder, tensors_of(folder) | {name: np.ones(4, np.int32)})
    weights = open_hugging_face(folder)
    with pytest.raises(ValueError, match=f"{name} is of dtype I32; expected one of F32"):
        weights.dtype("encoder/final_norm/scale")


def test_each_parameter_is_read_once(tmp_path):
    """However many layers share a fused projection: a stack read once a layer is quadratic."""
    values = {"n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 7, "n_positions": 16}
    config = causal_lms.read(FAMILIES["gpt2"], values, tmp_path / "config.json")
    counted = Counter()

    class Counting(ArrayWeights):
        def read(self, path, dtype=None, index=None):
            counted[path] += 1
            return super().read(path, dtype, index)

    weights = Counting(config, params(config))
    export_hugging_face(tmp_path / "model", weights, arch="gpt2")
    assert counted == dict.fromkeys(weights.shapes, 1)
    again = open_hugging_face(tmp_path / "model")
    for path, array in params(config).items():
        np.testing.assert_array_equal(again.read(path), array)


@pytest.mark.parametrize("part", "qkv")
@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_a_fused_tensor_is_as_wide_as_its_widest_part(tmp_path, part, narrow):
    """Where one part trains in fp32, the frozen others must not round it."""
    values = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 7, "n_positions": 16}
    config = causal_lms.read(FAMILIES["gpt2"], values, tmp_path / "config.json")
    wide = f"decoder/layers/attention/{part}"
    arrays = {
        path: x if path == wide else x.astype(FLOATS[narrow]) for path, x in params(config).items()
    }
    export_hugging_face(tmp_path / "model", ArrayWeights(config, arrays), arch="gpt2")
    again = open_hugging_face(tmp_path / "model")
    for path, array in arrays.items():
        np.testing.assert_array_equal(again.read(path), array.astype(again.dtype(path)))
    assert again.dtype(wide) == np.float32


def test_shards(sharded):
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    np.testing.assert_array_equal(
        open_hugging_face(sharded).read("embedding"), params()["embedding"]
    )
    (sharded / shards[1]).unlink()
    fails(sharded, rf"is said to be in {shards[1]}, which is absent", FileNotFoundError)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "\x1b[31m/", "/etc/passwd", "a/b", "..", 3]
)
def test_an_index_that_leaves_the_folder(folder, sharded, shard):
    index = json.loads((sharded / SHARDED).read_text())
    index["weight_map"]["shared.weight"] = shard
    shutil.copy(folder / SINGLE, sharded.parent)
    (sharded / SHARDED).write_text(json.dumps(index))
    fails(
        sharded, "shared.weight is said to be in .*expected the name of a file in the same folder"
    )


def test_an_index_that_does_not_fit_its_shards(sharded):
    index = json.loads((sharded / SHARDED).read_text())
    names = list(index["weight_map"])
    other = next(n for n in names if index["weight_map"][n] != index["weight_map"][names[0]])
    edit_json(
        sharded / SHARDED,
        weight_map=index["weight_map"] | {names[0]: index["weight_map"][other]},
    )
    fails(sharded, rf"does not fit model.safetensors.index.json: it .*{re.escape(names[0])}")
    edit_json(sharded / SHARDED, weight_map=[])
    fails(sharded, "expected an object with a `weight_map`")


def test_ties_may_be_stored_under_any_name_but_are_one_tensor(folder):
    tensors = tensors_of(folder)
    shared = tensors.pop("shared.weight")
    write(folder, tensors | {"decoder.embed_tokens.weight": shared, "lm_head.weight": shared})
    np.testing.assert_array_equal(open_hugging_face(folder).read("embedding"), shared)
    write(folder, tensors | {"shared.weight": shared, "lm_head.weight": shared + 1})
    fails(folder, 'lm_head.weight in model.safetensors differs from shared.weight.*"tie_word')
    shared = shared.astype(np.float16).astype(np.float32)
    write(folder, tensors | {"shared.weight": shared, "lm_head.weight": shared.astype(np.float16)})
    fails(folder, r"lm_head.weight in .* is float16, shared.weight is float32, .*leave lm_head.w")


def test_a_value_too_large_for_the_dtype_is_an_error(folder, tmp_path):
    values = params()
    values["encoder/final_norm/scale"][0] = 1e6
    with pytest.raises(ValueError, match=r"1 values of encoder.final_layer_norm.weight .*float16"):
        export_hugging_face(tmp_path / "half", ArrayWeights(CONFIG, values), dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    export_hugging_face(tmp_path / "half", ArrayWeights(CONFIG, values), dtype="bfloat16")


def test_nan_and_inf_are_counted():
    assert nonfinite(np.array([[1.0, np.nan], [np.inf, -np.inf]], np.float16)) == 3


def test_a_failed_export_leaves_nothing(tmp_path):
    class Failing(ArrayWeights):
        def read(self, path, dtype=None, index=None):
            if path == "decoder/final_norm/scale":
                raise OSError("the disk is gone")
            return super().read(path, dtype, index)

    with pytest.raises(OSError, match="the disk is gone"):
        export_hugging_face(tmp_path / "model", Failing(CONFIG, params()))
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_overwritten(folder):
    with pytest.raises(FileExistsError, match="exists; name another folder"), new_folder(folder):
        raise AssertionError("unreachable")


@pytest.mark.parametrize(("text", "size"), [("5GB", 5e9), ("500 mb", 5e8), ("123", 123)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "5TB", "-1", "1.5GB"])
def test_wrong_sizes(text):
    with pytest.raises(ValueError, match="expected a size such as"):
        parse_size(text)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_needs_permission_and_brings_weights_only(folder, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    tensors = tensors_of(folder)
    (folder / SINGLE).unlink()
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    state["lm_head.weight"] = state["shared.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    fails(folder, "--allow_pickle")
    weights = open_hugging_face(folder, allow_pickle=True)
    for limit in (torch_files._MAPPED, 0):  # 0: mapped anew for every tensor
        monkeypatch.setattr(torch_files, "_MAPPED", limit)
        for path, array in params().items():
            np.testing.assert_array_equal(weights.read(path), array)

    torch.save({k: v.bfloat16() for k, v in state.items()}, folder / "pytorch_model.bin")
    weights = open_hugging_face(folder, allow_pickle=True)
    expected = params()["embedding"].astype(weights.dtype("embedding"))
    np.testing.assert_array_equal(weights.read("embedding"), expected)
    assert weights.dtype("embedding").name == "bfloat16"

    torch.save(state | {"evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read as weights") as told:
        open_hugging_face(folder, allow_pickle=True)
    assert "weights_only" not in str(told.value)  # torch's advice
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected a dict of tensors by name"):
        open_hugging_face(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        open_hugging_face(folder, allow_pickle=True)
    assert "executed" not in capsys.readouterr().out


def test_pickled_tensors_of_other_kinds(folder):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in tensors_of(folder).items()}
    (folder / SINGLE).unlink()
    name, path = "encoder.final_layer_norm.weight", folder / "pytorch_model.bin"
    value = state[name]

    def told(tensor):
        torch.save(state | {name: tensor}, path)
        with pytest.raises(ValueError, match=rf"pytorch_model.bin.*: {name}|{name} .*bin") as error:
            open_hugging_face(folder, allow_pickle=True)
        return str(error.value)

    assert "of layout torch.sparse_coo; expected a dense" in told(value.to_sparse())
    assert "without values" in told(torch.empty(4, device="meta"))
    with pytest.warns(UserWarning, match="prototype"):
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert "is nested" in told(nested)
    assert "has shape (0,)" in told(torch.empty(0))
    negative = torch._neg_view(value)
    assert negative.is_neg()
    torch.save(state | {name: negative}, path)
    weights = open_hugging_face(folder, allow_pickle=True)
    np.testing.assert_array_equal(weights.read("encoder/final_norm/scale"), -value.numpy())
    torch.save(state, path)
    data = path.read_bytes()
    for kept in (0, 3, 100, len(data) - 40):
        path.write_bytes(data[:kept])
        with pytest.raises(ValueError, match=r"bin cannot be read as weights: it is damaged"):
            open_hugging_face(folder, allow_pickle=True)


def test_pickled_shards(folder):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in tensors_of(folder).items()}
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    files = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    for file, held in files.items():
        torch.save({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    weights = open_hugging_face(folder, allow_pickle=True)
    np.testing.assert_array_equal(weights.read("embedding"), params()["embedding"])
    index.write_text(json.dumps({"weight_map": weight_map | {names[0]: "../elsewhere.bin"}}))
    with pytest.raises(ValueError, match="expected the name of a file in the same folder"):
        open_hugging_face(folder, allow_pickle=True)
