"""A WebSocket peer that does only what it is told: no pong, no close, no reading by itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    Request,
    TextMessage,
)

E = TypeVar("E", bound=Event)


class RawPeer:
    """The sending and the receiving side, each driven by the test."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._websocket = WSConnection(ConnectionType.CLIENT)

    @classmethod
    @asynccontextmanager
    async def connected(cls, host: str, port: int) -> AsyncIterator["RawPeer"]:
        async with await trio.open_tcp_stream(host, port) as stream:
            peer = cls(stream)
            await peer.shake_hands()
            yield peer

    async def shake_hands(self) -> None:
        await self.stream.send_all(self._websocket.send(Request(host="x", target="/")))
        await self._next(AcceptConnection)

    async def send_text(self, *texts: str) -> None:
        """Send frames, all in one write."""
        encoded = b"".join(self._websocket.send(TextMessage(text)) for text in texts)
        await self.stream.send_all(encoded)

    async def receive_text(self) -> str:
        return str((await self._next(TextMessage)).data)

    async def wait_for_ping(self) -> None:
        await self._next(Ping)

    async def close_code(self) -> int | None:
        """Return the close code, `None` if the connection was cut without one."""
        try:
            return int((await self._next(CloseConnection)).code)
        except (trio.BrokenResourceError, EOFError):
            return None

    async def rest(self) -> tuple[list[str], int]:
        """Read to the end; return the text messages that came whole, and the close code."""
        texts, parts = list[str](), list[str]()
        while True:
            for event in self._websocket.events():
                if isinstance(event, CloseConnection):
                    await self.stream.send_all(self._websocket.send(event.response()))
                    return texts, int(event.code)
                if isinstance(event, TextMessage):
                    parts.append(event.data)
                    if event.message_finished:
                        texts.append("".join(parts))
                        parts.clear()
            with trio.fail_after(30):
                self._websocket.receive_data(await self.stream.receive_some(65536))

    async def _next(self, kind: type[E]) -> E:
        """Read until an event of this kind; the ones before it are dropped."""
        with trio.fail_after(30):
            while True:
                for event in self._websocket.events():
                    if isinstance(event, kind):
                        return event
                data = await self.stream.receive_some(65536)
                if not data:
                    raise EOFError
                self._websocket.receive_data(data)
