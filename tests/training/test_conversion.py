"""A Hugging Face folder as the start of a run, and one as its end."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face, open_hugging_face
from codet5p_jax.models import CodeT5p, init_params
from codet5p_jax.models.params import flatten
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.conversion import (
    check_exportable,
    export_weights,
    import_weights,
)
from codet5p_jax.training.init_from import load_init, plan_init
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.stored_weights import load_params
from codet5p_jax.training.train import Logging
from tests.training import synthetic
from tests.training.synthetic import tiny_config, write_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    params = init_params(CodeT5p(config).specs, jax.random.key(1))
    path = tmp_path_factory.mktemp("published") / "t5"
    export_hugging_face(path, ArrayWeights(config, dict(flatten(params))), dtype="float16")
    return path, dict(flatten(params))


def test_a_classifier_takes_the_encoder_and_is_written_without_its_head(folder):
    config = tiny_config(num_decoder_layers=0, classes=2)
    source = InitFrom(f"hf:{folder[0]}", new=("classifier/.*",), unused=("decoder/.*",))
    plan = plan_init(source, CodeT5p(config).specs, model=config)
    assert plan.fresh == ("classifier/output/bias", "classifier/output/kernel")
    with pytest.raises(ValueError, match="no architecture has the network's classification head"):
        check_exportable(config)
    check_exportable(config, "t5_encoder")


def test_each_device_is_given_its_part(folder):
    specs = CodeT5p(tiny_config()).specs
    source = InitFrom(f"hf:{folder[0]}")
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    loaded, _ = load_init(plan_init(source, specs), specs, mesh, seed=0)
    assert loaded.keys() == folder[1].keys()
    for path, array in loaded.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, folder[1][path].astype(np.float16).astype(np.float32))
    shapes = {shard.data.shape for shard in loaded["embedding"].addressable_shards}
    assert shapes != {loaded["embedding"].shape}, "nothing was sharded"


def test_rows_that_the_folder_lacks_are_drawn(folder):
    old = len(folder[1]["embedding"])
    specs = CodeT5p(tiny_config(vocab_size=old + 8)).specs
    plan = plan_init(InitFrom(f"hf:{folder[0]}"), specs)
    assert plan.rows == {"embedding": (old, old + 8)}
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    loaded = load_init(plan, specs, mesh, seed=5)[0]["embedding"]
    theirs = np.asarray(folder[1]["embedding"]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(loaded[:old], theirs)
    fresh = init_params(specs, jax.random.key(5))["embedding"]
    np.testing.assert_array_equal(loaded[old:], fresh[old:])


def test_the_tokenizer_of_a_folder_is_that_of_the_data(folder, tmp_path):
    specs = CodeT5p(tiny_config()).specs
    texts = ["def add(a, b): return a + b\n", "for number in numbers: print(number)\n"] * 5
    published = shutil.copytree(folder[0], tmp_path / "published")
    train_tokenizer(texts, 400, published, num_sentinels=10)
    train_tokenizer(texts, 400, tmp_path / "same", num_sentinels=10)
    train_tokenizer(texts[::2], 400, tmp_path / "another", num_sentinels=10)
    source = InitFrom(f"hf:{published}")
    plan_init(source, specs, tmp_path / "same")
    with pytest.raises(ValueError, match=r"published, is not that of the data"):
        plan_init(source, specs, tmp_path / "another")


def test_what_does_not_fit_is_named(folder):
    specs = CodeT5p(tiny_config(d_ff=48, embed_dim=4)).specs
    with pytest.raises(ValueError, match=r"feed_forward/wi: shape .* there") as error:
        plan_init(InitFrom(f"hf:{folder[0]}"), specs)
    assert "projection/kernel: not in the checkpoint" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        plan_init(InitFrom("hf:/nowhere"), specs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_epsilon": 1e-2}, "encoder.norm_eps: 0.01 there, 1e-06 here"),
        ({"scale_decoder_outputs": False}, "scale_tied_head: False there, True here"),
        ({"feed_forward_proj": "gelu"}, "encoder.activation: 'gelu' there, 'relu' here"),
    ],
)
def test_another_network_of_the_same_shapes_is_named(folder, tmp_path, change, message):
    model = tiny_config()
    same = shutil.copytree(folder[0], tmp_path / "folder")
    specs = CodeT5p(model).specs
    plan_init(InitFrom(f"hf:{same}"), specs, model=model)
    path = same / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        plan_init(InitFrom(f"hf:{same}"), specs, model=model)


def test_a_run_begins_and_ends_with_a_folder(folder, tmp_path):
    write_cache(tmp_path / "cache")
    settings = {
        "phases": [Phase("denoise", 4, 8)],
        "evaluation": dataclasses.replace(synthetic.EVALUATION, every=None),
        "mesh": MeshConfig(fsdp=4, tensor=2),
        "logging": Logging(every=2, tensorboard=False),
        "export_to": tmp_path / "exported",
    }
    init = InitFrom(f"hf:{folder[0]}")
    synthetic.run(tmp_path / "cache", tmp_path / "run", init_from=init, **settings)
    trained, _, _ = load_params(tmp_path / "run")
    exported = open_hugging_face(tmp_path / "exported")
    for path, array in flatten(trained):
        np.testing.assert_array_equal(exported.read(path), array)
    moved = np.abs(exported.read("embedding") - np.asarray(folder[1]["embedding"]))
    assert 0 < moved.max() < 0.1, "near the weights it came from"
    # Started again, it is as it was.
    synthetic.run(tmp_path / "cache", tmp_path / "run", init_from=init, **settings)


def test_a_part_of_a_run_is_exported(tmp_path, one_device):
    write_cache(tmp_path / "cache")
    synthetic.run(
        tmp_path / "cache",
        tmp_path / "run",
        model=tiny_config(embed_dim=4, matching_head=True, pooling="mean"),
        phases=[Phase("pairs", 4, 8)],
        evaluation=dataclasses.replace(synthetic.EVALUATION, every=None),
        export_to=tmp_path / "exported",
        export_arch="codet5p_embedding",
    )
    values = json.loads((tmp_path / "exported/config.json").read_text())
    assert (values["model_type"], values["pooling"]) == ("codet5p_embedding", "mean")
    assert (values["pad_token_id"], values["eos_token_id"]) == (0, 2), "as the data has them"


def test_weights_that_are_not_finite_start_no_run(folder):
    params = {path: np.array(array) for path, array in folder[1].items()}
    params["embedding"][3, :2] = np.nan
    path = folder[0].parent / "broken"
    export_hugging_face(path, ArrayWeights(tiny_config(), params))
    specs = CodeT5p(tiny_config()).specs
    plan = plan_init(InitFrom(f"hf:{path}"), specs)
    with pytest.raises(ValueError, match="embedding has 2 values that are NaN or infinite"):
        load_init(plan, specs, make_mesh(MeshConfig(fsdp=8)), seed=0)


def test_pickles_have_to_be_converted_first(folder, tmp_path):
    pickled = shutil.copytree(folder[0], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"codet5p convert import --allow_pickle --from .*pickled"):
        plan_init(InitFrom(f"hf:{pickled}"), CodeT5p(tiny_config()).specs)


def test_what_cannot_be_exported_is_not_trained(tmp_path):
    config = tiny_config()
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, norm="layer"))
    with pytest.raises(ValueError, match=r"the network is no t5: encoder.norm is 'layer'"):
        synthetic.run(
            tmp_path / "cache",
            tmp_path / "run",
            model=config,
            export_to=tmp_path / "exported",
            export_arch="t5",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [{"arch": "nonsense"}, {"dtype": "fp16"}])
def test_names_that_mean_nothing_are_refused(folder, tmp_path, names):
    [(what, name)] = names.items()
    for convert in (import_weights, export_weights):
        with pytest.raises(ValueError, match=rf"{what} has to be one of .*, found '{name}'"):
            convert(folder[0], tmp_path / "out", **names)
    assert not (tmp_path / "out").exists()
