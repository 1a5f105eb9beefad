"""The adapters' end of a connection, against a gateway that does what it is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketStream
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection

from clarad.adapters.websocket import Lost, WebSocket, connect
from clarad.protocol import CloseCode

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
