"""What a compiled program computes, read from its text."""

import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%([\w.\-]+) = (\w+)\[([\d,]*)\]")
_DOT = re.compile(r" dot\(%([\w.\-]+), %([\w.\-]+)\).*lhs_contracting_dims=\{([\d,]*)\}")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def dot_flops(text: str) -> float:
    """FLOPs of the matrix products of an optimised program, loop bodies times their trip count.

    Args:
      text: `jitted.lower(…).compile().as_text()`.

    Raises:
      ValueError: a loop with a product has no known number of trips, or there is no entry.
    """
    own: dict[str, float] = {}
    calls: dict[str, list[tuple[str, int | None]]] = {}
    entry = None
    for is_entry, name, lines in _computations(text):
        entry = name if is_entry else entry
        own[name], calls[name] = _count(lines)
    if entry is None:
        raise ValueError("the program has no ENTRY computation")
    known: dict[str, float] = {}

    def total(name: str) -> float:
        if name not in known:
            found = own[name]
            for called, times in calls[name]:
                inner = total(called)
                if inner and times is None:
                    raise ValueError(f"the loop over {called} has no known number of trips")
                found += inner * (times or 0)
            known[name] = found
        return known[name]

    return total(entry)


def _computations(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    name, is_entry, lines = None, False, []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name, is_entry, lines = header[2], bool(header[1]), []
        elif line.startswith("}") and name is not None:
            yield is_entry, name, lines
            name = None
        elif name is not None:
            lines.append(line.strip())


def _count(lines: list[str]) -> tuple[float, list[tuple[str, int | None]]]:
    """FLOPs of a computation's own products, and (computation, times) of what it calls."""
    shapes: dict[str, list[int]] = {}
    flops, calls = 0.0, []
    for line in lines:
        made = _INSTRUCTION.match(line)
        if made:
            shapes[made[1]] = [int(n) for n in made[3].split(",") if n]
        dot = _DOT.search(line)
        if dot and made:
            inner = math.prod(shapes[dot[1]][int(i)] for i in dot[3].split(",") if i)
            flops += 2.0 * math.prod(shapes[made[1]]) * inner
        trips = _TRIPS.search(line)
        times = (int(trips[1]) if trips else None) if " while(" in line else 1
        calls += [(name, times) for name in _CALLED.findall(line)]
        for names in _BRANCHES.findall(line):
            calls += [(name.strip().lstrip("%"), 1) for name in names.split(",")]
    return flops, calls
