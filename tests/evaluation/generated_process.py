"""One of two processes that train on made-up texts and judge what the network writes.

    python -m tests.evaluation.generated_process CACHE MODEL_DIR PROCESS OF PORT

Prints the metrics of the last evaluation. Also what `test_generated` trains with in one process.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.data.tokenizer import train_tokenizer
from codet5p_jax.evaluation import generated
from codet5p_jax.objectives.seq2seq import Seq2Seq
from codet5p_jax.training.cluster import Cluster
from codet5p_jax.training.early_stopping import EarlyStopping
from codet5p_jax.training.evaluate import Evaluation
from codet5p_jax.training.hosts import joined
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.schedules import Constant
from tests.training import synthetic

WORDS = ("parse", "join", "sort", "count")
OBJECTIVE = Seq2Seq(inputs_length=10, targets_length=10)


def text(i: int) -> str:
    """The targets; the inputs are their words turned round."""
    return f"{WORDS[i % 4]} {WORDS[i // 4 % 4]}"


def write_cache(folder: Path) -> None:
    """The mixture `turned`, with a real tokenizer."""
    tokenizer = train_tokenizer([*WORDS] * 9, 400, folder / "tokenizer", num_sentinels=2)

    def ids(words: str) -> np.ndarray:
        return np.array([tokenizer.special.bos, *tokenizer.encode(words), tokenizer.special.eos])

    for split, number in (("train", 64), ("validation", 16)):
        with CacheWriter(folder, "turned", split, {"made": "up"}) as writer:
            for i in range(number):
                turned = " ".join(reversed(text(i).split()))
                features = {"inputs": ids(turned), "targets": ids(text(i))}
                writer.write({name: x.astype(np.int32) for name, x in features.items()})
    write_mixture(
        folder,
        "turned",
        [("turned", "seq2seq", 1.0)],
        special=tokenizer.special,
        vocab_size=tokenizer.vocab_size,
        tokenizer_digest="made-up",
        save_tokenizer=lambda to: tokenizer.save(to) and None,
    )


def metrics(cache: str | Path, **changes: Any) -> dict[str, generated.Metric]:
    given = {"rows": 5, "batch_size": 4, "mixture": "turned", "objective": OBJECTIVE}
    return generated.metrics(cache_dir=cache, **{**given, **changes})


def run(cache: str | Path, model_dir: str | Path, **changes: Any) -> dict[str, float]:
    """Trains; the metrics of the last evaluation."""
    settings = {
        "model": synthetic.tiny_config(vocab_size=400),
        "objectives": [OBJECTIVE],
        "phases": [Phase("turned", 4, 8)],
        "schedule": Constant(1e-2),
        "evaluation": Evaluation(every=2, batches=1, metrics=metrics(cache)),
        "early_stopping": EarlyStopping("bleu+exact_match", higher_is_better=True),
    }
    return synthetic.run(cache, model_dir, **{**settings, **changes}).after


def main(cache: str, model_dir: str, process: int, of: int, port: int) -> None:
    with joined(Cluster(f"localhost:{port}", of, process), 60) as party:
        party.connect()
        print("found", json.dumps(run(cache, model_dir)))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
