"""File descriptors that run out."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def at_most_open(count: int) -> Iterator[None]:
    """Leave room for exactly so many more open files within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + count + 100, hard))
    fillers: list[int] = []
    try:
        with suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
