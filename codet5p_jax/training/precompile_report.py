"""A report of `precompile`, for people."""

from codet5p_jax.training.model_dir import size_text
from codet5p_jax.training.precompile import Memory, PhaseReport, Report, Speed

CAVEAT = (
    "Compiled, not run: this proves neither that the step computes what it should nor how fast it "
    "is. Times are floors from published peaks; a run takes longer."
)


def report_text(report: Report) -> str:
    """The report as lines of text."""
    chip = report.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    lines = [
        f"{report.topology}: {report.chips} chips, mesh {mesh}; libtpu {report.libtpu}",
        f"a chip: {chip.flops / 1e12:.0f} TFLOP/s bf16, {size_text(chip.hbm_bytes)} HBM at "
        f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s, {chip.ici_bandwidth / 1e9:,.0f} GB/s to other "
        f"chips, both directions together ({chip.source})",
        f"{report.parameters:,} parameters, {report.trainable_parameters:,} train",
    ]
    for phase in report.phases:
        lines += ["", *_phase(phase, report)]
    return "\n".join([*lines, "", CAVEAT])


def _phase(phase: PhaseReport, report: Report) -> list[str]:
    rows = ", ".join(f"{name} {number:,}" for name, number in phase.rows.items())
    lines = [
        f"phase {phase.mixture}: {rows} rows; compiled in {phase.compile_seconds:.0f} s",
        *_memory(phase.memory),
        f"  {_verdict(phase, report)}",
        *(f"    {change}" for change in phase.advice),
    ]
    return lines if phase.speed is None else [*lines, *_speed(phase.speed)]


def _memory(memory: Memory) -> list[str]:
    cells = [*memory.state.items(), ("batch", memory.batch)]
    held = sum(size for _, size in cells)
    if memory.arguments is not None:
        cells.append(("padding", memory.arguments - held))
    for name in ("temporaries", "program"):
        size = getattr(memory, name)
        if size is not None:
            cells.append((name, size))
    return ["  bytes on one chip", *(f"    {name:<18}{size_text(n):>12}" for name, n in cells)]


def _verdict(phase: PhaseReport, report: Report) -> str:
    memory, capacity = phase.memory, report.chip.hbm_bytes
    assert memory.peak is not None
    if phase.fits:
        return (
            f"fits: peak {size_text(memory.peak)} of {size_text(capacity)}, "
            f"{size_text(capacity - memory.peak)} left"
        )
    assert memory.available is not None
    over = memory.peak - memory.available
    return (
        f"does not fit: {size_text(memory.peak)} needed, {size_text(memory.available)} of "
        f"{size_text(capacity)} there for a program, {size_text(over)} too much; change one of:"
    )


def _speed(speed: Speed) -> list[str]:
    lines = [
        f"  matrix products of a chip: {speed.dot_flops / 1e12:.3f} TFLOP compiled, "
        f"{speed.model_flops / 1e12:.3f} of the model: ratio "
        f"{speed.dot_flops / speed.model_flops:.3f}",
        "  collectives: times a step, bytes that a chip receives",
    ]
    for kind, traffic in speed.collectives.items():
        lines.append(f"    {kind:<20}{traffic.count:>10,}  {size_text(traffic.num_bytes):>12}")
    if not speed.collectives:
        lines.append("    none")
    terms = {
        "compute": speed.compute_seconds,
        "HBM": speed.hbm_seconds,
        "ICI": speed.ici_seconds,
    }
    told = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in terms.items())
    return [
        *lines,
        f"  at the published peaks: {told} (HBM: state and batch read once, results written once, "
        f"{size_text(speed.least_hbm_bytes)})",
        f"  best possible: a step in {1e3 * speed.step_seconds:.3f} ms, "
        f"{max(terms, key=terms.__getitem__)} the longest; MFU {100 * speed.mfu:.1f} %",
    ]
