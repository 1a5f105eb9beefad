"""What the kernel knows of a process: its CPU time, its memory, its descendants."""

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_CPU_CLOCK_OF_PROCESS = 2
_PR_SET_CHILD_SUBREAPER = 36
_KILL_ROUNDS = 200
_KILL_PAUSE_SECONDS = 0.01


def cpu_seconds(pid: int) -> float:
    """CPU time of the process in seconds: user and system, all threads, ended ones included.

    This is the clock that clock_getcpuclockid(3) names. /proc/PID/stat counts the same time in
    steps of 10 ms, and /proc/PID/task/*/schedstat forgets the threads that have ended.
    """
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)


def memory_kib(pid: int) -> int:
    """Proportional set size of the process in KiB. Buffers in the kernel are not part of it."""
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"no Pss in smaps_rollup of process {pid}")


def descendants(pid: int) -> set[int]:
    """All processes below the process that still run: its children and theirs."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def command_line(pid: int) -> list[str]:
    """The words of the process's command, or none if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return (_PROC / str(pid) / "cmdline").read_text().rstrip("\0").split("\0")
    return []


def adopt_orphans() -> None:
    """Become the parent of every process further below whose own parent ends.

    So a process that a server leaves behind is found by `descendants`, whatever session it is in.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def kill_descendants(but: set[int]) -> set[int]:
    """Kill every process below this one except those in `but`, and return which that were."""
    killed: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        left = descendants(os.getpid()) - but
        if not left:
            break
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= left
        time.sleep(_KILL_PAUSE_SECONDS)
    return killed


def _parent(entry: Path) -> int | None:
    """The parent of the process of a directory in /proc, or None if the process has ended."""
    try:  # the command's name comes first, in parentheses, and may hold anything
        state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)
