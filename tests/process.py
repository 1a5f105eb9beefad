"""The daemon as a process of its own, as systemd would start it."""

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clarad import address

PATIENCE = 30.0
"""Seconds until something that has to happen counts as not happening."""


OURS = (
    "CLARA", "DATABASE_URL", "ORS_", "PROACTIVE_", "RUNTIME_DIRECTORY",
    "SANDBOX_", "DOCKER_", "INCUS_",
)  # fmt: skip
"""How the names of all variables begin that mean something to clarad."""


class Process:
    """A `clarad run` that listens; `log` has what it wrote to standard error so far."""

    def __init__(self, state_dir: Path, **settings: str) -> None:
        self.state_dir = state_dir
        self.environment = environment(state_dir, **settings)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "clarad", "run"],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_log(self, text: str) -> None:
        """Wait until the daemon has logged this."""
        with self._grown:
            assert self._grown.wait_for(lambda: text in self.log, PATIENCE), self.log

    @property
    def url(self) -> str:
        found = address.find(self.state_dir)
        assert found is not None, self.log
        return address.url(*found)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        return self._popen.pid

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
def daemon(state_dir: Path, **settings: str) -> Iterator[Process]:
    """Run a daemon for the length of the block; what is left of it then is killed."""
    process = Process(state_dir, **settings)
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
