"""The system calls that programs may make: a seccomp filter, compiled by libseccomp."""

import errno
import tempfile
from typing import Any

FILES = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close
    close_range open openat openat2 creat stat fstat lstat newfstatat statx statfs fstatfs
    access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir
    mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
    symlinkat chmod fchmod fchmodat umask chown fchown lchown fchownat truncate ftruncate
    fallocate fsync fdatasync sync_file_range utime utimes utimensat futimesat dup dup2 dup3
    pipe pipe2 fcntl flock sendfile splice tee copy_file_range fadvise64 readahead getxattr
    lgetxattr fgetxattr listxattr llistxattr flistxattr
"""
MEMORY = "munmap mprotect mremap madvise brk msync mincore mlock munlock membarrier"
PROCESSES = """
    fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill getpid getppid gettid
    getpgid setpgid getpgrp setsid getsid getuid geteuid getgid getegid getresuid getresgid
    getgroups capget prctl arch_prctl set_tid_address set_robust_list get_robust_list rseq futex
    futex_waitv sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval getpriority setpriority getrlimit setrlimit prlimit64 getrusage times
    uname sysinfo getcpu pidfd_open pidfd_send_signal
"""
SIGNALS = """
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend
    sigaltstack pause alarm getitimer setitimer restart_syscall
"""
TIME = """
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time timer_create
    timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime
    timerfd_gettime
"""
WAITING = """
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait
    epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
"""
PAIRS_OF_SOCKETS = """
    sendmsg recvmsg sendto recvfrom sendmmsg recvmmsg shutdown getsockname getpeername getsockopt
"""
ALLOWED = " ".join((FILES, MEMORY, PROCESSES, SIGNALS, TIME, WAITING, PAIRS_OF_SOCKETS)).split()
ALLOWED += ["getrandom"]
# The rest fails as in a kernel without it, so that libraries do without; these as not permitted.
REFUSED = "socket connect bind listen accept accept4 ptrace mount umount2 unshare setns chroot"

_NEW_NAMESPACES = 0x7E020000
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_AF_UNIX = 1
# Is it a terminal, and how wide; bytes to read; non-blocking; close on exec. Nothing else.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_BINARY_TREE = 2


def compiled() -> bytes:
    """The filter as the kernel takes it.

    Raises:
      ImportError: pyseccomp or libseccomp is not installed.
    """
    try:
        import pyseccomp as seccomp
    except ImportError as error:
        raise ImportError("pyseccomp is not installed: pip install codet5p_jax[metrics]") from error
    except RuntimeError as error:
        raise ImportError("libseccomp.so.2 is missing: install the package libseccomp2") from error
    rules = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.ENOSYS))

    def allow(name: str, *conditions: Any) -> None:
        rules.add_rule(seccomp.ALLOW, name, *conditions)

    for name in ALLOWED:
        if _known(seccomp, name):
            allow(name)
    for name in REFUSED.split():
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
    allow("clone", seccomp.Arg(0, seccomp.MASKED_EQ, _NEW_NAMESPACES, 0))
    # Memory shared without a file would be on nobody's account.
    allow("mmap", seccomp.Arg(3, seccomp.MASKED_EQ, _MAP_SHARED, 0))
    allow("mmap", seccomp.Arg(3, seccomp.MASKED_EQ, _MAP_ANONYMOUS, 0))
    allow("socketpair", seccomp.Arg(0, seccomp.EQ, _AF_UNIX))
    for request in _IOCTLS:  # the kernel ignores the upper half
        allow("ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request))
    rules.set_attr(seccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _known(seccomp: Any, name: str) -> bool:
    """Some of the names are on some architectures only, or newer than the library."""
    return seccomp.resolve_syscall(seccomp.system_arch(), name) != -1
