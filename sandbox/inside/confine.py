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

# Kinds of sockets (socket(2)): local, IPv4, IPv6, and netlink, which the C library looks interfaces
# up with. All others are refused: AF_VSOCK leads to the hypervisor past every network setting, and
# AF_ALG and others have been ways into the kernel.
_FAMILIES = (1, 2, 10, 16)

# By uname(2): the number that the kernel audits the architecture by, socket(2) and socketpair(2).
_SOCKET_CALLS = {
    "x86_64": (0xC000003E, 41, 53),
    "aarch64": (0xC00000B7, 198, 199),
    "riscv64": (0xC00000F3, 198, 199),
}

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # the latter with an errno
_LOAD, _AND, _EQUAL, _AT_LEAST, _GREATER, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x25, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # in struct seccomp_data, on little-endian
_WITHOUT_X32 = 0x3FFFFFFF  # without the bit that marks x32

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
    lines = seccomp_filter(os.uname().machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    # struct sock_fprog: the number of instructions, and where they are.
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter was refused")


def seccomp_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """Return seccomp(2)'s program, on top of the engine's own: an operation, two jumps, a value.

    io_uring, which has the same three numbers on every architecture, answers ENOSYS. Where it is
    known how sockets are made, those of other than `_FAMILIES` answer EAFNOSUPPORT, and so that
    there is one way only to make them, all calls of another architecture's (i386 on x86_64) ENOSYS.
    """
    program = [
        (_LOAD, 0, 0, _NUMBER),
        (_AND, 0, 0, _WITHOUT_X32),
        (_AT_LEAST, 0, 2, 425),
        (_GREATER, 1, 0, 427),
        (_RETURN, 0, 0, _REFUSE | 38),
    ]
    # A 32-bit Python calls in another way than the machine's name says.
    if machine in _SOCKET_CALLS and struct.calcsize("P") == 8:
        architecture, socket, socketpair = _SOCKET_CALLS[machine]
        native = [
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_EQUAL, 1, 0, architecture),
            (_RETURN, 0, 0, _REFUSE | 38),
        ]
        families = [(_EQUAL, len(_FAMILIES) - at, 0, family) for at, family in enumerate(_FAMILIES)]
        program = [
            *native,
            *program,
            (_EQUAL, 1, 0, socket),
            (_EQUAL, 0, len(families) + 2, socketpair),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            *families,
            (_RETURN, 0, 0, _REFUSE | 97),
        ]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


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
