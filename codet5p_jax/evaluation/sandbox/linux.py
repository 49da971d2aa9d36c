"""System calls that the standard library of Python 3.11 has no function for."""

import ctypes
import os
import platform
import struct
from typing import Any

NEW_MOUNTS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

NO_SUID, NO_DEVICES, NO_EXEC = 2, 4, 8  # of mount
BIND, RECURSIVE, PRIVATE, DETACH = 4096, 16384, 1 << 18, 2
READ_ONLY, SEALED = 1, 1 | 2 | 4  # of `restrict_mount`; sealed: no devices, no set-uid as well

_SIGCHLD = 17
_CLONE = {"x86_64": 56, "aarch64": 220}
_MOUNT_SETATTR = 442  # on every architecture
_HERE, _EMPTY_PATH, _WHOLE_TREE = -100, 0x1000, 0x8000
_PARENT_DIES, _DUMPABLE, _SECCOMP, _DROP_BOUND = 1, 4, 22, 24
_SUBREAPER, _NO_NEW_PRIVILEGES = 36, 38
_CAPABILITIES_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone(flags: int) -> int:
    """`os.fork` into new namespaces; only for processes of one thread."""
    number = _CLONE.get(platform.machine())
    if number is None:
        raise OSError(f"namespaces: expected {' or '.join(_CLONE)}, found {platform.machine()}")
    return _checked(_libc.syscall(number, ctypes.c_ulong(flags | _SIGCHLD), 0, 0, 0, 0), "clone")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    arguments = [text.encode() or None for text in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None)
    _checked(result, f"mount {kind or source} at {target}")


def unmount(target: str) -> None:
    """Takes a mount and what is below out of this namespace."""
    _checked(_libc.umount2(target.encode(), DETACH), f"umount {target}")


def restrict_mount(target: str, attributes: int, *, whole_tree: bool = True) -> None:
    """Sets flags of a mount, and of those below it; Linux 5.12 and newer."""
    set_clear_propagation_user = struct.pack("4Q", attributes, 0, 0, 0)
    flags = _WHOLE_TREE if whole_tree else 0
    result = _libc.syscall(
        _MOUNT_SETATTR, _HERE, target.encode(), flags, set_clear_propagation_user, 32
    )
    _checked(result, f"mount_setattr {target}")


def make_root(folder: str) -> None:
    """Makes a mount the root, and forgets the root before."""
    os.chdir(folder)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")  # the old one now covers the new one
    unmount(".")
    os.chdir("/")


def _prctl(option: int, *values: Any) -> None:
    wide = [v if isinstance(v, ctypes.c_char_p) else ctypes.c_ulong(v) for v in values]
    _checked(_libc.prctl(option, *wide, *[ctypes.c_ulong(0)] * (4 - len(wide))), "prctl")


def die_with_parent() -> None:
    """SIGKILL once the parent is gone; forgotten at a change of user."""
    _prctl(_PARENT_DIES, 9)


def hide_memory() -> None:
    """No process of this user may look into this one, by /proc or ptrace."""
    _prctl(_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Orphaned descendants become children of this process."""
    _prctl(_SUBREAPER, 1)


def bound_privileges() -> None:
    """No capability can be gained any more; before a change of user, which takes that right."""
    for capability in range(64):
        if _libc.prctl(_DROP_BOUND, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # the kernel has no more, or this process has no say, having none itself


def drop_privileges() -> None:
    """No capability is left, and set-uid files give none."""
    _prctl(_NO_NEW_PRIVILEGES, 1)
    header = struct.pack("Ii", _CAPABILITIES_VERSION_3, 0)
    _checked(_libc.capset(header, bytes(24)), "capset")


def name_host(name: str) -> None:
    """In this namespace of host names."""
    _checked(_libc.sethostname(name.encode(), len(name)), "sethostname")


def load_filter(instructions: bytes) -> None:
    """Installs a compiled seccomp filter; `drop_privileges` comes before."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxQ", len(instructions) // 8, ctypes.addressof(code))
    _prctl(_SECCOMP, 2, ctypes.c_char_p(program))
