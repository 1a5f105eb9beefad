"""Finds processes, as proc(5) shows them, and ends them.

Whose parent ends is adopted by this process once it is a subreaper (prctl(2)). The kernel hands
orphans to the first thread that lives, and that is the main one (`find_new_reaper` in
kernel/exit.c); what another thread has started is listed with that thread for as long as it lives.
So a look at the main thread's children finds all that was adopted, and costs the same however many
commands run. Rejected: the children of all threads, which made 1,000 commands at once four times as
slow, and looking through all of /proc, which takes 8 ms.
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
"""Seconds after which a process that SIGKILL does not end (it hangs in the kernel) is given up."""

_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_EXEC_TAKES: Final = 0.1
"""Seconds that an execve(2) is waited for; on a dead file system it takes for ever."""


class UnkillableError(Exception):
    """Processes that are still there after SIGKILL; the text has their ids."""


class Stat(NamedTuple):
    """Some of proc_pid_stat(5). `began` is in clock ticks since the machine's start."""

    parent: int
    session: int
    began: int
    is_dead: bool
    is_in_exec: bool
    """Is just becoming another program; or may not be asked, being another user's."""
    image: int
    """A number that a fork has in common with its parent, until it becomes another program."""


def stat(pid: int) -> Stat | None:
    """Return what is known of a process, or `None` if there is none."""
    try:
        data = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses. Fields count from state, 3.
    state, *fields = data.rpartition(b")")[2].split()
    parent, session, threads, began, size, environ_end = (
        int(fields[number - 4]) for number in (4, 6, 20, 22, 23, 51)
    )
    # Where the first thread has ended and others have not, the process lives.
    is_dead = state in (b"Z", b"X") and threads <= 1
    is_in_exec = size > 0 and environ_end == 0
    return Stat(parent, session, began, is_dead, is_in_exec, environ_end)


def now() -> int:
    """Return the time as `Stat.began` has it: what is started from here on has this, or more."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS // 10**9


def environ(pid: int) -> bytes | None:
    """Return the environment that its program began with, `b""` if there is none to be read.

    `None` if the process is in an execve(2): between two programs it has none yet.
    """
    with suppress(OSError):  # it has ended, or is another user's
        for _ in range(2):  # an execve(2) may end between the two questions
            if data := _read(f"/proc/{pid}/environ"):
                return data
            if (its := stat(pid)) is not None and its.is_in_exec:
                return None
    return b""


def variable(name: str, environ: bytes) -> str | None:
    """Return what a variable is in an environment, or `None` if it is not there."""
    _, found, rest = (b"\0" + environ).partition(b"\0" + name.encode() + b"=")
    return rest.partition(b"\0")[0].decode(errors="replace") if found else None


def living(pids: Iterable[int]) -> set[int]:
    """Return those of the processes that have not ended."""
    return {pid for pid in pids if (its := stat(pid)) is not None and not its.is_dead}


@cache
def become_subreaper() -> None:
    """Adopt, from now on, whatever is left by whoever this process has started."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise OSError("this kernel does not list a process's children (CONFIG_PROC_CHILDREN)")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def adopted(commands: Set[int]) -> dict[int, Stat]:
    """Return our living children, without `commands` and without those in our own session.

    What has been started for others (by `subprocess`, say) is in our session. Of those that have
    ended the exit status is taken: it is ours to take.
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
    """Return these processes, and all below them."""
    found: set[int] = set()
    generation = set(pids)
    while generation:
        found |= generation
        generation = {child for pid in generation for child in _all_children(pid)} - found
    return found


async def end(look: Callable[[set[int]], Awaitable[set[int]]], grace: float) -> int:
    """End all processes that `look` finds, and return how many there were at first.

    They get SIGTERM, each once, however late it is born, and what is left after `grace` seconds
    SIGKILL, until nothing is found any more. `look` is given those that have been found before.

    Raises:
        UnkillableError: something is left.
    """
    found = known = await look(set())
    count = len(found)
    told = _Told()
    for tell, patience in ((told.terminate, grace), (_kill, UNKILLABLE)):
        with trio.move_on_after(patience):
            pause = 0.001
            while found:
                tell(found)
                await trio.sleep(pause)
                pause = min(pause * 2, 0.05)
                found = await look(known)
                known |= found
            return count
    raise UnkillableError(f"processes {sorted(found)} do not end, SIGKILL notwithstanding")


class _Told:
    """Those who have had SIGTERM: once, since a second one may interrupt a clean-up."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._forks: dict[int, int] = {}
        self._images: set[int] = set()

    def terminate(self, found: set[int]) -> None:
        """Send SIGTERM to who is new: to all at first, later to those born since the last look.

        What a process starts after its SIGTERM, as the `rm` of a trap, is its clean-up, and goes on
        for as long as that process lives.
        """
        # A fork has its parent's handlers until it becomes another program: a SIGTERM that comes
        # before is noted by a handler that is then gone, and is sent again.
        self._told -= {pid for pid, image in self._forks.items() if _image(pid) != image}
        new = found - self._told
        if new:
            new -= with_descendants(self._told & found)
            known = {pid: its for pid in new if (its := stat(pid)) is not None}
            self._forks |= {
                pid: its.image
                for pid, its in known.items()
                if its.image in self._images or its.image == _image(its.parent)
            }
            self._images |= {its.image for its in known.values()}
            _signal(new, signal.SIGTERM)
            self._told |= new


def _image(pid: int) -> int:
    its = stat(pid)
    return 0 if its is None else its.image


def _kill(found: set[int]) -> None:
    """Send SIGKILL, at each look again: one of them may have forked meanwhile."""
    _signal(found, signal.SIGKILL)


async def end_marked(name: str, is_left: Callable[[str], bool], grace: float) -> int:
    """End, as `end` does, whatever has a variable of that name which says so, and its kin.

    This process and those above it are spared, with all that has the variable as they have it.
    """
    begun = now()

    async def look(known: set[int]) -> set[int]:
        # One look at all of /proc can miss a child whose parent ends at that moment; two do not.
        found: set[int] = set()
        for _ in range(2):
            found = found or await trio.to_thread.run_sync(_marked, name, is_left, known, begun)
        return found

    return await end(look, grace)


def _marked(name: str, is_left: Callable[[str], bool], known: Set[int], begun: int) -> set[int]:
    """Look once; `known` are those found by looks since `begun`. Blocks."""
    everyone = _everyone()
    values = {pid: variable(name, _environ_after_exec(pid)) for pid in everyone}
    lineage = _lineage(everyone)
    spared = {values[pid] for pid in lineage}
    marked = {pid: value for pid, value in values.items() if value is not None}
    found = {pid for pid, value in marked.items() if is_left(value) and value not in spared}
    strangers = lineage | (marked.keys() - found)
    # What is known may have lost its parent, and its mark; what began later has only got its id.
    found |= {pid for pid in known & everyone.keys() if everyone[pid].began <= begun}
    return _with_kin(found, everyone, strangers)


def _everyone() -> dict[int, Stat]:
    listed = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return {pid: its for pid in listed if (its := stat(pid)) is not None and not its.is_dead}


def _environ_after_exec(pid: int) -> bytes:
    deadline = time.monotonic() + _EXEC_TAKES
    while (data := environ(pid)) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return data or b""


def _lineage(everyone: Mapping[int, Stat]) -> set[int]:
    """Return this process, its parent, and so on."""
    found = set()
    pid = os.getpid()
    while pid in everyone:
        found.add(pid)
        pid = everyone[pid].parent
    return found


def _with_kin(found: Set[int], everyone: Mapping[int, Stat], strangers: Set[int]) -> set[int]:
    """Return these processes, what is below them, and what shares their sessions.

    Strangers are left out, with what is below them; and a session that has one in it is not shared.
    """
    kin: set[int] = set()
    more = set(found)
    foreign = {everyone[pid].session for pid in strangers & everyone.keys()}
    while more:
        kin |= more
        sessions = {everyone[pid].session for pid in more} - foreign
        more = {
            pid
            for pid, its in everyone.items()
            if (its.parent in kin or its.session in sessions)
            and pid not in kin
            and pid not in strangers
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
