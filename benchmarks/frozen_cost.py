"""What a training step with a frozen decoder costs, against what it has to cost.

    python benchmarks/frozen_cost.py --size=2b --size=6b --size=16b --frozen_dtype=int8

Compiles the step of runs/stage1_16b.gin for one device from shapes alone (nothing is allocated),
compares with what is needed, both counted in the optimised program, loop bodies times their trip
count:

- FLOPs of matrix products with 2 × frozen parameters × decoder positions, plus three times the
  forward products of what trains (the forward pass and both halves of the backward pass);
- bytes of the optimizer's arguments and of the gradients with those of the trainable parameters
  alone. A gradient of a kernel, frozen or not, is a product that sums over all positions; those of
  tables, biases and norms are counted from their shapes.

REMAT is off here: recomputing the encoder is a choice about memory, not part of the cost.
"""

import argparse
import time
from dataclasses import replace

import jax

from codet5p_jax.models import CodeT5p, ModelConfig, codet5p_codegen
from codet5p_jax.models.params import ParamSpec, count, flatten
from codet5p_jax.objectives import DecoderCLM, Seq2SeqCLM
from codet5p_jax.objectives.base import Objective
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.batches import abstract_batch
from codet5p_jax.training.checkpoints import state_bytes
from codet5p_jax.training.freezing import Split, Trainable, freeze, frozen_towers
from codet5p_jax.training.hlo import argument_bytes, read_work
from codet5p_jax.training.optimizers import AdamW
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import TrainState, abstract_state, compiler_options
from codet5p_jax.training.step import make_train_step

SIZES = {
    "tiny": {"num_decoder_layers": 6, "d_model": 128, "num_heads": 4, "num_encoder_layers": 2,
             "encoder_d_model": 32, "encoder_num_heads": 2, "encoder_rotary_dim": 16,
             "rotary_dim": 16, "vocab_size": 512},
    "2b": {"num_decoder_layers": 32, "d_model": 2_560, "num_heads": 32},
    "6b": {"num_decoder_layers": 33, "d_model": 4_096, "num_heads": 16},
    "16b": {"num_decoder_layers": 34, "d_model": 6_144, "num_heads": 24},
}  # fmt: skip
TRAINABLE = Trainable(("encoder.*", ".*/cross_attention.*"), "bfloat16")


def compile_step(
    config: ModelConfig,
    objectives: list[Objective],
    rows: dict[str, int],
    trainable: Trainable = TRAINABLE,
) -> tuple[str, TrainState, CodeT5p, Split]:
    """Text of the optimised step, the abstract state, the network and what of it is frozen."""
    network, split = freeze(CodeT5p(frozen_towers(config, trainable)), trainable)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    rate = Constant(1e-4).make(10)
    rule = AdamW().make(rate, split(network.specs)[0])
    state = abstract_state(network, objectives, rule, mesh, split=split)
    step = make_train_step(
        network, objectives, {}, rule, rate, seed=0,
        state_shardings=jax.tree.map(lambda x: x.sharding, state),
    )  # fmt: skip
    with jax.set_mesh(mesh):
        lowered = step.lower(state, abstract_batch(objectives, rows, mesh))
        return lowered.compile(compiler_options(mesh)).as_text(), state, network, split


def needed_flops(config: ModelConfig, split: Split, rows: int, inputs: int, targets: int) -> float:
    """2 × frozen parameters × decoder positions + three forward passes of what trains."""
    sizes = {name: spec.shape for name, spec in flatten(CodeT5p(config).specs)}
    number = {name: float(_product(shape)) for name, shape in sizes.items()}
    frozen = sum(n for name, n in number.items() if name in split.frozen)
    encoder, decoder = rows * inputs, rows * targets
    forward = 0.0
    for name, n in number.items():
        if name in split.frozen or name == "encoder_embedding":  # rows of a table are no product
            continue
        reads_targets = "cross_attention" in name and name.rsplit("/", 1)[1] in ("q", "o")
        forward += 2.0 * n * (decoder if reads_targets else encoder)
    cross = len(config.decoder.cross_attention)
    forward += 4.0 * encoder * inputs * config.encoder.d_model * config.encoder.num_layers
    forward += 4.0 * decoder * inputs * config.decoder.d_model * cross
    return 2.0 * frozen * decoder + 3.0 * forward


def kept_bytes(text: str, split: Split, network: CodeT5p, positions: set[int]) -> tuple[float, int]:
    """Bytes of optimizer and gradients of a compiled step, and those of what trains.

    Args:
      positions: of the batch, encoder's and decoder's. No other sum has so many terms.
    """
    trained = dict(flatten(split(network.specs)[0]))
    sums = read_work(text).sums
    kernels = sum(sums.get(n, 0.0) for n in positions)
    others = sum(_product(x.shape) for path, x in trained.items() if not _is_kernel(path, x))
    least = 3 * 4 * count(split(network.specs)[0])  # two moments and the gradient in fp32
    return argument_bytes(text, "state.opt_state") + 4 * (kernels + others), least


def _is_kernel(path: str, spec: ParamSpec) -> bool:
    return path != "encoder_embedding" and len({*spec.axes} - {"layers"}) > 1


def _product(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def measure(
    size: str, rows: int, inputs: int, targets: int, trainable: Trainable = TRAINABLE
) -> tuple[float, float]:
    """Prints the figures; returns (FLOPs / needed, bytes / needed)."""
    config = codet5p_codegen(**SIZES[size], dtype="bfloat16")
    kinds: dict[str, Objective] = {
        "seq2seq": Seq2SeqCLM(inputs_length=inputs, targets_length=targets),
        "decoder": DecoderCLM(targets_length=targets),
    }
    objective = kinds["seq2seq" if inputs > 1 else "decoder"]
    began = time.perf_counter()
    text, state, network, split = compile_step(
        config, [objective], {objective.name: rows}, trainable
    )
    seconds = time.perf_counter() - began
    flops, needed = read_work(text).dot_flops, needed_flops(config, split, rows, inputs, targets)
    kept, least = kept_bytes(text, split, network, {rows * inputs, rows * targets})
    frozen = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.frozen))
    trained = count(split(network.specs)[0])
    print(
        f"{size}, frozen in {trainable.frozen_dtype}: {count(network.specs):,} parameters, "
        f"{trained:,} train; {objective.name}, {rows} x ({inputs} + {targets}) "
        f"positions; state {state_bytes(state) / 1e9:.2f} GB, {frozen / 1e9:.2f} GB of it frozen; "
        f"compiled in {seconds:.0f} s"
    )
    print(f"  FLOPs {flops:.4g}, needed {needed:.4g}: ratio {flops / needed:.3f}")
    print(f"  optimizer and gradients {kept:,.0f} bytes, needed {least:,}: {kept / least:.4f}")
    return flops / needed, kept / least


def main() -> None:
    """Measures each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", action="append", choices=sorted(SIZES))
    parser.add_argument("--rows", type=int, default=7, help="odd: positions are then no width")
    parser.add_argument("--inputs", type=int, default=768, help="encoder positions; 1: decoder_clm")
    parser.add_argument("--targets", type=int, default=600)
    parser.add_argument("--frozen_dtype", choices=("bfloat16", "int8"), default="bfloat16")
    args = parser.parse_args()
    trainable = replace(TRAINABLE, frozen_dtype=args.frozen_dtype)
    for size in args.size or ["2b", "6b", "16b"]:
        measure(size, args.rows, args.inputs, args.targets, trainable)


if __name__ == "__main__":
    main()
