"""Runs one shell command and leaves nothing of it behind.

The command is `/bin/sh -c` in a session of its own. When it ends, or is cancelled, whatever it
started ends with it: first SIGTERM, then SIGKILL after `GRACE` seconds to what is left, until
nothing is found any more.

Whose parent ends is adopted by this process (prctl(2), PR_SET_CHILD_SUBREAPER), so everything that
a command has started is below the command or is a child of ours, also what called setsid. An
adopted child is known for its run's by its session, or by a mark in its environment; one that has
left its session and emptied its environment ends with the last command that runs. Rejected:
looking through all of /proc at every end, which takes 8 ms of CPU, a hundred times as much.
"""

import ctypes
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import trio

GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""

UNKILLABLE: Final = 10.0
"""Seconds after which a process that SIGKILL does not end (it hangs in the kernel) is given up."""

OUTPUT_CAP: Final = 64 * 1024
"""Bytes kept of each of standard output and standard error: the last ones."""

MAX_VARIABLE: Final = 32 * 1024
"""Bytes of one environment variable; Linux refuses to start a command with one over 128 KiB."""

LAST_WORDS: Final = 0.5
"""Seconds that the output is still read after the last process of a run has ended."""

_READ_SIZE: Final = 64 * 1024
_MARK: Final = "CLARA_RUN_ID"
_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>

# What systemd gave the daemon is not for its commands (systemd.exec(5), sd_notify(3)).
_NOT_INHERITED: Final = re.compile(
    r"NOTIFY_SOCKET|WATCHDOG_.*|LISTEN_.*|CREDENTIALS_DIRECTORY|CLARA_GATEWAY_SECRET"
)


@dataclass(frozen=True)
class Result:
    """How a command ended. `exit_status` is negative for a signal, as in `subprocess`."""

    exit_status: int
    stdout: bytes
    stderr: bytes


class UnkillableError(Exception):
    """Processes that are still there after SIGKILL; the text has their ids."""


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the daemon's environment for a command, with `variables` in it.

    A variable cannot hold NUL, and is cut off at `MAX_VARIABLE` bytes: what may be longer is for
    standard input.
    """
    inherited = {k: v for k, v in os.environ.items() if not _NOT_INHERITED.fullmatch(k)}
    fitting = {
        name: value.replace("\0", "")
        .encode(errors="replace")[:MAX_VARIABLE]
        .decode(errors="ignore")
        for name, value in variables.items()
    }
    return inherited | fitting


async def run(
    command: str,
    *,
    env: Mapping[str, str],
    stdin: bytes = b"",
    cwd: Path | None = None,
    on_stdout: Callable[[bytes | bytearray], None] | None = None,
    on_stopped: Callable[[int], None] | None = None,
) -> Result:
    """Run `command` to its end.

    Args:
        env: The whole environment; see `environment`.
        on_stdout: Is given each piece of standard output as it comes.
        on_stopped: Is told how many processes a cancellation had to end.

    Raises:
        OSError: the command cannot be started.
        UnkillableError: something of it is left.

    Cancelling ends every process of the run before the cancellation goes on.
    """
    _become_subreaper()
    mark = secrets.token_hex(16)
    process = await _start(command, {**env, _MARK: mark}, cwd)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = _Tail(), _Tail()
    finished = False
    try:
        async with process.stdin, process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(_feed, process.stdin, stdin)
            nursery.start_soon(_drain, process.stdout, stdout, on_stdout)
            nursery.start_soon(_drain, process.stderr, stderr, None)
            try:
                await process.wait()
                finished = True
            finally:
                with trio.CancelScope(shield=True):
                    stopped = await _end(process, mark)
                if on_stopped is not None and not finished:
                    on_stopped(stopped)
                # Nobody is left to write, as far as we can see; what has been written is read.
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS
    finally:
        _family.commands.discard(process.pid)
    assert process.returncode is not None
    return Result(process.returncode, stdout.kept, stderr.kept)


class _Family:
    """Which children of this process are commands; the others are adopted.

    Module-level, because children are the process's, and there is one process.
    """

    def __init__(self) -> None:
        self.commands: set[int] = set()
        self.starting = 0


_family: Final = _Family()


@cache
def _become_subreaper() -> None:
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise OSError("this kernel does not list a process's children (CONFIG_PROC_CHILDREN)")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


async def _start(command: str, env: Mapping[str, str], cwd: Path | None) -> trio.Process:
    _family.starting += 1
    try:
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=env,
            cwd=cwd,
        )
        _family.commands.add(process.pid)
        return process
    finally:
        _family.starting -= 1


class _Tail:
    """The last `OUTPUT_CAP` bytes of what was added."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes | bytearray) -> None:
        self._buffer += data
        if len(self._buffer) > 2 * OUTPUT_CAP:
            del self._buffer[:-OUTPUT_CAP]

    @property
    def kept(self) -> bytes:
        return bytes(self._buffer[-OUTPUT_CAP:])


async def _feed(pipe: trio.abc.SendStream, data: bytes) -> None:
    async with pipe:
        with suppress(trio.BrokenResourceError):  # it need not read what it is given
            await pipe.send_all(data)


async def _drain(
    pipe: trio.abc.ReceiveStream, tail: _Tail, also: Callable[[bytes | bytearray], None] | None
) -> None:
    while data := await pipe.receive_some(_READ_SIZE):
        tail.add(data)
        if also is not None:
            also(data)


async def _end(process: trio.Process, mark: str) -> int:
    """End every process of the run; return how many there were."""
    found = known = _members(process, mark, set())
    count = len(found)
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, UNKILLABLE)):
        with trio.move_on_after(patience):
            _signal(found, number)
            pause = 0.001
            # One look can miss a child whose sibling ends at that moment (proc(5)); two do not.
            while found or (found := _members(process, mark, known)):
                await trio.sleep(pause)
                pause = min(pause * 2, 0.05)
                found = _members(process, mark, known)
                known |= found
                if number == signal.SIGKILL:  # again: one of them may have forked meanwhile
                    _signal(found, number)
            return count
    raise UnkillableError(f"processes {sorted(found)} do not end, SIGKILL notwithstanding")


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _members(process: trio.Process, mark: str, known: set[int]) -> set[int]:
    """Return the ids of all living processes of the run; `known` are those found before."""
    process.poll()
    needle = f"{_MARK}={mark}".encode()
    adopted = _children(os.getpid()) - _family.commands
    _bury(adopted)
    if _family.starting or _family.commands != {process.pid}:
        adopted = {pid for pid in adopted if pid in known or _is_of(pid, process.pid, needle)}
    generation = adopted if process.returncode is not None else adopted | {process.pid}
    found: set[int] = set()
    while generation:
        found |= generation
        generation = {child for pid in generation for child in _children(pid)} - found
    return {pid for pid in found if (stat := _stat(pid)) is not None and not stat.is_dead}


def _bury(adopted: set[int]) -> None:
    """Take the exit status of adopted children that have ended: they are ours to wait for."""
    if _family.starting:  # a command that has just been started would look adopted, too
        return
    for pid in adopted:
        stat = _stat(pid)
        if stat is not None and stat.is_dead and stat.session != os.getsid(0):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _is_of(pid: int, session: int, needle: bytes) -> bool:
    stat = _stat(pid)
    if stat is not None and stat.session == session:
        return True
    try:
        return needle in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended meanwhile
        return False


class _Stat(NamedTuple):
    is_dead: bool
    session: int


def _stat(pid: int) -> _Stat | None:
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # proc_pid_stat(5): the name in parentheses may itself hold spaces and parentheses.
    fields = data.rpartition(b")")[2].split()
    return _Stat(is_dead=fields[0] in (b"Z", b"X"), session=int(fields[3]))


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):  # it has ended meanwhile
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found.update(
                    map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
                )
    return found
