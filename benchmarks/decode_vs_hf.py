"""Generation speed of one T5 shape here and in `transformers` on PyTorch, on this machine.

    python benchmarks/decode_vs_hf.py
    python benchmarks/decode_vs_hf.py --rounds 5 --cases 32128x1 8192x4
    python benchmarks/decode_vs_hf.py --size=220m --cases 32100x1 32100x4  # on a GPU

Both sides write 128 tokens for each of 8 prompts of 256 tokens, with a cache, on the GPU where
there is one; greedy, and with 4 beams. Embeddings are tied:

  small  4 + 4 layers, width 256, 4 heads × 64, gated feed-forward 1024, fp32
  220m   CodeT5+ 220M, bf16

End tokens are forbidden, so that all write as much. Encoding the prompts counts, compiling does
not.

Both live in processes of their own that take turns, a generation each: whatever else the machine
does meets both. The medians of the rounds are compared, and the best round of each: what a side
reaches when it is let be. PyTorch's threads sleep while they wait (OMP_WAIT_POLICY), which matters
to it where other programs run and to nobody else.

The floor is reading the weights of the decoder and the output projection once a step, at the
bandwidth that summing an array as large as these reaches in the same turns (or, on a GPU, summing
1 GB: less stays in its cache). Needs the `torch` extra.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from t5_shapes import NETWORKS, Network

B, S, T = 8, 256, 128
CASES = ("32128x1", "8192x1", "32128x4", "8192x4")
SIDES = ("jax", "transformers")


def weight_bytes(x: Network, vocabulary: int) -> int:
    """That a step reads: q, k, v, o; q, o of cross-attention; feed-forward; output projection."""
    weights = x.layers * (6 * x.projection + x.feed_forward) + vocabulary * x.width
    return weights * (4 if x.dtype == "float32" else 2)


def jax_case(x: Network, vocabulary: int, beams: int) -> Callable[[], object]:
    """A function that writes once."""
    import jax
    import numpy as np

    from codet5p_jax.data.tokens import SpecialTokens
    from codet5p_jax.decoding.beam import BeamSearch
    from codet5p_jax.decoding.generate import compiled
    from codet5p_jax.decoding.sampling import Sampling
    from codet5p_jax.models import CodeT5p, init_params

    model = CodeT5p(x.ours(vocabulary))

    @jax.jit
    def initial(key):
        return jax.tree.map(lambda p: p.astype(x.dtype), init_params(model.specs, key))

    params = initial(jax.random.key(0))
    special = SpecialTokens(pad=0, bos=1, eos=2, unk=3, sentinels=(), decoder_start=0)
    lengths = dict(max_length=T, min_length=T)
    how = Sampling(**lengths) if beams == 1 else BeamSearch(**lengths, beams=beams)
    run = compiled(model, special, how)
    tokens = np.random.default_rng(0).integers(3, vocabulary, (B, S), dtype=np.int32)
    prompts = tokens, np.ones_like(tokens), np.zeros((B, 0), np.int32), np.zeros(B, np.int32)

    def once() -> object:
        return np.asarray(run(params, *prompts, jax.random.key(0)).tokens)

    return once


def torch_case(x: Network, vocabulary: int, beams: int) -> Callable[[], object]:
    """The same of `transformers`."""
    import torch
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = T5ForConditionalGeneration(x.theirs(vocabulary))
    model = model.eval().to(device, getattr(torch, x.dtype))
    tokens = torch.randint(3, vocabulary, (B, S), device=device)
    options = dict(max_new_tokens=T, min_new_tokens=T, num_beams=beams, do_sample=False)

    def once() -> object:
        with torch.no_grad():
            made = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        return made.cpu()

    return once


def serve(side: str, shape: Network, vocabulary: int, beams: int) -> None:
    """Answers each line on stdin with the seconds of a generation (and bytes/s of reading)."""
    once = (jax_case if side == "jax" else torch_case)(shape, vocabulary, beams)
    once()
    read = reader(weight_bytes(shape, vocabulary)) if side == "jax" else None
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        made = once()
        found = {"seconds": time.perf_counter() - began}
        assert made.shape[-1] in (T, T + 1), made.shape  # theirs begin with the start token
        if read is not None:
            found["bandwidth"] = read()
        print(json.dumps(found), flush=True)


def reader(size: int) -> Callable[[], float]:
    """A function that reads so many bytes (or 1 GB) once; bytes/s, best of 5."""
    import jax
    import jax.numpy as jnp

    size = size if jax.devices()[0].platform == "cpu" else 10**9
    array = jnp.ones((size // 4 // 1024, 1024))
    total = jax.jit(lambda x: jnp.sum(x, axis=0))
    total(array).block_until_ready()

    def read() -> float:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            total(array).block_until_ready()
            seconds.append(time.perf_counter() - began)
        return array.nbytes / min(seconds)

    return read


def measure(case: str, size: str, rounds: int) -> dict[str, float]:
    """Tokens/s of both sides in turns, their ratio, and the floor."""
    vocabulary = int(case.split("x")[0])
    environment = {
        **os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "TRANSFORMERS_VERBOSITY": "error", "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }  # fmt: skip
    told = {side: tempfile.TemporaryFile("w+") for side in SIDES}  # noqa: SIM115
    children = {
        side: subprocess.Popen(
            [sys.executable, __file__, f"--serve={side}", "--cases", case, f"--size={size}"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told[side],
            text=True,
        )
        for side in SIDES
    }  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for side, child in children.items():
        if child.stdout.readline().strip() != "ready":
            told[side].seek(0)
            sys.exit(f"{side} failed:\n{told[side].read()}")
    for _ in range(rounds):
        for side, child in children.items():
            print(file=child.stdin, flush=True)
            found[side].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    seconds = {side: [x["seconds"] for x in found[side]] for side in SIDES}
    bandwidth = max(x["bandwidth"] for x in found["jax"])
    return {
        **{side: B * T / statistics.median(seconds[side]) for side in SIDES},
        **{f"best {side}": B * T / min(seconds[side]) for side in SIDES},
        "ratio": statistics.median(
            theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)
        ),
        "ratio of best": min(seconds["transformers"]) / min(seconds["jax"]),
        "gigabytes_s": bandwidth / 1e9,
        "floor": B * bandwidth / weight_bytes(NETWORKS[size], vocabulary),
    }


def main() -> int:
    """Measures, or is one of the measured processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="generations of each side")
    parser.add_argument("--cases", nargs="+", default=CASES, help="VOCABULARYxBEAMS")
    parser.add_argument("--size", choices=NETWORKS, default="small")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, NETWORKS[args.size], *map(int, args.cases[0].split("x")))
        return 0
    print(f"tokens/s; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"{'vocabulary x beams':20s}{'jax':>8s}{'HF':>8s}{'ratio':>7s}"
          f"{'best jax':>10s}{'best HF':>9s}{'ratio':>7s}{'floor':>9s}")  # fmt: skip
    results = {}
    for case in args.cases:
        x = results[case] = measure(case, args.size, args.rounds)
        print(f"{case:20s}{x['jax']:8,.0f}{x['transformers']:8,.0f}{x['ratio']:7.2f}"
              f"{x['best jax']:10,.0f}{x['best transformers']:9,.0f}{x['ratio of best']:7.2f}"
              f"{x['floor']:9,.0f} ({x['gigabytes_s']:.0f} GB/s)", flush=True)  # fmt: skip
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
