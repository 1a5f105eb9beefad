"""A run inside the sandbox: the command, its pipes, and the runner that keeps it together.

The runner is a child of the agent that adopts whatever of the run loses its parent (prctl(2),
PR_SET_CHILD_SUBREAPER). So what is below the runner is the run, all of it and nothing else:
setsid, double forks and cleared environments change nothing about that.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from typing import Any, NoReturn

from sandbox.inside.confine import become_user, counters, prctl
from sandbox.inside.frames import STDERR, STDOUT

CHUNK = 64 << 10
_TAIL = 4 << 10  # what is kept of the end of an output that is cut
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Run:
    """One run: its runner, the pipes to it, and its counts."""

    def __init__(self, number: int, request: dict[str, Any]) -> None:
        """Start it.

        `request`: argv, env, cwd, uid, gid; cap (bytes of each output that are passed on), file
        (the largest file that it can write), processes (how many its user may have, if the
        engine does not see to that), calls (whether fds 3 and 4 are for calls).

        Raises:
            OSError: a process or a pipe cannot be made.
        """
        self.number = number
        self.cap: int = request["cap"]
        self.calls: bool = request["calls"]
        self.started = time.monotonic()
        self.pending = bytearray()  # input that it has not read
        self.closing = False
        self.report = bytearray()  # what the runner has written
        self.killed: set[int] = set()
        self.kill_at: float | None = None
        self.pause = 0.002
        self.token = b""  # of the call that goes on
        self.is_forwarding = True  # output between calls is dropped
        self.reset_counts()
        self._open(request)

    def _open(self, request: dict[str, Any]) -> None:
        opened: list[int] = []
        try:
            for _ in range(5):
                opened += os.pipe()
            self.runner = os.fork()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        read_input, write_input, stdout, to_stdout, stderr, to_stderr = opened[:6]
        reporting, to_report, reply, to_reply = opened[6:]
        theirs = [read_input, to_stdout, to_stderr, to_reply]
        if self.runner == 0:
            _be_runner(request, theirs, to_report)
        for fd in (*theirs, to_report):
            os.close(fd)
        self.reporting = reporting
        self.fds: dict[str, int] = {"input": write_input, "stdout": stdout, "stderr": stderr}
        self.fds["reply"] = reply
        for fd in self.fds.values():
            os.set_blocking(fd, False)

    def reset_counts(self) -> None:
        """Begin another call of a run that takes calls."""
        self.cpu_before = self.cpu()
        self.totals = {STDOUT: 0, STDERR: 0}
        self.tails = {STDOUT: bytearray(), STDERR: bytearray()}
        self.before = counters()

    def truncate(self, kind: int, data: bytes) -> bytes:
        """Count output; return the part of `data` below the cap, and keep the end of the rest."""
        room = max(self.cap - self.totals[kind], 0)
        self.totals[kind] += len(data)
        if len(data) > room:
            tail = self.tails[kind]
            tail += data[room:]
            del tail[:-_TAIL]
        return data[:room]

    def counts(self) -> dict[str, Any]:
        """Return the counts for the EXIT of a run, or the REPLY of a call."""
        now = counters()
        return {
            "totals": [self.totals[STDOUT], self.totals[STDERR]],
            "tails": [self.tails[kind].decode("latin-1") for kind in (STDOUT, STDERR)],
            **{name: now[name] - self.before.get(name, 0) for name in now},
        }

    def cpu(self) -> float:
        """The seconds of CPU time that its command has used; 0 if it is not there (yet)."""
        report = json.loads(self.report.splitlines()[0]) if b"\n" in self.report else {}
        if "command" not in report:
            return 0.0
        try:
            return time.clock_gettime((~report["command"] << 3) | 2)  # clock_getcpuclockid(3)
        except OSError:
            return 0.0

    def close(self, name: str) -> None:
        """Close one of its pipes, if it is open."""
        if name in self.fds:
            os.close(self.fds.pop(name))

    def close_all(self) -> None:
        """Close all of its pipes."""
        os.close(self.reporting)
        for name in list(self.fds):
            self.close(name)


def below(root: int) -> set[int]:
    """Return the living descendants of `root`: all of them, if they are stopped."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/" + entry + "/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # it has ended meanwhile
            children.setdefault(int(parent), []).append((int(entry), state.decode()))
    found: set[int] = set()
    generation = [root]
    while generation:
        next_ones = [child for pid in generation for child in children.get(pid, ())]
        found.update(pid for pid, state in next_ones if state not in "ZX")
        generation = [pid for pid, _ in next_ones]
    return found


def _be_runner(request: dict[str, Any], theirs: list[int], report: int) -> NoReturn:
    """Start the command, adopt its orphans, and stay until none of its processes is left."""
    status: int | None = None
    ending: dict[str, Any] = {}
    cpu = 0.0
    try:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        command = os.fork()
        if command == 0:
            _be_command(request, theirs)
        _report(report, {"command": command})
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd != report:
                with suppress(OSError):  # that which the directory was read by
                    os.close(fd)
        while True:
            pid, code, usage = os.wait4(-1, os.WNOHANG if status is not None else 0)
            if pid == 0:  # the command has ended, and has left something
                _report(report, {"left": True})
                pid, code, usage = os.wait4(-1, 0)
            cpu += usage.ru_utime + usage.ru_stime
            if pid == command:
                status = -os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code)
    except ChildProcessError:
        ending = {"status": status, "cpu": cpu}
    except OSError as error:
        ending = {"error": error.strerror, "pids": 1}
    finally:
        _report(report, ending)
        os._exit(0)


def _report(report: int, ending: dict[str, Any]) -> None:
    os.write(report, json.dumps(ending).encode() + b"\n")


def _be_command(request: dict[str, Any], theirs: list[int]) -> NoReturn:
    """Become the sandbox's user, and then the command."""
    what = "the sandbox"
    try:
        read_input, to_stdout, to_stderr, to_reply = theirs
        fds = [read_input, to_stdout, to_stderr]
        if request["calls"]:
            fds = [os.open(os.devnull, os.O_RDONLY), to_stdout, to_stderr, read_input, to_reply]
        # Out of the way first: a pipe's number may be one that the process has to have.
        for target, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 32) for fd in fds]):
            os.dup2(fd, target)
        become_user(request["uid"], request["gid"], request["file"], request["processes"])
        what = request["cwd"]
        os.chdir(what)
        what = request["argv"][0]
        os.execvpe(what, request["argv"], request["env"])  # noqa: S606 - its purpose
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        os.write(2, f"{what}: {reason}\n".encode(errors="replace"))
    finally:
        os._exit(127)
