"""The numbered frames that a node may ask for again. No I/O.

Every frame of a `resume` node has a `seq`, and they are sent in its order. A terminal frame is sent
only once it is in the store, and its number is stored with it: so it has its place in the order
before it may be sent, and what comes after it waits. (Rejected: a number at the time of sending.
The store would not know it, and after a kill the node would get the frame again under another.)

Only the last of them are here. Of what is older, terminal frames are in the store, and the others
are gone.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from clarad.limits.memory import MemoryBudget
from clarad.protocol import numbered
from clarad.store import MessageKey

MAX_FRAMES: Final = 1000
MAX_BYTES: Final = 4 * 1024 * 1024
"""Frames and bytes that are kept for one node; what its connection has not been given is not
counted."""

MAX_SHARED: Final = 128 * 1024 * 1024
"""Bytes that are kept for all nodes together; `clarad.limits.memory` says how they share them."""

OVERHEAD: Final = 256
"""Bytes that a frame costs beside its own."""


class ReplayFrame:
    """A frame, or the place of one that is not in the store yet."""

    __slots__ = ("frame", "here", "key", "seq", "settled")

    def __init__(self, seq: int, key: MessageKey | None) -> None:
        self.seq = seq
        self.key = key
        """The message that it ends, if it is a terminal frame."""
        self.frame = b""
        """Empty if there is none after all."""
        self.settled = False
        self.here = True
        """Whether the window still has it."""


class ReplayBuffer:
    """The last frames of one node, from the oldest that is still here."""

    def __init__(self, budget: MemoryBudget, last: int = 0) -> None:
        """`budget` is shared by all nodes; `last` is the highest number that may be in use."""
        self._budget = budget
        self.last = last
        self.first = last + 1
        """Of all below this only the store knows."""
        self._frames: deque[ReplayFrame] = deque()
        self._bytes = 0

    def restart(self, last: int) -> None:
        """Keep nothing, and number what comes from after `last` on."""
        self.forget(self.last)
        self.last = last
        self.first = last + 1

    def reserve(self, key: MessageKey | None) -> ReplayFrame:
        """Give the next number to a frame that is still to come."""
        self.last += 1
        entry = ReplayFrame(self.last, key)
        self._frames.append(entry)
        return entry

    def fill(self, entry: ReplayFrame, frame: bytes) -> None:
        """Put a frame into its place."""
        entry.frame = numbered(frame, entry.seq)
        entry.settled = True
        if entry.here:
            self._hold(self._bytes + _size(entry))

    def withdraw(self, entry: ReplayFrame) -> None:
        """Leave a place empty: its number is never used."""
        entry.settled = True

    def after(self, seq: int) -> Iterator[ReplayFrame]:
        """Return what is above this number, the oldest first."""
        return (entry for entry in self._frames if entry.seq > seq)

    def forget(self, seq: int) -> None:
        """Drop what is up to this number."""
        while self._frames and self._frames[0].seq <= seq:
            self._drop()
        self.first = max(self.first, min(seq, self.last) + 1)

    def trim(self, sent: int) -> None:
        """Drop the oldest frames up to this number until the window has its size again."""
        while self._is_too_large() and self._frames and self._frames[0].seq <= sent:
            self.first = self._frames[0].seq + 1
            self._drop()

    def keep_terminal(self) -> None:
        """Drop all but terminal frames: the rest means nothing to a session that is new."""
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
    """Return the room that the windows of all nodes are to share."""
    return MemoryBudget(MAX_SHARED)


def _size(entry: ReplayFrame) -> int:
    return len(entry.frame) + OVERHEAD if entry.settled and entry.frame else 0
