"""Starting and stopping the servers that are measured.

Each runs as a process of its own in a session of its own, so that Ctrl-C reaches only the bench,
which then ends them in order.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.process import adopt_orphans, descendants, kill_descendants

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.002
_LOG_TAIL_LINES = 20
_NOT_INHERITED = ("CLARA", "DATABASE_URL", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM")


class ServerStartError(Exception):
    """A server did not start."""


@dataclass(frozen=True)
class Server:
    """A server that listens on the loopback interface."""

    name: str
    pid: int
    port: int
    startup_seconds: float
    """From the start of the process until it listened."""
    secret: str = ""
    tls: bool = False


@contextmanager
def clarad(responder: str, command: str = "", **settings: str) -> Iterator[Server]:
    """Run clarad with an empty SQLite database of its own, which is deleted at the end."""
    with empty_state() as state, clarad_on(state, responder, command, **settings) as server:
        yield server


@contextmanager
def empty_state() -> Iterator[Path]:
    """A directory for clarad's state, which is deleted at the end."""
    with TemporaryDirectory(prefix="clarad-bench-") as directory:
        yield Path(directory)


@contextmanager
def clarad_on(state: Path, responder: str, command: str = "", **settings: str) -> Iterator[Server]:
    """Run clarad on the state that is in the directory; `settings` are variables beside those."""
    adopt_orphans()
    others = descendants(os.getpid())
    log = state / "stderr.log"
    (state / "gateway.json").unlink(missing_ok=True)
    begin = time.perf_counter()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "clarad", "run"],
            env=_environment(state, responder, command) | settings,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        port = _wait_until_listening(process, state / "gateway.json")
        seconds = time.perf_counter() - begin
        secret, tls = settings.get("CLARA_GATEWAY_SECRET", ""), "CLARA_GATEWAY_TLS_CERT" in settings
        yield Server("clarad", process.pid, port, seconds, secret, tls)
    except Exception as error:
        error.add_note("The end of clarad's log:\n" + _tail(log))
        raise
    finally:
        _stop(process, others)


@contextmanager
def bare() -> Iterator[Server]:
    """Run the bare server."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.bare"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            raise ServerStartError("the bare server did not start")
        yield Server("bare", process.pid, int(line), time.perf_counter() - begin)
    finally:
        process.kill()
        process.communicate()


def _environment(state: Path, responder: str, command: str) -> dict[str, str]:
    """The environment without anything that would configure clarad, then what the bench wants."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
    settings = {
        "CLARA_STATE_DIR": str(state),
        "CLARA_GATEWAY_HOST": "127.0.0.1",
        "CLARA_GATEWAY_PORT": "0",
        "CLARA_RESPONDER": responder,
        "CLARA_HOOKS_DIR": str(state / "hooks"),
        "CLARA_SCHEDULER_DIR": str(state),
        "CLARA_DRAIN_TIMEOUT": "0",
    }
    if command:
        settings["CLARA_RESPONDER_COMMAND"] = command
    return inherited | settings


def _wait_until_listening(process: subprocess.Popen[bytes], gateway: Path) -> int:
    """Poll the file that clarad writes once it listens, and return the port in it."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerStartError(f"clarad ended with {process.returncode} instead of listening")
        try:
            return int(json.loads(gateway.read_bytes())["port"])
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(_POLL_SECONDS)
    raise ServerStartError(f"clarad did not listen within {_START_SECONDS:.0f} s")


def _stop(process: subprocess.Popen[bytes], others: set[int]) -> None:
    """End clarad as systemd would, then whatever it leaves behind: all that is not of `others`."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"clarad was killed: no end {_STOP_SECONDS:.0f} s after SIGTERM", file=sys.stderr)
    if process.returncode > 0:
        print(f"clarad ended with {process.returncode}", file=sys.stderr)
    if left := kill_descendants(but=others):
        print(f"clarad left {len(left)} processes behind", file=sys.stderr)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
