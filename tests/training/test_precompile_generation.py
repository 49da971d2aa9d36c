"""Generation compiled for TPUs that are not there; skipped where there is no libtpu."""

import importlib.util
import math

import pytest

from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import flatten
from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training.precompile_generation import Generation, precompile_generation
from tests.training.synthetic import tiny_config


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_generation_on_four_chips():
    config = tiny_config(num_encoder_layers=2, num_decoder_layers=2, scan_layers=True)
    rows, inputs, outputs = 8, 16, 5
    report = precompile_generation(
        topology="v5e:2x2", model=config, generation=Generation(rows, inputs, outputs)
    )
    (phase,) = report.phases
    assert phase.fits
    assert phase.memory.batch == 2 * (2 * inputs + 1) * 4
    # By hand: two FLOPs for each weight and position, and attention.
    sizes = {name: spec.shape for name, spec in flatten(CodeT5p(config).specs)}
    weights = {"encoder": 0, "cross": 0, "decoder": 0}
    for name in sizes:
        if "/layers/" not in name or "norm" in name:
            continue
        reads_prompt = "cross_attention/k" in name or "cross_attention/v" in name
        part = "cross" if reads_prompt else name.split("/")[0]
        weights[part] += math.prod(sizes[name])
    width = config.decoder.num_heads * config.decoder.head_dim
    prompt = inputs * (weights["encoder"] + weights["cross"] + 2 * 2 * inputs * width)
    step = weights["decoder"] + 2 * 2 * (outputs + inputs) * width
    step += config.vocab_size * config.decoder.d_model
    bias = 32 * config.encoder.num_heads * (2 * inputs - 1)  # of the encoder, for all rows
    assert phase.speed.model_flops == 2 * (rows * (prompt + outputs * step) + bias) / 4
    assert phase.speed.dot_flops == pytest.approx(phase.speed.model_flops, rel=0.1)
    with pytest.raises(ValueError, match=r"6 prompts do not divide over 4 .*; change the first"):
        precompile_generation(topology="v5e:2x2", model=config, generation=Generation(6, 16, 5))


def test_what_cannot_be_generated_is_an_error():
    assert Generation.parse("64x512x128") == Generation(64, 512, 128)
    for text in ("64x512", "64x512x0", "64xax1", ""):
        with pytest.raises(ValueError, match="expected ROWSxINPUTSxOUTPUTS such as 64x512x128"):
            Generation.parse(text)
    alone = tiny_config(num_decoder_layers=0)
    with pytest.raises(ValueError, match="needs an encoder and a decoder"):
        precompile_generation(
            topology="v5e:2x2", model=alone, generation=Generation(1, 1, 1), mesh=MeshConfig()
        )
