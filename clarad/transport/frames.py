"""Finds where the frames of a WebSocket client begin and end, and counts them. No I/O.

trio-websocket bounds the characters of a message, but an empty frame costs as much as a full one.
So the stream below trio-websocket counts frames, too, and passes on a few at a time. This parses
only their heads (RFC 6455, section 5.2); wsproto decides whether they are valid.
"""

from typing import Final

FEW_FRAGMENTS: Final = 64
"""Frames that a message may have, whatever its length."""

FRAGMENT_SIZE: Final = 1024
"""Bytes of a message that allow it one more frame."""

CONTROL_INTERVAL: Final = 0.1
"""Seconds between two control frames, on average."""

MAX_CONTROL: Final = 64
"""Control frames that may come at once (the burst)."""

_CONTROL: Final = 0x08
_FINAL: Final = 0x80
_MASKED: Final = 0x80
_WHOLE_TEXT: Final = _FINAL | 0x01
_LENGTH_FIELDS: Final = {126: 2, 127: 8}


class Frames:
    """Follows the frames of one connection, however their bytes are split."""

    def __init__(self) -> None:
        self.count = 0
        """Frames whose head has been read."""
        self.received = 0
        """Bytes of messages; the caller resets it."""
        self._left = 0
        self._head = b""
        self._is_control = False
        self._controls = 0
        self._control_due = 0.0
        self._fragments = 0
        self._size = 0
        self._is_final = True

    def advance(self, data: bytes | bytearray, begin: int, most: int) -> int:
        """Parse `data` from `begin` on, until `most` frames have begun; return where to go on.

        That is the end of a frame, or the end of the data.
        """
        at, end = begin, len(data)
        if end - at > 8 and data[at] == _WHOLE_TEXT and not (self._left or self._head):
            # The fast path: nearly every read is one whole message.
            length, head = data[at + 1] - _MASKED, 6
            if length == 126:
                length, head = data[at + 2] << 8 | data[at + 3], 8
            if length != 127 and at + head + length == end and self._is_final:
                self.count += 1
                self.received += length
                return end
        # Skip what is left of the payload, which may be nothing; then parse the next head. Both may
        # be split anywhere: `_left` and `_head` carry on with the next read.
        while True:
            here = min(self._left, end - at)
            at += here
            self._left -= here
            if not self._is_control:
                self.received += here
                self._size += here
            if at == end or not most:
                return at
            most -= 1
            at = self._begin(data, at)

    def _begin(self, data: bytes | bytearray, at: int) -> int:
        """Parse the head of a frame; return where its payload begins, or the end of the data."""
        # A head has up to 14 bytes, of which `known` came with earlier reads. Its length is known
        # once its second byte has come.
        known = len(self._head)
        head = self._head + data[at : at + 14 - known]
        if len(head) < 2:
            self._head = bytes(head)
            return len(data)
        length = head[1] & 0x7F
        field = _LENGTH_FIELDS.get(length, 0)
        size = 2 + field + (4 if head[1] & _MASKED else 0)
        if len(head) < size:
            self._head = bytes(head)
            return len(data)
        self._head = b""
        self._left = int.from_bytes(head[2 : 2 + field], "big") if field else length
        self.count += 1
        self._is_control = bool(head[0] & _CONTROL)
        if self._is_control:
            self._controls += 1
        else:
            if self._is_final:
                self._fragments = self._size = 0
            self._is_final = bool(head[0] & _FINAL)
            self._fragments += 1
        return at + size - known

    def find_excess(self, now: float) -> str | None:
        """Return a description of what there is too much of: fragments or control frames."""
        if self._fragments > FEW_FRAGMENTS + self._size // FRAGMENT_SIZE:
            return "a message in too many fragments"
        # Control frames fill a leaky bucket, which one frame leaves every CONTROL_INTERVAL.
        if self._controls:
            self._control_due = max(self._control_due, now) + self._controls * CONTROL_INTERVAL
            self._controls = 0
            if self._control_due > now + MAX_CONTROL * CONTROL_INTERVAL:
                return "too many pings or pongs"
        return None
