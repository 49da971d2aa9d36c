"""What is asked of models, how texts come back, and what tables say."""

from dataclasses import replace

import jax
import pytest

from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.evaluation.benchmarks import generation, registry, table
from codet5p_jax.evaluation.benchmarks.base import Model, Settings
from codet5p_jax.evaluation.benchmarks.files import GrowingFile
from codet5p_jax.evaluation.benchmarks.generation import (
    Decoding,
    framed,
    generate_texts,
    samples_at_once,
)
from codet5p_jax.evaluation.benchmarks.published import size_of
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.configs import t5
from codet5p_jax.models.params import init_params
from codet5p_jax.sharding import MeshConfig, make_mesh

TEXTS = ["def f(x):", "class A: pass", "x = 1", "import os\nimport sys"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, 420, tmp_path_factory.mktemp("tokenizer"))


def network(**changes):
    sizes = dict(vocab_size=420, d_model=16, num_heads=2, head_dim=8, d_ff=32)
    config = t5(**sizes, num_encoder_layers=1, num_decoder_layers=1, tie_embeddings=False)
    return CodeT5p(replace(config, **changes))


def model(tokenizer, **changes):
    unbound = network(**changes)
    params = init_params(unbound.specs, jax.random.key(0))
    # Text, rather than special tokens.
    last = tokenizer.special.sentinels[-1]
    params["lm_head"] = params["lm_head"].at[:5].mul(0.0).at[last:].mul(0.0)
    return Model(unbound, params, tokenizer, tokenizer.special)


def written(asked, prompts, batch_size):
    how = Decoding(max_tokens=6)
    batches = generate_texts(asked, prompts, how, jax.random.key(0), batch_size)
    return dict(pair for batch in batches for pair in batch)


@pytest.mark.parametrize("both", [False, True])
def test_texts_do_not_depend_on_what_they_are_batched_with(both, tokenizer):
    asked = model(tokenizer, prompt_to_decoder=both)
    prompts = [framed(asked, text, 32) for text in TEXTS]
    together = written(asked, prompts, 3)
    assert together == {i: written(asked, [p], 1)[0] for i, p in enumerate(prompts)}
    assert len({*together.values()}) > 1
    assert not any(together[i].startswith(text) for i, text in enumerate(TEXTS))


def test_samples_do_not_depend_on_how_they_are_batched(tokenizer):
    """One at a time, or five of each of three prompts."""
    asked, times = model(tokenizer, prompt_to_decoder=True), [5, 1, 0, 3]
    assert samples_at_once(5, 16) == 5
    texts = drawn(asked, times, 16)
    assert [len(of) for of in texts] == times
    assert len({*texts[0]}) == 5
    assert drawn(asked, times, 1) == texts


def test_samples_on_many_devices(tokenizer):
    asked, times, mesh = model(tokenizer), [4, 2, 4], make_mesh(MeshConfig())
    assert samples_at_once(4, 16, len(jax.devices())) == 2
    assert drawn(replace(asked, mesh=mesh), times, 16) == drawn(asked, times, 4)
    with pytest.raises(ValueError, match="batch_size: axis 'batch' of size 3 does not divide"):
        drawn(replace(asked, mesh=mesh), times, 3)


def drawn(asked, times, batch_size):
    prompts = [framed(asked, text, 32) for text in TEXTS[: len(times)]]
    how, key = Decoding(max_tokens=6, temperature=1.0), jax.random.key(1)
    found = [[] for _ in times]
    for batch in generate_texts(asked, prompts, how, key, batch_size, (), times):
        assert len(batch) <= batch_size
        for place, text in batch:
            found[place].append(text)
    return found


def test_a_prompt_is_read_once_for_several_samples(tokenizer, monkeypatch):
    asked, seen = model(tokenizer), []

    class Seen(generation.Writer):
        def write(self, prompts, key):
            seen.append((len(prompts), self.how.samples, self.batch_size))
            return super().write(prompts, key)

    monkeypatch.setattr(generation, "Writer", Seen)
    how, key = Decoding(max_tokens=2, temperature=1.0), jax.random.key(0)
    given = [framed(asked, "x = 1", 32)], how, key, 8, (), [20]
    assert sum(len(batch) for batch in generate_texts(asked, *given)) == 20
    assert seen == [(5, 4, 2)]


def test_beams_and_stops(tokenizer):
    asked = model(tokenizer)
    prompts = [framed(asked, text, 32) for text in TEXTS]
    greedy = written(asked, prompts, 4)
    beams = Decoding(max_tokens=6, beams=3)
    (batch,) = generate_texts(asked, prompts, beams, jax.random.key(0), 4)
    assert dict(batch).keys() == greedy.keys()
    assert dict(batch) != greedy
    stop = greedy[0][0]
    assert stop != "\ufffd", "half a character is no text"
    how = Decoding(max_tokens=6)
    (batch,) = generate_texts(asked, prompts[:1], how, jax.random.key(0), 1, (stop,))
    assert batch == [(0, stop)]
    assert len(greedy[0]) > 1


def test_what_is_read(tokenizer):
    ids, special = tokenizer.encode("x = 1"), tokenizer.special
    prompt = framed(model(tokenizer), "x = 1", 32)
    assert [list(part) for part in prompt] == [[special.bos, *ids, special.eos], []]
    prompt = framed(model(tokenizer), "x = 1", 3)
    assert list(prompt.encoder) == [special.bos, ids[0], special.eos]
    both = framed(model(tokenizer, prompt_to_decoder=True), "x = 1", 2)
    assert [list(part) for part in both] == [ids[:2], ids[:2]]


def test_a_line_is_asked_for_as_lines_are_trained_on(tokenizer):
    lines = registry.BENCHMARKS["complete_java"]
    problem = {"prefix": "import os <EOL> x = os ."}
    encode, special = tokenizer.encode, tokenizer.special
    wanted = [*encode("import os"), special.eos, *encode("x = os .")]
    prompt = lines.prompt(model(tokenizer), problem, Settings())
    assert [list(part) for part in prompt] == [[special.unk], wanted]
    short = replace(lines, prefix_length=3).prompt(model(tokenizer), problem, Settings())
    assert list(short.prefix) == wanted[-3:]
    assert lines.finish(" foo ( )  { return") == "foo ( )"
    assert registry.BENCHMARKS["complete_py150"].finish("a { b") == "a { b"


@pytest.mark.parametrize("separator", [None, "_CODE_SEP_"])
def test_code_that_was_found_is_read_as_it_is_trained_on(separator, tokenizer):
    problem = {"source": "adds one\nx = 1\nx = 2"}
    asked, encode, special = model(tokenizer), tokenizer.encode, tokenizer.special
    between = [special.eos] if separator is None else encode(" _CODE_SEP_ ")
    wanted = [*encode("adds one"), *between, *encode("x = 1"), *between, *encode("x = 2")]
    settings = Settings(code_separator=separator)
    prompt = registry.BENCHMARKS["retrieve_generate_java_5"].prompt(asked, problem, settings)
    assert [list(part) for part in prompt] == [[special.bos, *wanted, special.eos], []]


def test_humaneval_reads_tabs_and_ends_where_the_released_script_does(tokenizer):
    humaneval = registry.BENCHMARKS["humaneval"]
    assert humaneval.asked({"prompt": "def f():\n    pass"}) == "def f():\n\tpass"
    assert humaneval.finish("\treturn 1\n\ndef g():\n") == "    return 1\n"
    assert humaneval.finish("\treturn 1\n# x\nif y:") == "    return 1"


INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n\n### Instruction:\nCreate a Python script for this problem:\n"
)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        (
            'import os\n\ndef f(x):\n    """ Adds  one\n    to x.\n    >>> f(1)\n    2\n    """\n',
            "Adds one to x.",
        ),
        # The released script's slices where a mark is missing.
        ('def f(x):\n    """ Adds one.\n    f(1) == 2\n    """\n', 'Adds one. f(1) == 2 """'),
        ('def f(x):\n    """Adds one."""', 'Adds one.""'),
        ("def f(x):\n    ''' Adds.\n    >>> f(1)\n    2\n    '''\n", "f f(x): ''' Adds."),
    ],
)
def test_an_instruction_is_that_of_the_released_script(prompt, asked, tokenizer):
    decode = tokenizer.decode
    read = registry.BENCHMARKS["humaneval_instruct"].prompt
    head, said = prompt.replace("    ", "\t"), f"{INSTRUCTION}{asked}\n\n### Response:"
    both = read(model(tokenizer, prompt_to_decoder=True), {"prompt": prompt})
    assert [decode(part) for part in both] == [said, said + head]
    encoder_alone = read(model(tokenizer), {"prompt": prompt})
    assert [decode(part) for part in encoder_alone] == [said, head]
    short = replace(registry.BENCHMARKS["humaneval_instruct"], inputs_length=3)
    parts = short.prompt(model(tokenizer, prompt_to_decoder=True), {"prompt": prompt})
    assert [len(part) for part in parts] == [3, 3]


def test_figures_stand_beside_the_prompt_they_are_of():
    for name, benchmark in registry.BENCHMARKS.items():
        tuned = ["InstructCodeT5+" in row.how for row in benchmark.published]
        assert all(tuned) if name == "humaneval_instruct" else not any(tuned)


def test_tests_are_asked_for_as_in_codet():
    humaneval = registry.BENCHMARKS["humaneval"]
    ((writer, settings, _),) = humaneval.also(Settings(samples=200, temperature=0.2, code_t=5))
    assert writer.asked({"prompt": 'def f():\n    """x"""\n', "entry_point": "f"}) == (
        'def f():\n\t"""x"""\n\tpass\n\n# check the correctness of f\nassert '
    )
    decoding = writer.decoding.of(settings)
    assert (decoding.samples, decoding.temperature, decoding.max_tokens) == (5, 0.8, 300)
    assert writer.finish("f(1) == 2\n# x") == "f(1) == 2\n# x"
    assert humaneval.also(Settings()) == []


def test_settings_change_decoding():
    paper = registry.BENCHMARKS["summarize_go"].decoding
    assert paper.of(Settings()) == Decoding(max_tokens=128, beams=5)
    assert paper.of(Settings(temperature=0.8)) == Decoding(max_tokens=128, temperature=0.8)
    several = registry.BENCHMARKS["humaneval"].decoding.of(Settings(samples=3))
    assert (several.samples, several.temperature, several.top_p) == (3, 0.2, 0.95)


def test_a_growing_file_loses_no_more_than_a_half_written_line(tmp_path):
    file = GrowingFile(tmp_path / "file")
    assert file.read({}) == []
    file.append([{"a": "\ud800é"}, {"a": "b"}])
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes() + b'{"a": ')
    assert file.read({}) == [{"a": "\ud800é"}, {"a": "b"}]
    file.append([{"a": "c"}])
    assert len(file.read({})) == 3
    (tmp_path / "file").write_bytes(b'{"a"\n{"a": 1}\n')
    with pytest.raises(ValueError, match=":1: expected a JSON object"):
        file.read({})


@pytest.mark.parametrize(
    ("width", "layers", "decoder", "heads", "size"),
    [
        (768, 12, 12, {}, "220M"),
        (1024, 24, 24, {}, "770M"),
        (768, 12, 0, {"classes": 2}, "220M"),
        (768, 12, 0, {"embed_dim": 256}, "110M"),
        (64, 2, 2, {}, None),
    ],
)
def test_size_in_the_paper(width, layers, decoder, heads, size):
    sizes = dict(vocab_size=32100, d_model=width, num_heads=4, head_dim=16, d_ff=64)
    config = t5(**sizes, num_encoder_layers=layers, num_decoder_layers=decoder, **heads)
    assert size_of(config) == size


def test_figures_are_of_metrics_that_are_scored():
    for benchmark in registry.BENCHMARKS.values():
        names = {metric.name for metric in benchmark.metrics}
        for row in benchmark.published:
            assert row.figures.keys() <= names, benchmark.name
            found = dict(row.figures)
            if row.how in ("retrieval only", "generation only"):
                assert found.pop("exact_match") == 0
            assert all(1 < figure < 100 for figure in found.values())
        assert bool(benchmark.published) == bool(benchmark.published_source)
        assert bool(benchmark.published) == ("not a benchmark of the paper" not in benchmark.note)


def test_numbers_of_a_table():
    rows = [["defect", "accuracy", 66.123, "66.10 (220M, fine-tuned)", "2 of 3"]]
    assert table.markdown(rows).splitlines()[2] == (
        "| defect | accuracy | 66.12 | 66.10 (220M, fine-tuned) | 2 of 3 |"
    )


def test_no_encoder_is_an_error(tokenizer):
    alone = network()
    config = replace(alone.config, decoder=replace(alone.config.decoder, num_layers=0))
    blind = Model(CodeT5p(config), None, tokenizer, tokenizer.special)
    with pytest.raises(ValueError, match="--checkpoint has no decoder"):
        generation.check_generation("mbpp", blind)
