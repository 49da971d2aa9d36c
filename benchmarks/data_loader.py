"""Examples and tokens a second of the loader with 0, 1 and 2 workers, against a training step.

    python benchmarks/data_loader.py                      # synthetic cache, as fast as it goes
    python benchmarks/data_loader.py --step_seconds 0.5   # how long would a step wait for data?
    python benchmarks/data_loader.py --cache_dir ~/cache --mixture stdlib_stage2

The last line is JSON. `wait_ms` is what a step that takes --step_seconds waits for its batch (mean,
after the first); `examples_per_second` and `tokens_per_second` are measured without any step.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Grain imports JAX; an accelerator is not needed

import numpy as np

from codet5p_jax.data.cache import CachedMixture, open_mixture
from codet5p_jax.data.cache_writer import CacheWriter, write_mixture
from codet5p_jax.data.loader import Batch, Loader
from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives import OBJECTIVES

SPECIAL = SpecialTokens(
    pad=0, bos=1, eos=2, unk=3, sentinels=tuple(range(32099, 31999, -1)), decoder_start=0
)
STAGE1 = {"span_denoising": 4.0, "seq2seq_clm": 1.0, "decoder_clm": 1.0}  # the paper's rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache_dir", type=Path, help="default: a synthetic cache")
    parser.add_argument("--mixture", help="in that cache")
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--step_seconds", type=float, default=0.0, help="a step takes so long")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if (args.cache_dir is None) != (args.mixture is None):
        parser.error("--cache_dir and --mixture go together")
    with tempfile.TemporaryDirectory() as folder:
        if args.cache_dir is None:
            args.cache_dir, args.mixture = Path(folder), "synthetic"
            write_synthetic(args.cache_dir)
        mixture = open_mixture(args.cache_dir, args.mixture, "train")
        print(f"{args.mixture}: batch {args.batch_size}, a step takes {args.step_seconds:g} s")
        results = []
        for workers in args.workers:
            results.append(measure(mixture, args.batch_size, workers, args))
            print("  ".join(f"{name} {value:,}" for name, value in results[-1].items()), flush=True)
    print(json.dumps({"mixture": args.mixture, "batch_size": args.batch_size, "results": results}))


def measure(
    mixture: CachedMixture, batch_size: int, workers: int, args: argparse.Namespace
) -> dict[str, float]:
    """One row of the table."""
    objectives = {name: OBJECTIVES[name]() for name in mixture.objectives}
    loader = Loader(mixture, objectives, batch_size, seed=0, num_workers=workers)
    start = time.perf_counter()
    batches = loader.iterate(0)
    next(batches)
    first = time.perf_counter() - start

    start, tokens = time.perf_counter(), 0
    for _ in range(args.batches):
        tokens += used_tokens(next(batches))
    seconds = time.perf_counter() - start

    waited = 0.0
    steps = min(args.batches, int(10 / args.step_seconds) + 1) if args.step_seconds else 0
    for _ in range(steps):
        time.sleep(args.step_seconds)
        start = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - start
    batches.close()
    return {
        "workers": workers,
        "first_batch_s": round(first, 2),
        "examples_per_second": round(args.batches * batch_size / seconds),
        "tokens_per_second": round(tokens / seconds),
        "batches_per_second": round(args.batches / seconds, 1),
        "step_batches_per_second": round(1 / args.step_seconds, 2) if steps else 0.0,
        "wait_ms": round(1000 * waited / steps, 2) if steps else 0.0,
    }


def used_tokens(batch: Batch) -> int:
    """Tokens of a batch that are not padding, in all encoders and decoders."""
    return sum(
        int(np.count_nonzero(array))
        for arrays in batch.values()
        for name, array in arrays.items()
        if name.endswith("_segments")
    )


def write_synthetic(cache_dir: Path, examples: int = 2000) -> None:
    """A stage-1 mixture over chunks of 512 random tokens, a word every two of them."""
    rng = np.random.default_rng(0)
    for name in STAGE1:
        with CacheWriter(cache_dir, name, "train", {}) as writer:
            for _ in range(examples):
                tokens = rng.integers(5, 32_000, 512, dtype=np.int32)
                writer.write({"tokens": tokens, "word_starts": rng.random(512) < 0.5})
    write_mixture(
        cache_dir,
        "synthetic",
        [(name, name, rate) for name, rate in STAGE1.items()],
        special=SPECIAL,
        vocab_size=32_100,
        tokenizer_digest="none",
        save_tokenizer=lambda folder: None,
    )


if __name__ == "__main__":
    main()
