"""Where the frames of a WebSocket client begin and end, and how many they are. No I/O.

trio-websocket bounds the characters of a message. A frame costs the same whether or not it carries
any, so the stream below trio-websocket counts frames too, and passes on a few at a time. Only heads
are looked at here (RFC 6455, section 5.2); whether they are valid is for wsproto to say.
"""

from typing import Final

FEW_FRAGMENTS: Final = 64
"""Frames that any message may consist of, whatever its length."""

FRAGMENT_SIZE: Final = 1024
"""Bytes of a message for each of which it may have one frame more."""

CONTROL_INTERVAL: Final = 0.1
"""Seconds between two control frames in the long run."""

MAX_CONTROL: Final = 64
"""Control frames that may come at once."""

_CONTROL: Final = 0x08
_FINAL: Final = 0x80
_MASKED: Final = 0x80
_WHOLE_TEXT: Final = _FINAL | 0x01
_LENGTH_FIELDS: Final = {126: 2, 127: 8}


class Frames:
    """Follows the frames of one connection, however their bytes are split."""

    def __init__(self) -> None:
        self.count = 0
        """Frames that have begun."""
        self.received = 0
        """Bytes of messages; it is the caller's to set back."""
        self._left = 0
        self._head = b""
        self._is_control = False
        self._controls = 0
        self._control_due = 0.0
        self._fragments = 0
        self._size = 0
        self._is_final = True

    def advance(self, data: bytes | bytearray, begin: int, most: int) -> int:
        """Follow `data` from `begin` on, through at most `most` frames; return where that ends.

        The end is that of a frame, or of the data.
        """
        at, end = begin, len(data)
        if end - at > 8 and data[at] == _WHOLE_TEXT and not (self._left or self._head):
            # Nearly every read is one whole message, which is worth a short way.
            length, head = data[at + 1] - _MASKED, 6
            if length == 126:
                length, head = data[at + 2] << 8 | data[at + 3], 8
            if length != 127 and at + head + length == end and self._is_final:
                self.count += 1
                self.received += length
                return end
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
        """Read the head of a frame; return where its payload begins, or the end of the data."""
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

    def find_too_many(self, now: float) -> str | None:
        """Say what there was too much of: fragments for the message's length, or control frames."""
        if self._fragments > FEW_FRAGMENTS + self._size // FRAGMENT_SIZE:
            return "a message in too many fragments"
        if self._controls:
            self._control_due = max(self._control_due, now) + self._controls * CONTROL_INTERVAL
            self._controls = 0
            if self._control_due > now + MAX_CONTROL * CONTROL_INTERVAL:
                return "too many pings or pongs"
        return None
