"""The sending side of a WebSocket connection: writes queued frames, and closes.

trio-websocket's `send_message` costs a lock, a pass through the scheduler and a system call for
each frame; three frames that are ready together need only one of each. So `Sender` encodes frames
itself, and writes them to trio-websocket's stream.
"""

import struct
from collections.abc import Callable
from typing import Final

import trio
from trio_websocket import WebSocketConnection

from clarad.limits.memory import MemoryBudget
from clarad.protocol import CloseCode
from clarad.transport.outbox import Outbox, Overflow
from clarad.transport.stream import ClientStream

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that a close may take: the queue is written, then the peer answers the close frame."""

_ABNORMAL: Final = 1006  # RFC 6455, section 7.4.1: never sent, it stands for "no close frame"
_FINAL_TEXT: Final = 0x81
_SHORT: Final = struct.Struct("!BB")
_MEDIUM: Final = struct.Struct("!BBH")
_LONG: Final = struct.Struct("!BBQ")


class Sender:
    """Owns a connection's sending side. `scope` has to be around everything of the connection."""

    def __init__(
        self, websocket: WebSocketConnection, stream: ClientStream, outboxes: MemoryBudget
    ) -> None:
        """`outboxes` is the budget that all connections' outboxes share."""
        self._websocket = websocket
        self._stream = stream
        self._outbox = Outbox(outboxes)
        self.scope = trio.CancelScope()
        self.closing: tuple[CloseCode, str] | None = None

    def send(self, frame: bytes) -> None:
        """Queue a frame. If the queue is full, drop it and close with 4008: the peer is too slow.

        Dropping frees the memory at once, and the peer reads soon why it was closed.
        """
        try:
            self._outbox.put(frame)
        except Overflow:
            self._outbox.clear()
            self.end(CloseCode.TOO_SLOW, "the peer reads too slowly")

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the queue is written; never, if the connection is lost before."""
        self._outbox.when_written(callback)

    def replace(self) -> None:
        """Close with 4000, and drop the queue."""
        self._outbox.clear()
        self.end(CloseCode.REPLACED, "the node registered on another connection")

    def end(self, code: CloseCode, reason: str) -> None:
        """Write the queue, then close, within `CLOSE_TIMEOUT`. Only the first call counts."""
        if self.closing is None:
            self.closing = (code, reason)
            self.scope.deadline = trio.current_time() + CLOSE_TIMEOUT
            self._outbox.close()

    def discard(self) -> None:
        """Free the queue, and accept no more frames: the connection is over."""
        self._outbox.discard()

    @property
    def closed_cleanly(self) -> bool:
        """Whether the closing handshake has been completed, as far as trio-websocket tells."""
        closed = self._websocket.closed
        return closed is not None and closed.code not in (_ABNORMAL, CloseCode.TOO_LARGE)

    async def run(self, connection: trio.CancelScope) -> None:
        """Write frames as they are queued, and the close frame last; then cancel `connection`.

        Cancelling this during a write makes the connection unusable; see `ClientStream.send_all`.
        """
        while (batch := await self._outbox.next_batch()).frames:
            if not await self._write(batch.frames):
                break
            for callback in batch.when_written:
                callback()
        else:
            assert self.closing is not None
            code, reason = self.closing
            await self._websocket.aclose(code, reason)
        connection.cancel("the connection is closed")

    async def _write(self, frames: list[bytes]) -> bool:
        """Write frames in one go; `False` if the connection is closed or closing."""
        if self._websocket.closed is not None:
            return False
        try:
            await self._stream.send_all(b"".join(map(text_frame, frames)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True


def text_frame(payload: bytes) -> bytes:
    """Return a server's text message in one frame, not masked (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return _SHORT.pack(_FINAL_TEXT, length) + payload
    if length < 1 << 16:
        return _MEDIUM.pack(_FINAL_TEXT, 126, length) + payload
    return _LONG.pack(_FINAL_TEXT, 127, length) + payload
