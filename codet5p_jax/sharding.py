"""Mesh axes, and the one table that maps the models' logical axes to them.

Mesh axes: `replica` (data parallel over slow links: slices, hosts), `fsdp` (data parallel with
sharded parameters), `sequence` (activations split by position), `tensor` (heads, feed-forward
features and vocabulary). The batch is split over `replica` and `fsdp` together.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None

AXES = ("replica", "fsdp", "sequence", "tensor")

# Parameters carry the first group, activations the second. A parameter is split over `fsdp` along
# its model-width axis and over `tensor` along the axis that is contracted next, so that one
# all-reduce closes a pair of products.
RULES: Mapping[str, MeshAxes] = {
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
    "buckets": None,
    "positions": None,
    "lora": None,
    "one": None,
    "joint": None,
    "batch": ("replica", "fsdp"),
    "length": "sequence",
    "spread_length": ("sequence", "tensor"),
    "keys": None,
    "features": None,
    "queue": None,
}


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, which takes the devices that are left.

    Raises:
      ValueError: a size is neither positive nor -1, or several are -1.
    """

    replica: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = self._sizes
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise ValueError(f"mesh sizes are positive and at most one is -1; found {self._named}")

    @property
    def _sizes(self) -> list[int]:
        return [self.replica, self.fsdp, self.sequence, self.tensor]

    @property
    def _named(self) -> str:
        return ", ".join(f"{a}={s}" for a, s in zip(AXES, self._sizes, strict=True))

    def shape(self, num_devices: int) -> tuple[int, ...]:
        """The sizes in the order of `AXES`.

        Raises:
          ValueError: the sizes do not multiply to `num_devices`.
        """
        sizes = self._sizes
        known = math.prod(s for s in sizes if s != -1)
        if -1 in sizes and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            raise ValueError(
                f"mesh {self._named} does not fill {num_devices} devices; "
                "set MeshConfig so that the sizes multiply to that"
            )
        return tuple(sizes)


def make_mesh(
    config: MeshConfig,
    devices: Sequence[Any] | None = None,
    *,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """A mesh with axes `AXES` over all devices, neighbours along the last axes physically close.

    Where slow links join groups of devices (slices of TPUs, hosts of GPUs), the first axes go over
    them as far as their sizes have room: `replica`, then `fsdp`. All others stay within a group.

    Args:
      config: the sizes.
      devices: None: all there are.
      axis_type: Explicit: shardings are part of types, and an operation that would have to move
        data is an error (tests).

    Raises:
      ValueError: the sizes do not multiply to the number of devices; the groups are not equal.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    group = _group_attribute(devices)
    if group is None:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        sizes = Counter(getattr(device, group) for device in devices)
        if len(set(sizes.values())) > 1:
            found = dict(sorted(sizes.items()))
            raise ValueError(f"a mesh needs as many devices in every {group}, found {found}")
        slow = _over_slow_links(shape, len(sizes))
        array = mesh_utils.create_hybrid_device_mesh(
            [size // ways for size, ways in zip(shape, slow, strict=True)],
            slow,
            devices,
            process_is_granule=group == "process_index",
            allow_split_physical_axes=True,
        )
    return Mesh(array, AXES, axis_types=(axis_type,) * len(AXES))


def all_devices(batch_size: int) -> Mesh | None:
    """A mesh of all devices for a model that batches are taken through; None: there is one device.

    Raises:
      ValueError: batches of --batch_size rows do not divide over it.
    """
    if len(jax.devices()) == 1:
        return None
    mesh = make_mesh(MeshConfig())
    ways("--batch_size", (batch_size,), ("batch",), mesh.shape)
    return mesh


def _group_attribute(devices: Sequence[Any]) -> str | None:
    """What tells apart groups of devices that slow links join; None: there is one group.

    Devices of a slice have one `slice_index`: XLA gives it to GPUs by host. A single slice of TPUs
    may have none, and its hosts are joined by fast links.
    """
    if getattr(devices[0], "slice_index", None) is not None:
        return "slice_index"
    return None if devices[0].platform == "tpu" else "process_index"


def _over_slow_links(shape: Sequence[int], groups: int) -> list[int]:
    """How many ways each axis is divided between groups, from the first axis on.

    >>> _over_slow_links((2, 8, 1, 2), 4)
    [2, 2, 1, 1]
    """
    slow = []
    for size in shape:
        slow.append(math.gcd(size, groups))
        groups //= slow[-1]
    return slow


def partition_spec(
    axes: Sequence[str],
    *,
    rules: Mapping[str, MeshAxes] = RULES,
    name: str = "an array",
    shape: Sequence[int] = (),
) -> PartitionSpec:
    """Maps logical axis names to a PartitionSpec; `name` and `shape` are for messages.

    >>> partition_spec(("embed", "heads", "head_dim"))
    PartitionSpec('fsdp', 'tensor', None)

    Raises:
      KeyError: an axis without a rule.
      ValueError: two axes of one array map to the same mesh axis.
    """
    entries: list[MeshAxes] = []
    owner: dict[str, str] = {}
    for axis in axes:
        if axis not in rules:
            raise KeyError(f"{name}: no sharding rule for logical axis {axis!r}; known: {[*rules]}")
        entry = rules[axis]
        for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
            if mesh_axis in owner:
                sized = f"{name} of shape {tuple(shape)}" if shape else name
                raise ValueError(
                    f"{sized}: logical axes {owner[mesh_axis]!r} and {axis!r} both map to mesh "
                    f"axis {mesh_axis!r}; change one of the two rules"
                )
            owner[mesh_axis] = axis
        entries.append(entry)
    return PartitionSpec(*entries)


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(a, str) for a in x)


def ways(
    name: str,
    shape: Sequence[int],
    axes: Sequence[str],
    mesh_sizes: Mapping[str, int],
    rules: Mapping[str, MeshAxes] = RULES,
) -> int:
    """Over how many devices an array with these logical axes is divided.

    Raises:
      ValueError: a dimension does not divide by its mesh axes; names array, axis and sizes.
    """
    total = 1
    for size, axis, entry in zip(
        shape, axes, partition_spec(axes, rules=rules, name=name, shape=shape), strict=True
    ):
        names = (entry,) if isinstance(entry, str) else entry or ()
        here = math.prod(mesh_sizes[a] for a in names)
        if size % here:
            along = ", ".join(f"{a} {mesh_sizes[a]}" for a in names)
            raise ValueError(
                f"{name}: axis {axis!r} of size {size:,} does not divide over {here} devices "
                f"(mesh: {along}); {size + -size % here:,} would: change the size or the mesh"
            )
        total *= here
    return total


def param_shardings(
    logical_axes: Any, shapes: Any, mesh: Mesh, rules: Mapping[str, MeshAxes] = RULES
) -> Any:
    """A tree of NamedSharding for a tree of logical axes (tuples of str) and one of shapes.

    Raises:
      ValueError: a dimension does not divide by its mesh axes; names array, axis and sizes.
    """

    def one(path: tuple[Any, ...], axes: tuple[str, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        ways(name, leaf.shape, axes, mesh.shape, rules)
        return NamedSharding(mesh, partition_spec(axes, rules=rules, name=name))

    return jax.tree_util.tree_map_with_path(one, logical_axes, shapes, is_leaf=_is_axes)


def batch_sharding(mesh: Mesh, rules: Mapping[str, MeshAxes] = RULES) -> NamedSharding:
    """Rows of a batch over all data-parallel axes."""
    return NamedSharding(mesh, partition_spec(("batch",), rules=rules))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def placed(arrays: Any, mesh: Mesh | None) -> Any:
    """A tree of batches, their rows divided over a mesh; as it is where there is none. Of several
    processes each has all rows."""
    if mesh is None:
        return arrays
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)

    def one(x: Any) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

    return jax.tree.map(one, arrays)


def on_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Within it, what is compiled is laid out for the mesh; nothing where there is none."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Fixes the sharding of an activation by logical axes; nothing happens outside a mesh.

    On a mesh of Explicit axes it asserts that this is the sharding already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, shape=x.shape))


def constrain_between_blocks(x_BTD: jax.Array) -> jax.Array:
    """Fixes the sharding of what one block hands to the next: positions are split over `tensor` too
    where they divide (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2).

    The sums over `tensor` that end a pair of products then leave each device with its part of the
    positions, and what is kept for the backward pass is as much smaller. On Explicit axes positions
    stay as they are.
    """
    mesh, (spread,) = jax.sharding.get_abstract_mesh(), partition_spec(("spread_length",))
    known = not mesh.empty and not _explicit()
    divides = known and x_BTD.shape[1] % math.prod(mesh.shape[axis] for axis in spread) == 0
    length = "spread_length" if divides else "length"
    return constrain(x_BTD, "batch", length, "features")


def batch_parts(rows: int) -> int:
    """Over how many devices a batch is split; 1 outside a mesh, where its rows do not divide, or
    where axes are Explicit: then nothing is laid out for the compiler."""
    mesh = jax.sharding.get_abstract_mesh()
    (axes,) = partition_spec(("batch",))
    parts = 1 if mesh.empty or _explicit() else math.prod(mesh.shape[axis] for axis in axes)
    return 1 if rows % parts else parts


def dividing_spec(shape: Sequence[int], axes: Sequence[str]) -> PartitionSpec:
    """How an activation of that shape is split on the mesh around: axes that do not divide are not.
    All are whole outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes: Mapping[str, int] = {} if mesh.empty else mesh.shape
    entries = []
    for size, entry in zip(shape, partition_spec(axes, shape=shape), strict=True):
        names = (entry,) if isinstance(entry, str) else entry or ()
        divides = sizes and size % math.prod(sizes[a] for a in names) == 0
        entries.append(entry if divides else None)
    return PartitionSpec(*entries)


def on_device(size: int, axis: str) -> int:
    """A device's part of an axis of that size on the mesh around."""
    spec, mesh = dividing_spec((size,), (axis,)), jax.sharding.get_abstract_mesh()
    return size if mesh.empty else NamedSharding(mesh, spec).shard_shape((size,))[0]


def on_each_device(
    run: Callable[..., Any], in_specs: Sequence[PartitionSpec], out_specs: PartitionSpec
) -> Callable[..., Any]:
    """`run` of each device's part of its arguments: for what the compiler cannot split."""
    if jax.sharding.get_abstract_mesh().empty:
        return run
    # Kernels do not say over which axes their results vary.
    mapped = jax.shard_map(run, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)
    if not _explicit():
        return mapped
    return lambda *arrays: mapped(*map(jax.sharding.reshard, arrays, in_specs))


def first_on_device(entry: MeshAxes, size: int) -> jax.Array:
    """Within `on_each_device`, where the device's part of an axis begins in the whole array.

    Args:
      entry: how the axis is split, of the spec.
      size: of the part.
    """
    return jax.lax.axis_index(entry) * size if entry else jnp.int32(0)


def moved(x: jax.Array, *axes: str) -> jax.Array:
    """x with the sharding of these logical axes where the mesh has Explicit axes, which need to be
    told that data moves here; elsewhere the compiler decides, and this is x."""
    return jax.sharding.reshard(x, partition_spec(axes)) if _explicit() else x


def looked_up(look_up: Callable[..., jax.Array], axes: Sequence[str], *arrays: Any) -> jax.Array:
    """`look_up(*arrays)`, whose result has these logical axes: indexing in what may be split along
    the indexed axis. How is left to the compiler, also where axes are Explicit."""
    if not _explicit():
        return look_up(*arrays)
    automatic: Any = jax.sharding.auto_axes(look_up, out_sharding=partition_spec(axes))
    return automatic(*arrays)


def result_of_product(
    x: jax.Array, kernel: jax.Array, contracted: tuple[Sequence[int], Sequence[int]]
) -> PartitionSpec | None:
    """The `out_sharding` of a product: its axes are split as those of x and of the kernel, the
    latter over no mesh axis that x is split over. None where no axes are Explicit: the compiler
    decides."""
    if not _explicit():
        return None
    ours, theirs = (
        [e for i, e in enumerate(jax.typeof(a).sharding.spec) if i not in gone]
        for a, gone in zip((x, kernel), contracted, strict=True)
    )
    taken = {a for e in ours for a in ((e,) if isinstance(e, str) else e or ())}
    return PartitionSpec(*ours, *(None if e in taken else e for e in theirs))


def _explicit() -> bool:
    return bool(jax.sharding.get_abstract_mesh().explicit_axes)
