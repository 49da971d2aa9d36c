"""Which process of how many this is: as told, or as the cluster tells JAX."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

AUTO = "auto"

# What sets a number of processes above 1 only for a program that is started that often.
_NUMBERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
_LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


@dataclass(frozen=True)
class Cluster:
    """The processes of a run, and this one among them.

    Attributes:
      coordinator: HOST:PORT of process 0, reachable from all others.
      num_processes: how many there are.
      process_id: of this one, from 0.
      local_device_ids: devices of this machine that are this process's; None: all.
      hosts: where each process should be, for messages; empty: not known.

    Raises:
      ValueError: they do not fit each other.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(
                f"--coordinator: expected HOST:PORT of process 0, or {AUTO}, found "
                f"{self.coordinator!r}"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process_id is from 0 to --num_processes - 1; found {self.process_id} of "
                f"{self.num_processes}"
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The cluster that command line and environment mean; None: this process is alone.

    Args:
      coordinator: HOST:PORT; `auto`: as Cloud TPU, GKE, SLURM or Open MPI say; None: alone.
      num_processes, process_id: needed with HOST:PORT; with `auto` they go before what is found.
      timeout: seconds to wait for the name of the coordinator's host.
      environment: of this process.

    Raises:
      ValueError: one of the three is missing or out of range, nothing was found, or the environment
        shows that this process was started as one of several and no coordinator is given.
    """
    if coordinator is None:
        if not (num_processes is None and process_id is None):
            raise ValueError(
                "--num_processes and --process_id need --coordinator=HOST:PORT of process 0"
            )
        sign = _sign_of_several(environment)
        if sign:
            raise ValueError(
                f"this process was started as one of several ({sign}), which would all train the "
                f"same alone: add --coordinator={AUTO}, or start one process"
            )
        return None
    if coordinator != AUTO:
        if num_processes is None or process_id is None:
            raise ValueError(
                f"--coordinator={coordinator} needs --num_processes=N and --process_id=I, from 0 "
                f"to N - 1; on Cloud TPU, GKE, SLURM and Open MPI, --coordinator={AUTO} finds them"
            )
        return Cluster(coordinator, num_processes, process_id)
    # `jax.distributed.initialize` calls this when it is given nothing, and keeps the answer to
    # itself; who is missing has to be known before it starts.
    from jax._src.clusters import ClusterEnv

    address, number, own, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, num_processes, process_id, None, None, timeout
    )
    if address is None or number is None or own is None:
        raise ValueError(
            f"--coordinator={AUTO}: no Cloud TPU, GKE, SLURM or Open MPI (mpirun 4) was found; "
            "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        )
    local = None if devices is None else tuple(devices)
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        local = None  # which JAX reads where it is given none
    return Cluster(address, number, own, local, _hosts(environment, number))


def _hosts(environment: Mapping[str, str], number: int) -> tuple[str, ...]:
    """Of each process, as GKE or SLURM say; empty where they do not, or not of all.

    >>> _hosts({"TPU_WORKER_HOSTNAMES": "a,b"}, 2)
    ('a', 'b')
    >>> _hosts({"SLURM_STEP_NODELIST": "gpu[08-09,11],x", "SLURM_STEP_NUM_TASKS": "8"}, 8)
    ('gpu08', 'gpu08', 'gpu09', 'gpu09', 'gpu11', 'gpu11', 'x', 'x')
    """
    workers = tuple(filter(None, environment.get("TPU_WORKER_HOSTNAMES", "").split(",")))
    if len(workers) == number:
        return workers
    nodes = _nodes(environment.get("SLURM_STEP_NODELIST", ""))
    in_blocks = environment.get("SLURM_DISTRIBUTION", "block").startswith("block")
    of_all = environment.get("SLURM_STEP_NUM_TASKS") == str(number)
    if nodes and in_blocks and of_all and number % len(nodes) == 0:
        return tuple(node for node in nodes for _ in range(number // len(nodes)))
    return ()


def _nodes(listed: str) -> list[str]:
    """SLURM's short form written out; nothing for forms of more than one range a name.

    >>> _nodes("gpu[08-09,11],x"), _nodes("rack[1-2]n[1-2]")
    (['gpu08', 'gpu09', 'gpu11', 'x'], [])
    """
    one = r"\d+(?:-\d+)?"
    names, found = [], list(re.finditer(rf"([^,\[\]]+)(?:\[({one}(?:,{one})*)\])?", listed))
    if ",".join(item[0] for item in found) != listed:
        return []
    for prefix, ranges in (item.groups() for item in found):
        if ranges is None:
            names.append(prefix)
            continue
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            names += [f"{prefix}{n:0{len(first)}}" for n in numbers]
    return names


def _sign_of_several(environment: Mapping[str, str]) -> str | None:
    """The variable that says so.

    >>> _sign_of_several({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"})
    'SLURM_STEP_NUM_TASKS=4'
    """
    found = [name for name in _NUMBERS if environment.get(name, "1").strip() not in ("0", "1", "")]
    found += [name for name in _LISTS if "," in environment.get(name, "")]
    return f"{found[0]}={environment[found[0]]}" if found else None
