"""When commands began: each writes a line to a named pipe, and here it is stamped as it arrives.

A shell can do that by itself, and it arrives within 0.4 ms. Rejected: `date +%s.%N >> file`, whose
process costs more than a millisecond, and a thousand of them as much again as what is measured;
and the time at which a file was made, which the kernel keeps in steps of 4 ms.
"""

import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_READ_SIZE = 64 * 1024  # as much as a pipe holds


class Arrival(NamedTuple):
    """A line, and when it came, in seconds since the epoch."""

    text: str
    at: float


class MissingError(Exception):
    """Fewer commands began than should have."""


class Witness:
    """Reads the pipe at `path`; made by `witness`."""

    def __init__(self, path: Path) -> None:
        """Nothing has been read yet."""
        self._path = path
        self._arrivals = queue.SimpleQueue[Arrival]()

    def command(self, text: str) -> str:
        """A shell command that says `text`, in which the shell expands variables."""
        return f'echo "{text}" > {self._path}'

    def wait(self, count: int, seconds: float) -> list[Arrival]:
        """Wait for the next `count` lines."""
        deadline = time.monotonic() + seconds
        found: list[Arrival] = []
        try:
            while len(found) < count:
                found.append(self._arrivals.get(timeout=max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            raise MissingError(
                f"{len(found)} of {count} commands began within {seconds} s"
            ) from None
        return found

    def read(self, pipe: int) -> None:
        """Read until an empty line comes; lines are short, so that none comes in pieces."""
        while True:
            data = os.read(pipe, _READ_SIZE)
            at = time.time()
            for line in data.decode().splitlines():
                if not line:
                    return
                self._arrivals.put(Arrival(line, at))


@contextmanager
def witness(path: Path) -> Iterator[Witness]:
    """Make a named pipe and read it for the length of the block."""
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # so it never ends, whoever closes it
    reader = Witness(path)
    thread = threading.Thread(target=reader.read, args=(pipe,))
    thread.start()
    try:
        yield reader
    finally:
        os.write(pipe, b"\n")
        thread.join()
        os.close(pipe)
