"""What a command and a test tell each other through a file, each when it is so far."""

import os
import select
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.daemon_process import PATIENCE


class Fifo:
    """A named pipe that the test holds open at both ends: who writes to it does not wait."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def write(self, text: str) -> None:
        """Have the command that reads it go on."""
        os.write(self._file, text.encode())

    def read(self) -> str:
        """Wait for what a command writes to it."""
        ready, _, _ = select.select([self._file], [], [], PATIENCE)
        assert ready, "nothing was written"
        return os.read(self._file, 64 * 1024).decode()

    def empty(self) -> None:
        """Forget what was written to it."""
        with suppress(BlockingIOError):
            while os.read(self._file, 64 * 1024):
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
