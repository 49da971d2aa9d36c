"""A report of `precompile`, for people."""

from collections.abc import Mapping

from codet5p_jax.training.hlo import Traffic
from codet5p_jax.training.model_dir import size_text
from codet5p_jax.training.precompile import Memory, PhaseReport, Report, Speed
from codet5p_jax.training.precompile_search import Trial

CAVEAT = (
    "Compiled, not run: this proves neither that the step computes what it should nor how fast it "
    "is. Times are what published peaks would allow; a run takes longer."
)


def report_text(report: Report) -> str:
    """The report as lines of text."""
    chip = report.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    slices = f"{report.num_slices} slices of " if report.num_slices > 1 else ""
    halves = f", {chip.per_chip} devices each" if chip.per_chip > 1 else ""
    lines = [
        f"{slices}{report.topology}: {report.devices // chip.per_chip} chips{halves}, mesh {mesh}; "
        f"libtpu {report.libtpu}",
        f"a {_unit(report)}: {chip.flops / 1e12:.0f} TFLOP/s bf16, "
        f"{size_text(chip.hbm_bytes)} HBM at {_rate(chip.hbm_bandwidth)}, "
        f"{_rate(chip.ici_bandwidth)} to other chips, both directions together, "
        f"{_rate(chip.dcn_bandwidth)} to other slices ({chip.source})",
        f"{report.parameters:,} parameters, {report.trainable_parameters:,} train",
    ]
    for phase in report.phases:
        lines += ["", *_phase(phase, report)]
    return "\n".join([*lines, "", CAVEAT])


def trial_text(trial: Trial) -> str:
    """A trial of a search as a line."""
    if trial.report is None:
        return f"{trial.name}: {trial.error}"
    phases = trial.report.phases
    peak = max(phase.memory.peak or 0 for phase in phases)
    steps = [phase.speed.step_seconds for phase in phases if phase.speed is not None]
    told = f"peak {size_text(peak)}" if trial.fits else f"does not fit, {size_text(peak)} needed"
    times = ", ".join(f"{1e3 * seconds:.4g}" for seconds in steps)
    seconds = sum(phase.compile_seconds for phase in phases)
    return f"{trial.name}: {told}; at best {times or '-'} ms a step; compiled in {seconds:.0f} s"


def _phase(phase: PhaseReport, report: Report) -> list[str]:
    rows = ", ".join(f"{name} {number:,}" for name, number in phase.rows.items())
    lines = [
        f"phase {phase.mixture}: {rows} rows; compiled in {phase.compile_seconds:.0f} s",
        *_memory(phase.memory, _unit(report)),
        f"  {_verdict(phase, report)}",
        *(f"    {change}" for change in phase.advice),
    ]
    return lines if phase.speed is None else [*lines, *_speed(phase.speed, _unit(report))]


def _unit(report: Report) -> str:
    """What figures are of: a JAX device, which need not be a whole chip."""
    return "device" if report.chip.per_chip > 1 else "chip"


def _memory(memory: Memory, unit: str) -> list[str]:
    cells = [*memory.state.items(), ("batch", memory.batch)]
    held = sum(size for _, size in cells)
    if memory.arguments is not None:
        cells.append(("padding", memory.arguments - held))
    for name in ("temporaries", "program"):
        size = getattr(memory, name)
        if size is not None:
            cells.append((name, size))
    return [f"  bytes on one {unit}", *(f"    {name:<18}{size_text(n):>12}" for name, n in cells)]


def _verdict(phase: PhaseReport, report: Report) -> str:
    memory, capacity = phase.memory, report.chip.hbm_bytes
    assert memory.peak is not None
    if phase.fits:
        return (
            f"fits: peak {size_text(memory.peak)} of {size_text(capacity)}, "
            f"{size_text(capacity - memory.peak)} left, a little of which is libtpu's own"
        )
    assert memory.available is not None
    over = memory.peak - memory.available
    return (
        f"does not fit: {size_text(memory.peak)} needed, {size_text(memory.available)} of "
        f"{size_text(capacity)} there for a program, {size_text(over)} too much; change one of:"
    )


def _speed(speed: Speed, unit: str) -> list[str]:
    lines = [
        f"  matrix products of a {unit}: {speed.dot_flops / 1e12:.4g} TFLOP compiled, "
        f"{speed.model_flops / 1e12:.3f} of the model: ratio "
        f"{speed.dot_flops / speed.model_flops:.3f}",
        f"  read and written in HBM: {size_text(speed.hbm_bytes)}; XLA's own count, which takes in "
        f"faster memory and loops once: {size_text(speed.xla_bytes)}",
        f"  collectives: how often, and bytes that a {unit} receives",
        *_collectives(speed.collectives),
    ]
    if speed.between_slices:
        lines += ["  collectives between slices", *_collectives(speed.between_slices)]
    named = {
        "compute": speed.compute_seconds,
        "HBM": speed.hbm_seconds,
        "ICI": speed.ici_seconds,
        "DCN": speed.dcn_seconds if speed.between_slices else None,
    }
    terms = {name: seconds for name, seconds in named.items() if seconds is not None}
    told = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in terms.items())
    return [
        *lines,
        f"  at the published peaks: {told}",
        f"  best possible: {1e3 * speed.step_seconds:.3f} ms, "
        f"{max(terms, key=terms.__getitem__)} the longest; MFU {100 * speed.mfu:.1f} %",
    ]


def _collectives(collectives: Mapping[str, Traffic]) -> list[str]:
    lines = [
        f"    {kind:<20}{traffic.count:>10,}  {size_text(traffic.num_bytes):>12}"
        for kind, traffic in collectives.items()
    ]
    return lines or ["    none"]


def _rate(bandwidth: float | None) -> str:
    return "an unpublished rate" if bandwidth is None else f"{bandwidth / 1e9:,.4g} GB/s"
