"""Peak memory and time of converting a model of random weights, in processes of their own.

    python benchmarks/convert.py --size=770m --folder=/tmp/convert

The bound is 1.5 times the largest parameter (all layers of one kernel) plus 1 GB.
"""

import argparse
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from codet5p_jax.interop.safetensors_files import SafetensorsFolder
from codet5p_jax.interop.weights import export_hugging_face
from codet5p_jax.models import CodeT5p, t5
from codet5p_jax.models.params import flatten

SIZES = {
    "tiny": {"d_model": 64, "num_heads": 4, "head_dim": 16, "d_ff": 128, "layers": 2},
    "220m": {"d_model": 768, "num_heads": 12, "head_dim": 64, "d_ff": 3072, "layers": 12},
    "770m": {"d_model": 1024, "num_heads": 16, "head_dim": 64, "d_ff": 4096, "layers": 24},
}


# Linux counts in ru_maxrss what the parent had when it started this process, and not in VmHWM.
MEASURED = """
import resource, sys
from pathlib import Path
from codet5p_jax.cli.main import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print(*found or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
sys.exit(code)
"""


class RandomWeights:
    """Weights drawn when asked for."""

    def __init__(self, size: str):
        settings = dict(SIZES[size])
        layers = settings.pop("layers")
        self.config = t5(
            vocab_size=32_100, num_encoder_layers=layers, num_decoder_layers=layers, **settings
        )
        self.shapes = {path: spec.shape for path, spec in flatten(CodeT5p(self.config).specs)}

    def dtype(self, path):
        """fp32."""
        return np.dtype(np.float32)

    def read(self, path, dtype=None, index=None):
        """Uniform numbers."""
        return np.random.default_rng(0).random(self.shapes[path], np.float32)


def measure(*args: object) -> tuple[float, float]:
    """Seconds and peak memory (GB) of `codet5p convert ARGS`."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "convert", *map(str, args)],
        check=True, stdout=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    # Kilobytes on Linux, bytes on macOS.
    peak = int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
    return time.perf_counter() - began, peak / 1e9


def told(action: str, source: Path, target: Path, *flags: str) -> float:
    """Prints what `measure` finds; the peak."""
    seconds, peak = measure(action, "--from", source, "--to", target, *flags)
    print(f"{' '.join((action, *flags))}: {seconds:.0f} s, peak {peak:.2f} GB")
    return peak


def pickled(source: Path, target: Path) -> None:
    """Makes a folder with `pytorch_model.bin` of one with safetensors."""
    import torch

    files = SafetensorsFolder(source)
    tensors = {name: torch.from_numpy(files.read(name).copy()) for name in files.tensors}
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    torch.save(tensors, target / "pytorch_model.bin")


def main() -> None:
    """Prints a line for each direction; fails if one is over the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="770m")
    parser.add_argument("--folder", type=Path, required=True, help="room for three copies")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    weights = RandomWeights(args.size)
    export_hugging_face(args.folder / "hf", weights)
    largest = 4 * max(map(math.prod, weights.shapes.values())) / 1e9
    bound = 1.5 * largest + 1
    print(f"{args.size}: largest parameter {largest:.2f} GB, bound {bound:.2f} GB")
    over = False
    steps = (("import", "hf", "run"), ("export", "run", "back"))
    for action, source, target in steps:
        over |= told(action, args.folder / source, args.folder / target) > bound
    if importlib.util.find_spec("torch"):
        pickled(args.folder / "hf", args.folder / "bin")
        shutil.rmtree(args.folder / "run")
        over |= told("import", args.folder / "bin", args.folder / "run", "--allow_pickle") > bound
    shutil.rmtree(args.folder)
    if over:
        raise SystemExit("over the bound")


if __name__ == "__main__":
    main()
