"""Runs one shell command and leaves nothing of it behind.

The command is `/bin/sh -c` in a session of its own. When it ends, or is cancelled, whatever it
started ends with it: first SIGTERM, then SIGKILL after `GRACE` seconds to what is left, until a
look at /proc finds nothing more. What belongs to a run is found in three ways, because each alone
can be escaped from: the session id (a child that called setpgid), the parents (one that called
setsid), and a mark in the environment (one that called setsid and whose parent has ended).
"""

import os
import re
import secrets
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""

UNKILLABLE: Final = 10.0
"""Seconds after which a process that SIGKILL does not end (it hangs in the kernel) is given up."""

OUTPUT_CAP: Final = 64 * 1024
"""Bytes kept of each of standard output and standard error: the last ones."""

MAX_VARIABLE: Final = 32 * 1024
"""Bytes of one environment variable; Linux refuses to start a command with one over 128 KiB."""

_READ_SIZE: Final = 64 * 1024
_MARK: Final = "CLARA_RUN_ID"

# What systemd gave the daemon is not for its commands (systemd.exec(5), sd_notify(3)).
_NOT_INHERITED: Final = re.compile(
    r"NOTIFY_SOCKET|WATCHDOG_.*|LISTEN_.*|CREDENTIALS_DIRECTORY|CLARA_GATEWAY_SECRET"
)

_scans: Final = trio.CapacityLimiter(2)


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
    mark = secrets.token_hex(16)
    process = await trio.lowlevel.open_process(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**env, _MARK: mark},
        cwd=cwd,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = _Tail(), _Tail()
    finished = False
    async with process.stdin, process.stdout, process.stderr, trio.open_nursery() as nursery:
        nursery.start_soon(_feed, process.stdin, stdin)
        nursery.start_soon(_drain, process.stdout, stdout, on_stdout)
        nursery.start_soon(_drain, process.stderr, stderr, None)
        try:
            await process.wait()
            finished = True
        finally:
            # What still holds the pipes open after the command itself has ended is ended here, so
            # that the readers come to the end of them.
            with trio.CancelScope(shield=True):
                stopped = await _end(process, mark)
            if on_stopped is not None and not finished:
                on_stopped(stopped)
    assert process.returncode is not None
    return Result(process.returncode, stdout.kept, stderr.kept)


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
    members = partial(_members, process.pid, mark)
    found = await trio.to_thread.run_sync(members, limiter=_scans)
    count = len(found)
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, UNKILLABLE)):
        pause = 0.001
        with trio.move_on_after(patience):
            while found or process.returncode is None:
                # SIGKILL again each time: a process may have forked since the look at /proc.
                if number == signal.SIGKILL or pause == 0.001:
                    _signal(found, number)
                with trio.move_on_after(pause):
                    await process.wait()
                    await trio.sleep(pause / 2)
                pause = min(pause * 2, 0.05)
                found = await trio.to_thread.run_sync(members, limiter=_scans)
            return count
    raise UnkillableError(f"processes {sorted(found)} do not end, SIGKILL notwithstanding")


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _members(session: int, mark: str) -> set[int]:
    """Return the ids of all living processes of the run; runs in a thread."""
    needle = f"{_MARK}={mark}".encode()
    parents: dict[int, int] = {}
    members: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        try:
            # proc_pid_stat(5): the name in parentheses may itself hold spaces and parentheses.
            fields = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):
                continue
            parents[pid] = int(fields[1])
            if int(fields[3]) == session or needle in Path("/proc", entry, "environ").read_bytes():
                members.add(pid)
        except OSError:  # it has ended meanwhile, or belongs to somebody else
            continue
    return members | _descendants(members, parents)


def _descendants(ancestors: set[int], parents: Mapping[int, int]) -> set[int]:
    found: set[int] = set()
    generation = ancestors
    while generation:
        generation = {
            pid for pid, parent in parents.items() if parent in generation and pid not in found
        } - ancestors
        found |= generation
    return found
