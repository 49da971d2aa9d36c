"""Training speed of one T5 shape here and in `transformers` on PyTorch, on this machine.

    python benchmarks/train_vs_hf.py                    # JAX, PyTorch eager, in alternation
    python benchmarks/train_vs_hf.py --peers eager compile --dropout 0.1
    python benchmarks/train_vs_hf.py --size=220m --peers eager compile  # on a GPU

Both sides train the same shape on the same batch (encoder-decoder, teacher forcing, tied
embeddings, AdamW, gradients clipped at 1), on the GPU where there is one:

  small  4 + 4 layers, width 256, 4 heads × 64, gated feed-forward 1024, vocabulary 32,128, 16 rows
         of 256 + 128 tokens, fp32
  220m   CodeT5+ 220M, 32 rows of 512 + 256 tokens, parameters fp32 and activations bf16 (PyTorch:
         autocast), nothing computed twice to save memory

Each measurement is a process of its own, sides take turns, and the median of a side is compared.
Our side is the train step of `codet5p train`, metrics and skipping of non-finite steps included.

Memory: ours as the compiler reckons it, PyTorch's the most that it allocated on a GPU.

The floor is the matrix products, whose FLOPs are printed, at the rate that one large product of
the same dtype reaches. Needs the `torch` extra.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from t5_shapes import NETWORKS, Network

WARMUP = 2


@dataclass(frozen=True)
class Shape:
    """A network and a batch.

    Attributes:
      rows, inputs, targets: of the batch.
      vocabulary, network: what is trained on it.
    """

    rows: int
    inputs: int
    targets: int
    vocabulary: int
    network: Network

    @property
    def tokens(self) -> int:
        """Positions of a step."""
        return self.rows * (self.inputs + self.targets)

    @property
    def matmul_flops(self) -> float:
        """Of forward and backward (twice the forward) of one step; embedding look-ups cost none."""
        B, S, T, x = self.rows, self.inputs, self.targets, self.network
        H, K, projection, feed_forward = x.heads, x.head_dim, x.projection, x.feed_forward
        encoder = B * S * (4 * projection + feed_forward) + 2 * B * H * S * S * K
        decoder = B * T * (6 * projection + feed_forward)  # q k v o, and q o of cross-attention
        decoder += B * S * 2 * projection  # its k and v
        decoder += 2 * B * H * T * (T + S) * K
        return 6 * (x.layers * (encoder + decoder) + B * T * self.vocabulary * x.width)


SHAPES = {
    "small": Shape(16, 256, 128, 32_128, NETWORKS["small"]),
    "220m": Shape(32, 512, 256, 32_100, NETWORKS["220m"]),
}


def process_age() -> float:
    """Seconds since this process started."""
    with open("/proc/self/stat") as f:
        ticks = int(f.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as f:
        return float(f.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def run_jax(x: Shape, steps: int, dropout: float) -> dict[str, float]:
    """Our train step, and what a large product takes."""
    import jax
    import numpy as np

    from codet5p_jax.models import CodeT5p
    from codet5p_jax.objectives import OBJECTIVES
    from codet5p_jax.sharding import MeshConfig, make_mesh
    from codet5p_jax.training.batches import place
    from codet5p_jax.training.optimizers import AdamW
    from codet5p_jax.training.schedules import Constant
    from codet5p_jax.training.state import abstract_state, compiler_options, init_state
    from codet5p_jax.training.step import make_train_step

    mesh = make_mesh(MeshConfig())
    model = CodeT5p(x.network.ours(x.vocabulary, dropout))
    objectives = [OBJECTIVES["seq2seq"](inputs_length=x.inputs, targets_length=x.targets)]
    learning_rate = Constant(peak=1e-4).make(1000)
    optimizer = AdamW().make(learning_rate, model.specs)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, x.vocabulary, (x.rows, x.inputs), dtype=np.int32)
    targets = rng.integers(3, x.vocabulary, (x.rows, x.targets), dtype=np.int32)
    starts = np.zeros((x.rows, 1), np.int32)
    arrays = {
        "encoder_tokens": tokens,
        "encoder_segments": np.ones_like(tokens),
        "decoder_tokens": np.concatenate([starts, targets[:, :-1]], 1),
        "decoder_segments": np.ones_like(targets),
        "decoder_targets": targets,
        "decoder_weights": np.ones(targets.shape, np.float32),
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

        found = timed(one, steps)
    rate = product_rate(x.network.dtype)
    return {**found, "memory": device_bytes(train_step), "product_flops_s": rate}


def device_bytes(compiled) -> int:
    """What a compiled step takes of its device at most."""
    import jax

    from codet5p_jax.training.memory import peak_bytes

    return peak_bytes(compiled.memory_analysis(), jax.devices()[0].platform)


def product_rate(dtype: str) -> float:
    """FLOP/s of one large product: what all products would at best run at."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.devices()[0].platform == "cpu" else 8192
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.dtype(dtype)) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(4):
            c = product(a, b)
        c.block_until_ready()
        seconds.append((time.perf_counter() - began) / 4)
    return 2 * size**3 / min(seconds)


def run_torch(x: Shape, steps: int, dropout: float, compiled: bool) -> dict[str, float]:
    """`transformers`' T5 with torch.optim.AdamW."""
    import torch
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As JAX multiplies fp32 on GPUs; no effect on CPUs.
    torch.set_float32_matmul_precision("high")
    config = x.network.theirs(x.vocabulary, dropout)
    model = T5ForConditionalGeneration(config).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(3, x.vocabulary, (x.rows, x.inputs), device=device)
    labels = torch.randint(3, x.vocabulary, (x.rows, x.targets), device=device)
    mask = torch.ones_like(tokens)
    forward = torch.compile(model) if compiled else model
    dtype = getattr(torch, x.network.dtype)
    mixed = torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            loss = forward(
                input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    found = timed(one, steps)
    return found | {"memory": torch.cuda.max_memory_allocated()} if device == "cuda" else found


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
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--peers", nargs="+", default=["eager"], choices=["eager", "compile"])
    parser.add_argument("--side", choices=["jax", "eager", "compile"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = SHAPES[args.size]
    if args.side:
        if args.side == "jax":
            found = run_jax(shape, args.steps, args.dropout)
        else:
            found = run_torch(shape, args.steps, args.dropout, args.side == "compile")
        print(json.dumps(found))
        return 0
    sides = ["jax", *args.peers]
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    print(f"matrix products: {shape.matmul_flops / 1e9:,.0f} GFLOP a step; {os.cpu_count()} CPUs")
    # What `codet5p train` sets; for both sides.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    for _ in range(args.rounds):
        for side in sides:
            command = [sys.executable, __file__, f"--side={side}", f"--steps={args.steps}",
                       f"--dropout={args.dropout}", f"--size={args.size}"]  # fmt: skip
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, env=environment
            )
            if done.returncode:
                sys.exit(f"{side} failed:\n{done.stderr}")
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  {side:8s} {results[side][-1]}", flush=True)
    median = {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for side, runs in results.items()
    }
    product = median["jax"]["product_flops_s"]
    print(f"\n{'side':10s}{'steps/s':>9s}{'tokens/s':>10s}{'GFLOP/s':>10s}{'of product':>12s}"
          f"{'memory':>10s}{'first step':>12s}")  # fmt: skip
    for side, m in median.items():
        rate = 1 / m["step"]
        memory = f"{m['memory'] / 1e9:.1f} GB" if "memory" in m else "?"
        print(f"{side:10s}{rate:9.3f}{rate * shape.tokens:10,.0f}"
              f"{rate * shape.matmul_flops / 1e9:10,.0f}{rate * shape.matmul_flops / product:12.1%}"
              f"{memory:>10s}{m['first_step']:10.1f} s")  # fmt: skip
    print(f"{'floor':10s}{product / shape.matmul_flops:9.3f}"
          f"{product / shape.matmul_flops * shape.tokens:10,.0f}{product / 1e9:10,.0f}"
          f"  (one large {shape.network.dtype} product)")  # fmt: skip
    ratios = {f"jax / {p}": median[p]["step"] / median["jax"]["step"] for p in args.peers}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(json.dumps({"median": median, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
