"""What the makers of TPUs publish about them: the one place where these numbers are.

None: not found in their documentation when this was written.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One JAX device: a TPU chip, or half of one where `per_chip` is 2.

    Attributes:
      name: of its topologies (`v5e:4x4`).
      flops: peak dense bf16 FLOP/s.
      hbm_bytes: capacity of its memory. The GB of the pages are GiB: XLA offers a program 15.75 GiB
        of v5e's 16 GB.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second between chips, all links, both directions together.
      dcn_bandwidth: bytes a second between slices, one direction: a device's share of its host's.
      pod: the most chips of a slice.
      axes: of its torus.
      source: where the numbers are from.
      per_chip: JAX devices that a chip shows as.
      options: what libtpu has to be told besides the topology.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float | None
    ici_bandwidth: float | None
    dcn_bandwidth: float | None
    pod: int
    axes: int
    source: str
    per_chip: int = 1
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def example(self) -> str:
        """A topology of it."""
        return f"{self.name}:{'x'.join(['4'] * self.axes)}"

    def devices(self, sides: Sequence[int], num_slices: int) -> int:
        """Of all slices of a topology."""
        return math.prod(sides) * self.per_chip * num_slices


_DOCS = "https://docs.cloud.google.com/tpu/docs"
CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        # Between chips: 6 links of 45e9 bytes a second each way, as jax-ml.github.io/scaling-book
        # says. Its two cores are one device where they are joined, as they are by default.
        Chip(
            *("v4", 275e12, 32 * GIB, 1_200e9, 540e9, None, 4_096, 3, f"{_DOCS}/v4"),
            options={"chip_config_name": "megacore"},
        ),
        # Hosts of 8 chips have 2 network cards of 100 Gbit/s.
        Chip("v5e", 197e12, 16 * GIB, 819e9, 400e9, 25e9 / 8, 256, 2, f"{_DOCS}/v5e"),
        Chip("v5p", 459e12, 95 * GIB, 2_765e9, 1_200e9, 50e9 / 8, 6_144, 3, f"{_DOCS}/v5p"),
        Chip("v6e", 918e12, 32 * GIB, 1_638e9, 800e9, 100e9 / 8, 256, 2, f"{_DOCS}/v6e"),
        # A chip of 2,307 TFLOP/s, 192 GiB, 7,380, 1,200 and 12.5 GB/s shows as two devices. That
        # page also has the network of v6e.
        Chip(
            *("tpu7x", 1_153.5e12, 96 * GIB, 3_690e9, 600e9, 50e9 / 8),
            *(9_216, 3, f"{_DOCS}/tpu7x"),
            per_chip=2,
        ),
    )
}


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the sides of a topology.

    >>> chip, sides = parse_topology("v5e:4x4")
    >>> chip.name, sides
    ('v5e', (4, 4))

    Raises:
      ValueError: it is not one; says which are.
    """
    known = ", ".join(chip.example for chip in CHIPS.values())
    found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", text)
    if found is None or found[1] not in CHIPS:
        raise ValueError(
            f"expected a topology CHIP:SIDExSIDE[xSIDE] such as {known}, found {text!r}; "
            f"chips known: {', '.join(CHIPS)}"
        )
    chip, sides = CHIPS[found[1]], tuple(int(side) for side in found[2].split("x"))
    if len(sides) != chip.axes:
        raise ValueError(
            f"{chip.name} has topologies of {chip.axes} sides such as {chip.example}, found "
            f"{text!r}"
        )
    if math.prod(sides) > chip.pod:
        raise ValueError(
            f"{text} has {math.prod(sides):,} chips, a slice of {chip.name} at most "
            f"{chip.pod:,}; for more, take several slices (--num_slices)"
        )
    return chip, sides
