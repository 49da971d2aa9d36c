"""What a compiled program computes and moves, read from its text.

On TPU, products are written as convolutions, and loops do not say how often they run: that is read
from their condition. Of several branches, the one with most to compute counts. Between slices,
collectives are transfers of the hosts.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"^(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(([^)]*)\)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{[^}]*\}|\b(?:true|false)_computation=%[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast)(?:-start)?$"
)
_BETWEEN_SLICES = re.compile(
    r'_xla_megascale_target="\{([\d,:]*)\}.*_xla_megascale_transfer_type="(\w+)"'
)
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
_FREE = (
    *("parameter", "constant", "iota", "get-tuple-element", "tuple", "bitcast", "while", "call"),
    *("conditional", "after-all", "opt-barrier", "partition-id", "replica-id", "slice-start"),
)
_OPERANDS_FIRST = ("all-gather-start", "collective-permute-start", "send")  # in their results
_SAME_VALUE = ("copy", "bitcast", "copy-start", "copy-done", "convert")


@dataclass(frozen=True)
class Traffic:
    """One kind of collective.

    Attributes:
      count: how often a device takes part in one.
      num_bytes: what a device has to receive for them, reductions done on the way not counted.
    """

    count: int
    num_bytes: int


@dataclass(frozen=True)
class Work:
    """What one device does in one run of a program.

    Attributes:
      dot_flops: FLOPs of its matrix products, loop bodies times their trip count; of hand-written
        kernels, what they state.
      sums: elements of those that have no batch axes, by how many terms each element sums up. The
        gradient of a kernel sums over all positions.
      collectives: by kind (`all-gather`), likewise; over the fast links of a slice.
      between_slices: likewise, over the data-centre network.
      hbm_bytes: read and written by the operations that are left after fusion, likewise; what stays
        in a TPU's faster memory is not counted.
    """

    dot_flops: float
    sums: Mapping[int, float]
    collectives: Mapping[str, Traffic]
    between_slices: Mapping[str, Traffic]
    hbm_bytes: float


def read_work(text: str, trips: int | None = None) -> Work:
    """Products and collectives of an optimised program.

    Args:
      text: `jitted.lower(…).compile().as_text()`.
      trips: how often a loop runs that does not say so, because it ends by what it computes.

    Raises:
      ValueError: a loop with a product or a collective has no known number of trips, or there is no
        entry.
    """
    computations = {name: (is_entry, body) for is_entry, name, body in _computations(text)}
    entry = next((name for name, (is_entry, _) in computations.items() if is_entry), None)
    if entry is None:
        raise ValueError("the program has no ENTRY computation")
    bodies = {name: body for name, (_, body) in computations.items()}
    partitions = re.search(r"\bnum_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    known: dict[str, dict[str, float]] = {}

    def total(name: str) -> dict[str, float]:
        if name not in known:
            found = _own(name, bodies[name], devices)
            found["hbm"] = sum(
                _hbm_bytes(made, bodies[name], bodies) for made in bodies[name].values()
            )
            for branches, known_times, fused in _calls(bodies[name], bodies):
                times = trips if known_times is None else known_times
                inner = max(map(total, branches), key=_cost)
                if fused:  # what it reads and writes is known where it is called
                    inner = {key: number for key, number in inner.items() if key != "hbm"}
                if times is None and any(n for key, n in inner.items() if key != "hbm"):
                    raise ValueError(f"the loop over {branches[0]} has no known number of trips")
                for key, number in inner.items():
                    found[key] += number * (times or 0)
            known[name] = found
        return known[name]

    found = total(entry)

    def traffic(link: str) -> dict[str, Traffic]:
        kinds = sorted(
            key.split()[1] for key in found if key.startswith(link) and key[-5:] == "count"
        )
        return {
            k: Traffic(round(found[f"{link} {k} count"]), round(found[f"{link} {k} bytes"]))
            for k in kinds
        }

    sums = {int(key[5:]): number for key, number in found.items() if key.startswith("sums ")}
    flops = found.get("flops", 0.0)
    return Work(flops, sums, traffic("fast"), traffic("slow"), found["hbm"])


def argument_bytes(text: str, prefix: str) -> float:
    """Bytes of the arguments of an optimised program whose names start so: `state.opt_state`."""
    entry = next(body for is_entry, _, body in _computations(text) if is_entry)
    named = (made for made in _parameters(entry).values() if f'op_name="{prefix}' in made.line)
    return sum((made.num_bytes for made in named), 0.0)


@dataclass(frozen=True)
class _Instruction:
    name: str
    is_root: bool
    result: str  # its type
    op: str
    operands: Sequence[str]
    line: str

    @property
    def shape(self) -> list[int]:
        """Of a result that is one array."""
        array = _ARRAY.match(self.result)
        return [int(n) for n in array[2].split(",") if n] if array else []

    @property
    def num_bytes(self) -> float:
        """Of all arrays of the result."""
        return sum((size for size, _ in self.arrays), 0.0)

    @property
    def arrays(self) -> list[tuple[float, bool]]:
        """(bytes, whether they lie in HBM) of each array of the result."""
        return [
            (
                _bits(dtype) / 8 * math.prod(int(n) for n in shape.split(",") if n),
                "S(" not in layout,
            )
            for dtype, shape, layout in _ARRAY.findall(self.result)
        ]

    @property
    def hbm_bytes(self) -> float:
        """Of those arrays of the result that lie in HBM."""
        return sum((size for size, in_hbm in self.arrays if in_hbm), 0.0)


_Body = Mapping[str, _Instruction]


def _bits(dtype: str) -> int:
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8  # pred


def _computations(text: str) -> Iterator[tuple[bool, str, _Body]]:
    name, is_entry, body = None, False, {}
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name, is_entry, body = header[2], bool(header[1]), {}
        elif line.startswith("}") and name is not None:
            yield is_entry, name, body
            name = None
        elif name is not None:
            made = _INSTRUCTION.match(line.strip())
            if made:
                operands = tuple(_NAME.findall(made[5]))
                root, own_name, result, op = bool(made[1]), made[2], made[3], made[4]
                body[own_name] = _Instruction(own_name, root, result, op, operands, line)


def _own(name: str, body: _Body, devices: int) -> defaultdict[str, float]:
    """Work of a computation apart from what it calls."""
    out: defaultdict[str, float] = defaultdict(float)
    # One asynchronous collective of a TPU is written again in every fusion that it overlaps with.
    starts = any('"AsyncCollectiveStart"' in made.line for made in body.values())
    for made in body.values():
        if made.op == "dot":
            terms = _terms(made, body)
            out["flops"] += 2.0 * math.prod(made.shape) * terms
            if "batch_dims" not in made.line:
                out[f"sums {terms}"] += math.prod(made.shape)
        elif made.op == "convolution":
            out["flops"] += _convolution(made, body)
        elif made.op == "custom-call":
            stated = _KERNEL_FLOPS.search(made.line)
            out["flops"] += float(stated[1]) if stated else 0.0
        collective = _COLLECTIVE.match(made.op)
        if collective and (starts or "chain_id=" not in made.line):
            # What a TPU calls so is an all-reduce of which each device keeps a part.
            scatters = name.startswith("all-reduce-scatter")
            kind = "reduce-scatter" if scatters else collective[1]
            size = sum((body[operand].num_bytes for operand in made.operands), 0.0)
            out[f"fast {kind} count"] += 1
            out[f"fast {kind} bytes"] += size * _received(kind, _group_size(made.line, devices))
        between = _BETWEEN_SLICES.search(made.line) if made.op == "send" else None
        if between:
            kind = between[2].lower().replace("_", "-")
            size = body[made.operands[0]].num_bytes
            out[f"slow {kind} count"] += 1
            out[f"slow {kind} bytes"] += size * _received(kind, _numbers(between[1]))
    return out


def _numbers(text: str) -> int:
    """How many numbers a list with ranges has.

    >>> _numbers("1,2"), _numbers("0:3,7")
    (2, 5)
    """
    ranges = [[int(n) for n in part.split(":")] for part in text.split(",")]
    return sum(part[-1] - part[0] + 1 for part in ranges)


def _hbm_bytes(made: _Instruction, body: _Body, bodies: Mapping[str, _Body]) -> float:
    """Bytes that one operation reads from HBM and writes there."""
    sources = [body[name] for name in made.operands if name in body]
    if made.op in _FREE or '"AllocateBuffer"' in made.line:
        return 0.0
    if made.op == "fusion":
        inside = bodies[_CALLED.findall(made.line)[0]]
        read = (
            min(_read(parameter, inside, bodies), sources[index].hbm_bytes)
            for index, parameter in _parameters(inside).items()
        )
        return sum(read, 0.0) + _written(made, bodies)
    if made.op == "slice-done":  # between HBM and faster memory
        return made.num_bytes
    if made.op == "copy-start":  # (to, from, context)
        return sources[0].hbm_bytes + sum(size for size, in_hbm in made.arrays[:1] if in_hbm)
    if made.op.endswith("-done"):
        return 0.0
    if made.op in ("dynamic-slice", "gather"):
        where = sum((x.hbm_bytes for x in sources[1:]), 0.0)
        return min(made.num_bytes, sources[0].hbm_bytes) + where + made.hbm_bytes
    if made.op == "dynamic-update-slice":
        return sources[1].hbm_bytes + min(sources[1].num_bytes, made.hbm_bytes)
    read = sum((x.hbm_bytes for x in sources), 0.0)
    same = sum(len(x.arrays) for x in sources) if made.op in _OPERANDS_FIRST else 0
    return read + sum((size for size, in_hbm in made.arrays[same:] if in_hbm), 0.0)


def _parameters(body: _Body) -> dict[int, _Instruction]:
    """By position."""
    inputs = (made for made in body.values() if made.op == "parameter")
    return {int(x.line.split("parameter(")[1].split(")")[0]): x for x in inputs}


def _read(value: _Instruction, body: _Body, bodies: Mapping[str, _Body]) -> float:
    """How much of a value inside a fusion is looked at: slices of it, or all."""
    total = 0.0
    for user in body.values():
        if value.name not in user.operands:
            continue
        if user.op in ("dynamic-slice", "slice", "gather") and user.operands[0] == value.name:
            total += user.num_bytes
        elif user.op == "fusion":
            inside = bodies[_CALLED.findall(user.line)[0]]
            inputs = _parameters(inside)
            total += sum(
                _read(inputs[i], inside, bodies)
                for i, name in enumerate(user.operands)
                if name == value.name
            )
        elif user.op == "bitcast" and not user.is_root:
            total += _read(user, body, bodies)
        elif user.op != "dynamic-update-slice" or user.operands[0] != value.name:
            return value.num_bytes
    return min(total, value.num_bytes)


def _written(fusion: _Instruction, bodies: Mapping[str, _Body]) -> float:
    """What a fusion writes to HBM: of arrays updated in place, the part that is updated."""
    body = bodies[_CALLED.findall(fusion.line)[0]]
    root = _root(body)
    results = [body[name] for name in root.operands] if root.op == "tuple" else [root]
    if len(results) != len(fusion.arrays):
        return fusion.hbm_bytes
    return sum(
        (
            min(size, _update(x, body, bodies))
            for x, (size, in_hbm) in zip(results, fusion.arrays, strict=True)
            if in_hbm
        ),
        0.0,
    )


def _update(made: _Instruction, body: _Body, bodies: Mapping[str, _Body]) -> float:
    if made.op == "dynamic-update-slice":
        return body[made.operands[1]].num_bytes
    if made.op == "bitcast":
        return _update(body[made.operands[0]], body, bodies)
    if made.op == "fusion":
        inside = bodies[_CALLED.findall(made.line)[0]]
        return _update(_root(inside), inside, bodies)
    return made.num_bytes


def _received(kind: str, ways: int) -> float:
    """Bytes that a device receives per byte of its operand, in a group of `ways` devices."""
    share = (ways - 1) / ways
    return {
        "all-gather": ways - 1.0,
        "all-reduce": 2.0 * share,
        "reduce-scatter": share,
        "all-to-all": share,
        "ragged-all-to-all": share,
    }.get(kind, 1.0)


def _group_size(line: str, devices: int) -> int:
    """Devices of a group, in any of the ways in which XLA writes them.

    >>> _group_size("replica_groups={{0,1,2},{3,4,5}}", 6)
    3
    >>> _group_size("replica_groups=[2,4]<=[4,2]T(1,0)", 8)
    4
    >>> _group_size("replica_groups=mesh['a'=2,'b'=3,'c'=4] {'b','c'}, dimensions", 24)
    12
    >>> _group_size("replica_groups={}", 8)
    8
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if counted:
        return int(counted[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # 'a':(1)2 is a part of an axis
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    return devices


def _terms(made: _Instruction, body: _Body) -> int:
    """Of the sum that each element of a `dot` is."""
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", made.line)
    lhs = body[made.operands[0]].shape
    return math.prod(lhs[int(i)] for i in contracted[1].split(",") if i) if contracted else 1


def _convolution(made: _Instruction, body: _Body) -> float:
    """FLOPs of a convolution; taps that fall on padding or between dilated inputs are none.

    On TPU the batch axes of a product are spatial axes: of all taps, one an output is real.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", made.line)
    assert labels is not None, made.line
    lhs, rhs, out = (
        dict(zip(names, shape, strict=True))
        for names, shape in zip(
            labels.groups(),
            (body[made.operands[0]].shape, body[made.operands[1]].shape, made.shape),
            strict=True,
        )
    )
    window = re.search(r"window=\{([^}]*)\}", made.line)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}

    def field(name: str, axis: int, default: int) -> int:
        values = fields[name].split("x") if name in fields else []
        return int(values[axis].split("_")[0]) if values else default

    taps = 1
    for axis in range(len(rhs) - 2):
        label = str(axis)
        stride, low = field("stride", axis, 1), field("pad", axis, 0)
        spread, reach = field("lhs_dilate", axis, 1), field("rhs_dilate", axis, 1)
        last = (lhs[label] - 1) * spread
        positions = (
            o * stride + k * reach - low for o in range(out[label]) for k in range(rhs[label])
        )
        taps *= sum(0 <= at <= last and at % spread == 0 for at in positions)
    return 2.0 * out["b"] * out["f"] * rhs["i"] * taps


def _calls(
    body: _Body, bodies: Mapping[str, _Body]
) -> Iterator[tuple[list[str], int | None, bool]]:
    """(computations of which one runs, times, whether as a part of one operation) of what a
    computation calls."""
    for made in body.values():
        times = _trips(made, body, bodies) if made.op == "while" else 1
        for name in _CALLED.findall(made.line):
            yield [name], times, made.op not in ("while", "call")
        branches = _NAME.findall(" ".join(_BRANCHES.findall(made.line)))
        if branches:
            yield branches, 1, False


def _cost(work: Mapping[str, float]) -> tuple[float, float]:
    """By which the dearest of several branches is found."""
    return work.get("flops", 0.0), work.get("hbm", 0.0)


def _trips(loop: _Instruction, body: _Body, bodies: Mapping[str, _Body]) -> int | None:
    """How often a loop runs: as it says, or while (first + n * step) < limit; None: not known."""
    said = _TRIPS.search(loop.line)
    if said:
        return int(said[1])
    condition, inside = (
        bodies[name] for key in ("condition", "body") for name in _named(key, loop.line)
    )
    test = _root(condition)
    if test.op != "compare" or "direction=LT" not in test.line:
        return None
    counter, limit = condition[test.operands[0]], _constant(test.operands[1], condition)
    index = _INDEX.search(counter.line)
    if counter.op != "get-tuple-element" or index is None:
        return None
    at = int(index[1])
    before, after = body[loop.operands[0]], _root(inside)
    if before.op != "tuple" or after.op != "tuple":
        return None
    first, step = _constant(before.operands[at], body), _offset(after.operands[at], inside, at)
    if limit is None or first is None or not step or step < 0:
        return None
    return max(0, -(-(limit - first) // step))


def _named(key: str, line: str) -> list[str]:
    return re.findall(rf"\b{key}=%([\w.\-]+)", line)


def _root(body: _Body) -> _Instruction:
    return next(made for made in body.values() if made.is_root)


def _constant(name: str, body: _Body) -> int | None:
    made = body[name]
    if made.op in _SAME_VALUE:
        return _constant(made.operands[0], body)
    value = re.search(r" constant\((-?\d+)\)", made.line)
    return int(value[1]) if value else None


def _offset(name: str, body: _Body, index: int) -> int | None:
    """k where the value is element `index` of the loop's state + k."""
    made = body[name]
    if made.op in _SAME_VALUE:
        return _offset(made.operands[0], body, index)
    if made.op == "add":
        for one, other in (made.operands, made.operands[::-1]):
            start, more = _offset(one, body, index), _constant(other, body)
            if start is not None and more is not None:
                return start + more
    at = _INDEX.search(made.line)
    if made.op != "get-tuple-element" or at is None or int(at[1]) != index:
        return None
    return 0 if body[made.operands[0]].op == "parameter" else None
