"""Our training step of T5 1.1 base compiled for 16 chips of v5e, beside T5X's of the same shape.

    python benchmarks/pod_vs_t5x.py                   # the table of docs/precompile.md
    python benchmarks/pod_vs_t5x.py --mesh=fsdp --accumulate=2 --attention=xla

Both: 247,577,856 parameters (12 + 12 layers, width 768, 12 heads x 64, gated feed-forward 2,048,
vocabulary 32,128, the head apart from the embedding), Adafactor, a global batch of 256 rows of
512 + 512 tokens, bf16 activations, no dropout. T5X's figures were found by the same means, with its
own code of model, loss and Adafactor.

Bytes are those of HBM alone, loops in full, counted alike for both; beside them what XLA's own
`cost_analysis` counts, which takes in the chip's faster memory and the body of a loop once, so that
it is shown of steps without loops alone.

Needs libtpu (the `precompile` extra) and minutes; compiling proves nothing about speed.
"""

import argparse
from typing import NamedTuple

import jax

from codet5p_jax.models import t5
from codet5p_jax.objectives import Seq2Seq
from codet5p_jax.sharding import MeshConfig
from codet5p_jax.training.optimizers import Adafactor
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.precompile import Report, precompile

ROWS = 256
MESHES = {
    "data": MeshConfig(replica=-1, fsdp=1),
    "fsdp": MeshConfig(),
    "tensor": MeshConfig(tensor=4),
}


class Row(NamedTuple):
    """A row of the table: how ours is compiled."""

    mesh: str
    accumulate: int
    attention: str
    remat: str = "dots"
    unrolled: bool = False  # no loop at all: neither over layers nor over parts of the loss


TABLE = (
    Row("fsdp", 4, "fused"),
    Row("data", 4, "fused"),
    Row("data", 1, "fused", remat="none", unrolled=True),
    Row("tensor", 2, "fused"),
    Row("fsdp", 4, "xla"),
    Row("data", 4, "xla"),
    Row("tensor", 2, "xla"),
)
# Peak GB, products over those of the model, GB in HBM, GB by XLA's own count, seconds to compile.
T5X = {
    "T5X, data parallel, unrolled": (10.2, 1.13, 61.3, 167.5, 116.0),
    "T5X, data parallel, scanned, minimal remat": (6.7, 1.17, None, None, 55.0),
}
T5X_TENSOR = "T5X, 4-way model axis: 6.4 to 7.0 GB of activations all-reduced a step"


def compile_step(row: Row, layers: int, topology: str) -> Report:
    """Our step of that shape, compiled."""
    model = t5(
        vocab_size=32_128, d_model=768, num_heads=12, head_dim=64, d_ff=2_048,
        num_encoder_layers=layers, num_decoder_layers=layers, activation="gelu_tanh", gated=True,
        tie_embeddings=False, dropout=0.0, dtype="bfloat16",
        attention=row.attention, remat=row.remat, scan_layers=not row.unrolled,
        loss_chunk=512 if row.unrolled else 128, loss_chunks=1 if row.unrolled else 4,
    )  # fmt: skip
    return precompile(
        topology=topology,
        model=model,
        objectives=[Seq2Seq(inputs_length=512, targets_length=512)],
        phases=[Phase("t5", 1, ROWS)],
        rows=[{"seq2seq": ROWS}],
        optimizer=Adafactor(),
        mesh=MESHES[row.mesh],
        accumulate=row.accumulate,
    )


def line(
    name: str, peak: float, ratio: float, hbm: float | None, xla: float | None, seconds: float
) -> str:
    """A row of the table."""
    hbm_told, xla_told = ("-" if gb is None else f"{gb:.0f}" for gb in (hbm, xla))
    return f"{name:<50}{peak:>8.2f}{ratio:>10.3f}{hbm_told:>8}{xla_told:>8}{seconds:>11.0f}"


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mesh", action="append", choices=sorted(MESHES), help="instead of all")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches, with --mesh")
    parser.add_argument(
        "--attention", choices=("fused", "xla"), default="fused", help="with --mesh"
    )
    parser.add_argument(
        "--remat", choices=("none", "dots", "full"), default="dots", help="with --mesh"
    )
    parser.add_argument("--unrolled", action="store_true", help="with --mesh; minutes")
    parser.add_argument("--layers", type=int, default=12, help="of each tower")
    parser.add_argument("--topology", default="v5e:4x4")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # with libtpu there, JAX would look for a TPU
    print(f"{'':<50}{'peak GB':>8}{'products':>10}{'HBM GB':>8}{'XLA GB':>8}{'compile s':>11}")
    for name, figures in T5X.items():
        print(line(name, *figures))
    chosen = (args.accumulate, args.attention, args.remat, args.unrolled)
    for row in [Row(mesh, *chosen) for mesh in args.mesh or ()] or TABLE:
        (phase,) = compile_step(row, args.layers, args.topology).phases
        title = f"ours, {row.mesh}, {row.attention}, {row.remat}, "
        title += "unrolled, " if row.unrolled else ""
        title += f"accumulate {row.accumulate}"
        if phase.speed is None or phase.memory.peak is None:
            print(f"{title}: does not fit")
            continue
        speed = phase.speed
        ratio = speed.dot_flops / speed.model_flops
        peak, hbm = phase.memory.peak / 1e9, speed.hbm_bytes / 1e9
        loops = row.accumulate > 1 or not row.unrolled
        xla = None if loops else speed.xla_bytes / 1e9
        print(line(title, peak, ratio, hbm, xla, phase.compile_seconds))
        moved = {kind: found.num_bytes / 1e9 for kind, found in speed.collectives.items()}
        kinds = ", ".join(f"{kind} {size:.2f}" for kind, size in moved.items())
        print(f"  received by a chip: {sum(moved.values()):.2f} GB: {kinds}")
        if row.mesh == "tensor":
            print(f"  {T5X_TENSOR}")


if __name__ == "__main__":
    main()
