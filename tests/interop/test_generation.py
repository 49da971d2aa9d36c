"""Token for token what `transformers` writes with the same random weights, at fp32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.decoding.beam import BeamSearch
from codet5p_jax.decoding.generate import compiled
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.interop import hf_config
from codet5p_jax.interop.token_ids import TokenIds
from codet5p_jax.interop.torch_outputs import _modeling_file
from codet5p_jax.models import CodeT5p, codet5p_codegen
from tests.interop.test_parity import config_of, export, load_theirs, params_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTH, NEW = 14, 12
T5 = config_of(vocab_size=150, num_encoder_layers=2, tie_embeddings=False, scan_layers=False)
LARGE = codet5p_codegen(
    **dict(num_decoder_layers=3, d_model=24, num_heads=4, rotary_dim=4, vocab_size=150),
    **dict(num_encoder_layers=1, encoder_d_model=16, encoder_num_heads=4, encoder_rotary_dim=4),
)
MODELS = {
    "t5": (T5, TokenIds(), SpecialTokens(0, 1, 2, 3, (), decoder_start=0)),
    "codegen": (
        LARGE,
        TokenIds(pad=2, bos=1, eos=2, decoder_start=1),
        SpecialTokens(2, 1, 2, 3, (), decoder_start=1),
    ),
    "several ends": (
        T5,
        TokenIds(other_eos=(7, 90)),
        SpecialTokens(0, 1, 2, 3, (), decoder_start=0, other_eos=(7, 90)),
    ),
}


def ending(config, ends=(2,)):
    """Weights with which some texts end soon and others do not."""
    params = params_of(config)
    if config.head_bias:
        params["lm_head_bias"] = params["lm_head_bias"].at[2].add(0.8)
    else:
        params["lm_head"] = params["lm_head"].at[jnp.array(ends)].mul(2.0)
    return params


def rows():
    tokens = np.random.default_rng(5).integers(4, 150, (4, WIDTH)).astype(np.int32)
    segments = (np.arange(WIDTH) < np.array([[WIDTH], [9], [WIDTH], [3]])).astype(np.int32)
    return tokens, segments


@pytest.fixture(scope="module", params=["t5", "codegen"])
def both(request, tmp_path_factory):
    return writers(request.param, tmp_path_factory.mktemp("m") / "folder")


def writers(name, folder):
    """Ours and theirs: functions of (BeamSearch or Sampling, options) to tokens and scores."""
    config, ids, special = MODELS[name]
    params = ending(config, special.ends)
    export(folder, config, params, tokens=ids)
    model = load_theirs(
        _modeling_file(hf_config.MODELING["codet5p"].file).CodeT5pEncoderDecoderModel
        if name == "codegen"
        else transformers.T5ForConditionalGeneration,
        folder,
    )
    tokens, segments = rows()
    # Prompts of any length for the decoder of the one, a prefix of each length for the other's.
    lengths = segments.sum(1) if config.prompt_to_decoder else np.array([0, 0, 0, 0])
    width = WIDTH if config.prompt_to_decoder else 0

    def ours(how):
        run = compiled(CodeT5p(config), special, how)
        return run(params, tokens, segments, tokens[:, :width], lengths, jax.random.key(0))

    def theirs(**options):
        made = model.generate(
            torch.tensor(tokens).long(),
            attention_mask=torch.tensor(segments).long(),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        return made.sequences.numpy()[:, 1 + width :], getattr(made, "sequences_scores", None)

    return ours, theirs, special


def assert_same(result, expected, special):
    for row, length, found in zip(result.tokens, result.lengths, expected, strict=True):
        assert row[:length].tolist() == found[:length].tolist()
        assert set(row[length:].tolist()) <= {special.pad}
        # Beam search there takes a padding token 0 for none, and fills up with the end token.
        assert set(found[length:].tolist()) <= {special.pad, special.eos}


BEAMS = [
    {"beams": 2, "outputs": 2},
    {"beams": 4, "outputs": 3, "length_penalty": 0.0, "early_stopping": True},
    {"beams": 3, "outputs": 3, "length_penalty": 2.0, "early_stopping": "never"},
    {"beams": 3, "length_penalty": -1.0, "early_stopping": "never", "min_length": 4},
    {"beams": 3, "outputs": 3, "length_penalty": 0.6, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_beams(both, settings):
    ours, theirs, special = both
    how = BeamSearch(max_length=NEW, **settings)
    result = ours(how)
    options = {name: settings[name] for name in ("length_penalty", "repetition_penalty")
               if name in settings}  # fmt: skip
    if how.min_length:
        options["min_new_tokens"] = how.min_length - 1  # theirs does not count the end token
    expected, scores = theirs(
        num_beams=how.beams,
        num_return_sequences=how.outputs,
        early_stopping=how.early_stopping,
        **options,
    )
    assert_same(result, expected, special)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-5)
    if abs(how.length_penalty) < 1:  # others make all texts as long, or as short, as can be
        assert len(set(result.lengths.tolist())) > 1


@pytest.mark.parametrize("settings", [{}, {"min_length": 6, "repetition_penalty": 1.3}], ids=str)
def test_greedy(both, settings):
    ours, theirs, special = both
    result = ours(Sampling(max_length=NEW, **settings))
    options = {"min_new_tokens": 5, "repetition_penalty": 1.3} if settings else {}
    assert_same(result, theirs(**options)[0], special)
    assert len(set(result.lengths.tolist())) > 1


def test_a_text_ends_with_any_of_several_tokens(tmp_path):
    ours, theirs, special = writers("several ends", tmp_path / "folder")
    result = ours(Sampling(max_length=NEW))
    assert_same(result, theirs()[0], special)
    last = {row[n - 1] for row, n in zip(result.tokens.tolist(), result.lengths, strict=True)}
    result = ours(BeamSearch(max_length=NEW, beams=4, outputs=4))
    expected, scores = theirs(num_beams=4, num_return_sequences=4)
    assert_same(result, expected, special)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-5)
    last |= {row[n - 1] for row, n in zip(result.tokens.tolist(), result.lengths, strict=True)}
    assert last & set(special.other_eos)


def test_how_layers_are_stored_changes_nothing():
    tokens, segments = rows()
    found = []
    for scan in (True, False):
        config = dataclasses.replace(T5, scan_layers=scan)
        run = compiled(CodeT5p(config), MODELS["t5"][2], BeamSearch(max_length=5, beams=2))
        prefix = tokens[:, 3:5]
        found.append(
            run(ending(config), tokens, segments, prefix, np.array([2, 1, 0, 2]), jax.random.key(0))
        )
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-5)
