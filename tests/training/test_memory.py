from types import SimpleNamespace

import jax
import jax.numpy as jnp

from codet5p_jax.training.memory import memory_line, peak_bytes


def device(stats):
    return SimpleNamespace(memory_stats=lambda: stats, platform="cpu")


def test_what_the_compiler_says():
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sin(x) @ x, donate_argnums=0).lower(x).compile()
    found = peak_bytes(compiled.memory_analysis(), "cpu")
    assert found >= 8_000_000, "an argument and a temporary"
    line = memory_line(compiled, [device(None)])
    assert line.startswith("memory per device: the step takes ")
    assert "(4.00 MB of state and batch, " in line
    assert "in use" not in line


def test_what_the_devices_say():
    unknown = SimpleNamespace(memory_analysis=lambda: None)
    full, empty = {"bytes_in_use": 2 * 10**9, "bytes_limit": 16 * 10**9}, {"bytes_in_use": 10**9}
    line = memory_line(unknown, [device(full), device(empty), device(None)])
    assert line == "memory per device: 1.00 GB to 2.00 GB of 16.00 GB in use"
    assert memory_line(unknown, [device(empty)]) == "memory per device: 1.00 GB in use"
    nothing = "memory per device: neither the compiler nor the device says"
    assert memory_line(unknown, [device({})]) == nothing
