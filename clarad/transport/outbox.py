"""The queue of frames to be written to one connection. It is bounded; nobody waits to put."""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from clarad.limits.memory import MemoryBudget

MAX_FRAMES: Final = 4096
MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of queued frames; the largest answer in ASCII fits in, with its chunks."""

OWN_BYTES: Final = 64 * 1024
"""Bytes that every outbox may hold in any case."""

MAX_SHARED: Final = 128 * 1024 * 1024
"""Bytes that all outboxes together may hold beyond that; see `clarad.limits.memory`."""

OVERHEAD: Final = 64
"""Bytes that a frame costs besides its payload."""

BATCH_BYTES: Final = 512 * 1024
"""Bytes of a batch: it is in memory twice while it is written. A longer frame goes alone."""


class Overflow(Exception):  # noqa: N818 - the field's own name
    """The peer reads too slowly: the frame does not fit into the queue."""


class Batch(NamedTuple):
    """Frames to be written in one go, and the callbacks to call afterwards."""

    frames: list[bytes]
    when_written: list[Callable[[], None]]


class Outbox:
    """A queue with one reader, the connection's writer task.

    A batch counts as queued until the reader asks for the next one: until then it is being written.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        """All outboxes share `budget`."""
        self._budget = budget
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._batch_bytes = 0
        # Each callback has the number of frames that have to be in earlier batches.
        self._when_written: deque[tuple[int, Callable[[], None]]] = deque()
        self._frames_batched = 0
        self._wakeup = trio.Event()
        self.closed = False

    def put(self, frame: bytes) -> None:
        """Queue a frame. Frames after `close` are dropped.

        Raises:
            Overflow: too much is queued already, here or in all outboxes together.
        """
        if self.closed:
            return
        size = len(frame) + OVERHEAD
        if (
            len(self._frames) >= MAX_FRAMES
            or self._bytes + size > MAX_BYTES
            or not self._budget.fits(self._bytes, self._bytes + size)
        ):
            raise Overflow
        self._frames.append(frame)
        self._set_bytes(self._bytes + size)
        self._wakeup.set()

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call `callback` once everything queued is written; never, if it is dropped.

        If the queue is empty, it is called at the writer's next step, without another frame.
        """
        if not self.closed:
            self._when_written.append((self._frames_batched + len(self._frames), callback))
            self._wakeup.set()

    def close(self) -> None:
        """Accept no more frames; `next_batch` still returns what is queued."""
        self.closed = True
        self._wakeup.set()

    def clear(self) -> None:
        """Drop the queue, but not the batch that is being written."""
        self._frames.clear()
        self._when_written.clear()
        self._set_bytes(self._batch_bytes)

    def discard(self) -> None:
        """Accept no more frames and free the queue: the writer has ended."""
        self.close()
        self._batch_bytes = 0
        self.clear()

    async def next_batch(self) -> Batch:
        """Wait for frames and return the first ones; none if the queue is closed and empty.

        Cancelling loses no frame.
        """
        # The writer has written the previous batch.
        self._set_bytes(self._bytes - self._batch_bytes)
        self._batch_bytes = 0
        # Callbacks that were added meanwhile, or during the wait, may have no frame before them.
        self._call_due()
        while not self._frames and not self.closed:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
            self._call_due()
        frames: list[bytes] = []
        while self._frames and (
            not frames or self._batch_bytes + len(self._frames[0]) + OVERHEAD <= BATCH_BYTES
        ):
            frames.append(frame := self._frames.popleft())
            self._batch_bytes += len(frame) + OVERHEAD
        self._frames_batched += len(frames)
        return Batch(frames, self._due())

    def _call_due(self) -> None:
        for callback in self._due():
            callback()

    def _due(self) -> list[Callable[[], None]]:
        due = []
        while self._when_written and self._when_written[0][0] <= self._frames_batched:
            due.append(self._when_written.popleft()[1])
        return due

    def _set_bytes(self, size: int) -> None:
        self._budget.change(self._bytes, size)
        self._bytes = size


def outbox_budget() -> MemoryBudget:
    """Return the budget that all outboxes share."""
    return MemoryBudget(MAX_SHARED, OWN_BYTES)
