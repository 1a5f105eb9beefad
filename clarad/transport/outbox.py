"""The frames that wait to be written to one connection: bounded, and never waited for."""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from clarad.limits.memory import MemoryBudget

MAX_FRAMES: Final = 4096
MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of waiting frames; the largest answer, with its chunks, fits in."""

OWN_BYTES: Final = 64 * 1024
"""Bytes that are every outbox's own."""

MAX_SHARED: Final = 128 * 1024 * 1024
"""Bytes that all outboxes may hold together beyond that; `clarad.limits.memory` says how they share
them."""

OVERHEAD: Final = 64
"""Bytes that a frame costs beside its own."""

BATCH_BYTES: Final = 512 * 1024
"""Bytes that are taken at once, so that few are held twice while they are written; a frame that is
longer is alone."""


class Overflow(Exception):  # noqa: N818 - the field's own name
    """The reader at the other end is too slow: the frame does not fit any more."""


class Batch(NamedTuple):
    """Frames to be written in one go, and whom to call back once they are."""

    frames: list[bytes]
    when_written: list[Callable[[], None]]


class Outbox:
    """A queue with one reader, the connection's writer task.

    What was taken counts as waiting until the next `take`: till then it is being written.
    """

    def __init__(self, pool: MemoryBudget) -> None:
        """`pool` is all outboxes' together."""
        self._pool = pool
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._taken = 0
        # With the number of frames that have to be taken before.
        self._when_written: deque[tuple[int, Callable[[], None]]] = deque()
        self._frames_taken = 0
        self._wakeup = trio.Event()
        self.closed = False

    def put(self, frame: bytes) -> None:
        """Queue a frame; one that comes after `close` is dropped.

        Raises:
            Overflow: too much is waiting already, here or in all outboxes together.
        """
        if self.closed:
            return
        size = len(frame) + OVERHEAD
        if (
            len(self._frames) >= MAX_FRAMES
            or self._bytes + size > MAX_BYTES
            or not self._pool.fits(self._bytes, self._bytes + size)
        ):
            raise Overflow
        self._frames.append(frame)
        self._hold(self._bytes + size)
        self._wakeup.set()

    def when_written(self, then: Callable[[], None]) -> None:
        """Have `then` called once all that is queued is written; never, if that cannot be.

        If nothing is queued that is soon, and not only when something is.
        """
        if not self.closed:
            self._when_written.append((self._frames_taken + len(self._frames), then))
            self._wakeup.set()

    def close(self) -> None:
        """Take no more frames; `take` still returns what is queued."""
        self.closed = True
        self._wakeup.set()

    def clear(self) -> None:
        """Drop what is queued, but not what is being written."""
        self._frames.clear()
        self._when_written.clear()
        self._hold(self._taken)

    def discard(self) -> None:
        """Take no more frames, and hold none: there is nobody left to write them."""
        self.close()
        self._taken = 0
        self.clear()

    async def take(self) -> Batch:
        """Wait for frames and return those that come first; none after `close`."""
        self._hold(self._bytes - self._taken)
        self._taken = 0
        self._tell()
        while not self._frames and not self.closed:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
            self._tell()
        frames: list[bytes] = []
        while self._frames and (
            not frames or self._taken + len(self._frames[0]) + OVERHEAD <= BATCH_BYTES
        ):
            frames.append(frame := self._frames.popleft())
            self._taken += len(frame) + OVERHEAD
        self._frames_taken += len(frames)
        return Batch(frames, self._due())

    def _tell(self) -> None:
        for then in self._due():
            then()

    def _due(self) -> list[Callable[[], None]]:
        due = []
        while self._when_written and self._when_written[0][0] <= self._frames_taken:
            due.append(self._when_written.popleft()[1])
        return due

    def _hold(self, size: int) -> None:
        self._pool.change(self._bytes, size)
        self._bytes = size


def shared() -> MemoryBudget:
    """Return the room that all outboxes are to share."""
    return MemoryBudget(MAX_SHARED, OWN_BYTES)
