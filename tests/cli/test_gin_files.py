"""Every gin file of the package parses, builds, and says what its head promises."""

import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from codet5p_jax.cli import gin_config, gin_static
from codet5p_jax.cli.errors import ConfigError
from codet5p_jax.interop.weights import ArrayWeights, export_hugging_face
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import abstract_params, count, flatten, init_params
from codet5p_jax.sharding import make_mesh
from codet5p_jax.training.optimizers import Muon
from codet5p_jax.training.phases import total_steps
from codet5p_jax.training.train import train

FILES = sorted(str(p.relative_to(gin_static.PACKAGE)) for p in gin_static.PACKAGE.rglob("*.gin"))
RUNS = [name for name in FILES if name.startswith("runs/")]


PLACEHOLDERS = {**gin_config.PATHS, "MIXTURE_OR_TASK_NAME": "(mixture)"}


def load(*files: str, bindings: tuple[str, ...] = ()):
    return gin_config.load(train, files, bindings, placeholders=PLACEHOLDERS)


@pytest.fixture(scope="module")
def runs():
    return {name: load(name) for name in RUNS}


def model_of(size: str, *bindings: str):
    """The model file as the stage-1 run of its size (or the quickstart) includes it."""
    config = load("runs/quickstart_stage1.gin", f"models/{size}.gin", bindings=bindings)
    return CodeT5p(config.arguments["model"])


def test_there_is_something_to_test():
    assert {"runs/stage1_220m.gin", "models/770m.gin", "meshes/fsdp.gin"} < set(FILES)


@pytest.mark.parametrize("name", RUNS)
def test_run_builds_and_uses_all_that_it_binds(runs, name: str):
    config = runs[name]
    assert config.unused == ()
    arguments = config.arguments
    names = {objective.name for objective in arguments["objectives"]}
    assert len(names) == len(arguments["objectives"])
    schedule = arguments["schedule"].make(total_steps(arguments["phases"]))
    assert 0 < schedule(0) <= arguments["schedule"].peak
    assert arguments["optimizer"].make(schedule, CodeT5p(arguments["model"]).specs)


@pytest.mark.parametrize("name", RUNS)
def test_operative_configuration_of_a_run_builds_the_same(runs, name: str, tmp_path):
    (tmp_path / "operative.gin").write_text(runs[name].text)
    again = load(str(tmp_path / "operative.gin"))
    assert again.text == runs[name].text
    for key, value in runs[name].arguments.items():
        assert again.arguments[key] == value


def includes(file: str) -> list[str]:
    return re.findall(r"^include '(.*)'", (gin_static.PACKAGE / file).read_text(), re.M)


def head_of(file: str) -> str:
    """The comment that a file begins with, without the signs of comments."""
    head = (gin_static.PACKAGE / file).read_text().partition("from __gin__")[0]
    lines = head.splitlines()
    assert all(line == "#" or line.startswith("# ") for line in lines)
    return "\n".join(line[2:] for line in lines)


@pytest.mark.parametrize("name", FILES)
def test_files_include_at_most_one_level(name: str):
    assert not [deep for file in includes(name) for deep in includes(file)]
    text = (gin_static.PACKAGE / name).read_text()
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", FILES)
def test_heads_say_hardware_work_and_what_to_expect(name: str):
    head = head_of(name)
    for part in ("Hardware:", "Positions per step", "To expect:"):
        assert re.search(rf"^{part}", head, re.M), f"{name} lacks {part}"


@pytest.mark.parametrize("name", FILES)
def test_the_launch_command_of_a_head_is_complete(name: str, tmp_path, monkeypatch):
    """It builds a run as it stands there, and the file is part of it."""
    monkeypatch.chdir(tmp_path)
    if name == "models/of_weights.gin":  # weights that are there
        config = t5(
            **{"vocab_size": 9, "d_model": 8, "num_heads": 1, "head_dim": 8, "d_ff": 8},
            **{"num_encoder_layers": 1, "num_decoder_layers": 1},
        )
        arrays = dict(flatten(init_params(CodeT5p(config).specs, jax.random.key(0))))
        export_hugging_face(tmp_path / "flan-t5-base", ArrayWeights(config, arrays))
    commands = re.findall(r"^  (codet5p train (?:.*\\\n)*.*)", head_of(name), re.M)
    assert commands, "no launch command"
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        values = [word.partition("=")[2] for word in words if word.startswith("--gin_file=")]
        assert name in [*values, *(file for value in values for file in includes(value))]
        bindings = [word[len("--gin.") :] for word in words if word.startswith("--gin.")]
        unused = gin_config.load(train, values, bindings).unused
        assert len(values) > 1 or not unused
        assert all(binding.startswith("configs.") for binding in unused), "a replaced network"


@pytest.mark.parametrize("name", RUNS)
def test_the_arithmetic_of_a_head_is_right_and_of_the_file(runs, name: str):
    """Lines of the form `what   1,024 × (5 + 3)    8,192`; totals may be rounded."""
    number = r"[\d,]+(?:\.\d+e\d+)?|\d\.\d+e\d+"
    lines = re.findall(rf"^  (\w+ ?\w+) {{2,}}(\d[^a-z]*?) {{2,}}({number})$", head_of(name), re.M)
    lines += re.findall(
        rf"^Positions (per step).*: (\d[^a-z]*) = ({number})\.$", head_of(name), re.M
    )
    assert lines, "no arithmetic"
    found = {}
    for what, sum_of_products, result in lines:
        factors = sum_of_products.replace(",", "").replace("\N{MULTIPLICATION SIGN}", "*")
        assert re.fullmatch(r"[\d *+()]+", factors)
        found[what] = float(result.replace(",", ""))
        assert eval(factors) == pytest.approx(found[what], rel=2e-3)
    if "all steps" in found:
        steps = [phase.steps for phase in runs[name].arguments["phases"]]
        parts = [value for what, value in found.items() if what != "all steps"]
        per_phase = parts if len(steps) > 1 else [sum(parts)]
        total = sum(n * p for n, p in zip(steps, per_phase, strict=True))
        assert found["all steps"] == pytest.approx(total, rel=2e-3)


@pytest.mark.parametrize(
    ("size", "bindings", "parameters"),
    [
        ("220m", (), 222_882_048),
        ("770m", (), 737_639_424),
        ("small", (), 60_492_288),
        ("tiny", (), 2_181_507),
        ("tiny_llm", (), 7_355_904),
        # 223,082,754 and the temperature of the contrastive loss.
        ("220m", ("VOCAB_SIZE=32103", "EMBED_DIM=256", "MATCHING_HEAD=True"), 223_082_754 + 1),
        ("770m", ("VOCAB_SIZE=32103", "EMBED_DIM=256", "MATCHING_HEAD=True"), 737_906_947),
    ],
)
def test_parameter_counts(size: str, bindings: tuple[str, ...], parameters: int):
    assert count(model_of(size, *bindings).specs) == parameters
    if not bindings:
        assert f"{parameters:,} parameters" in (
            gin_static.PACKAGE / f"models/{size}.gin"
        ).read_text().replace("\n# ", " ")


def test_runs_use_the_sizes_they_name(runs):
    def parameters(name: str) -> int:
        return count(CodeT5p(runs[f"runs/{name}.gin"].arguments["model"]).specs)

    assert parameters("stage1_220m") == 222_882_048
    assert parameters("stage1_770m") == 737_639_424
    assert parameters("stage2_220m") == 223_082_755
    assert parameters("stage2_770m") == 737_906_947
    assert parameters("quickstart_stage1") == parameters("quickstart_stage2")


def test_compute_dtype_reaches_the_network():
    """It is a string in gin, and nothing but a forward pass notices a wrong one."""
    model = model_of("220m")
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    encode = lambda params, t: model.bind(params).encode(t, t)  # noqa: E731
    states = jax.eval_shape(encode, abstract_params(model.specs), tokens)
    assert states.dtype == jnp.bfloat16
    assert states.shape == (1, 8, 768)


def test_t5x_speaks_of_task_feature_lengths():
    lengths = "TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}"
    (objective,) = load("runs/finetune_seq2seq.gin", bindings=(lengths,)).arguments["objectives"]
    assert (objective.inputs_length, objective.targets_length) == (64, 32)
    with pytest.raises(ConfigError, match="expected TASK_FEATURE_LENGTHS of inputs and targets"):
        load("runs/finetune_seq2seq.gin", bindings=("TASK_FEATURE_LENGTHS={'inputs': 64}",))
    with pytest.raises(ConfigError, match=r"must be Mapping\[str, int\], not 64"):
        load("runs/finetune_seq2seq.gin", bindings=("TASK_FEATURE_LENGTHS=64",))


@pytest.mark.parametrize("file", ["finetune_seq2seq", "stage2_220m", "quickstart_stage2"])
def test_a_run_from_nothing_needs_no_initial_checkpoint(file):
    """As the head of finetune_seq2seq.gin says; a macro that a run does need is still missed."""
    needed = ["MODEL_DIR='run'", "CACHE_DIR='cache'", "train.train.init_from=None"]
    if file == "finetune_seq2seq":
        needed.append("MIXTURE_OR_TASK_NAME='my_task'")
    config = gin_config.load(train, [f"runs/{file}.gin"], needed)
    assert config.arguments["init_from"] is None
    assert "checkpoints.InitFrom.path" in config.unused
    with pytest.raises(ConfigError, match="%INITIAL_CHECKPOINT_PATH, which nothing defines"):
        gin_config.load(train, [f"runs/{file}.gin"], [b for b in needed if "init_from" not in b])
    with pytest.raises(ConfigError, match="%CACHE_DIR, which nothing defines"):
        gin_config.load(train, [f"runs/{file}.gin"], [b for b in needed if "CACHE" not in b])


def test_example_of_the_documentation(tmp_path):
    """The gin file in docs/configuration.md does what the text says."""
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    (example,) = re.findall(r"```\n(from __gin__.*?)```", text, re.S)
    (tmp_path / "mine.gin").write_text(example)
    config = load(str(tmp_path / "mine.gin"))
    assert config.arguments["optimizer"] == Muon(momentum=0.9)
    assert config.arguments["phases"][-1].steps == 20_000
    assert config.unused == ("optimizers.AdamW.weight_decay",)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("data_parallel", (8, 1, 1, 1)),
        ("fsdp", (1, 8, 1, 1)),
        ("fsdp_tensor", (1, 4, 1, 2)),
        ("fsdp_tensor_sequence", (1, 2, 2, 2)),
        ("multi_slice", (2, 4, 1, 1)),
    ],
)
def test_meshes(name: str, shape: tuple[int, ...]):
    """Each says all sizes, so that nothing is left of one that came before."""
    before = "meshes/fsdp_tensor_sequence.gin"
    config = load("runs/quickstart_stage1.gin", before, f"meshes/{name}.gin")
    assert make_mesh(config.arguments["mesh"]).devices.shape == shape


def words_of_the_page_for_t5x():
    page = (Path(__file__).parents[2] / "docs/from_t5x.md").read_text(encoding="utf-8")
    table = page.split("## Words")[1].split("\n## ")[0]
    for line in table.splitlines():
        theirs, ours, *_ = [cell.strip() for cell in line.strip("|").split(" | ")] + [""]
        named = re.findall(r"`([^`]+)`", theirs if ours.startswith("the same") else ours)
        yield from (word for word in named if not word.startswith((".", "runs/", "from ")))


def test_the_words_of_the_page_for_t5x_exist():
    words = set(words_of_the_page_for_t5x())
    assert {"TRAIN_STEPS", "DROPOUT_RATE", "Z_LOSS", "checkpoints.InitFrom.rename"} < words
    texts = "".join((gin_static.PACKAGE / name).read_text() for name in FILES)
    for word in words:
        if re.fullmatch(r"[A-Z_]+", word) and word not in ("RULES",):
            assert re.search(rf"^{word} =|%{word}\b", texts, re.MULTILINE), word
        if match := re.match(r"(\w+)\.(\w+)(?:\.(\w+))?", word):
            module, cls, field = match.groups()
            places = [f"codet5p_jax.{part}{module}" for part in ("", "training.", "objectives.")]
            found = next(p for p in places if importlib.util.find_spec(p))
            thing = getattr(importlib.import_module(found), cls)
            assert field is None or field in inspect.signature(thing).parameters, word
