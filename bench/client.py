"""The adapter's side of a connection, as thin as it can be."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import msgspec
import trio
from trio_websocket import WebSocketConnection, connect_websocket

from bench import wire

HOST = "127.0.0.1"
PLATFORM = "bench"
_CLOSE_SECONDS = 5

_decode = msgspec.json.Decoder(wire.Received).decode
_encode = msgspec.json.Encoder().encode


async def send(connection: WebSocketConnection, frame: msgspec.Struct) -> None:
    """Send one frame."""
    await connection.send_message(_encode(frame).decode())


async def receive(connection: WebSocketConnection) -> wire.Received:
    """Wait for the next frame."""
    return _decode(await connection.get_message())


def message(request_id: str, channel: str, content: str) -> wire.Message:
    """A message of the one user that all measurements share."""
    return wire.Message(
        id=request_id,
        user=wire.User(id="bench-1", platform_id="1", name="bench"),
        channel=wire.Channel(id=channel),
        content=content,
    )


def _any() -> ssl.SSLContext:
    """Trust whatever certificate is shown: it is this machine's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def registered(
    port: int, count: int, secret: str = "", *, tls: bool = False
) -> AsyncIterator[list[WebSocketConnection]]:
    """Open `count` connections to `port`, each registered as a node of its own; close them after.

    They are opened one after another, so that no listen queue overflows.
    """
    async with trio.open_nursery() as nursery:
        connections = [await _register(nursery, port, secret, tls=tls) for _ in range(count)]
        yield connections
        async with trio.open_nursery() as closing:
            for connection in connections:
                closing.start_soon(_close, connection)
        nursery.cancel_scope.cancel(reason="every connection is closed")


async def _close(connection: WebSocketConnection) -> None:
    with trio.move_on_after(_CLOSE_SECONDS):
        await connection.aclose()


async def _register(
    nursery: trio.Nursery, port: int, secret: str, *, tls: bool
) -> WebSocketConnection:
    connection = await connect_websocket(nursery, HOST, port, "/", use_ssl=_any() if tls else False)
    await send(connection, wire.Register(uuid4().hex, PLATFORM, ["streaming"], secret=secret))
    frame = await receive(connection)
    if frame.type != "registered":
        raise wire.UnexpectedFrameError(frame)
    return connection
