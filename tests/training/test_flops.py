from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from codet5p_jax.models import CodeT5p
from codet5p_jax.objectives import SpanDenoising, TextCodePairs
from codet5p_jax.training.flops import count_flops, peak_flops, step_flops
from tests.training.synthetic import tiny_config


def test_products_inside_scans_and_branches_are_counted():
    def function(x, w):
        y, _ = jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)
        y = jax.lax.cond(y[0, 0] > 0, lambda y: (y @ w) @ w, lambda y: y @ w, y)
        return jax.jit(lambda z: jnp.einsum("bi,bj->ij", z, z))(y)

    jaxpr = jax.make_jaxpr(function)(jnp.ones((3, 4)), jnp.ones((4, 4)))
    product = 2 * 3 * 4 * 4
    assert count_flops(jaxpr.jaxpr) == (5 + 2 + 1) * product


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_step_of_t5_is_what_the_shapes_say(remat):
    config = tiny_config(num_encoder_layers=2, num_decoder_layers=2, scan_layers=True, remat=remat)
    B, S, T, D, HK, F, L, V = 3, 16, 8, 16, 16, 32, 2, 64
    objective = SpanDenoising(inputs_length=S, targets_length=T)
    attention = lambda q, k: 2 * B * (2 * q * k * HK)  # noqa: E731 - scores and mixing
    encoder = L * (2 * B * S * (4 * D * HK + 2 * D * F) + attention(S, S))
    decoder = L * (
        2 * B * T * (6 * D * HK + 2 * D * F)
        + 2 * B * S * 2 * D * HK
        + attention(T, T)
        + attention(T, S)
    )
    head = 2 * B * T * D * V
    # Two small products with a constant turn the position tables into biases.
    tables = 2 * 32 * 2 * ((2 * S - 1) + (2 * T - 1))
    found = step_flops(CodeT5p(config), [objective], {"span_denoising": B})
    assert found == {"span_denoising": 3.0 * (encoder + decoder + head) + 2.0 * tables}


def test_a_momentum_encoder_has_a_forward_pass_and_its_queue_no_gradient():
    B, Q, D, HK, F, E, lengths = 3, 6, 16, 16, 32, 8, (16, 8)
    model = CodeT5p(tiny_config(embed_dim=E))

    def flops(**momentum):
        text, code = lengths
        pairs = TextCodePairs(text_length=text, code_length=code, matching=False, **momentum)
        return step_flops(model, [pairs], {pairs.name: B})[pairs.name]

    teacher = sum(
        2 * B * S * (4 * D * HK + 2 * D * F) + 2 * B * (2 * S * S * HK)  # the layer
        + 2 * 32 * 2 * (2 * S - 1)  # the table of its positions
        + 2 * B * D * E  # the embedding
        for S in lengths
    )  # fmt: skip
    # Similarities, both ways: of the batch with two gradients, with the queue one; the teacher's.
    alone = 2 * 3 * 2 * B * B * E
    queued = 2 * (2 + 1) * 2 * B * (B + Q) * E
    found = flops(momentum=0.99, queue_size=Q, alpha=0.4) - flops(momentum=None, queue_size=0)
    assert found == teacher + queued - alone


def test_micro_batches_are_counted_each():
    """A queue may be shorter than their sum."""
    pairs = TextCodePairs(text_length=8, code_length=8, matching=False, momentum=0.99, queue_size=4)
    model = CodeT5p(tiny_config(embed_dim=8))
    [one] = step_flops(model, [pairs], {pairs.name: 4}).values()
    assert step_flops(model, [pairs], {pairs.name: 12}, accumulate=3) == {pairs.name: 3 * one}


def test_peaks():
    assert peak_flops(SimpleNamespace(device_kind="NVIDIA H200")) == 989e12
    assert peak_flops(SimpleNamespace(device_kind="TPU v5 lite")) == 197e12
    assert peak_flops(SimpleNamespace(device_kind="TPU v5")) == 459e12
    assert peak_flops(SimpleNamespace(device_kind="cpu")) is None
