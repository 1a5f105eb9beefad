"""The sending side of a WebSocket connection: what is queued for it, and how it is closed."""

from collections.abc import Callable
from typing import Final

import trio
from trio_websocket import WebSocketConnection

from clarad.limits.memory import MemoryBudget
from clarad.protocol import CloseCode
from clarad.transport.outbox import Outbox, Overflow
from clarad.transport.stream import ClientStream, FrameWriter

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that a close may take: what is queued is written, then the peer answers the close."""

_ABNORMAL: Final = 1006  # RFC 6455, section 7.4.1: never sent, it stands for "no close frame"


class Sender:
    """Owns a connection's sending side; `limit` is to be around everything of the connection."""

    def __init__(
        self, websocket: WebSocketConnection, stream: ClientStream, outboxes: MemoryBudget
    ) -> None:
        """`outboxes` is the room that all connections' outboxes share."""
        self._websocket = websocket
        self._frames = FrameWriter(websocket, stream)
        self._outbox = Outbox(outboxes)
        self.limit = trio.CancelScope()
        self.closing: tuple[CloseCode, str] | None = None

    def send(self, frame: bytes) -> None:
        """Queue a frame; if the peer does not keep up the connection ends with 4008.

        What is queued is then dropped: it is soon free, and the peer soon reads why.
        """
        try:
            self._outbox.put(frame)
        except Overflow:
            self._outbox.clear()
            self.end(CloseCode.TOO_SLOW, "the peer reads too slowly")

    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` once all that is queued is written; never, if the connection is lost."""
        self._outbox.when_written(then)

    def replace(self) -> None:
        """Close with 4000, and drop what is queued."""
        self._outbox.clear()
        self.end(CloseCode.REPLACED, "the node registered on another connection")

    def end(self, code: CloseCode, reason: str) -> None:
        """Close, after writing what is queued, within `CLOSE_TIMEOUT`. The first call counts."""
        if self.closing is None:
            self.closing = (code, reason)
            self.limit.deadline = trio.current_time() + CLOSE_TIMEOUT
            self._outbox.close()

    def give_up(self) -> None:
        """Take no more frames, and hold none: the connection is over."""
        self._outbox.discard()

    @property
    def said_goodbye(self) -> bool:
        """Whether the closing handshake was held, as far as trio-websocket lets us know."""
        closed = self._websocket.closed
        return closed is not None and closed.code not in (_ABNORMAL, CloseCode.TOO_LARGE)

    async def write(self, whole: trio.CancelScope) -> None:
        """Write frames as they come, and the close frame last; then cancel `whole`."""
        while (batch := await self._outbox.take()).frames:
            if not await self._frames.write(batch.frames):
                break
            for written in batch.when_written:
                written()
        else:
            assert self.closing is not None
            code, reason = self.closing
            await self._websocket.aclose(code, reason)
        whole.cancel("the connection is closed")
