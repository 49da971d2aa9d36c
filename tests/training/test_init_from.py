"""Starting from other weights: by name, with rows for tokens that were added, on one tokenizer."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from codet5p_jax.data.roles import codet5_roles
from codet5p_jax.data.tokenizer import Tokenizer, train_tokenizer
from codet5p_jax.models import CodeT5p, init_params
from codet5p_jax.models.params import ParamSpec, flatten, normal, ones
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.checkpoints import CheckpointPolicy, Checkpoints, InitFrom
from codet5p_jax.training.init_from import load_init, network_of, plan_init
from codet5p_jax.training.model_dir import ModelDir, check_tokenizer, config_to_json
from codet5p_jax.training.state import TrainState
from tests.training.synthetic import tiny_config

MESH = MeshConfig(replica=2, fsdp=2, tensor=2)
HEADS = ("projection/.*", "log_temperature", "matching_head/.*")
SPECS = {
    "w": ParamSpec((4, 8), ("embed", "joint"), ones),
    "b": ParamSpec((8,), ("joint",), ones),
}


def save(directory, params, step, average=None):
    zero = jnp.zeros((), jnp.int32)
    saver = Checkpoints(directory.checkpoints, CheckpointPolicy())
    saver.save(TrainState(zero, params, (), {}, average, zero, zero), step, {"step": step})
    saver.close()


def filled(value):
    return {name: jnp.full(spec.shape, float(value)) for name, spec in SPECS.items()}


@pytest.fixture
def run(tmp_path):
    """A model directory with checkpoints of steps 2 and 4, filled with these numbers."""
    directory = ModelDir(tmp_path / "model")
    for step in (2, 4):
        save(directory, filled(step), step)
    return directory


def load(source, specs, mesh=MESH, seed=0):
    return load_init(plan_init(source, specs), specs, make_mesh(mesh), seed=seed)[0]


def test_weights_are_taken_by_name(run):
    specs = {"kernel": SPECS["w"], "b": SPECS["b"]}
    source = InitFrom(str(run.root), rename=(("^w$", "kernel"),))
    plan = plan_init(source, specs)
    assert plan.sources == {"kernel": "w", "b": "b"}
    assert str(plan) == f"2 arrays from {run.checkpoints / '4'}; fresh: nothing"
    loaded = load(source, specs)
    np.testing.assert_array_equal(loaded["kernel"], filled(4)["w"])
    assert loaded["kernel"].sharding.spec[0] == "fsdp"
    older = InitFrom(str(run.checkpoints / "2"), unused=("b",))
    [array] = load(older, {"w": SPECS["w"]}).values()
    np.testing.assert_array_equal(array, filled(2)["w"])


def test_the_average_is_taken_where_there_is_one(tmp_path):
    save(ModelDir(tmp_path), filled(4), 4, average=filled(5))
    loaded = load(InitFrom(str(tmp_path)), SPECS)
    np.testing.assert_array_equal(loaded["w"], filled(5)["w"])


def spec(*shape):
    return ParamSpec(shape, ("norm",) * len(shape), ones)


def test_names_that_do_not_match_are_errors_with_the_nearest(run):
    source = InitFrom(str(run.root))
    specs = {"weight": spec(4, 8), "b": spec(8), "bb": spec(3)}
    with pytest.raises(ValueError, match="do not fit") as error:
        plan_init(source, specs)
    text = str(error.value)
    assert "bb: not in the checkpoint (nearest: b)" in text
    assert "weight: not in the checkpoint" in text
    assert "w: not in this model" in text
    allowed = InitFrom(str(run.root), new=("weight", "b+"), unused=("w",))
    plan = plan_init(allowed, specs)
    assert (plan.sources, plan.fresh) == ({"b": "b"}, ("bb", "weight"))
    assert str(plan).endswith("fresh: bb, weight")


@pytest.mark.parametrize(
    "wrong", [{"rename": (("(emb", "x"),)}, {"rename": (("emb", r"\2"),)}, {"new": ("(",)}]
)
def test_a_pattern_that_is_none_is_an_error_at_once(wrong):
    with pytest.raises(ValueError, match=f"InitFrom.{next(iter(wrong))}.*no regular expression"):
        InitFrom("anywhere", **wrong)


def test_two_names_must_not_become_one(run):
    with pytest.raises(ValueError, match=r"(w and b|b and w) are both renamed to x"):
        plan_init(InitFrom(str(run.root), rename=((".*", "x"),)), SPECS)


def test_no_checkpoint_to_start_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        plan_init(InitFrom(str(tmp_path)), SPECS)


@pytest.mark.parametrize("folder", ["", "checkpoints/4"])
def test_a_truncated_checkpoint_to_start_from(run, folder):
    file = next((run.checkpoints / "4" / "params" / "d").iterdir())
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100])
    expected = rf"checkpoint .*/4 cannot be read \(params/d/\w+ has 100 of {size} bytes\).*\[2\]$"
    with pytest.raises(OSError, match=expected):
        plan_init(InitFrom(str(run.root / folder)), SPECS)


def drawn(config, seed):
    return init_params(CodeT5p(config).specs, jax.random.key(seed))


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    # 60 rows there divide over 2 and 4 devices, not over 8; 64 here do.
    "mesh",
    [MeshConfig(), MESH, MeshConfig(fsdp=1, tensor=8)],
    ids=["fsdp", "all", "tensor"],
)
def test_stage_2_takes_a_smaller_vocabulary_and_draws_the_rest(tmp_path, mesh, average):
    stage1 = tiny_config(vocab_size=60, tie_embeddings=False, num_heads=8)
    stage2 = dataclasses.replace(stage1, vocab_size=64, embed_dim=8, matching_head=True)
    specs = CodeT5p(stage2).specs
    old, new = dict(flatten(drawn(stage1, 0))), dict(flatten(drawn(stage2, 5)))
    other = jax.tree.map(jnp.zeros_like, drawn(stage1, 0))
    trees = (other, drawn(stage1, 0)) if average else (drawn(stage1, 0), None)
    save(ModelDir(tmp_path), trees[0], 7, average=trees[1])

    plan = plan_init(InitFrom(str(tmp_path), new=HEADS), specs)
    loaded, _ = load_init(plan, specs, make_mesh(mesh), seed=5)
    assert loaded.keys() == old.keys()
    for name, array in loaded.items():
        if name in ("embedding", "lm_head"):
            np.testing.assert_array_equal(array[:60], old[name])
            np.testing.assert_allclose(array[60:], new[name][60:], rtol=1e-6)
            assert array.sharding.spec == P("tensor", "fsdp")
        else:
            np.testing.assert_array_equal(array, old[name])
    assert str(plan) == (
        f"{len(old)} arrays from {tmp_path / 'checkpoints' / '7'}; fresh: rows 60 to 63 of "
        "embedding, rows 60 to 63 of lm_head, log_temperature, matching_head/bias, "
        "matching_head/kernel, projection/bias, projection/kernel"
    )


def test_any_other_shape_is_an_error_with_both(tmp_path):
    save(ModelDir(tmp_path), drawn(tiny_config(), 0), 7)
    for changes, message in (
        ({"vocab_size": 63}, r"embedding: shape \(64, 16\) there, \(63, 16\) here"),
        ({"d_model": 32}, r"embedding: shape \(64, 16\) there, \(64, 32\) here"),
        ({"vocab_size": 65, "d_model": 32}, r"embedding: shape \(64, 16\) there, \(65, 32\) here"),
        ({"d_ff": 48}, r"encoder/.*/wi: shape \(.*32\) there, \(.*48\) here"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_init(InitFrom(str(tmp_path)), CodeT5p(tiny_config(**changes)).specs)
    specs = {"w": ParamSpec((5, 8), ("embed", "joint"), normal(1.0)), "b": SPECS["b"]}
    save(ModelDir(tmp_path / "other"), filled(0), 1)
    with pytest.raises(ValueError, match=r"w: shape \(4, 8\) there, \(5, 8\) here"):
        plan_init(InitFrom(str(tmp_path / "other"), new=("w",)), specs)


TEXTS = ["def add(a, b):\n    return a + b\n", "for number in numbers: total += number\n"] * 5


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders `without` the prefixes, `with` them appended, and of `another` vocabulary."""
    root = tmp_path_factory.mktemp("tokenizers")
    trained = train_tokenizer(TEXTS, 400, root / "trained", num_sentinels=10)
    spec = json.loads((root / "trained" / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = spec["model"]["vocab"]
    for token in ("[ENC]", "[TDEC]", "[CDEC]"):
        del vocab[token]
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in vocab]
    without = Tokenizer(spec, codet5_roles(10))
    assert without.vocab_size == trained.vocab_size - 3
    without.save(root / "without")
    without.with_prefixes().save(root / "with")
    train_tokenizer(TEXTS[::2], 400, root / "another", num_sentinels=10)
    return root


def test_appended_prefixes_change_no_other_id(tmp_path, tokenizers):
    check_tokenizer(tmp_path, tokenizers / "with")  # nothing to compare with
    for theirs in (tokenizers / "without", tokenizers / "with"):
        check_tokenizer(theirs, tokenizers / "without")
        check_tokenizer(theirs, tokenizers / "with")
        check_tokenizer(theirs, tokenizers / "trained")
        with pytest.raises(ValueError, match="is not that of the data") as error:
            check_tokenizer(theirs, tokenizers / "another")
        assert str(theirs) in str(error.value)
        assert str(tokenizers / "another") in str(error.value)


def test_roles_of_a_folder_without_them_are_those_of_the_data(tmp_path, tokenizers):
    """As in a Hugging Face folder, where no file says which token plays which role."""
    for name, fits in (("with", True), ("another", False)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(tokenizers / name / "tokenizer.json", folder)
        if fits:
            check_tokenizer(folder, tokenizers / "with")
        else:
            with pytest.raises(ValueError, match="is not that of the data"):
                check_tokenizer(folder, tokenizers / "with")


def test_other_kinds_of_tokenizers(tmp_path, tokenizers):
    theirs, mine = tmp_path / "theirs", tmp_path / "digest"
    for folder in (theirs, mine):
        folder.mkdir()
        (folder / "sentencepiece.model").write_text("some")
    check_tokenizer(theirs, mine, "digest")
    check_tokenizer(theirs, mine)
    with pytest.raises(ValueError, match="is not that of the data"):
        check_tokenizer(theirs, mine, "other")  # the same pieces, but other sentinels
    (mine / "sentencepiece.model").write_text("another")
    check_tokenizer(theirs, mine, "digest")  # what the run recorded has the last word
    with pytest.raises(ValueError, match="is not that of the data"):
        check_tokenizer(theirs, mine, "other")
    with pytest.raises(ValueError, match="is not that of the data"):
        check_tokenizer(theirs, mine)
    with pytest.raises(ValueError, match="is not that of the data"):
        check_tokenizer(theirs, tokenizers / "with")
    for folder in (theirs, mine):  # a vocabulary that is no file
        (folder / "sentencepiece.model").unlink()
        (folder / "vocabulary.txt").write_text("ByteVocabulary")
    check_tokenizer(theirs, mine, "digest")
    with pytest.raises(ValueError, match="is not that of the data"):
        check_tokenizer(theirs, mine, "other")


def test_weights_of_another_tokenizer_are_refused(tmp_path, tokenizers):
    directory = ModelDir(tmp_path)
    save(directory, filled(1), 1)
    directory.tokenizer.symlink_to(tokenizers / "without")
    for path in (tmp_path, directory.checkpoints / "1"):
        plan_init(InitFrom(str(path)), SPECS, tokenizers / "with")
        with pytest.raises(ValueError, match="is not that of the data"):
            plan_init(InitFrom(str(path)), SPECS, tokenizers / "another")


GATED = {"gated": True, "activation": "gelu_tanh"}


def misfit(tmp_path, theirs, mine, **source):
    """What is said of weights of one network and a model that is another."""
    directory = ModelDir(tmp_path)
    save(directory, drawn(theirs, 0), 7)
    directory.config.write_text(json.dumps(config_to_json(theirs)))
    with pytest.raises(ValueError, match="do not fit") as error:
        plan_init(InitFrom(str(tmp_path), **source), CodeT5p(mine).specs, model=mine)
    return str(error.value).splitlines()


OF_WEIGHTS = "or take the network from the weights: --gin_file=models/of_weights.gin."
PARTNERS = "Rename what has no partner (InitFrom.rename), or list it in InitFrom.new (to be"


def test_a_setting_that_differs_is_one_to_change(tmp_path):
    theirs = tiny_config(activation="gelu_tanh")
    _, *problems, remedy = misfit(tmp_path, theirs, tiny_config())
    assert problems == [
        "  encoder.activation: 'gelu_tanh' there, 'relu' here",
        "  decoder.activation: 'gelu_tanh' there, 'relu' here.",
    ]
    assert remedy.startswith("Set activation of the model as there (in gin, of what train.train.")
    assert remedy.endswith(OF_WEIGHTS)


def test_rows_too_many_are_a_vocabulary_to_set(tmp_path):
    theirs = tiny_config(vocab_size=70, tie_embeddings=False)
    mine = dataclasses.replace(theirs, vocab_size=64)
    *_, remedy = lines = misfit(tmp_path, theirs, mine)
    assert len(lines) == 4
    assert remedy == "Set VOCAB_SIZE of the model to 70 or more."


def test_each_kind_of_problem_has_its_remedy(tmp_path):
    theirs = tiny_config(vocab_size=70, **GATED)
    mine = tiny_config(activation="gelu_tanh", embed_dim=8)
    *_, settings, rows, names = misfit(tmp_path, theirs, mine)
    assert settings.startswith("Set gated of the model as there")
    assert rows == "Set VOCAB_SIZE of the model to 70 or more."
    assert names.startswith(PARTNERS)
    *_, problem, remedy = misfit(tmp_path / "heads", tiny_config(), tiny_config(embed_dim=8))
    assert problem.startswith("  projection/kernel: not in the checkpoint")
    assert remedy.startswith(PARTNERS)


def test_the_sizes_of_a_network_that_nothing_describes(tmp_path):
    save(ModelDir(tmp_path), drawn(tiny_config(), 0), 7)
    with pytest.raises(ValueError, match="do not fit") as error:
        plan_init(InitFrom(str(tmp_path)), CodeT5p(tiny_config(d_model=32)).specs)
    remedy = str(error.value).splitlines()[-1]
    assert remedy.startswith("Set the sizes of the model as there")


def test_the_network_of_a_model_directory(tmp_path):
    config = tiny_config(**GATED, dropout=0.3, remat="full")
    towers = {t: dataclasses.replace(getattr(config, t), int8=True) for t in ("encoder", "decoder")}
    directory = ModelDir(tmp_path)
    save(directory, filled(0), 7)
    directory.config.write_text(json.dumps(config_to_json(dataclasses.replace(config, **towers))))
    for path in (tmp_path, directory.checkpoints / "7"):
        assert network_of(str(path), scan_layers=False) == dataclasses.replace(config, remat="none")
    how = {"scan_layers": False, "attention": "fused", "loss_chunk": 7, "loss_chunks": 1}
    assert network_of(str(tmp_path), **how) == dataclasses.replace(config, remat="none", **how)
    with pytest.raises(FileNotFoundError, match=r"expected them as path \(INITIAL_CHECK"):
        network_of(str(tmp_path / "nowhere"))
