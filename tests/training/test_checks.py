"""Settings that no run can work with are named before data, devices or MODEL_DIR are touched."""

import math
import subprocess
import sys

import pytest

from codet5p_jax.objectives import DecoderCLM, Seq2Seq, SpanDenoising, TextCodePairs
from codet5p_jax.training.checkpoints import InitFrom
from codet5p_jax.training.checks import check_configuration, check_loss_weights
from codet5p_jax.training.freezing import Trainable
from codet5p_jax.training.optimizers import Adafactor, AdamW, WithRates
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.schedules import Constant, Cosine, Linear
from codet5p_jax.training.train import Logging
from tests.training import synthetic

OBJECTIVES = [SpanDenoising(), TextCodePairs()]


def check(**changes):
    settings = {
        "model": synthetic.tiny_config(embed_dim=8, matching_head=True),
        "objectives": OBJECTIVES,
        "phases": [Phase("a", 3, 8), Phase("b", 2, 8)],
        "schedule": Linear(1e-3, warmup_steps=4),
    }
    check_configuration(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate has to be 1 or more micro-batches, found 0"),
        ({"ema_decay": 1.0}, "ema_decay has to be at least 0 and below 1, found 1.0"),
        ({"ema_decay": -0.1}, "ema_decay has to be at least 0"),
        ({"max_nonfinite": 0}, "max_nonfinite has to be 1 or more steps in a row, found 0"),
        ({"num_workers": -1}, r"num_workers has to be 0 \(a thread\) or more processes, found -1"),
        ({"loss_weights": {"matching": -1.0}}, "'matching' has to have 0 or more, found -1.0"),
        ({"loss_weights": {"matching": math.nan}}, "'matching' has to have 0 or more, found nan"),
        ({"loss_weights": {"matchin": 1.0}}, r"no loss 'matchin'.* did you mean 'matching'"),
        ({"schedule": Linear(-1e-3)}, "peak learning rate must be positive"),
        ({"schedule": Linear(1e-3, final=-1e-4)}, "final learning rate must be 0 or more"),
        ({"schedule": Cosine(1e-3, final=math.nan)}, "final learning rate must be 0 or more"),
        ({"schedule": Constant(1e-3, 5)}, "warm-up takes 5 of 5 steps"),
        (
            {"optimizer": WithRates(AdamW(), (("encodr/.*", 2.0),))},
            r"rates: 'encodr/\.\*' matches no parameter; the nearest is 'encoder/\.\*'",
        ),
        (
            {
                "optimizer": WithRates(AdamW(), (("decoder/.*", 2.0),)),
                "trainable": Trainable(("encoder/.*",)),
            },
            r"rates: 'decoder/\.\*' matches no parameter",
        ),
        ({"trainable": Trainable(("encodr/.*",))}, r"'encodr/\.\*' matches no parameter"),
        (
            {"objectives": [Seq2Seq(prompt_to_decoder=True)]},
            "the model has prompt_to_decoder = False, the objective seq2seq True",
        ),
        ({"model": synthetic.tiny_config()}, "text_code_pairs needs a model with embed_dim"),
        (
            {"model": synthetic.tiny_config(embed_dim=8)},
            "text_code_pairs with matching=True needs a model with matching_head=True",
        ),
        (
            {
                "export_to": "folder",
                "export_arch": "codet5p_bimodal",
                "model": synthetic.tiny_config(),
                "objectives": OBJECTIVES[:1],
            },
            "embed_dim|matching",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes, message):
    check()
    with pytest.raises(ValueError, match=message):
        check(**changes)


def test_weights_of_0_switch_a_loss_off():
    check_loss_weights({"matching": 0.0, "span_denoising": 2.0}, OBJECTIVES)


def test_weights_to_start_from_are_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*INITIAL_CHECKPOINT_PATH"):
        check(init_from=InitFrom(str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match=r"nowhere.*INITIAL_CHECKPOINT_PATH"):
        check(init_from=InitFrom(f"hf:{tmp_path}/nowhere"))


def test_weights_to_start_from_have_to_fit_unless_a_run_is_resumed(tmp_path):
    synthetic.write_cache(tmp_path / "cache")
    first = tmp_path / "first"
    synthetic.run(tmp_path / "cache", first, phases=[Phase("denoise", 1, 8)],
                  schedule=Constant(1e-3), evaluation=synthetic.Evaluation())  # fmt: skip
    without_pairs = {"objectives": OBJECTIVES[:1], "model": synthetic.tiny_config()}
    check(init_from=InitFrom(str(first)), **without_pairs)
    with pytest.raises(ValueError, match="projection/kernel: not in the checkpoint"):
        check(init_from=InitFrom(str(first)))
    check(init_from=InitFrom(str(tmp_path / "gone")), model_dir=first)


def test_devices_are_left_alone():
    """Another process may prepare the data on them first."""
    code = (
        "from tests.training.test_checks import check; from jax._src import xla_bridge;"
        "check(export_to='folder'); assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (Logging, {"every": 0}, "every has to be 1 or more steps, found 0"),
        (Adafactor, {"min_size_to_factor": 0}, "min_size_to_factor has to be 1 or more"),
        (Seq2Seq, {"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        (SpanDenoising, {"label_smoothing": -0.1}, "label_smoothing must be at least 0"),
        (DecoderCLM, {"z_loss": -1e-4}, "decoder_clm: z_loss must be 0 or more, not -0.0001"),
        (DecoderCLM, {"z_loss": math.nan}, "z_loss must be 0 or more"),
        (SpanDenoising, {"max_spans": 0}, "max_spans must be 1 or more, not 0"),
        (TextCodePairs, {"queue_size": -1}, "queue_size=-1 must be 0 or more"),
        (TextCodePairs, {"matching_rows": 0}, "matching_rows=0 must be 1 or more, or None"),
        (TextCodePairs, {"alpha": 1.5}, "alpha=1.5 is not between 0 and 1"),
        (TextCodePairs, {"alpha_ramp_steps": -1}, "alpha_ramp_steps=-1 must be 0 or more"),
        (TextCodePairs, {"temperature_bounds": (0.0, 0.5)}, "temperature_bounds must be a pos"),
        (TextCodePairs, {"temperature_bounds": (0.5, 0.1)}, "temperature_bounds must be a pos"),
    ],
)
def test_numbers_out_of_range_are_refused(make, wrong, message):
    make()
    with pytest.raises(ValueError, match=message):
        make(**wrong)
