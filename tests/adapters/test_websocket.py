"""The adapters' end of a connection, against a gateway that does what it is told."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream, SocketStream
from anyio.streams.tls import TLSListener
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection

from clarad.adapters.websocket import Lost, WebSocket, connect
from clarad.protocol import CloseCode
from tests import certificates

pytestmark = pytest.mark.parametrize("backend", ["trio", "asyncio"])


@asynccontextmanager
async def closed_by_the_gateway() -> AsyncIterator[WebSocket]:
    """A connection that the gateway closes right after the handshake: another has replaced it."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            gateway = WSConnection(ConnectionType.SERVER)
            gateway.receive_data(await stream.receive())
            [_request] = gateway.events()
            await stream.send(gateway.send(AcceptConnection()))
            await stream.send(gateway.send(CloseConnection(CloseCode.REPLACED, "replaced")))
            async for _ in stream:
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        websocket, stream = await connect(f"ws://127.0.0.1:{port}", 10)
        async with stream:
            yield websocket
        tasks.cancel_scope.cancel()


def test_what_is_sent_when_the_gateway_has_closed_says_why_it_did(backend: str) -> None:
    async def scenario() -> None:
        with anyio.fail_after(30):
            async with closed_by_the_gateway() as websocket:
                with pytest.raises(Lost, match="replaced"):
                    await websocket.receive()
                for write in (websocket.ping(), websocket.send("too late"), websocket.close()):
                    with pytest.raises(Lost, match="replaced") as late:
                        await write
                    assert late.value.code == CloseCode.REPLACED

    anyio.run(scenario, backend=backend)


async def answer_http(stream: ByteStream) -> None:
    await stream.receive()
    await stream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n")


async def answer_alert(stream: ByteStream) -> None:
    """As a TLS server does whose client has not said hello: an alert, and the end."""
    await stream.receive()
    await stream.send(b"\x15\x03\x03\x00\x02\x02\x46")


async def wait_for_more(stream: ByteStream) -> None:
    while True:
        await stream.receive()


async def hang_up(_stream: ByteStream) -> None:
    pass


@pytest.mark.parametrize(
    ("scheme", "serve", "is_tls", "sentence"),
    [
        ("ws", hang_up, False, "lost, before it answered the handshake; .*use wss://"),
        ("ws", answer_alert, False, "before it answered the handshake; .*use wss://"),
        ("ws", answer_http, False, "refuses: no$"),
        ("wss", hang_up, False, "the TLS handshake with .* failed; .*use ws://"),
        ("wss", answer_http, False, "the TLS handshake with .* failed; .*use ws://.*VERSION"),
        ("wss", wait_for_more, False, "nobody answers .*use ws://"),
        ("ws", wait_for_more, False, r"nobody answers .*is the daemon running\? \(not in time"),
        ("wss", hang_up, True, "is not trusted: self-signed certificate; set SSL_CERT_FILE"),
    ],
)
def test_a_connection_that_fails_says_why_and_what_to_do(
    scheme: str,
    serve: Callable[[ByteStream], Awaitable[None]],
    is_tls: bool,
    sentence: str,
    backend: str,
    tmp_path: Path,
) -> None:
    async def serve_one(stream: ByteStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await serve(stream)

    async def scenario() -> None:
        tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = tcp.extra(anyio.abc.SocketAttribute.local_port)
        listener: anyio.abc.Listener[ByteStream] = tcp
        if is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificates.make(tmp_path))
            listener = TLSListener(tcp, context)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve_one)
            with pytest.raises(Lost, match=sentence):
                await connect(f"{scheme}://127.0.0.1:{port}", 1)
            tasks.cancel_scope.cancel()

    anyio.run(scenario, backend=backend)
