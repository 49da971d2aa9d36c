"""A tiny cache of made-up examples, a tiny model, and `train` on them; also run as a script.

    python -m tests.training.synthetic CACHE_DIR MODEL_DIR KILL_AT_STEP KILL_IN_SAVE TERMINATE_AT \\
        WORKERS

Zeros interrupt nothing. With workers, SIGTERM goes to the whole process group.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.models import ModelConfig, t5
from codet5p_jax.objectives import DecoderCLM, SpanDenoising, TextCodePairs
from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training.checkpoints import CheckpointPolicy, Checkpoints
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.progress import PlainProgress
from codet5p_jax.training.schedules import Linear
from codet5p_jax.training.train import Logging, TrainResult, train

VOCAB = 64
EVALUATION = Evaluation(every=6, batches=2)
SPECIAL = SpecialTokens(
    pad=0, bos=1, eos=2, unk=3, sentinels=tuple(range(60, 50, -1)), decoder_start=0,
    enc=61, tdec=62, cdec=63,
)  # fmt: skip


def tiny_config(**changes: Any) -> ModelConfig:
    """One layer each, not scanned: what compiles soonest."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32,
        "num_encoder_layers": 1, "num_decoder_layers": 1, "scan_layers": False,
    }  # fmt: skip
    return t5(**{**sizes, **changes})


def write_cache(cache_dir: Path) -> None:
    """Mixtures `denoise` (one objective), `both` (two) and `pairs`."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 200), ("validation", 40)):
        with CacheWriter(cache_dir, "files", split, {"made": "up"}) as writer:
            for _ in range(number):
                n = int(rng.integers(8, 20))
                tokens = ((np.arange(n) * 3 + rng.integers(40)) % 40 + 5).astype(np.int32)
                writer.write({"tokens": tokens, "word_starts": rng.random(n) < 0.7})
        with CacheWriter(cache_dir, "functions", split, {"made": "up"}) as writer:
            for _ in range(number):
                code = rng.integers(5, 45, rng.integers(4, 12)).astype(np.int32)
                writer.write({"text": code[:3], "code": code})
    for name, tasks in {
        "denoise": [("files", "span_denoising", 1.0)],
        "both": [("files", "span_denoising", 1.0), ("files", "decoder_clm", 1.0)],
        "pairs": [("functions", "text_code_pairs", 1.0)],
    }.items():
        write_mixture(
            cache_dir,
            name,
            tasks,
            special=SPECIAL,
            vocab_size=VOCAB,
            tokenizer_digest="made-up",
            save_tokenizer=lambda folder: (
                (folder / "tokenizer.json").write_text('{"model": {}}') and None
            ),
        )


def objectives() -> list[Any]:
    return [
        SpanDenoising(inputs_length=16, targets_length=12),
        DecoderCLM(targets_length=12),
        TextCodePairs(text_length=8, code_length=12, queue_size=16),
    ]


def run(cache_dir: str | Path, model_dir: str | Path, **changes: Any) -> TrainResult:
    """Trains 4 steps of denoising and 8 of both on one device, saving every 3 steps."""
    steps = changes.pop("steps", 12)
    save_every = changes.pop("save_every", 3)
    pairs = any(phase.mixture == "pairs" for phase in changes.get("phases", ()))
    settings: dict[str, Any] = {
        "model": tiny_config(),
        "objectives": objectives()[2:] if pairs else objectives()[:2],
        "phases": [Phase("denoise", 4, 8), Phase("both", steps - 4, 8)],
        "schedule": Linear(1e-2, warmup_steps=2),
        "mesh": MeshConfig(),
        "checkpoints": CheckpointPolicy(every=save_every, keep_last=2),
        "evaluation": EVALUATION,
        "logging": Logging(every=5, tensorboard=False),
    }
    return train(cache_dir=cache_dir, model_dir=model_dir, **{**settings, **changes})


class Interrupting(PlainProgress):
    """Sends this process, or its group, a signal once the metrics of a step have come in."""

    def __init__(self, step: int, number: int, group: bool = False):
        super().__init__()
        self._at, self._signal, self._group = step, number, group

    def advance(self, step, values):
        if step == self._at:
            (os.killpg if self._group else os.kill)(os.getpid(), self._signal)


def kill_during_save(number: int) -> None:
    """Makes the process kill itself as soon as its n-th checkpoint starts to be written."""
    save, calls = Checkpoints.save, iter(range(1, 1000))

    def save_and_die(self, *args):
        save(self, *args)
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = save_and_die


def main(
    cache_dir: str, model_dir: str, kill_at: int, save: int, terminate_at: int, workers: int
) -> None:
    changes: dict[str, Any] = {"num_workers": workers}
    if kill_at:
        changes["progress"] = Interrupting(kill_at, signal.SIGKILL)
    if terminate_at:
        changes["progress"] = Interrupting(terminate_at, signal.SIGTERM, group=workers > 0)
    if save:
        kill_during_save(save)
    result = run(cache_dir, model_dir, **changes)
    print("finished at step", result.step, "interrupted" if result.interrupted else "")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
