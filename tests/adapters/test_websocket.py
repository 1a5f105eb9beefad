"""The connection of an adapter, against a gateway that says only what a test has it say."""

from functools import partial

import anyio
import anyio.abc
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Request

from clarad.adapters import websocket


async def close_at_once(stream: anyio.abc.SocketStream) -> None:
    """Shake hands, close with 1001, and read on."""
    async with stream:
        gateway = WSConnection(ConnectionType.SERVER)
        while not any(isinstance(event, Request) for event in gateway.events()):
            gateway.receive_data(await stream.receive())
        said = gateway.send(AcceptConnection()) + gateway.send(CloseConnection(1001, "stopping"))
        await stream.send(said)
        async for _ in stream:
            pass


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_what_is_written_after_the_gateway_has_closed_says_that_it_is_lost(backend: str) -> None:
    async def scenario() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, close_at_once)
            here, stream = await websocket.connect(f"ws://127.0.0.1:{port}", timeout=30)
            async with stream:
                with pytest.raises(websocket.Lost, match="stopping") as lost:
                    await here.receive()
                assert lost.value.code == 1001
                # The writer may come to this before the reader has had it stopped.
                for write in (partial(here.send, "{}"), here.ping, here.close):
                    with pytest.raises(websocket.Lost, match="lost"):
                        await write()
            tasks.cancel_scope.cancel()

    anyio.run(scenario, backend=backend)
