"""The frames that wait to be written to one connection: bounded, and never waited for."""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

MAX_FRAMES: Final = 4096
MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of waiting frames; the largest answer, with its chunks, fits in."""


class Overflow(Exception):  # noqa: N818 - the field's own name
    """The reader at the other end is too slow: the frame does not fit any more."""


class Batch(NamedTuple):
    """All frames that waited, and whom to call back once they are written."""

    frames: list[bytes]
    when_written: list[Callable[[], None]]


class Outbox:
    """A queue with one reader, the connection's writer task."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._when_written: list[Callable[[], None]] = []
        self._wakeup = trio.Event()
        self.closed = False

    def put(self, frame: bytes) -> None:
        """Queue a frame; one that comes after `close` is dropped.

        Raises:
            Overflow: too much is waiting already.
        """
        if self.closed:
            return
        if len(self._frames) >= MAX_FRAMES or self._bytes + len(frame) > MAX_BYTES:
            raise Overflow
        self._frames.append(frame)
        self._bytes += len(frame)
        self._wakeup.set()

    def when_written(self, then: Callable[[], None]) -> None:
        """Have `then` called once all that is queued is written; never, if that cannot be.

        To be called right after the frame has been put that it is about.
        """
        if not self.closed:
            self._when_written.append(then)

    def close(self) -> None:
        """Take no more frames; `take` still returns what is queued."""
        self.closed = True
        self._wakeup.set()

    def clear(self) -> None:
        """Drop what is queued."""
        self._frames.clear()
        self._bytes = 0
        self._when_written.clear()

    async def take(self) -> Batch:
        """Wait for frames and return all there are; none after `close`."""
        if not self._frames and not self.closed:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        batch = Batch(list(self._frames), self._when_written)
        self._frames.clear()
        self._bytes = 0
        self._when_written = []
        return batch
