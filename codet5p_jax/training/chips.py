"""What the makers of TPUs publish about them: the one place where these numbers are.

TPU v4 and TPU7x are not here: the first's bandwidth between chips, the second's to its memory, was
not found in their makers' documentation when this was written.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One TPU chip, which is one JAX device.

    Attributes:
      name: of its topologies (`v5e:4x4`).
      flops: peak dense bf16 FLOP/s.
      hbm_bytes: capacity of its memory. The GB of the pages are GiB: XLA offers a program 15.75 GiB
        of v5e's 16 GB.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second between chips, all links, both directions together.
      pod: the most chips of a topology.
      axes: of its torus.
      source: where the numbers are from.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    pod: int
    axes: int
    source: str

    @property
    def example(self) -> str:
        """A topology of it."""
        return f"{self.name}:{'x'.join(['4'] * self.axes)}"


_DOCS = "https://docs.cloud.google.com/tpu/docs"
CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16 * GIB, 819e9, 400e9, 256, 2, f"{_DOCS}/v5e"),
        Chip("v5p", 459e12, 95 * GIB, 2_765e9, 1_200e9, 8_960, 3, f"{_DOCS}/v5p"),
        Chip("v6e", 918e12, 32 * GIB, 1_638e9, 800e9, 256, 2, f"{_DOCS}/v6e"),
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
            f"{text} has {math.prod(sides):,} chips, a pod of {chip.name} at most {chip.pod:,}; "
            "several slices are not supported here"
        )
    return chip, sides
