"""The daemon as a process of its own, as systemd would start it."""

import fcntl
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from clarad.config import discovery

PATIENCE = 90.0
"""Seconds until something that has to happen counts as not happening."""


OURS = (
    "CLARA", "DATABASE_URL", "ORS_", "PROACTIVE_", "RUNTIME_DIRECTORY",
    "SANDBOX_", "DOCKER_", "INCUS_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_",
)  # fmt: skip
"""How the names of all variables begin that mean something to clarad."""


HAND_OVER = """
import os, sys
for n, descriptor in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(descriptor, 3 + n)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Puts descriptors where sd_listen_fds(3) has them, and becomes another program."""


LIFE = "TEST_LIFE"
"""The variable by which the processes of each life of a daemon are known."""


class HasDescriptor(Protocol):
    """A socket, or a file."""

    def fileno(self) -> int: ...


class Process:
    """A `clarad run` that listens; `log` has what it wrote to standard error so far.

    `handed` are the descriptors that it is started with, as systemd does it.
    """

    def __init__(
        self, state_dir: Path, handed: Sequence[HasDescriptor] = (), /, **settings: str
    ) -> None:
        self.state_dir = state_dir
        command = ["-m", "clarad", "run"]
        # Out of the way of those places that they are to have.
        descriptors = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 100) for one in handed]
        if descriptors:
            command = ["-c", HAND_OVER, ",".join(map(str, descriptors)), *command]
            settings["LISTEN_FDS"] = str(len(descriptors))
        self.environment = environment(state_dir, **settings)
        self._popen = subprocess.Popen(
            [sys.executable, *command],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
        )
        for descriptor in descriptors:
            os.close(descriptor)
        self._lines: list[str] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until the daemon has logged this so often."""
        with self._grown:
            found = self._grown.wait_for(lambda: self.log.count(text) >= times, PATIENCE)
            assert found, self.log

    @property
    def url(self) -> str:
        found = discovery.find(self.state_dir)
        assert found is not None, self.log
        return discovery.url(*found)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        status = self._popen.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def kill(self) -> None:
        self._popen.kill()
        self.wait()
        assert self._popen.stderr is not None
        self._popen.stderr.close()

    def _read(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            with self._grown:
                self._lines.append(line)
                self._grown.notify_all()


def environment(state_dir: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a machine where nothing of clarad is set but this."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return clean | {"CLARA_STATE_DIR": str(state_dir), "CLARA_GATEWAY_PORT": "0"} | settings


@contextmanager
def daemon(
    state_dir: Path, handed: Sequence[HasDescriptor] = (), /, **settings: str
) -> Iterator[Process]:
    """Run a daemon for the length of the block; what is left of it then is killed."""
    process = Process(state_dir, handed, **settings)
    try:
        process.wait_for_log("listening on")
        yield process
    finally:
        process.kill()


def clarad(*words: str, env: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "clarad", *words],
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Marker:
    """A number of seconds that only this test sleeps for, to find its processes again by."""

    def __init__(self) -> None:
        self.text = f"1000.{secrets.randbelow(10**15):015d}"

    @property
    def alive(self) -> list[int]:
        """The processes that have the marker in their command lines; a zombie has none."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):  # it has ended meanwhile
                    if self.text.encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found


def lives_of(name: str) -> Iterator[tuple[int, str]]:
    """Return the processes with `LIFE=name-NUMBER` in their environment.

    Each is its number, and a line as `ps` would show it.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                mark = f"{LIFE}={name}-".encode()
                _, found, rest = (entry / "environ").read_bytes().partition(mark)
                if found:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    yield int(rest.partition(b"\0")[0]), f"{entry.name} {words}"
