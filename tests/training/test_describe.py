import jax.numpy as jnp
import pytest

from codet5p_jax.models import CodeT5p, t5
from codet5p_jax.objectives import DecoderCLM, SpanDenoising
from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training.checkpoints import CheckpointPolicy, SnapshotPolicy
from codet5p_jax.training.describe import activation_bytes, describe
from codet5p_jax.training.freezing import Trainable
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.schedules import Linear

BASE = t5(
    vocab_size=32100, d_model=768, num_heads=12, head_dim=64, d_ff=3072,
    num_encoder_layers=12, num_decoder_layers=12, dtype=jnp.bfloat16, remat="full",
)  # fmt: skip


def report(**changes):
    settings = {
        "model": BASE,
        "objectives": [SpanDenoising(), DecoderCLM()],
        "phases": [Phase("first", 10_000, 2048), Phase("second", 100_000, 2560)],
        "rows": [{"span_denoising": 2048}, {"span_denoising": 2048, "decoder_clm": 512}],
        "num_devices": 16,
        "ema_decay": 0.999,
    }
    return describe(**{**settings, **changes})


def test_the_220m_model_on_a_machine_that_is_not_here():
    text = report()
    assert "222,882,048" in text
    assert "replica 1 x fsdp 16 x sequence 1 x tensor 1 = 16 devices" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["params"][1:] == ["0.89", "GB", "55.90", "MB"]
    assert lines["opt_state"][1:3] == ["1.78", "GB"]
    assert lines["ema"][1:3] == ["0.89", "GB"]
    assert "phase second: 100,000 steps of 2,560 rows" in text
    assert "110,000 steps in all" in text
    assert "on disk: a checkpoint of 3.57 GB; at most 10.70 GB in all" in text


def test_what_checkpoints_and_snapshots_take():
    policy = CheckpointPolicy(every=50_000, keep_last=1, snapshots=SnapshotPolicy(10_000))
    text = report(checkpoints=policy)
    expected = "a checkpoint of 3.57 GB, a snapshot of 0.45 GB; at most 12.04 GB in all"
    assert f"on disk: {expected}" in text
    frozen = Trainable(("encoder/.*",), save_frozen=False)
    text = report(checkpoints=policy, trainable=frozen, ema_decay=None)
    assert "on disk: a checkpoint of 1.02 GB, a snapshot of 0.17 GB" in text


def test_what_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match=r"span_denoising has 2047 rows"):
        report(rows=[{"span_denoising": 2047}, {"span_denoising": 2048}])
    with pytest.raises(ValueError, match=r"12 does not divide over 8 devices .* 16 would"):
        report(mesh=MeshConfig(tensor=8))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"accumulate": 0}, "accumulate has to be 1 or more"),
        ({"num_devices": 0}, "num_devices has to be 1 or more"),
        ({"ema_decay": 2.0}, "ema_decay has to be"),
        ({"loss_weights": {"span_denoisin": 1.0}}, "did you mean 'span_denoising'"),
        ({"schedule": Linear(0.0)}, "peak learning rate"),
        ({"schedule": Linear(1e-4, 200_000)}, "warm-up takes 200000 of 110000"),
    ],
)
def test_settings_that_training_refuses_are_errors(changes, text):
    with pytest.raises(ValueError, match=text):
        report(**changes)


def test_activations_are_what_the_backward_pass_reads():
    """A matrix product keeps its input; rematerialised, a stack keeps one array per layer."""
    objective = SpanDenoising(inputs_length=32, targets_length=16)
    sizes = dict(
        vocab_size=50, d_model=8, num_heads=2, head_dim=4, d_ff=16, num_encoder_layers=3,
        num_decoder_layers=3, dropout=0.0,
    )  # fmt: skip
    none = activation_bytes(CodeT5p(t5(**sizes, remat="none")), objective, 4)
    full = activation_bytes(CodeT5p(t5(**sizes, remat="full")), objective, 4)
    block_inputs = 4 * 4 * 8 * 3 * (32 + 16)  # bytes x rows x width x layers x positions
    assert full < none
    assert full > block_inputs
    twice = activation_bytes(CodeT5p(t5(**sizes, remat="full")), objective, 8)
    assert full < twice <= 2 * full
