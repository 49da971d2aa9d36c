"""Imports point one way, and what runs on accelerators loads no TensorFlow, torch or gin."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import codet5p_jax

PACKAGE = Path(codet5p_jax.__file__).parent
TASKS = PACKAGE.parent / "tasks"

ALLOWED = {
    "signals": set(),
    "files": {"signals"},
    "sharding": set(),
    "models": {"sharding"},
    "data": {"sharding", "files"},
    "objectives": {"models", "data", "sharding"},
    "decoding": {"models", "data", "sharding"},
    "training": {
        *("interop", "objectives", "decoding", "models", "data", "sharding", "files", "signals"),
    },
    "evaluation": {"objectives", "decoding", "models", "data", "sharding", "files"},
    "interop": {"models", "files"},
    "tasks": {"data", "objectives"},
    "cli": {
        *("training", "evaluation", "objectives", "decoding", "models", "data", "sharding"),
        *("interop", "tasks", "gin_configs", "files", "signals"),
    },
}
HEAVY = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "torch", "transformers"}
SEQIO_SEAM = {"data/vocab.py", "data/seqio_tasks.py", "data/prepare.py"}  # of codet5p_jax
# Of codet5p_jax; they import torch and transformers inside functions.
TORCH_SEAM = {
    *("interop/torch_files.py", "interop/torch_outputs.py"),
    # These at their tops: they are for exported folders.
    *("interop/modeling_codet5p.py", "interop/modeling_codet5p_composed.py"),
}
HEAVY_ALLOWED = {  # package -> what its modules may import of HEAVY and gin
    "tasks": HEAVY,
    "cli": {"gin", "seqio"},
}


def part_of(path: Path) -> str:
    """`models` for codet5p_jax/models/attention.py, `sharding` for codet5p_jax/sharding.py."""
    if path.is_relative_to(TASKS):
        return "tasks"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = [
    path
    for path in sorted([*PACKAGE.rglob("*.py"), *TASKS.rglob("*.py")])
    if path != PACKAGE / "__init__.py"
]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_imports_point_one_way(path: Path):
    part = part_of(path)
    own = [n.split(".")[1] for n in imported_names(path) if n.startswith("codet5p_jax.")]
    # `from codet5p_jax import __version__` is no dependency on a part.
    wrong = set(own) - ALLOWED[part] - {part, "__version__"}
    assert not wrong, f"{part} may import {sorted(ALLOWED[part])}, {path} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_heavy_libraries_stay_behind_their_seams(path: Path):
    allowed = HEAVY_ALLOWED.get(part_of(path), set())
    if path.is_relative_to(PACKAGE) and str(path.relative_to(PACKAGE)) in SEQIO_SEAM:
        allowed = HEAVY
    if path.is_relative_to(PACKAGE) and str(path.relative_to(PACKAGE)) in TORCH_SEAM:
        allowed = {"torch", "transformers"}
    wrong = {n.split(".")[0] for n in imported_names(path)} & (HEAVY | {"gin"}) - allowed
    assert not wrong, f"{path} imports {sorted(wrong)}"


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_trains_loads_nothing_heavy():
    """Transitively: a module imported by a module imported by training counts as well."""
    parts = ["files", "sharding", "models", "objectives", "decoding"]
    parts += ["training", "evaluation", "interop"]
    paths = [p for p in MODULES if part_of(p) in [*parts, "data"] and p.is_relative_to(PACKAGE)]
    names = [
        ".".join(["codet5p_jax", *p.relative_to(PACKAGE).with_suffix("").parts])
        for p in paths
        if str(p.relative_to(PACKAGE)) not in SEQIO_SEAM
        and p.name != "__init__.py"
        and not p.name.startswith("modeling_")
    ]
    assert names
    out = run(
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = {HEAVY | {'gin'}!r} & sys.modules.keys()\n"
        "    if loaded: print(name, 'loads', loaded); break\n"
    )
    assert not out, out


def test_commands_import_neither_jax_nor_numpy():
    """So that `codet5p COMMAND --help` takes milliseconds."""
    names = [f"codet5p_jax.cli.{p.stem}" for p in MODULES if part_of(p) == "cli"]
    inner = ("codet5p_jax.cli.gin_", "codet5p_jax.cli.dry_run")  # imported by a `run`
    names = [n for n in names if n.endswith("gin_flags") or not n.startswith(inner)]
    out = run(
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = {'jax', 'numpy', 'gin', 'tensorflow'} & sys.modules.keys()\n"
        "    if loaded: print(name, 'loads', loaded); break\n"
    )
    assert not out, out
