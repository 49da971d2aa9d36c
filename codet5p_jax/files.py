"""Files and folders that are complete wherever they exist: written elsewhere, synced, renamed."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from codet5p_jax import signals


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A sibling of `path` to write to. It replaces `path` at the end, or is removed on an error.

    Raises:
      ValueError: there is something else than a file, such as a device.
    """
    check_file(path)
    path = path.resolve()  # a link stays one
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a file; readers see the old one or the new one."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(target: Path, size: int = 0) -> Iterator[Path]:
    """A temporary sibling of `target` to write to, renamed to it at the end; removed on an error.

    Whoever writes calls `signals.check` between pieces of work, once no thread writes any more.

    Args:
      target: the folder; what is missing above it is made.
      size: bytes that are going to be written.

    Raises:
      FileExistsError: `target` exists and is not an empty folder.
      OSError: the disk has fewer free bytes than `size`, or was filled meanwhile.
    """
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise FileExistsError(f"{target} exists; name another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise OSError(
            f"{target} takes {size / 1e6:,.1f} MB, and {target.parent} has {free / 1e6:,.1f} MB "
            "free; free some space, or name a folder on another disk"
        )
    with signals.postponed():
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
        try:
            os.chmod(partial, 0o755)  # mkdtemp makes folders that only their owner can read
            yield partial
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            signals.check()
            _rename(partial, target)
            sync(target.parent)
        except (OSError, ValueError) as error:  # TensorStore raises ValueError
            code, full = getattr(error, "errno", None), errno.ENOSPC
            if code == full or os.strerror(full) in str(error):
                raise OSError(
                    f"the disk was full before {target} was complete; none is left"
                ) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def lock(file: IO[str], taken: str) -> None:
    """Keeps other processes out until the file is closed.

    The kernel lets go of the lock when the process ends, however it ends. On a file system without
    locks there is none.

    Raises:
      OSError: `taken`, another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(taken) from None
    except OSError:
        pass


def _rename(partial: Path, target: Path) -> None:
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(
            f"{target} was made by another process meanwhile, and is left as that made it"
        ) from None


def check_file(path: Path) -> bool:
    """Whether there is a file.

    Raises:
      ValueError: there is something else, or a link that leads nowhere, which would be passed over
        as if nothing were there.
    """
    if not os.path.lexists(path):
        return False
    if path.is_file():
        return True
    found = "a folder or device" if path.exists() else "a link that leads nowhere"
    raise ValueError(f"{path}: expected a file, found {found}")


def check_inside(path: Path) -> None:
    """Fails where a file of a folder that others made is a link to somewhere else. The cache of a
    hub holds links to files named after their hashes, beside the snapshots, and passes.

    Raises:
      ValueError: names the link and where it leads.
    """
    folder, real = path.parent.resolve(), path.resolve()
    if real.parent not in (folder, folder.parent.parent / "blobs"):
        raise ValueError(
            f"{path} is a link out of the folder, to {real}; put the file itself into the folder"
        )


def sync(path: Path) -> None:
    """Waits until a file, or the list of what is in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Mounts of object stores have no list of files to sync, and say so.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
