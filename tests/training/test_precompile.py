"""Compiling for TPUs that are not there; what needs libtpu is skipped where there is none."""

import dataclasses
import functools
import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from codet5p_jax.models.configs import ModelConfig
from codet5p_jax.objectives import Seq2Seq, SpanDenoising
from codet5p_jax.sharding import AXES, MeshConfig, batch_sharding, make_mesh
from codet5p_jax.training import precompile as module
from codet5p_jax.training.chips import CHIPS, GIB
from codet5p_jax.training.hlo import Traffic
from codet5p_jax.training.phases import Phase
from codet5p_jax.training.precompile import (
    Memory,
    PhaseReport,
    Report,
    precompile,
    topology_devices,
)
from codet5p_jax.training.precompile_report import report_text
from tests.training.synthetic import tiny_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def compiled(rows: int = 16, remat: str = "none", **changes) -> Report:
    config: ModelConfig = tiny_config(
        num_encoder_layers=3, num_decoder_layers=3, scan_layers=True, remat=remat
    )
    settings = {
        "topology": "v5e:2x2",
        "model": config,
        "objectives": [SpanDenoising(inputs_length=32, targets_length=16)],
        "phases": [Phase("m", 10, rows)],
        "rows": [{"span_denoising": rows}],
    }
    return precompile(**settings | changes)


@needs_libtpu
def test_a_step_for_four_chips():
    report = compiled(accumulate=2)
    (phase,) = report.phases
    assert (report.devices, report.mesh["fsdp"], report.chip) == (4, 4, CHIPS["v5e"])
    assert phase.fits
    assert not phase.advice
    memory, speed = phase.memory, phase.speed
    # fp32, each of four chips holds a quarter but of what has no width to split.
    assert 4 * report.parameters / 4 <= memory.state["params"] < 1.1 * 4 * report.parameters / 4
    assert memory.state["opt_state"] == pytest.approx(2 * memory.state["params"], rel=1e-2)
    assert memory.batch == 16 // 4 * (32 * 2 + 16 * 4) * 4
    assert memory.arguments >= sum(memory.state.values()) + memory.batch
    # Nothing is computed twice: two loops, of micro-batches and of layers, are counted in full.
    assert speed.dot_flops == pytest.approx(speed.model_flops, rel=0.02)
    assert sum(x.num_bytes for x in speed.collectives.values()) > 3 * 3 / 4 * 4 * report.parameters
    assert speed.step_seconds == max(speed.compute_seconds, speed.hbm_seconds, speed.ici_seconds)
    assert 0 < speed.mfu < 1
    assert speed.xla_bytes > 4 * report.parameters  # of all four chips: the state, read and written
    assert speed.mfu == pytest.approx(speed.model_flops / speed.step_seconds / 197e12)


@needs_libtpu
def test_kernels_of_attention_are_counted():
    """Of three self- and cross-attentions each way: two products forwards and five backwards."""
    rows, length = 16, 256
    sizes = {"num_heads": 2, "head_dim": 64, "dropout": 0.0, "dtype": "bfloat16"}

    def speed(attention):
        (phase,) = precompile(
            topology="v5e:2x2",
            model=tiny_config(**sizes, attention=attention),
            objectives=[Seq2Seq(inputs_length=length, targets_length=length)],
            phases=[Phase("m", 10, rows)],
            rows=[{"seq2seq": rows}],
        ).phases
        return phase.speed

    plain, fused = speed("xla"), speed("fused")
    product = 3 * 2 * (rows // 4) * 2 * length * length * 64
    assert fused.model_flops == plain.model_flops > 6 * product
    assert fused.dot_flops - plain.dot_flops == pytest.approx(product, rel=0.02)
    assert fused.hbm_bytes < 0.8 * plain.hbm_bytes


@needs_libtpu
@pytest.mark.slow
def test_replicas_reduce_every_gradient():
    report = compiled(mesh=MeshConfig(replica=4, fsdp=1))
    speed = report.phases[0].speed
    assert set(speed.collectives) == {"all-reduce"}
    received = speed.collectives["all-reduce"].num_bytes
    least = report.parameters
    # The embedding once as input and once as output, keys of dropout, single numbers: less than one
    # position bias of heads x queries x keys.
    most = least + 64 * 16 + 500
    assert 2 * 3 / 4 * 4 * least <= received <= 1.001 * 2 * 3 / 4 * 4 * most


@needs_libtpu
def test_what_does_not_divide_over_the_chips_is_an_error():
    with pytest.raises(ValueError, match=r"fsdp=3.* does not fill 4 devices; set MeshConfig"):
        compiled(mesh=MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="18 rows in a batch, which do not divide over 4"):
        compiled(rows=18)
    with pytest.raises(ValueError, match=r"no topology v5e:3x3, only such as v5e:4x4: .*divisible"):
        topology_devices("v5e:3x3")


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit():
    (phase,) = compiled(rows=2**23, remat="dots").phases
    assert not phase.fits
    assert phase.speed is None
    assert phase.memory.available == 15.75 * GIB
    assert phase.memory.peak > phase.memory.available


@needs_libtpu
@pytest.mark.slow
def test_the_peak_is_what_the_compiler_holds_against_the_memory():
    """Of programs whose size of temporaries is twice what is alive while there is room for it."""
    mesh = make_mesh(MeshConfig(), topology_devices("v5e:2x2")[1])

    def layers(x):
        def layer(x, _):
            a = jnp.sin(x @ weight)
            return (jnp.cos(a @ weight) * a) @ weight, None

        weight = jnp.eye(1024, dtype=x.dtype)
        for length in (3, 5):
            x, _ = jax.lax.scan(layer, x, None, length=length)
        return x.sum(-1)

    def memory(rows: int) -> Memory:
        x = jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=batch_sharding(mesh))
        lower = functools.partial(jax.jit(layers).lower, x)
        found, _ = module.compile_for(lower, mesh)
        return module.measure(found, CHIPS["v5e"], {"x": x}, {}, 1.0, advice=())[0]

    limit = 15.75 * GIB
    row = 1024 * 4 * 3 / 4  # bytes on a chip: the argument and two like it, of four chips
    for share in (0.2, 0.99, 1.01):
        found = memory(8 * int(share * limit / row / 8))
        assert found.peak == pytest.approx(share * limit, rel=0.005)
        assert (found.available is None) == (share < 1)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[precompile\]'"):
        topology_devices("v5e:2x2")


@pytest.mark.parametrize(
    ("message", "peak"),
    [
        (  # libtpu 0.0.52
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (189.08G) exceeds available HBM (15.75G).",
            189.08,
        ),
        (
            "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm "
            "capacity by 4.75G.",
            20.5,
        ),
    ],
)
def test_what_the_compiler_says_of_a_step_that_does_not_fit(message, peak):
    found = module._refused(Memory({"params": 4}, 3), message)
    assert found.available == 15.75 * GIB
    assert found.peak == pytest.approx(peak * GIB, abs=1)
    with pytest.raises(ValueError, match="ran out of something: of patience"):
        module._refused(Memory({}, 0), "of patience")
    with pytest.raises(ValueError, match=r"memory space vmem.* … *; .*set ATTENTION = 'xla'"):
        module._refused(Memory({}, 0), "Ran out of memory in memory space vmem. " + 500 * "more ")


def test_what_else_the_compiler_says_is_a_line():
    def lower():
        def compiler(options):
            raise jax.errors.JaxRuntimeError("INTERNAL: no\n" + 500 * "pages ")

        return SimpleNamespace(compile=compiler)

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(ValueError, match=r"^the compiler failed: INTERNAL: no pages .{300,400} …$"):
        module.compile_for(lower, mesh)


def advice(held: int, *, rows: int, accumulate: int, remat: str, mesh: MeshConfig) -> list[str]:
    model = tiny_config(remat=remat)
    shape = dict(zip(AXES, mesh.shape(8), strict=True))
    told = module._advice(held, CHIPS["v5e"], shape, 1, {"a": 8, "b": rows}, accumulate, model)
    return [line.split(":")[0] for line in told]


def test_what_to_change_begins_with_what_takes_the_room():
    split = MeshConfig(fsdp=8)
    small = {"accumulate": 1, "rows": 64, "mesh": split}
    assert advice(GIB, remat="none", **small) == ["batch", "remat", "mesh"]
    assert advice(12 * GIB, remat="none", **small) == ["mesh", "batch", "remat"]
    assert advice(GIB, remat="full", **small) == ["batch", "mesh"]
    assert advice(GIB, remat="full", **small | {"accumulate": 8}) == ["mesh"]


@pytest.mark.parametrize(
    ("mesh", "num_slices", "told"),
    [
        (MeshConfig(replica=8, fsdp=1), 1, "over all chips (meshes/fsdp.gin), not 8 copies"),
        (MeshConfig(replica=8, fsdp=1), 2, "of a slice (meshes/multi_slice.gin), not 4 copies"),
        (MeshConfig(replica=2), 2, "more chips, or tensor"),
    ],
)
def test_a_slice_keeps_one_copy_of_the_state(mesh, num_slices, told):
    shape = dict(zip(AXES, mesh.shape(8), strict=True))
    model = tiny_config(remat="full")
    (found,) = module._advice(12 * GIB, CHIPS["v5e"], shape, num_slices, {"a": 8}, 1, model)
    assert told in found


PROGRAM = """HloModule step, num_partitions=4
ENTRY %main (a: bf16[1000,1000]) -> bf16[1000,1000] {
  %a = bf16[1000,1000]{1,0} parameter(0)
  %g = bf16[4000,1000]{1,0} all-gather(%a), replica_groups={{0,1,2,3}}
  ROOT %c = bf16[1000,1000]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_floors_are_work_over_published_peaks():
    speed = module._speed(CHIPS["v5e"], PROGRAM, 1e9, 3e9)
    assert speed.collectives == {"all-gather": Traffic(1, 6_000_000)}
    assert speed.compute_seconds == pytest.approx(2e9 / 197e12)
    assert speed.hbm_bytes == 2e6 + 8e6 + 3 * 2e6
    assert speed.hbm_seconds == pytest.approx(16e6 / 819e9)
    assert speed.ici_seconds == pytest.approx(6e6 / 200e9)
    assert speed.dcn_seconds == 0
    assert speed.step_seconds == speed.ici_seconds
    assert speed.mfu == pytest.approx(1e9 / 30e-6 / 197e12)


def test_what_is_not_published_has_no_term():
    unknown = {f"{part}_bandwidth": None for part in ("hbm", "ici", "dcn")}
    chip = dataclasses.replace(CHIPS["tpu7x"], **unknown)
    speed = module._speed(chip, PROGRAM, 1e9, 3e9)
    assert (speed.hbm_seconds, speed.ici_seconds, speed.dcn_seconds) == (None, None, None)
    assert speed.step_seconds == pytest.approx(2e9 / 1153.5e12)
    phase = PhaseReport("m", {}, 1.0, True, Memory({}, 0, 1, 1, 1, 3), (), speed)
    text = report_text(Report("tpu7x:2x2x1", 2, chip, 16, {"replica": 2}, "0", 9, 9, (phase,)))
    assert "2 slices of tpu7x:2x2x1: 8 chips, 2 devices each, mesh replica 2;" in text
    assert "HBM at an unpublished rate" in text
    assert "at the published peaks: compute 0.002 ms\n" in text


BETWEEN = """ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  %t = token[] after-all()
  %s = (f32[1000]{0}, u32[], token[]) send(%a, %t), is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %r = f32[1000]{0} copy(%a)
}
"""  # noqa: E501 - as XLA prints it


def test_the_network_between_slices_has_a_term_of_its_own():
    assert module._speed(CHIPS["v5e"], BETWEEN, 1e9, 8e3).mfu == 1  # and never more
    speed = module._speed(CHIPS["v5e"], BETWEEN, 1.0, 8e3)
    assert speed.collectives == {}
    assert speed.between_slices == {"all-reduce": Traffic(1, 4_000)}
    assert speed.dcn_seconds == speed.step_seconds == pytest.approx(4_000 / (25e9 / 8))
    phase = PhaseReport("m", {}, 1.0, True, Memory({}, 0, 1, 1, 1, 3), (), speed)
    report = Report("v5e:2x2", 2, CHIPS["v5e"], 8, {"replica": 2}, "0", 9, 9, (phase,))
    lines = report_text(report).splitlines()
    assert lines[lines.index("  collectives between slices") + 1].split() == [
        *("all-reduce", "1", "0.00", "MB")
    ]
    assert any("best possible: 0.001 ms, DCN the longest" in line for line in lines)


@needs_libtpu
@pytest.mark.slow
def test_only_gradients_go_between_slices():
    """Every parameter's, once: each chip sends its quarter of them, padded as it lies in memory."""
    wide = tiny_config(d_model=128, head_dim=64, d_ff=256, scan_layers=True)
    report = compiled(num_slices=2, mesh=MeshConfig(replica=2), model=wide)
    assert (report.devices, report.mesh["fsdp"], report.mesh["replica"]) == (8, 4, 2)
    between = report.phases[0].speed.between_slices
    received = sum(kind.num_bytes for kind in between.values())
    quarter = 4 * report.parameters / 4
    assert quarter < received < 2 * quarter


@needs_libtpu
@pytest.mark.parametrize(("topology", "devices"), [("v4:2x2x1", 4), ("tpu7x:2x2x1", 8)])
def test_devices_of_other_chips(topology, devices):
    assert len(topology_devices(topology)[1]) == devices
    assert len(topology_devices(topology, 2)[1]) == 2 * devices
    with pytest.raises(ValueError, match="expected 1 slice or more, found num_slices = 0"):
        topology_devices(topology, 0)


def test_the_report_says_what_was_found_and_what_it_does_not_prove():
    state = {"params": 10**9, "opt_state": 2 * 10**9}
    memory = Memory(state, 10**7, 4 * 10**9, 8 * 10**8, 2 * 10**8, 5 * 10**9)
    speed = module._speed(CHIPS["v5e"], PROGRAM, 1e9, 3e9)
    good = PhaseReport("first", {"a": 8}, 12.3, True, memory, (), speed)
    refused = dataclasses.replace(memory, arguments=None, peak=20 * GIB, available=15 * GIB)
    bad = PhaseReport("second", {"a": 8}, 4.0, False, refused, ("batch: less",), None)
    report = Report("v5e:2x2", 1, CHIPS["v5e"], 4, {"fsdp": 4}, "0", 250, 200, (good, bad))
    lines = report_text(report).splitlines()
    fits = "  fits: peak 5.00 GB of 17.18 GB, 12.18 GB left, a little of which is libtpu's own"
    assert fits in lines
    assert "    padding                0.99 GB" in lines
    assert "    temporaries            0.80 GB" in lines
    (counted,) = (line for line in lines if "read and written in HBM: " in line)
    assert counted.endswith("XLA's own count, which takes in faster memory and loops once: 3.00 GB")
    refusal = next(line for line in lines if "does not fit" in line)
    assert "21.47 GB needed, 16.11 GB of 17.18 GB there for a program, 5.37 GB too much" in refusal
    assert "    batch: less" in lines
    assert "    all-gather                   1       6.00 MB" in lines
    assert any("best possible: 0.030 ms, ICI the longest; MFU 16.9 %" in line for line in lines)
    assert "proves neither that the step computes what it should nor how fast" in lines[-1]
