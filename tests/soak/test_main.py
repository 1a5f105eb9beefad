"""`python -m tests.soak` as a user has it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.daemon_process import PATIENCE

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
def running() -> Iterator[subprocess.Popen[str]]:
    """A soak, which is told to end if a test has not got so far."""
    command = [*SOAK, "--minutes", "10"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


def test_a_fault_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    done = subprocess.run(
        [*SOAK, "--fault", "flood"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2
    assert "there is no fault 'flood' here; there are: SIGKILL and restart, " in done.stderr
