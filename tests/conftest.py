"""What every test runs under: eight fake CPU devices, quiet libraries, repeatable properties.

The environment is set before anything imports JAX; subprocesses started by tests inherit it.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# -O1 as in training on a CPU (training/state.py): most of the tests' time is compilation.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    max_examples=25,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


@pytest.fixture
def one_device(monkeypatch):
    """Training on one device, as at a user's: compiled in two thirds of the time of eight."""
    from codet5p_jax.sharding import make_mesh
    from codet5p_jax.training import sources, train

    for module in (train, sources):
        monkeypatch.setattr(module, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
