"""`python -m tests.soak` as a user has it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.daemon_process import PATIENCE
from tests.postgres import SHARED
from tests.soak.__main__ import INTERRUPTED

SOAK: Final = (sys.executable, "-m", "tests.soak")


def processes_of(directory: Path) -> list[str]:
    """Return the processes that have this directory in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # none, or it has ended meanwhile
            if bytes(directory) in (entry / "environ").read_bytes():
                found.append(entry.name)
    return found


@contextmanager
def running(*options: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """A soak, which is told to end if a test has not got so far."""
    command = [*SOAK, "--minutes", "10", *options]
    env = os.environ | settings
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_a_soak_that_is_interrupted_leaves_nothing() -> None:
    with running() as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().split()[-1])
        deadline = time.monotonic() + PATIENCE * 2
        while not any(directory.glob("acts/begun-*")):
            assert time.monotonic() < deadline, "no message is run"
            time.sleep(0.05)
        assert processes_of(directory)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE * 2)
    assert (process.returncode, "interrupted" in said) == (130, True)
    assert not directory.exists()
    assert processes_of(directory) == []


@pytest.mark.parametrize("database", SHARED)
def test_a_soak_that_is_interrupted_while_it_makes_a_cluster_leaves_nothing(database: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # PostgreSQL's user has to get in
        with running("--database", database, TMPDIR=directory) as process:
            deadline = time.monotonic() + PATIENCE
            while not any(Path(directory).glob("clarad-pg-*/data/*")):
                assert time.monotonic() < deadline, "no cluster is made"
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == INTERRUPTED
        assert "Traceback" not in said
        assert list(Path(directory).iterdir()) == []


def test_a_fault_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    done = subprocess.run(
        [*SOAK, "--fault", "flood"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2
    assert "there is no fault 'flood' here; there are: SIGKILL and restart, " in done.stderr
