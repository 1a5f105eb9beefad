"""A proxy that cuts connections: under Trio and under asyncio."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import ByteStream, SocketStream

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Proxy:
    """Forwards to a port of this machine. Each connection is cut after so many bytes."""

    def __init__(self, port: int, cuts: Iterable[int]) -> None:
        """`cuts` are bytes, both ways together; when they have run out, nothing is cut."""
        self._port = port
        self._cuts: Iterator[int] = iter(cuts)
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def serve(self, client: SocketStream) -> None:
        """Forward until it is time to cut, or either side has closed."""
        self.connections += 1
        left = [next(self._cuts, 2**62)]
        async with client:
            try:
                server = await anyio.connect_tcp("127.0.0.1", self._port)
            except OSError:
                return
            async with server, anyio.create_task_group() as tasks:

                async def forward(source: ByteStream, sink: ByteStream) -> None:
                    with suppress(*GONE):
                        while left[0] > 0:
                            data = await source.receive()
                            part = data[: left[0]]
                            left[0] -= len(part)
                            await sink.send(part)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(forward, client, server)
                tasks.start_soon(forward, server, client)


@asynccontextmanager
async def cutting_proxy(port: int, cuts: Iterable[int] = ()) -> AsyncIterator[Proxy]:
    """Serve for the length of the block."""
    proxy = Proxy(port, cuts)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        proxy.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()
