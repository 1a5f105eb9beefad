"""Runs one shell command, and ends all processes that it has started.

The command is `/bin/sh -c` in its own session. When it ends or is cancelled, all its processes get
SIGTERM, and those that are left after `GRACE` seconds SIGKILL, until none is found any more.

This process adopts orphans, so every process of a command is a descendant of the command or a child
of this process, even if it has called setsid. The session of an adopted child, or the run's mark in
its environment, says which run it belongs to. One that has left its session and emptied its
environment may belong to any run that existed when it began, and ends with the last of those.

If this process is killed, its commands go on; `end_leftovers` ends them at the next start.
"""

import errno
import itertools
import math
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from clarad.process import procfs
from clarad.process.procfs import UnkillableError as UnkillableError

GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""

OUTPUT_CAP: Final = 64 * 1024
"""The last bytes of standard output and of standard error are kept, this many of each."""

MAX_VARIABLE: Final = 32 * 1024
"""Bytes of one environment variable; Linux refuses to start a command with more than 128 KiB."""

LAST_WORDS: Final = 0.5
"""Seconds to go on reading the output after the last process of a run has ended."""

_MARK: Final = "CLARA_RUN_ID"

# Commands do not inherit what systemd gave to the daemon (systemd.exec(5), sd_notify(3)), nor the
# mark of the run that has started the daemon, if a run has.
_NOT_INHERITED: Final = re.compile(
    r"NOTIFY_SOCKET|WATCHDOG_.*|LISTEN_.*|FDSTORE|CREDENTIALS_DIRECTORY"
    r"|CLARA_GATEWAY_SECRET|CLARA_RUN_ID"
)

# Credentials of the database and the gateway. A user could have a responder print its environment.
_SECRET: Final = re.compile(r"DATABASE_URL|PGPASSWORD|CLARA_GATEWAY_TOKEN")

_REASONS: Final = {
    errno.E2BIG: "the command and its environment are too large: Linux takes 128 KiB of each text, "
    "and 2 MiB of all together",
    errno.EAGAIN: "no more processes are allowed: raise the limit (ulimit -u, or TasksMax=)",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n, or LimitNOFILE=)",
    errno.ENFILE: "too many files are open on this machine: raise the limit (sysctl fs.file-max)",
    errno.ENOMEM: "there is not enough memory for one more process",
}


@dataclass(frozen=True)
class Result:
    """How a command ended. `exit_status` is negative for a signal, as in `subprocess`.

    `stdout_cut` and `stderr_cut` count the bytes before the last ones, which are kept.
    """

    exit_status: int
    stdout: bytes
    stderr: bytes
    stdout_cut: int = 0
    stderr_cut: int = 0


def describe_exit(exit_status: int) -> str:
    """Return how a command ended, for people."""
    if exit_status >= 0:
        return f"exit status {exit_status}"
    with suppress(ValueError):  # real-time signals have no names
        return f"ended by {signal.Signals(-exit_status).name}"
    return f"ended by signal {-exit_status}"


class Tail:
    """Keeps the last `OUTPUT_CAP` bytes that were added."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._added = 0

    def add(self, data: bytes | bytearray) -> None:
        self._added += len(data)
        self._buffer += data
        if len(self._buffer) > 2 * OUTPUT_CAP:
            del self._buffer[:-OUTPUT_CAP]

    @property
    def kept(self) -> bytes:
        return bytes(self._buffer[-OUTPUT_CAP:])

    @property
    def cut(self) -> int:
        """The number of bytes before those that are kept."""
        return max(0, self._added - OUTPUT_CAP)


class Output:
    """The output of a command so far."""

    def __init__(self) -> None:
        self.stdout = Tail()
        self.stderr = Tail()


@dataclass(eq=False)
class _Run:
    """A run that has not ended; `began` is in the units of `procfs.Stat`."""

    mark: str
    began: float = math.inf
    pid: int = 0
    unkillable: UnkillableError | None = None


class _Family:
    """The runs of this process, by their marks, and the process ids of their commands.

    One for the module, since children belong to the process: those that are not here are adopted.
    """

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)  # the instance, and a random name for this process
        self.runs: dict[str, _Run] = {}
        self.commands: set[int] = set()
        self._numbers = itertools.count(1)
        # More starts at once would not be faster, and each holds six more file descriptors.
        self.starts = trio.CapacityLimiter(8)

    @contextmanager
    def register(self) -> Iterator[_Run]:
        run = _Run(f"{self.name}.{next(self._numbers)}")
        self.runs[run.mark] = run
        try:
            yield run
        finally:
            del self.runs[run.mark]
            self.commands.discard(run.pid)
            if run.unkillable is not None:
                raise run.unkillable


_family: Final = _Family()


def set_instance(instance: str) -> None:
    """Mark all later commands as the instance's, for `end_leftovers`; call it at the start."""
    _family.name = f"{instance}.{secrets.token_hex(8)}"


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the daemon's environment without its secrets, with `variables` in it.

    It is for responders' commands and tools. NUL characters are removed, and values are cut off at
    `MAX_VARIABLE` bytes: pass longer ones on standard input.
    """
    whole = operators_environment(variables)
    return {k: v for k, v in whole.items() if k in variables or not _SECRET.fullmatch(k)}


def operators_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what `environment` does, and the database's URL and the gateway's token.

    It is for the operator's hooks and tasks, which may need them. `CLARA_GATEWAY_SECRET` and the
    variables of systemd are the daemon's only.
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
    on_started: Callable[[], None] | None = None,
    on_stdout: Callable[[bytes | bytearray], None] | None = None,
    on_stopped: Callable[[int], None] | None = None,
    output: Output | None = None,
) -> Result:
    """Run `command` to its end.

    Args:
        env: The whole environment; see `environment`.
        on_started: Called as soon as the process exists.
        on_stdout: Called with each piece of standard output as it comes.
        on_stopped: Called with the number of processes that a cancellation had to end.
        output: Filled as output comes, since a cancelled command has no `Result`.

    Raises:
        OSError: the command cannot be started; the text is for people.
        UnkillableError: processes of it survive.

    Cancelling ends every process of the run before the cancellation goes on.
    """
    procfs.become_subreaper()
    output = output or Output()
    finished = False
    with _family.register() as this:
        process = await _start(this, command, env, cwd)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # Shielded, since a cancelled command may write something before it ends.
        reading = [trio.CancelScope(shield=True), trio.CancelScope(shield=True)]
        async with process.stdin, process.stdout, process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(_feed, process.stdin, stdin)
            nursery.start_soon(_drain, process.stdout, output.stdout, on_stdout, reading[0])
            nursery.start_soon(_drain, process.stderr, output.stderr, None, reading[1])
            try:
                if on_started is not None:
                    on_started()
                await process.wait()
                finished = True
            finally:
                try:
                    with trio.CancelScope(shield=True):
                        stopped = await procfs.terminate(partial(_members, process, this), GRACE)
                    if on_stopped is not None and not finished:
                        on_stopped(stopped)
                except UnkillableError as error:
                    this.unkillable = error  # from here a cancellation would hide it
                # All processes have ended: give the readers a moment for what is in the pipes. A
                # deadline, since a process that was not found may hold a pipe open.
                deadline = trio.current_time() + LAST_WORDS
                for scope in (nursery.cancel_scope, *reading):
                    scope.deadline = deadline
    assert process.returncode is not None
    stdout, stderr = output.stdout, output.stderr
    return Result(process.returncode, stdout.kept, stderr.kept, stdout.cut, stderr.cut)


async def _start(
    this: _Run, command: str, env: Mapping[str, str], cwd: Path | None
) -> trio.Process:
    async with _family.starts:
        this.began = procfs.now()
        try:
            process = await trio.lowlevel.open_process(
                ["/bin/sh", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={**env, _MARK: this.mark},
                cwd=cwd,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise _explain(error, cwd) from error
        this.pid = process.pid
        _family.commands.add(process.pid)
        return process


def _explain(error: Exception, cwd: Path | None) -> OSError:
    """Return the error with a text for people."""
    if isinstance(error, RuntimeError):  # no thread can be started: the limit of processes
        return OSError(_REASONS[errno.EAGAIN])
    if not isinstance(error, OSError):
        return OSError(f"the command or a variable cannot be passed to a program: {error}")
    if cwd is not None and error.filename == cwd:
        return type(error)(f"the working directory {cwd} cannot be entered: {error.strerror}")
    return type(error)(_REASONS.get(error.errno or 0, str(error)))


async def _feed(pipe: trio.abc.SendStream, data: bytes) -> None:
    async with pipe:
        with suppress(trio.BrokenResourceError):  # a command need not read its input
            await pipe.send_all(data)


async def _drain(
    pipe: trio.abc.ReceiveStream,
    tail: Tail,
    on_data: Callable[[bytes | bytearray], None] | None,
    limit: trio.CancelScope,
) -> None:
    with limit:
        while data := await pipe.receive_some():
            tail.add(data)
            if on_data is not None:
                on_data(data)


async def _members(process: trio.Process, this: _Run, known: set[int]) -> set[int]:
    """Return the ids of all living processes of the run; `known` are those found before."""
    misses = 0
    while True:
        process.poll()
        roots = await _adopted_by(this, known)
        if process.returncode is None:
            roots.add(process.pid)
        members = procfs.living(procfs.with_descendants(roots))
        if members:
            return members
        if not roots:
            misses += 1  # the list may lack a child whose siblings are ending, but not twice
            if misses == 2:
                return set()
        else:  # they have ended meanwhile, and their children are adopted: look again
            misses = 0
            await trio.sleep(0.001)


async def _adopted_by(this: _Run, known: set[int]) -> set[int]:
    """Return the adopted children that belong to this run."""
    verdicts: dict[int, bool | None] = {}
    for _ in range(100):  # execve(2) takes a moment, and may never end on a dead file system
        children = procfs.adopted(_family.commands)
        verdicts = {
            pid: pid in known or _belongs_to(this, pid, child) for pid, child in children.items()
        }
        if None not in verdicts.values():
            break
        await trio.sleep(0.001)
    return {pid for pid, is_ours in verdicts.items() if is_ours}


def _belongs_to(this: _Run, pid: int, child: procfs.Stat) -> bool | None:
    """Return whether an adopted child belongs to this run; `None` while it is in execve(2)."""
    if child.session == this.pid or child.session in _family.commands:
        return child.session == this.pid
    if (environ := procfs.environ(pid)) is None:
        return None
    if (mark := procfs.variable(_MARK, environ)) in _family.runs:
        return mark == this.mark
    others = (run.began for run in _family.runs.values() if run is not this)
    return this.began <= child.began < min(others, default=math.inf)


async def end_leftovers(instance: str) -> int:
    """End the processes that the instance's killed daemon has left; return how many.

    A leftover has a mark of the instance in its environment, or is a descendant of such a process,
    or in its session. A daemon that a command has put into the background is one, too, but not that
    daemon's commands, which have another instance's marks. The commands of this process, and the
    run that has started this process, are spared. A process that has emptied its environment, left
    its session and lost its parent is not found.

    Raises:
        UnkillableError: processes survive.

    Cancelling leaves what has not ended.
    """

    def is_left(mark: str) -> bool:
        family = mark.rpartition(".")[0]
        return family != _family.name and family.rpartition(".")[0] == instance

    return await procfs.terminate_marked(_MARK, is_left, GRACE)
