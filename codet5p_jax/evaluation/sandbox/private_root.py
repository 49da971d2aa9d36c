"""The files that programs see: a few folders, read-only, and an empty one of their own."""

import os
from collections.abc import Sequence
from pathlib import Path

from codet5p_jax.evaluation.sandbox import linux

OWN = "/tmp"  # a program's own folder, mounted anew for each
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")
NAMESPACES = (
    linux.NEW_USER | linux.NEW_MOUNTS | linux.NEW_PIDS | linux.NEW_NETWORK | linux.NEW_IPC
    | linux.NEW_UTS | linux.NEW_CGROUP
)  # fmt: skip
_HARMLESS = linux.NO_SUID | linux.NO_DEVICES | linux.NO_EXEC
PROGRAM_ID, NOBODY = 1000, 65534  # user and group of programs: seen by them, and outside


def map_users(process: int) -> None:
    """Gives the user namespace of a child its users.

    Root's programs are nobody's, and the process that watches over them is not. A normal user has
    one user to give to both.
    """
    folder = Path("/proc", str(process))
    if os.geteuid() == 0:
        both = f"0 0 1\n{PROGRAM_ID} {NOBODY} 1\n"
        try:
            (folder / "gid_map").write_text(both)
            (folder / "uid_map").write_text(both)
            return
        except OSError:
            pass  # root of a container that has no nobody
    (folder / "setgroups").write_text("deny")
    (folder / "gid_map").write_text(f"{PROGRAM_ID} {os.getegid()} 1\n")
    (folder / "uid_map").write_text(f"{PROGRAM_ID} {os.geteuid()} 1\n")


def enter(readable: Sequence[str]) -> None:
    """Leaves this process of new namespaces with a root that has `readable` and the system's.

    Args:
      readable: absolute paths; all that is below them can be read.
    """
    linux.mount("", "/", flags=linux.RECURSIVE | linux.PRIVATE)
    paths = [*SYSTEM, *DEVICES, *readable]
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    sources = {
        path: os.open(path, os.O_PATH)
        for path in _outermost([p for p in paths if p not in links and os.path.exists(p)])
    }  # opened before a mount covers them
    linux.mount("tmpfs", OWN, "tmpfs", linux.NO_SUID, "size=1m,mode=755")
    for path, source in sources.items():
        _show(source, path)
        os.close(source)
    for path, target in links.items():
        os.symlink(target, OWN + path)
    for folder in ("/proc", OWN):
        os.makedirs(OWN + folder, exist_ok=True)
    # While one can be seen whole: a later one, of a program's own processes, needs it.
    # The mount is read-only, not what it shows: else that later one would have to be.
    linux.mount("proc", f"{OWN}/proc", "proc", _HARMLESS)
    linux.restrict_mount(f"{OWN}/proc", linux.READ_ONLY)
    linux.make_root(OWN)
    linux.restrict_mount("/", linux.SEALED, whole_tree=False)
    linux.name_host("sandbox")


def _outermost(paths: Sequence[str]) -> list[str]:
    """Without those that lie below another."""
    kept: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(Path(path).is_relative_to(above) for above in kept):
            kept.append(path)
    return kept


def _show(source: int, path: str) -> None:
    """Mounts an open file or folder at its path below the new root."""
    target = OWN + path
    if os.path.isdir(f"/proc/self/fd/{source}"):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(f"/proc/self/fd/{source}", target, flags=linux.BIND | linux.RECURSIVE)
    device = path in DEVICES
    linux.restrict_mount(target, linux.READ_ONLY | linux.NO_SUID if device else linux.SEALED)


def own_folder(size: int, *, processes: bool) -> None:
    """In a mount namespace of the program's own: its empty folder, and its processes or none."""
    options = f"size={size},nr_inodes={max(1024, size >> 14)},mode=777"
    linux.mount("tmpfs", OWN, "tmpfs", linux.NO_SUID | linux.NO_DEVICES, options)
    if processes:
        linux.mount("proc", "/proc", "proc", _HARMLESS, "hidepid=invisible,subset=pid")
    else:
        linux.unmount("/proc")
    os.chdir(OWN)
