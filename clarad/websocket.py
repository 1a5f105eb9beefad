"""The stream between trio-websocket and a socket, and the way around for frames that are ready.

trio-websocket's `send_message` costs a lock, a pass through the scheduler and a system call each;
three frames that are ready together can do with one of each. So the connection's writer encodes
them itself and writes them here, under a lock that trio-websocket's own frames (pong, close) also
pass through: `ClientStream` is its stream.
"""

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import trio
from trio_websocket import WebSocketConnection

from clarad.pool import Pool

_READ_SIZE: Final = 64 * 1024

MAX_RECEIVED: Final = 128 * 1024 * 1024
"""Bytes of messages that are not whole yet, of all connections; `clarad.pool` says who has what."""

OWN_BYTES: Final = 64 * 1024
"""Bytes beside those that every connection may have sent of one."""

_FINAL_TEXT: Final = 0x81
_SHORT: Final = struct.Struct("!BB")
_MEDIUM: Final = struct.Struct("!BBH")
_LONG: Final = struct.Struct("!BBQ")

Transport = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class ClientStream(trio.abc.Stream):
    """One client's byte stream; several tasks may write, a write is never torn apart by another.

    `address` is the peer's, for the log and for the door. `ended` is set when nothing more can
    come: trio-websocket alone would let a handshake wait for ever on a connection that is gone.
    """

    def __init__(self, stream: Transport, address: str) -> None:
        self.address = address
        self._stream = stream
        self._lock = trio.Lock()
        self._torn = False
        self._closed = False
        self._room: Pool | None = None
        self._received = 0
        self._too_much: Callable[[], None] | None = None
        self.ended = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything.

        If this is cancelled half way nothing can be written any more: every later write raises
        `BrokenResourceError`, since a frame without its end would corrupt all that follows.
        """
        try:
            self._lock.acquire_nowait()  # `acquire` would go through the scheduler each time
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self._torn:
                raise trio.BrokenResourceError("an earlier write was cancelled half way")
            self._torn = True
            await self._stream.send_all(data)
            self._torn = False
        finally:
            self._lock.release()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room in the socket's buffer."""
        await self._stream.wait_send_all_might_not_block()

    def count(self, room: Pool, too_much: Callable[[], None]) -> None:
        """Count what comes from here on. When there is no room, drop it, and call `too_much`."""
        self._room, self._too_much = room, too_much

    def forget_received(self) -> None:
        """Count anew: the message has come whole, or nobody waits for it."""
        if self._room is not None:
            self._room.change(self._received, 0)
            self._received = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read; sets `ended` at the end of the stream."""
        data = await self._receive(max_bytes)
        while data and not self._has_room(len(data)):
            data = await self._receive(max_bytes)
        return data

    def _has_room(self, size: int) -> bool:
        if self._room is None:
            return True
        if self._too_much is None:
            return False
        if not self._room.fits(self._received, self._received + size):
            self._too_much()
            self._too_much = None
            return False
        self._room.change(self._received, self._received + size)
        self._received += size
        return True

    async def _receive(self, max_bytes: int | None) -> bytes | bytearray:
        if self._closed:
            raise trio.ClosedResourceError
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise
        if not data:
            self.ended.set()
        return data

    async def aclose(self) -> None:
        """Say that nothing more will be written. The socket itself is closed by `hang_up`.

        trio-websocket calls this as soon as it has written its last word; closing the socket while
        there is unread data would reset it, and the peer could lose that word.
        """
        first, self._closed = not self._closed, True
        self.ended.set()
        if first and not self._lock.locked():
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                # A TLS connection that is half closed is none that clients expect.
                if isinstance(self._stream, trio.SocketStream):
                    await self._stream.send_eof()
        await trio.lowlevel.checkpoint()

    async def hang_up(self, patience: float) -> None:
        """Read what comes until the peer has closed, for `patience` seconds, then close the socket.

        So the peer can read why it was closed (RFC 9112, section 9.6). Cancelling closes at once.
        """
        try:
            await self.aclose()
            with (
                trio.move_on_after(patience),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                while await self._stream.receive_some(_READ_SIZE):
                    pass
        finally:
            await trio.aclose_forcefully(self._stream)


def receiving() -> Pool:
    """Return the room that all connections share for what they have received in part."""
    return Pool(MAX_RECEIVED, OWN_BYTES)


class FrameWriter:
    """Writes text frames to a connection, all that are ready in one go."""

    def __init__(self, websocket: WebSocketConnection, stream: ClientStream) -> None:
        self._websocket = websocket
        self._stream = stream

    async def write(self, frames: Iterable[bytes]) -> bool:
        """Write frames; `False` if the connection is closed or closing, and they are not written.

        Cancelling this half way makes the connection unusable; see `ClientStream.send_all`.
        """
        if self._websocket.closed is not None:
            return False
        try:
            await self._stream.send_all(b"".join(map(text_frame, frames)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True


def text_frame(payload: bytes) -> bytes:
    """Return a whole text message of a server: one frame, final, not masked (RFC 6455, 5.2)."""
    length = len(payload)
    if length < 126:
        return _SHORT.pack(_FINAL_TEXT, length) + payload
    if length < 1 << 16:
        return _MEDIUM.pack(_FINAL_TEXT, 126, length) + payload
    return _LONG.pack(_FINAL_TEXT, 127, length) + payload
