"""Tries to get through each wall of a sandbox, from inside, and says which held."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from sandbox.engine import GID, UID, Result
from sandbox.keeper import Keeper
from sandbox.sandbox import Sandbox

OWNER: Final = "sandbox-doctor"

_PATIENCE: Final = 60.0


@dataclass(frozen=True)
class Probe:
    """An attempt. The program prints nothing if the wall held, and how it got through if not."""

    wall: str
    promise: str
    program: str
    only: str = ""
    """The engine, or the network, that this is about; empty for all."""
    is_fatal: bool = False
    """Whether the wall holds by killing the attempt."""


@dataclass(frozen=True)
class Finding:
    """What an attempt came to; `saw` says more if the wall did not hold."""

    probe: Probe
    held: bool
    saw: str


_SYSCALL: Final = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, *arguments):
    if libc.syscall(*arguments) >= 0: print(name, "is allowed")
x86 = platform.machine() == "x86_64"
"""

PROBES: Final = (
    Probe(
        "user",
        "code runs as a user and a group of its own, and in no other group",
        f"""
import os
seen = (os.getresuid(), os.getresgid(), os.getgroups())
if seen != (({UID},) * 3, ({GID},) * 3, []): print(seen)
""",
    ),
    Probe(
        "capabilities",
        "no capability is held, or can be had",
        """
for line in open("/proc/self/status"):
    if line.startswith("Cap") and int(line.split()[1], 16): print(line.strip())
""",
    ),
    Probe(
        "privileges",
        "setuid programs give nothing, and system calls are filtered",
        """
for line in open("/proc/self/status"):
    name, _, value = line.partition(":")
    if (name, value.strip()) in (("NoNewPrivs", "0"), ("Seccomp", "0"), ("Seccomp", "1")):
        print(line)
""",
    ),
    Probe(
        "io_uring",
        "io_uring is off",
        _SYSCALL
        + """
for number in (425, 426, 427): refused("system call %d" % number, number, 1, 0, 0, 0, 0, 0)
if x86: refused("io_uring as x32", 425 | 0x40000000, 1, 0)
""",
    ),
    Probe(
        "system calls",
        "mounting, namespaces, kernel keys, BPF, performance counters and the clock are refused",
        _SYSCALL
        + """
if x86:
    refused("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0)
    refused("unshare of a user namespace", 272, 0x10000000)
    refused("unshare of a mount namespace", 272, 0x00020000)
    refused("add_key", 248, b"user", b"x", b"x", 1, -3)
    refused("bpf", 321, 0, ctypes.create_string_buffer(128), 128)
    refused("perf_event_open", 298, ctypes.create_string_buffer(128), 0, -1, -1, 0)
    refused("userfaultfd", 323, 0)
    refused("settimeofday", 164, ctypes.create_string_buffer(16), 0)
    refused("chroot", 161, b"/")
    refused("init_module", 175, b"", 0, b"")
    refused("reboot", 169, 0xfee1dead, 672274793, 0, 0)
    refused("open_by_handle_at", 304, -100, ctypes.create_string_buffer(128), 0)
""",
    ),
    Probe(
        "sockets",
        "there are local sockets and those of the network, and none of another kind, as AF_VSOCK",
        """
import ctypes, mmap, os, platform, socket
for family in range(64):
    for kind in (1, 2, 3, 5):
        if family in (1, 2, 10, 16): continue
        try: socket.socket(family, kind).close()
        except OSError: continue
        print("a socket of family", family, "could be opened")
if platform.machine() == "x86_64" and os.fork() == 0:
    # socket(AF_VSOCK, SOCK_STREAM, 0) as i386 programs call it
    memory = mmap.mmap(-1, 4096, prot=7)
    memory.write(bytes.fromhex("53b867010000bb28000000b90100000031d2cd805bc3"))
    where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CFUNCTYPE(ctypes.c_int)(where)() >= 0: print("and one by an i386 call", flush=True)
    os._exit(0)
elif platform.machine() == "x86_64": os.wait()
""",
    ),
    Probe(
        "the agent",
        "what started the code cannot be signalled, traced or read by it",
        """
import os
for entry in os.listdir("/proc"):
    if not entry.isdigit() or os.stat("/proc/" + entry).st_uid == os.getuid(): continue
    try: os.kill(int(entry), 9)
    except (PermissionError, ProcessLookupError): pass
    else: print("killed", entry)
    for name in ("mem", "environ", "fd/0"):
        try: open("/proc/%s/%s" % (entry, name), "r+b" if name == "mem" else "rb").read(1)
        except OSError: pass
        else: print("opened", entry, name)
""",
    ),
    Probe(
        "the system",
        "nothing outside home, /tmp and /dev/shm can be written",
        """
import os
for directory in "/ /etc /usr/bin /root /var/lib /proc/sys/kernel /sys /home".split():
    try: open(os.path.join(directory, "intruder"), "w")
    except OSError: pass
    else: print("wrote to", directory)
for path in ("/etc/passwd", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/1/mem"):
    try: open(path, "a").write("x")
    except OSError: pass
    else: print("wrote to", path)
""",
    ),
    Probe(
        "read-only root",
        "the root of the file system is mounted read-only",
        """
if not any(l.split()[1] == "/" and "ro" in l.split()[3].split(",") for l in open("/proc/mounts")):
    print("it can be written")
""",
        only="docker",
    ),
    Probe(
        "devices",
        "no disk, no memory and no engine's socket is there, and none can be made",
        """
import os, stat
for directory in ("/dev", "/run", "/var/run"):
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        try: mode = os.stat(path).st_mode
        except OSError: continue
        if stat.S_ISBLK(mode) or name in ("mem", "kmem", "port", "docker.sock", "incus"):
            print(path, "is there")
try: os.open("/dev/kmsg", os.O_WRONLY)
except OSError: pass
else: print("/dev/kmsg can be written")
try: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
except OSError: pass
else: print("mknod is allowed")
""",
    ),
    Probe(
        "network",
        "there is no interface but the loopback, and nobody can be reached",
        """
import os, socket
if (found := sorted(os.listdir("/sys/class/net"))) != ["lo"]: print("interfaces:", *found)
for address in ("1.1.1.1", "169.254.169.254", "10.0.0.1"):
    with socket.socket() as s:
        s.settimeout(2)
        if s.connect_ex((address, 80)) not in (101, 100, 99, 113): print("a way to", address)
""",
        only="none",
    ),
    Probe(
        "memory",
        "what wants more memory than there is is killed",
        """
kept = []
while len(kept) < 4096: kept.append(b"x" * (16 << 20))
print("had", 16 * len(kept), "MiB")
""",
        is_fatal=True,
    ),
    Probe(
        "shared memory",
        "memory that outlives processes is limited, and goes with the last of them",
        """
import ctypes, os
try:
    with open("/dev/shm/fill", "wb", 0) as file:
        for _ in range(64): file.write(b"x" * (1 << 20))
    print("/dev/shm has no limit")
except OSError: pass
os.unlink("/dev/shm/fill")
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
if (child := os.fork()) == 0:
    segment = libc.shmget(0, 16 << 20, 0o1600)
    if segment >= 0: ctypes.memset(libc.shmat(segment, None, 0), 1, 16 << 20)
    os._exit(0)
os.waitpid(child, 0)
if len(open("/proc/sysvipc/shm").readlines()) > 1: print("a segment is left")
""",
    ),
    Probe(
        "processes",
        "there are only so many processes",
        """
import os, signal, time
children = []
try:
    for _ in range(20000):
        child = os.fork()
        if child == 0: time.sleep(1000)
        children.append(child)
except OSError: pass
else: print(len(children), "processes could be started")
for child in children: os.kill(child, signal.SIGKILL)
""",
    ),
    Probe(
        "disk",
        "the disk is full before it is the machine's",
        """
import os
written, full = 0, False
for number in range(64):
    with open("fill%d" % number, "wb", 0) as file:
        try:
            for _ in range(64): written += file.write(b"x" * (1 << 20))
        except OSError: full = True
    if full: break
else: print(written, "bytes could be written")
for used in range(number + 1): os.unlink("fill%d" % used)
""",
    ),
    Probe(
        "files",
        "there are only so many files, empty ones included",
        """
import os
os.mkdir("many")
number = 0
try:
    for number in range(1000000): os.close(os.open("many/%d" % number, os.O_CREAT))
except OSError: pass
else: print(number, "files could be made")
import shutil; shutil.rmtree("many")
""",
        only="docker",
    ),
)


def expected(probe: Probe, keeper: Keeper) -> bool:
    """Whether the wall is promised for this engine and these settings."""
    return probe.only in ("", keeper.engine.name, keeper.network)


async def examine(keeper: Keeper) -> AsyncIterator[Finding]:
    """Try every wall that is promised, in a sandbox of its own, which is deleted afterwards."""
    try:
        for probe in PROBES:
            if expected(probe, keeper):
                yield await attempt(probe, await keeper.acquire(OWNER))
    finally:
        await keeper.delete(OWNER)


async def attempt(probe: Probe, sandbox: Sandbox) -> Finding:
    """Try one wall. It held if the sandbox can be used as before, too."""
    result = await sandbox.run(["python3", "-c", probe.program], timeout=_PATIENCE)
    saw = _through(probe, result)
    after = await sandbox.run(["python3", "-c", "import json; print(json.dumps('usable'))"])
    if after.exit_status != 0 or json.loads(after.stdout.kept) != "usable":
        saw = saw or f"the sandbox is of no use any more: {after.stderr.text().strip()}"
    return Finding(probe, not saw, saw)


def _through(probe: Probe, result: Result) -> str:
    if result.stdout.total:
        return result.stdout.text().strip()
    if probe.is_fatal:
        return "" if result.exit_status < 0 else f"it ended with {result.exit_status}"
    if result.exit_status or result.timed_out:
        return f"the attempt failed: {result.stderr.text().strip()[-200:] or result.exit_status}"
    return ""
