"""Weights in and out: a Hugging Face folder becomes a model directory, and the reverse.

A T5X checkpoint can be imported as well.

  codet5p convert import --from FOLDER --to MODEL_DIR
  codet5p convert export --from MODEL_DIR --to FOLDER --dtype=float16
  codet5p convert export --from MODEL_DIR --to FOLDER --adapter
  codet5p convert verify FOLDER MODEL_DIR

Neither needs torch, transformers or an accelerator, and no code of a folder is executed.
docs/weights.md shows more.
"""

import argparse
import math
import os
from pathlib import Path

ARCHITECTURES = (
    *("t5", "t5_encoder", "codet5p_embedding", "codet5p_bimodal"),
    *("codegen", "llama", "qwen2", "gpt2", "gpt_bigcode", "gpt_neox", "starcoder2", "gemma"),
    *("codet5p", "codet5p_composed"),
)
READ = (*ARCHITECTURES, "santacoder")
EXPORTED = (*ARCHITECTURES, "sentence_transformers")
TOLERANCE = 1e-4  # of outputs at fp32
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `codet5p convert` and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    into = actions.add_parser("import", help="a Hugging Face folder becomes a model directory")
    out = actions.add_parser("export", help="a model directory becomes a Hugging Face folder")
    check = actions.add_parser("verify", help="compare every tensor, and outputs with torch")
    for action, source, target in ((into, "FOLDER", "MODEL_DIR"), (out, "MODEL_DIR", "FOLDER")):
        action.add_argument("--from", dest="source", type=Path, required=True, metavar=source)
        action.add_argument("--to", dest="target", type=Path, required=True, metavar=target)
        action.add_argument("--dtype", choices=DTYPES, help="default: as stored")
        action.add_argument(
            "--vocab_size", type=int, help="rows of the embedding (default: as stored)"
        )
    check.add_argument("folder", type=Path)
    check.add_argument("model_dir", type=Path)
    for action in (into, out, check):
        action.add_argument(
            "--arch",
            choices=EXPORTED if action is out else READ,
            help="default: what the configuration says",
        )
    into.add_argument(
        "--pad_vocab_to_multiple", type=int, default=1, help="add rows up to a multiple of this"
    )
    for action in (into, check):
        action.add_argument(
            "--allow_pickle",
            action="store_true",
            help="read pytorch_model.bin, as weights only; needs torch",
        )
    check.add_argument(
        "--ignore_dtype",
        action="store_true",
        help="where dtypes differ, compare after rounding to the narrower one",
    )
    for action in (out, check):
        action.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    out.add_argument("--max_shard_size", default="5GB", help="of one file (default: %(default)s)")
    out.add_argument(
        "--adapter", action="store_true", help="low-rank additions alone, in the layout of PEFT"
    )
    out.add_argument(
        "--base",
        help="of an adapter: name or path of its base model (default: the hf: folder that the run "
        "left its frozen weights in)",
    )
    out.add_argument(
        "--causal_masks",
        action="store_true",
        help="of codet5p: add the masks that published files hold and nothing reads",
    )


def run(args: argparse.Namespace) -> int:
    """Converts or compares; returns the exit code."""
    # One parameter at a time, on the host: an accelerator would only copy it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from codet5p_jax.interop.safetensors_files import parse_size
    from codet5p_jax.training import conversion

    if args.action == "import":
        conversion.import_weights(
            args.source,
            args.target,
            arch=args.arch,
            dtype=args.dtype,
            vocab_size=args.vocab_size,
            pad_vocab_to_multiple=args.pad_vocab_to_multiple,
            allow_pickle=args.allow_pickle,
        )
        return 0
    if args.action == "export" and args.adapter:
        if args.vocab_size is not None:
            raise ValueError("--adapter writes no embedding, whose rows --vocab_size is about")
        conversion.export_adapter(
            args.source,
            args.target,
            arch=args.arch,
            base=args.base,
            dtype=args.dtype,
            step=args.step,
        )
        return 0
    if args.action == "export":
        if args.base is not None:
            raise ValueError("--base is for an adapter; add --adapter, or leave it out")
        conversion.export_weights(
            args.source,
            args.target,
            arch=args.arch,
            dtype=args.dtype,
            step=args.step,
            max_shard_bytes=parse_size(args.max_shard_size),
            vocab_size=args.vocab_size,
            causal_masks=args.causal_masks,
        )
        return 0
    return _verify(args)


def _verify(args: argparse.Namespace) -> int:
    from codet5p_jax.training import verification

    found = verification.verify_weights(
        args.folder,
        args.model_dir,
        arch=args.arch,
        step=args.step,
        allow_pickle=args.allow_pickle,
        ignore_dtype=args.ignore_dtype,
    )
    for line in found.problems:
        print(f"DIFFERS  {line}")
    for line in found.notes:
        print(f"note: {line}")
    if found.rounded:
        number, first = len(found.rounded), found.rounded[0]
        print(f"note: {number} dtypes differ, compared after rounding; {first}")
    print(f"{found.tensors} parameters compared, {len(found.problems)} differences")
    if found.problems:
        return 1
    return 1 if _outputs_differ(args, judged=not found.rounded) else 0


def _outputs_differ(args: argparse.Namespace, *, judged: bool) -> bool:
    from codet5p_jax.interop import hf_config, torch_outputs
    from codet5p_jax.interop.t5x import is_t5x
    from codet5p_jax.training import verification

    if is_t5x(args.folder):
        print("outputs not compared: PyTorch reads no T5X checkpoint")
        return False
    if not torch_outputs.available():
        print("outputs not compared: that needs pip install 'codet5p_jax[torch]'")
        return False
    values = hf_config.load_config(args.folder)
    arch = args.arch or hf_config.recognise(values, args.folder / "config.json")
    if hf_config.ARCHITECTURES[arch][1] is None:
        print(f"outputs not compared: transformers has no class for {arch}")
        return False
    largest = verification.compare_outputs(
        args.folder, args.model_dir, arch=args.arch, step=args.step
    )
    for name, value in largest.items():
        print(f"largest difference of {name}: {value:.2g}")
    if not judged:
        print("these are not judged, since dtypes differ")
        return False
    differ = [name for name, value in largest.items() if not value <= TOLERANCE]  # NaN differs
    if differ:
        told = "is NaN" if all(math.isnan(largest[name]) for name in differ) else "is larger"
        print(
            f"expected {TOLERANCE:g} at most, of the largest value where that is above 1; that of "
            f"{', '.join(differ)} {told}"
        )
    return bool(differ)
