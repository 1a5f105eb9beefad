"""The agent: the program inside a sandbox that starts, feeds and ends runs.

It is there before anything else, as root with next to no capabilities, and speaks `frames` over its
standard input and output. When its standard input ends, whoever held the sandbox is gone, and it
powers off.

To kill a run, everything of the sandbox's user is stopped first. `kill(-1, SIGSTOP)` is atomic
against fork(2), needs no new process and cannot be ignored; then /proc holds still, what is below
the run's runner gets SIGKILL, and the rest goes on. Rejected: `kill(-1, SIGKILL)`, which takes
other runs along, such as the interpreter with its variables; looking through /proc while things
go on, which a process that keeps forking and exiting escapes; cgroup.kill, which needs a cgroup
that can be written; a PID namespace for each run, which needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sandbox.inside.confine import counters, libc, limit_shared_memory, lock_down
from sandbox.inside.frames import (
    ANSWER,
    CALL,
    CLOSE,
    EXIT,
    INPUT,
    KILL,
    NUMBER,
    READY,
    REPLY,
    START,
    STDERR,
    STDOUT,
    TAKEN,
    Decoder,
    encode,
)
from sandbox.inside.runs import CHUNK, Run, below

_MAX_UNSENT = 256 << 10  # with so much on its way, output waits in its pipes
_NOBODY = 64999  # a real uid that nobody else has
_LINUX_REBOOT_CMD_POWER_OFF = 0x4321FEDC
_KINDS = {"stdout": STDOUT, "stderr": STDERR}


class Agent:
    """Turns frames into runs, and what becomes of them into frames."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.runs: dict[int, Run] = {}
        self.decoder = Decoder()
        self.unsent = bytearray()

    def serve(self) -> None:
        """Work until standard input ends."""
        self.send(READY, 0, {"python": sys.version.split()[0], "counters": sorted(counters())})
        while True:
            poll, watched = self.interests()
            for fd, _ in poll.poll(self.poll_timeout()):
                if fd == 0:
                    data = os.read(0, CHUNK)
                    if not data:
                        return
                    for frame in self.decoder.feed(data):
                        self.handle_frame(*frame)
                elif fd == 1:
                    del self.unsent[: os.write(1, self.unsent[:CHUNK])]
                else:
                    self.handle_ready(*watched[fd], fd)
            now = time.monotonic()
            for run in list(self.runs.values()):
                if run.kill_at is not None and run.kill_at <= now:
                    self.kill_processes(run)

    def interests(self) -> tuple[select.poll, dict[int, tuple[Run, str]]]:
        """Return what to poll, and the run and the name of each pipe in it."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        if self.unsent:
            poll.register(1, select.POLLOUT)
        watched: dict[int, tuple[Run, str]] = {}
        for run in self.runs.values():
            watched[run.reporting] = run, "reporting"
            poll.register(run.reporting, select.POLLIN)
            for name, fd in run.fds.items():
                wanted = run.pending if name == "input" else len(self.unsent) < _MAX_UNSENT
                if wanted:
                    watched[fd] = run, name
                    poll.register(fd, select.POLLOUT if name == "input" else select.POLLIN)
        return poll, watched

    def poll_timeout(self) -> float | None:
        """Return the milliseconds until the next kill of a run is due."""
        due = [run.kill_at for run in self.runs.values() if run.kill_at is not None]
        return max(min(due) - time.monotonic(), 0) * 1000 + 0.5 if due else None

    def send(self, kind: int, number: int, payload: bytes | dict[str, Any]) -> None:
        """Queue a frame."""
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        self.unsent += encode(kind, number, payload)

    def handle_frame(self, kind: int, number: int, payload: bytes) -> None:
        """Handle a frame; one for a run that is over has no effect."""
        run = self.runs.get(number)
        if kind == START:
            try:
                self.runs[number] = Run(number, json.loads(payload))
            except OSError as error:
                self.send(EXIT, number, {"error": error.strerror, "pids": 1})
        elif run is None:
            return
        elif kind == KILL:
            self.kill_processes(run)
        elif kind == CALL:
            run.token, run.is_forwarding = payload, True
            run.reset_counts()
        elif kind in (INPUT, CLOSE):
            run.pending += payload
            run.closing = run.closing or kind == CLOSE
            if not run.pending or "input" not in run.fds:
                self.note_fed(run, len(run.pending))

    def handle_ready(self, run: Run, name: str, fd: int) -> None:
        """Read from, or write to, a pipe that is ready."""
        if self.runs.get(run.number) is not run:
            return  # it ended a moment ago
        if name == "reporting":
            self.read_report(run)
        elif run.fds.get(name) != fd:
            return  # closed a moment ago
        elif name == "input":
            self.feed(run)
        elif name == "reply":
            self.drain(run)
            if data := self.read(run, name):
                self.finish_call(run, data)
        else:
            self.forward(run, name)

    def finish_call(self, run: Run, data: bytes) -> None:
        """Send the REPLY of a call, or kill the run if the interpreter has written anything else.

        The interpreter writes its answer in one piece. Anything before, behind or missing in it
        comes from the code that it runs.
        """
        if len(data) != ANSWER.size or not run.token or data[:-1] != run.token:
            self.kill_processes(run)
            return
        # The counts are the agent's own, and start anew with the next call.
        cpu = max(run.cpu() - run.cpu_before, 0.0)
        self.send(REPLY, run.number, {**run.counts(), "status": data[-1], "cpu": cpu})
        run.token, run.is_forwarding = b"", False

    def read(self, run: Run, name: str) -> bytes:
        """Read from a pipe what is there, and close it at its end."""
        try:
            data = os.read(run.fds[name], CHUNK)
        except BlockingIOError:
            return b""
        if not data:
            run.close(name)
        return data

    def forward(self, run: Run, name: str) -> bool:
        """Forward output; return whether there was any."""
        data = self.read(run, name)
        kept = run.truncate(_KINDS[name], data)
        if kept and run.is_forwarding:
            self.send(_KINDS[name], run.number, kept)
        return bool(data)

    def drain(self, run: Run) -> None:
        """Forward what the pipes hold, and no more, even if something keeps writing."""
        for name in _KINDS:
            for _ in range(4):
                if name not in run.fds or not self.forward(run, name):
                    break

    def feed(self, run: Run) -> None:
        """Write input, as much as the pipe takes."""
        try:
            self.note_fed(run, os.write(run.fds["input"], run.pending[:CHUNK]))
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it does not read any more; what comes is dropped
            run.close("input")
            self.note_fed(run, len(run.pending))

    def note_fed(self, run: Run, count: int) -> None:
        """Note that the run has got input, and tell the keeper."""
        del run.pending[:count]
        if count:
            self.send(TAKEN, run.number, NUMBER.pack(count))
        if run.closing and not run.pending:
            run.close("input")

    def read_report(self, run: Run) -> None:
        """Read what the runner has written; at its end the run is over."""
        data = os.read(run.reporting, CHUNK)
        run.report += data
        if b'"left"' in data:
            self.kill_processes(run)
        if data:
            return
        with suppress(ChildProcessError):
            os.waitpid(run.runner, 0)
        ending = json.loads(bytes(run.report).splitlines()[-1] if run.report else b"{}")
        ending.pop("command", None)
        if "cpu" not in ending and "error" not in ending:
            # The runner was killed, for want of memory: what it had adopted is ours now, and
            # cannot be told from what other runs have lost.
            ending = {"status": -signal.SIGKILL}
            with self.as_user():
                _send(-1, signal.SIGKILL)
        self.drain(run)
        run.close_all()
        del self.runs[run.number]
        wall = time.monotonic() - run.started
        ending = {**run.counts(), "wall": wall, "killed": len(run.killed), **ending}
        self.send(EXIT, run.number, ending)

    def kill_processes(self, run: Run) -> None:
        """Kill all processes of the run, and schedule the next kill, until the runner has ended.

        A command that has just been forked is still root's, and ends with the next kill.
        """
        with self.as_user():
            _send(-1, signal.SIGSTOP)
            for pid in below(run.runner):
                _send(pid, signal.SIGKILL)
                run.killed.add(pid)
            if len(self.runs) > 1:
                _send(-1, signal.SIGCONT)
        run.pause = min(run.pause * 2, 0.05)
        run.kill_at = time.monotonic() + run.pause

    @contextmanager
    def as_user(self) -> Iterator[None]:
        """Let signals reach what the sandbox's user may signal, and nothing else.

        With the user's effective uid kill(2) reaches the user's processes only, not root's; with
        a real and a saved uid that are not the user's, those cannot signal us meanwhile. The real
        one is nobody's: root's are runners.
        """
        os.setresuid(_NOBODY, self.uid, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def main() -> None:
    """Lock down, serve, power off."""
    uid, gid, home = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Incus kills the process that it has started when its connection ends: that is not to be us.
    if os.getpid() != 1 and os.fork():
        os.wait()
        os._exit(0)
    if not os.path.isdir(home):
        os.makedirs(home, 0o700)
        os.chown(home, uid, gid)
    if os.getpid() != 1:
        limit_shared_memory()
    lock_down()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(1, False)
    agent = Agent(uid)
    try:
        agent.serve()
    finally:
        with agent.as_user():
            _send(-1, signal.SIGKILL)
        if os.getpid() != 1:
            libc.reboot(_LINUX_REBOOT_CMD_POWER_OFF)
