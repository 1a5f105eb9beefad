"""The two ways to an agent's standard input and output, each as one stream of bytes.

The engines' SDKs hand out blocking sockets for these, pylxd through a WebSocket client that polls,
docker through a buffered reader that can swallow what follows the HTTP response. So the connection
is made here, on Trio: no thread waits for output, and a kill waits for no thread.
"""

import errno
import socket
import ssl
import struct
from typing import Final

import h11
import trio
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, ProtocolError

_CHUNK: Final = 64 << 10
_ATTACH_HEADER: Final = struct.Struct(">BxxxL")


class Broken(trio.BrokenResourceError):
    """The connection ended where it must not, or the peer said something else than expected."""


def answers(path: str) -> bool:
    """Whether somebody listens at a Unix socket. Does not block.

    Asked before an SDK is: both leave a socket to the garbage collector that does not connect.
    """
    with socket.socket(socket.AF_UNIX) as unix:
        unix.setblocking(False)
        return unix.connect_ex(path) in (0, errno.EAGAIN)


async def connect(address: str | tuple[str, int], tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """Connect to a Unix socket's path, or to a host and port.

    Raises:
        OSError: nobody answers.
    """
    if isinstance(address, str):
        return await trio.open_unix_socket(address)
    stream = await trio.open_tcp_stream(*address)
    if tls is None:
        return stream
    return trio.SSLStream(stream, tls, server_hostname=address[0], https_compatible=True)


class AttachStream(trio.abc.Stream):
    """Docker's attach: raw bytes to standard input, labelled pieces of standard output back."""

    def __init__(self, stream: trio.abc.Stream, received: bytes) -> None:
        """`received` came behind the HTTP response."""
        self._stream = stream
        self._received = bytearray(received)
        self._left = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write to standard input."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read from standard output; b"" at its end."""
        while True:
            if self._left == 0 and len(self._received) >= _ATTACH_HEADER.size:
                _, self._left = _ATTACH_HEADER.unpack_from(self._received)
                del self._received[: _ATTACH_HEADER.size]
            elif self._left and self._received:
                piece = bytes(self._received[: self._left])
                del self._received[: self._left]
                self._left -= len(piece)
                return piece
            else:
                data = await self._stream.receive_some(_CHUNK)
                if not data:
                    return b""
                self._received += data

    async def aclose(self) -> None:
        """Close the connection: standard input ends."""
        await self._stream.aclose()


async def attach(stream: trio.abc.Stream, target: str) -> AttachStream:
    """Turn an HTTP connection to Docker into one to a container's standard streams.

    Raises:
        Broken: Docker did not agree to it; the connection is closed then.
    """
    try:
        return await _upgrade(stream, target)
    except h11.ProtocolError as error:
        await trio.aclose_forcefully(stream)
        raise Broken(f"Docker does not answer in HTTP: {error}") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _upgrade(stream: trio.abc.Stream, target: str) -> AttachStream:
    connection = h11.Connection(h11.CLIENT)
    headers = [
        ("Host", "docker"), ("Upgrade", "tcp"), ("Connection", "Upgrade"), ("Content-Length", "0")
    ]  # fmt: skip
    request = h11.Request(method="POST", target=target, headers=headers)
    await stream.send_all(connection.send(request) or b"")
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_CHUNK)))
        elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            return AttachStream(stream, connection.trailing_data[0])
        else:
            raise Broken(f"Docker answered {event!r} to an attach")


class WebSocket:
    """A WebSocket client's connection, as much of it as Incus needs: binary messages both ways."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._is_open = False
        self._has_ended = False
        self._sending = trio.Lock()

    async def open(self, target: str) -> None:
        """Shake hands.

        Raises:
            Broken: Incus refused.
        """
        await self._send(Request(host="incus", target=target))
        while not self._is_open:
            if await self.receive() is None:
                raise Broken("Incus hung up during a handshake")

    async def send(self, data: bytes) -> None:
        """Send one binary message."""
        await self._send(BytesMessage(data=data))

    async def _send(self, event: Event) -> None:
        async with self._sending:  # a pong must not land in the middle
            try:
                encoded = self._protocol.send(event)
            except LocalProtocolError as error:
                raise Broken(f"Incus has closed the connection: {error}") from error
            await self._stream.send_all(encoded)

    async def receive(self) -> bytes | None:
        """Return what has come; None when nothing more comes. Empty if it was not data.

        Incus ends a stream with an empty text message.
        """
        if self._has_ended:
            return None
        data = await self._stream.receive_some(_CHUNK)
        self._has_ended = not data
        try:
            self._protocol.receive_data(bytes(data) or None)
        except ProtocolError as error:
            raise Broken(f"Incus does not speak WebSocket: {error}") from error
        pieces: list[bytes] = []
        for event in self._protocol.events():
            match event:
                case BytesMessage():
                    pieces.append(bytes(event.data))
                case AcceptConnection():
                    self._is_open = True
                case Ping():
                    await self._send(event.response())
                case RejectConnection():
                    raise Broken(f"Incus refused a connection with {event.status_code}")
                case TextMessage() | CloseConnection():
                    self._has_ended = True
                case _:
                    pass
        return b"".join(pieces) or (None if self._has_ended else b"")

    async def aclose(self) -> None:
        """Hang up."""
        await trio.aclose_forcefully(self._stream)


class ExecStream(trio.abc.Stream):
    """Incus's exec: a WebSocket to standard input, another from standard output, and two more.

    All four have to be connected for the process to start; Incus kills it when "control" closes.
    """

    def __init__(self, sockets: dict[str, WebSocket]) -> None:
        self._sockets = sockets

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write to standard input."""
        await self._sockets["0"].send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Do not wait: the one writer's `send_all` does."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read from standard output; b"" at its end."""
        while True:
            data = await self._sockets["1"].receive()
            if data is None:
                return b""
            if data:
                return data

    async def aclose(self) -> None:
        """Hang up, all four at once: standard input ends."""
        for one in self._sockets.values():
            with trio.CancelScope(shield=True):
                await one.aclose()
        await trio.lowlevel.checkpoint()
