import doctest
from types import SimpleNamespace

import pytest

from codet5p_jax.training import chips
from codet5p_jax.training.chips import CHIPS, parse_topology
from codet5p_jax.training.flops import peak_flops


def test_topologies_are_read():
    assert doctest.testmod(chips).failed == 0
    for chip in CHIPS.values():
        assert parse_topology(chip.example) == (chip, (4,) * chip.axes)
    assert CHIPS["v4"].options == {"chip_config_name": "megacore"}
    assert parse_topology("v5p:2x2x1")[1] == (2, 2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", r"such as v4:4x4x4, v5e:4x4, .*found 'v9:2x2'; chips known: v4, v5e, v5p"),
        ("v5e", "found 'v5e'"),
        ("v5e:4x0", "found 'v5e:4x0'"),
        ("v5e:4x4 ", "found 'v5e:4x4 '"),
        ("v5e-16", "found 'v5e-16'"),
        ("v5e:2x2x1", "v5e has topologies of 2 sides such as v5e:4x4"),
        ("v5p:4x4", "v5p has topologies of 3 sides such as v5p:4x4x4"),
        ("v5e:16x32", "has 512 chips, a slice of v5e at most 256; for more.*--num_slices"),
    ],
)
def test_what_is_no_topology_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(text)


def test_ratios_of_the_table_are_those_of_the_makers():
    """v6e: 4.7 times v5e's compute, twice its memory, bandwidths to it and between.

    A pod of 256 chips of v5e has 6.4 Tbit/s to others.
    """
    old, new = CHIPS["v5e"], CHIPS["v6e"]
    assert 256 * 8 * old.dcn_bandwidth == 6.4e12
    assert new.flops / old.flops == pytest.approx(4.66, abs=0.01)
    assert new.hbm_bytes == 2 * old.hbm_bytes
    assert new.hbm_bandwidth == 2 * old.hbm_bandwidth
    assert new.ici_bandwidth == 2 * old.ici_bandwidth
    assert all(chip.source.endswith(f"/{name}") for name, chip in CHIPS.items())


def test_devices_have_the_peak_of_their_chip():
    kinds = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    for kind, name in (kinds | {"TPU7x": "tpu7x"}).items():
        assert peak_flops(SimpleNamespace(device_kind=kind)) == CHIPS[name].flops
