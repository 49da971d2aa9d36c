"""Training speed of one T5 shape here and in `transformers` on PyTorch, on this machine.

    python benchmarks/train_vs_hf.py                    # JAX, PyTorch eager, in alternation
    python benchmarks/train_vs_hf.py --peers eager compile --dropout 0.1

Both sides train the same shape on the same batch (encoder-decoder, teacher forcing, tied
embeddings, AdamW, gradients clipped at 1): 4 + 4 layers, width 256, 4 heads × 64, gated
feed-forward 1024, vocabulary 32,128, 16 rows of 256 + 128 tokens, fp32. Each measurement is a
process of its own, sides take turns, and the median of a side is compared. Our side is the train
step of `codet5p train`, metrics and skipping of non-finite steps included.

The floor is the matrix products, whose FLOPs are printed. Needs the `torch` extra.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

B, S, T, V = 16, 256, 128, 32_128
D, H, K, F, LAYERS = 256, 4, 64, 1024, 4
WARMUP = 2


def matmul_flops() -> float:
    """Of forward and backward (twice the forward) of one step; embedding look-ups cost none."""
    projection = D * H * K
    feed_forward = 3 * D * F
    encoder = B * S * (4 * projection + feed_forward) + 2 * B * H * S * S * K
    decoder = B * T * (6 * projection + feed_forward)  # q k v o, and q o of cross-attention
    decoder += B * S * 2 * projection  # its k and v
    decoder += 2 * B * H * T * (T + S) * K
    return 3 * 2 * (LAYERS * (encoder + decoder) + B * T * V * D)


def process_age() -> float:
    """Seconds since this process started."""
    with open("/proc/self/stat") as f:
        ticks = int(f.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as f:
        return float(f.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def run_jax(steps: int, dropout: float) -> dict[str, float]:
    """Our train step."""
    import jax
    import numpy as np

    from codet5p_jax.models import CodeT5p, t5
    from codet5p_jax.objectives import OBJECTIVES
    from codet5p_jax.sharding import MeshConfig, make_mesh
    from codet5p_jax.training.batches import place
    from codet5p_jax.training.optimizers import AdamW
    from codet5p_jax.training.schedules import Constant
    from codet5p_jax.training.state import abstract_state, compiler_options, init_state
    from codet5p_jax.training.step import make_train_step

    mesh = make_mesh(MeshConfig())
    model = CodeT5p(
        t5(
            vocab_size=V, d_model=D, num_heads=H, head_dim=K, d_ff=F, num_encoder_layers=LAYERS,
            num_decoder_layers=LAYERS, gated=True, activation="gelu_tanh", dropout=dropout,
            scan_layers=False,
        )
    )  # fmt: skip
    objectives = [OBJECTIVES["seq2seq"](inputs_length=S, targets_length=T)]
    learning_rate = Constant(peak=1e-4).make(1000)
    optimizer = AdamW().make(learning_rate, model.specs)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, V, (B, S), dtype=np.int32)
    targets = rng.integers(3, V, (B, T), dtype=np.int32)
    arrays = {
        "encoder_tokens": tokens,
        "encoder_segments": np.ones_like(tokens),
        "decoder_tokens": np.concatenate([np.zeros((B, 1), np.int32), targets[:, :-1]], 1),
        "decoder_segments": np.ones_like(targets),
        "decoder_targets": targets,
        "decoder_weights": np.ones((B, T), np.float32),
    }
    with jax.set_mesh(mesh):
        batch = place({"seq2seq": arrays}, mesh)
        step = make_train_step(model, objectives, {}, optimizer, learning_rate, seed=0)
        abstract = abstract_state(model, objectives, optimizer, mesh)

        def compiled():
            with jax.set_mesh(mesh):  # a thread does not inherit it
                return step.lower(abstract, batch).compile(compiler_options(mesh))

        # As in training/train.py: compiled while the initial values are drawn.
        with ThreadPoolExecutor(1) as background:
            compiling = background.submit(compiled)
            state = init_state(model, objectives, optimizer, mesh, seed=0)
            train_step = compiling.result()

        def one() -> float:
            nonlocal state
            state, metrics = train_step(state, batch)
            return float(metrics["loss"][0])

        return timed(one, steps)


def run_torch(steps: int, dropout: float, compiled: bool) -> dict[str, float]:
    """`transformers`' T5 with torch.optim.AdamW."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=V, d_model=D, num_heads=H, d_kv=K, d_ff=F, num_layers=LAYERS,
        num_decoder_layers=LAYERS, feed_forward_proj="gated-gelu", dropout_rate=dropout,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens, labels = torch.randint(3, V, (B, S)), torch.randint(3, V, (B, T))
    mask = torch.ones_like(tokens)
    forward = torch.compile(model) if compiled else model

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return timed(one, steps)


def timed(one, steps: int) -> dict[str, float]:
    """Seconds to the end of the first step, and the median of `steps` warm ones."""
    one()
    first = process_age()
    for _ in range(WARMUP - 1):
        one()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = one()
        seconds.append(time.perf_counter() - began)
    return {"first_step": first, "step": statistics.median(seconds), "loss": loss}


def main() -> int:
    """Measures, or is one of the measured processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps per process")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--peers", nargs="+", default=["eager"], choices=["eager", "compile"])
    parser.add_argument("--side", choices=["jax", "eager", "compile"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if args.side == "jax":
            found = run_jax(args.steps, args.dropout)
        else:
            found = run_torch(args.steps, args.dropout, args.side == "compile")
        print(json.dumps(found))
        return 0
    sides = ["jax", *args.peers]
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    print(f"matrix products: {matmul_flops() / 1e9:.0f} GFLOP a step; {os.cpu_count()} CPUs")
    # What `codet5p train` sets; for both sides.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    for _ in range(args.rounds):
        for side in sides:
            command = [sys.executable, __file__, f"--side={side}", f"--steps={args.steps}",
                       f"--dropout={args.dropout}"]  # fmt: skip
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment
            ).stdout
            results[side].append(json.loads(output.splitlines()[-1]))
            print(f"  {side:8s} {results[side][-1]}", flush=True)
    median = {
        side: {k: statistics.median(r[k] for r in runs) for k in ("step", "first_step")}
        for side, runs in results.items()
    }
    print(f"\n{'side':10s}{'steps/s':>9s}{'tokens/s':>10s}{'GFLOP/s':>9s}{'first step':>12s}")
    for side, m in median.items():
        rate = 1 / m["step"]
        print(f"{side:10s}{rate:9.3f}{rate * B * (S + T):10,.0f}"
              f"{rate * matmul_flops() / 1e9:9.0f}{m['first_step']:10.1f} s")  # fmt: skip
    ratios = {f"jax / {p}": median[p]["step"] / median["jax"]["step"] for p in args.peers}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(json.dumps({"median": median, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
