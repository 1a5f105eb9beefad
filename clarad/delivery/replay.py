"""The replay buffer: numbered frames that a node may ask for again. No I/O.

Every frame of a `resume` node has a `seq`, and frames are sent in this order. A terminal frame is
sent only once it is stored together with its number. So it is numbered before it may be sent, and
the frames after it wait for it. (Rejected: to number it when it is sent. The store would not know
the number, and after a kill the node would get the frame again under another one.)

The buffer has the latest frames only. Older terminal frames are in the store, others are gone.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from clarad.limits.memory import MemoryBudget
from clarad.protocol import numbered
from clarad.store import MessageKey

MAX_FRAMES: Final = 1000
MAX_BYTES: Final = 4 * 1024 * 1024
"""Frames and bytes of one node's buffer. Frames that its connection has still to be sent are kept
beyond that."""

MAX_SHARED: Final = 128 * 1024 * 1024
"""Bytes that the buffers of all nodes share; `clarad.limits.memory` has the rule."""

OVERHEAD: Final = 256
"""Bytes that a frame costs beside its own."""


class ReplayFrame:
    """A numbered frame; `frame` is empty until it is settled, and stays so if it is withdrawn."""

    __slots__ = ("frame", "here", "key", "seq", "settled")

    def __init__(self, seq: int, key: MessageKey | None) -> None:
        self.seq = seq
        self.key = key
        """The message that it ends, if it is a terminal frame."""
        self.frame = b""
        self.settled = False
        self.here = True
        """Whether the buffer still has it."""


class ReplayBuffer:
    """The latest frames of one node."""

    def __init__(self, budget: MemoryBudget, last: int = 0) -> None:
        """`budget` is shared by all nodes; `last` is the highest number that may be in use."""
        self._budget = budget
        self.last = last
        self.first = last + 1
        """Frames with lower numbers are in the store, or nowhere."""
        self._frames: deque[ReplayFrame] = deque()
        self._bytes = 0

    def restart(self, last: int) -> None:
        """Drop all frames, and number the next one after `last`."""
        self.forget(self.last)
        self.last = last
        self.first = last + 1

    def reserve(self, key: MessageKey | None) -> ReplayFrame:
        """Give the next number to a frame that `fill` or `withdraw` settles."""
        self.last += 1
        entry = ReplayFrame(self.last, key)
        self._frames.append(entry)
        return entry

    def fill(self, entry: ReplayFrame, frame: bytes) -> None:
        """Settle an entry with its frame."""
        entry.frame = numbered(frame, entry.seq)
        entry.settled = True
        if entry.here:
            self._hold(self._bytes + _size(entry))

    def withdraw(self, entry: ReplayFrame) -> None:
        """Settle an entry without a frame: its number is never used."""
        entry.settled = True

    def after(self, seq: int) -> Iterator[ReplayFrame]:
        """Return the entries above this number, oldest first."""
        return (entry for entry in self._frames if entry.seq > seq)

    def forget(self, seq: int) -> None:
        """Drop the entries up to this number."""
        while self._frames and self._frames[0].seq <= seq:
            self._drop()
        self.first = max(self.first, min(seq, self.last) + 1)

    def trim(self, sent: int) -> None:
        """Drop the oldest entries, up to this number, while the buffer is too large."""
        while self._is_too_large() and self._frames and self._frames[0].seq <= sent:
            self.first = self._frames[0].seq + 1
            self._drop()

    def keep_terminal(self) -> None:
        """Drop all but terminal frames: only they matter to a new session."""
        for entry in self._frames:
            entry.here = entry.key is not None
        self._frames = deque(entry for entry in self._frames if entry.here)
        self._hold(sum(map(_size, self._frames)))

    def _is_too_large(self) -> bool:
        return (
            len(self._frames) > MAX_FRAMES
            or self._bytes > MAX_BYTES
            or not self._budget.may_keep(self._bytes)
        )

    def _drop(self) -> None:
        entry = self._frames.popleft()
        entry.here = False
        self._hold(self._bytes - _size(entry))

    def _hold(self, size: int) -> None:
        self._budget.change(self._bytes, size)
        self._bytes = size


def shared() -> MemoryBudget:
    """Return the budget that all buffers share."""
    return MemoryBudget(MAX_SHARED)


def _size(entry: ReplayFrame) -> int:
    return len(entry.frame) + OVERHEAD if entry.settled and entry.frame else 0
