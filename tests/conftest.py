"""What every test runs under: eight fake CPU devices, quiet libraries, repeatable properties.

The environment is set before anything imports JAX; subprocesses started by tests inherit it.
"""

import os
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation; of a training step it takes a third less than with -O1,
# and as much less again with the emitters of old.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false",
)
# Threads of PyTorch that wait for each other on busy cores take many times as long as one alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest
from hypothesis import HealthCheck, settings

# A program that is traced again, by another run of the same network, is not compiled again. Each
# process has a folder of its own: JAX writes such files piece by piece.
_compiled = tempfile.TemporaryDirectory(prefix="compiled-")
jax.config.update("jax_compilation_cache_dir", _compiled.name)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name  # of the commands that tests start
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure() -> None:
    _compiled.cleanup()


settings.register_profile(
    "default",
    max_examples=25,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def own_import_path(monkeypatch):
    """`codet5p` finds modules in the folder where it runs; those of one test are not another's."""
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", before.copy())
    yield
    if added := set(sys.path) - set(before):
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and os.path.dirname(file) in added:
                del sys.modules[name]


@pytest.fixture
def one_device(monkeypatch):
    """Training on one device, as at a user's: compiled in two thirds of the time of eight."""
    from codet5p_jax.sharding import make_mesh
    from codet5p_jax.training import sources, train

    for module in (train, sources):
        monkeypatch.setattr(module, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
