"""What a step takes of a device's memory, in one line, before the first one runs."""

from collections.abc import Sequence
from typing import Any

from codet5p_jax.training.model_dir import size_text


def memory_line(compiled: Any, devices: Sequence[Any]) -> str:
    """`memory per device: the step takes 1.20 GB (…); 0.81 GB to 0.82 GB of 15.75 GB in use`.

    What the step takes, the compiler says; what is in use, those of `devices` that can.

    Args:
      compiled: the step.
      devices: of this process.
    """
    analysis, platform = compiled.memory_analysis(), devices[0].platform
    parts = [_step(analysis, platform), _in_use([x.memory_stats() for x in devices])]
    found = "; ".join(part for part in parts if part)
    return f"memory per device: {found or 'neither the compiler nor the device says'}"


def peak_bytes(found: Any, platform: str) -> int:
    """Of a compiler's analysis: arguments, results that do not take their place, and the rest.

    Of TPUs, what is alive at once: libtpu holds that against HBM, while its size of temporaries is
    up to twice as much as long as there is room (found with programs on either side of the limit).
    """
    if platform == "tpu":
        return found.peak_memory_in_bytes + found.generated_code_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    rest = found.temp_size_in_bytes + found.generated_code_size_in_bytes
    return found.argument_size_in_bytes + results + rest


def _step(found: Any, platform: str) -> str:
    if found is None:
        return ""
    peak = peak_bytes(found, platform)
    held = found.argument_size_in_bytes
    return (
        f"the step takes {size_text(peak)} ({size_text(held)} of state and batch, "
        f"{size_text(peak - held)} while it runs)"
    )


def _in_use(stats: Sequence[dict[str, int] | None]) -> str:
    known = [x for x in stats if x and "bytes_in_use" in x]
    if not known:
        return ""
    used = sorted(x["bytes_in_use"] for x in known)
    least, most = size_text(used[0]), size_text(used[-1])
    limit = min((x["bytes_limit"] for x in known if "bytes_limit" in x), default=None)
    return (
        (least if least == most else f"{least} to {most}")
        + (f" of {size_text(limit)}" if limit else "")
        + " in use"
    )
