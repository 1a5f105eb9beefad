"""What the agent gives up, and what it takes from a command before it starts it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct

_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 24, 22, 38
_SECCOMP_MODE_FILTER = 2
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 2, 4, 8, 32
_SHARED_MEMORY = b"size=8m,nr_inodes=1024,mode=1777"

# seccomp(2) in BPF: the system call's number without the bit that marks x32; io_uring, which has
# the same three numbers on every architecture, answers ENOSYS. The engine's own filter stays.
_FILTER = (
    (0x20, 0, 0, 0),
    (0x54, 0, 0, 0x3FFFFFFF),
    (0x35, 0, 2, 425),
    (0x25, 1, 0, 427),
    (0x06, 0, 0, 0x00050000 | 38),
    (0x06, 0, 0, 0x7FFF0000),
)

_COUNTERS = (  # cgroup v2 and v1: the file, and the word before the number
    ("oom", "/sys/fs/cgroup/memory.events", "oom_kill"),
    ("oom", "/sys/fs/cgroup/memory/memory.oom_control", "oom_kill"),
    ("pids", "/sys/fs/cgroup/pids.events", "max"),
    ("pids", "/sys/fs/cgroup/pids/pids.events", "max"),
)

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: object) -> None:
    """Call prctl(2)."""
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def lock_down() -> None:
    """Give up, for this process and all that it starts, what is not needed here."""
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL past the last one
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _FILTER))
    # struct sock_fprog: the number of instructions, and where they are.
    program = struct.pack("@HP", len(_FILTER), ctypes.addressof(code))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter was refused")


def limit_shared_memory() -> None:
    """Give /dev/shm a size: what is in there outlives processes, and counts as memory.

    On Docker it has one from the start; there nothing can be mounted from inside.
    """
    target = b"/dev/shm"
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for mount_flags in (flags | _MS_REMOUNT, flags):  # init may not have mounted it yet
        if libc.mount(b"tmpfs", target, b"tmpfs", mount_flags, _SHARED_MEMORY) == 0:
            return
    raise OSError(ctypes.get_errno(), "shared memory cannot be limited")


def become_user(uid: int, gid: int, max_file: int, max_processes: int | None) -> None:
    """Become the sandbox's user, with nothing of root's left, in a session of its own."""
    os.setsid()
    os.nice(19)  # within the sandbox: the agent goes first, also among 250 others
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when memory runs out it goes, not the agent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))
    if max_processes is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (max_processes, max_processes))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # the agent does
        signal.signal(number, signal.SIG_DFL)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.umask(0o022)


def counters() -> dict[str, int]:
    """Read how often the sandbox has run out of memory ("oom"), and of processes ("pids")."""
    found: dict[str, int] = {}
    for name, path, word in _COUNTERS:
        try:
            with open(path) as file:
                words = file.read().split()
        except OSError:
            continue
        if word in words:
            found[name] = int(words[words.index(word) + 1])
    return found
