"""Finds processes through proc(5), and terminates them.

Once this process is a subreaper (prctl(2)), it adopts orphans: the descendants whose parents have
ended. The kernel hands orphans to the first living thread, which is the main one (`find_new_reaper`
in kernel/exit.c), while a child that another thread has started is listed with that thread. So the
children of the main thread are all adopted ones, and listing them costs the same however many
commands run. Rejected: listing the children of all threads, which made 1,000 commands at once four
times as slow, and searching all of /proc, which takes 8 ms.
"""

import ctypes
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import trio

UNKILLABLE: Final = 10.0
"""Seconds until a process that SIGKILL does not end (it hangs in the kernel) is given up."""

_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_EXEC_TAKES: Final = 0.1
"""Seconds to wait for the end of an execve(2), which on a dead file system never comes."""


class UnkillableError(Exception):
    """Processes survive SIGKILL; the text has their ids."""


class Stat(NamedTuple):
    """Some of proc_pid_stat(5). `began` is in clock ticks since the machine's start."""

    parent: int
    session: int
    began: int
    is_dead: bool
    is_in_exec: bool
    """Whether it is in the middle of execve(2), or belongs to another user."""
    image: int
    """A number that a fork shares with its parent until it calls execve(2)."""


def stat(pid: int) -> Stat | None:
    """Return the state of a process, or `None` if there is no such process."""
    try:
        data = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses. Fields count from state, 3.
    state, *fields = data.rpartition(b")")[2].split()
    parent, session, threads, began, size, environ_end = (
        int(fields[number - 4]) for number in (4, 6, 20, 22, 23, 51)
    )
    # A process whose first thread has ended is a zombie here, but lives while others run.
    is_dead = state in (b"Z", b"X") and threads <= 1
    is_in_exec = size > 0 and environ_end == 0
    return Stat(parent, session, began, is_dead, is_in_exec, environ_end)


def now() -> int:
    """Return the time in the units of `Stat.began`: a lower bound for all later processes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS // 10**9


def environ(pid: int) -> bytes | None:
    """Return the initial environment of a process's program, `b""` if it cannot be read.

    `None` if the process is in the middle of execve(2), where it has none.
    """
    with suppress(OSError):  # it has ended, or is another user's
        for _ in range(2):  # execve(2) may end between the two reads
            if data := _read(f"/proc/{pid}/environ"):
                return data
            if (its := stat(pid)) is not None and its.is_in_exec:
                return None
    return b""


def variable(name: str, environ: bytes) -> str | None:
    """Return the value of a variable in an environment, or `None`."""
    _, found, rest = (b"\0" + environ).partition(b"\0" + name.encode() + b"=")
    return rest.partition(b"\0")[0].decode(errors="replace") if found else None


def living(pids: Iterable[int]) -> set[int]:
    """Return those of the processes that have not ended."""
    return {pid for pid in pids if (its := stat(pid)) is not None and not its.is_dead}


@cache
def become_subreaper() -> None:
    """Adopt, from now on, the orphans among this process's descendants.

    Raises:
        OSError: the kernel does not support that.
    """
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise OSError("this kernel does not list a process's children (CONFIG_PROC_CHILDREN)")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def adopted(commands: Set[int]) -> dict[int, Stat]:
    """Return this process's living adopted children, and reap those that have ended.

    These are its children without `commands`, and without those in its own session, which
    something else here has started (`subprocess`, say).
    """
    found = {}
    for pid in _children(os.getpid(), os.getpid()) - commands:
        its = stat(pid)
        if its is None or its.session == os.getsid(0):
            continue
        if its.is_dead:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        else:
            found[pid] = its
    return found


def with_descendants(pids: Iterable[int]) -> set[int]:
    """Return these processes and all their descendants."""
    found: set[int] = set()
    generation = set(pids)
    while generation:
        found |= generation
        generation = {child for pid in generation for child in _all_children(pid)} - found
    return found


async def terminate(find: Callable[[set[int]], Awaitable[set[int]]], grace: float) -> int:
    """End all processes that `find` returns, until it returns none; return how many it found first.

    Each gets SIGTERM once, those that are forked meanwhile, too; after `grace` seconds all that are
    left get SIGKILL. `find` is called with all processes that it has returned before.

    Raises:
        UnkillableError: some survive for `UNKILLABLE` seconds.

    Cancelling leaves what has not ended.
    """
    found = known = await find(set())
    count = len(found)
    signalled = _Signalled()
    for tell, patience in ((signalled.terminate, grace), (_kill, UNKILLABLE)):
        with trio.move_on_after(patience):
            pause = 0.001
            while found:
                tell(found)
                await trio.sleep(pause)
                pause = min(pause * 2, 0.05)
                found = await find(known)
                known |= found
            return count
    raise UnkillableError(f"processes {sorted(found)} do not end, SIGKILL notwithstanding")


class _Signalled:
    """Sends SIGTERM, once to each process, since a second one may interrupt its clean-up."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._forks: dict[int, int] = {}
        self._images: set[int] = set()

    def terminate(self, found: set[int]) -> None:
        """Send SIGTERM to the processes that have had none.

        While a process that has had one lives, its descendants get none: they may be its clean-up,
        such as the `rm` of a trap.
        """
        # A fork has its parent's handlers until it calls execve(2). If SIGTERM comes before that, a
        # handler notes it that execve(2) then discards; so send it again to those whose image has
        # changed.
        self._pids -= {pid for pid, image in self._forks.items() if _image(pid) != image}
        new = found - self._pids
        if new:
            new -= with_descendants(self._pids & found)
            known = {pid: its for pid in new if (its := stat(pid)) is not None}
            self._forks |= {
                pid: its.image
                for pid, its in known.items()
                if its.image in self._images or its.image == _image(its.parent)
            }
            self._images |= {its.image for its in known.values()}
            _signal(new, signal.SIGTERM)
            self._pids |= new


def _image(pid: int) -> int:
    its = stat(pid)
    return 0 if its is None else its.image


def _kill(found: set[int]) -> None:
    """Send SIGKILL; `terminate` repeats it, since one of them may have forked meanwhile."""
    _signal(found, signal.SIGKILL)


async def terminate_marked(name: str, is_left: Callable[[str], bool], grace: float) -> int:
    """Terminate the processes whose variable `name` satisfies `is_left`, and their kin.

    Spares this process and its ancestors, and all processes with the same values as they have.
    """
    begun = now()

    async def find(known: set[int]) -> set[int]:
        # One pass over /proc can miss a child whose parent ends meanwhile; two passes do not.
        found: set[int] = set()
        for _ in range(2):
            found = found or await trio.to_thread.run_sync(_marked, name, is_left, known, begun)
        return found

    return await terminate(find, grace)


def _marked(name: str, is_left: Callable[[str], bool], known: Set[int], begun: int) -> set[int]:
    """Make one pass over /proc; `known` was found by passes since `begun`. Blocks."""
    everyone = _everyone()
    values = {pid: variable(name, _environ_after_exec(pid)) for pid in everyone}
    lineage = _lineage(everyone)
    spared = {values[pid] for pid in lineage}
    marked = {pid: value for pid, value in values.items() if value is not None}
    found = {pid for pid, value in marked.items() if is_left(value) and value not in spared}
    others = lineage | (marked.keys() - found)
    # A known process may have lost its parent and its mark since. One that began later than the
    # first pass is another process that has got the id.
    found |= {pid for pid in known & everyone.keys() if everyone[pid].began <= begun}
    return _with_kin(found, everyone, others)


def _everyone() -> dict[int, Stat]:
    listed = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return {pid: its for pid in listed if (its := stat(pid)) is not None and not its.is_dead}


def _environ_after_exec(pid: int) -> bytes:
    deadline = time.monotonic() + _EXEC_TAKES
    while (data := environ(pid)) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return data or b""


def _lineage(everyone: Mapping[int, Stat]) -> set[int]:
    """Return this process and its ancestors."""
    found = set()
    pid = os.getpid()
    while pid in everyone:
        found.add(pid)
        pid = everyone[pid].parent
    return found


def _with_kin(found: Set[int], everyone: Mapping[int, Stat], others: Set[int]) -> set[int]:
    """Return these processes, their descendants, and all in their sessions.

    Strangers are left out, with what is below them; and a session that has one in it is not shared.
    """
    kin: set[int] = set()
    more = set(found)
    foreign = {everyone[pid].session for pid in others & everyone.keys()}
    while more:
        kin |= more
        sessions = {everyone[pid].session for pid in more} - foreign
        more = {
            pid
            for pid, its in everyone.items()
            if (its.parent in kin or its.session in sessions)
            and pid not in kin
            and pid not in others
        }
    return kin


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _all_children(pid: int) -> set[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended meanwhile
        return set()
    return {child for thread in threads for child in _children(pid, thread)}


def _children(pid: int, thread: int | str) -> set[int]:
    try:
        return set(map(int, _read(f"/proc/{pid}/task/{thread}/children").split()))
    except OSError:  # it has ended meanwhile
        return set()


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
