"""Generated text comes from the inputs that training showed the model."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding.generate import Generation
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.evaluation import samples

CORPUS = ["def add(a, b):\n    return a + b\n", "def parse_date(text): return text\n"] * 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(CORPUS, 420, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def calls(monkeypatch, tokenizer):
    """Replaces generation by an echo of the encoder's tokens, and records what it was given."""
    made = []

    def compiled(model, special: SpecialTokens, sampling):
        def run(params, tokens, segments, prefix, lengths, key):
            made.append((tokens, segments, prefix, lengths))
            return Generation(jax.numpy.asarray(tokens), jax.numpy.asarray(segments.sum(1)))

        return run

    monkeypatch.setattr(samples, "compiled", compiled)
    return made


def model_with(**config):
    both = SimpleNamespace(num_layers=1)
    return SimpleNamespace(config=SimpleNamespace(encoder=both, **config))


MODEL = model_with(prompt_to_decoder=False)
SETTINGS = {"inputs_length": 12, "sampling": Sampling(max_length=12)}


def test_completions_read_clm_and_the_end_of_the_beginning(tokenizer, calls):
    texts = ["def add", "x" * 100 + "yz"]
    written = samples.completions(MODEL, None, tokenizer, texts, key=jax.random.key(0), **SETTINGS)
    tokens, segments, prefix, lengths = calls[0]
    assert tokens[:, 0].tolist() == [tokenizer.special.unk] * 2
    assert written[0] == "def add"
    assert written[1].endswith("yz")
    assert segments[1].tolist() == [1] * 12
    assert prefix.shape == (2, 0)
    assert lengths.tolist() == [0, 0]


def test_completions_begin_with_the_prompt_where_the_decoder_reads_it_too(tokenizer, calls):
    model, texts = model_with(prompt_to_decoder=True), ["def add", "parse"]
    samples.completions(model, None, tokenizer, texts, key=jax.random.key(0), **SETTINGS)
    _, segments, prefix, lengths = calls[0]
    for row, text in enumerate(texts):
        assert prefix[row, : lengths[row]].tolist() == tokenizer.encode(text)
    np.testing.assert_array_equal(lengths, segments.sum(1) - 1)  # without [CLM]


def test_docstrings_read_a_framed_function_and_start_with_tdec(tokenizer, calls):
    special = tokenizer.special
    samples.docstrings(MODEL, None, tokenizer, ["def add"], key=jax.random.key(0), **SETTINGS)
    tokens, segments, prefix, lengths = calls[0]
    used = int(segments.sum())
    assert tokens[0, :used].tolist() == [special.bos, *tokenizer.encode("def add"), special.eos]
    np.testing.assert_array_equal(prefix, [[special.tdec]])
    np.testing.assert_array_equal(lengths, [1])


FUNCTION = """@cache
def parse(text,
          strict=True):
    if strict:

        return int(text)
    return None"""


def test_split_function_stops_before_the_indentation():
    beginning, rest = samples.split_function({"code": FUNCTION, "text": "Parse it."})
    assert beginning.endswith('strict=True):\n    """Parse it."""')
    assert beginning.startswith("@cache\ndef parse(text,")
    assert rest.startswith("    if strict:")
    assert f"{beginning}\n{rest}".replace('\n    """Parse it."""', "") == FUNCTION


@pytest.mark.parametrize(
    ("continuation", "expected"),
    [
        ("\n    return a\n\ndef b():\n    pass", "    return a"),
        ("\n    if a:\n\n        b\n", "    if a:\n\n        b"),
        ("\nclass C:", ""),
        (" # note\n    x\ny", " # note\n    x"),
        ("", ""),
    ],
)
def test_cut_to_body(continuation, expected):
    assert samples.cut_to_body(continuation) == expected


def test_presentable_functions_have_a_body_of_their_own():
    assert samples.is_presentable(FUNCTION)
    assert not samples.is_presentable("def f(): return 1")
    assert not samples.is_presentable("def f():\n" + "    x\n" * 40)
