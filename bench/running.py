"""Messages that run until they are cancelled, and when the gateway said so."""

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import trio
from trio_websocket import WebSocketConnection

from bench import client, wire


class Running:
    """One message, from sending it until it is cancelled."""

    def __init__(self, connection: WebSocketConnection, channel: str) -> None:
        """Not yet sent."""
        self.request_id = uuid4().hex
        self.channel = channel
        self.connection = connection
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.cancelled_at = 0.0

    def take(self, frame: wire.Received, at: float) -> None:
        """Note what a frame about this message says that came when the clock was `at` seconds."""
        if frame.type == "response_start":
            self.started.set()
        elif frame.type == "cancelled":
            self.cancelled_at = at
            self.cancelled.set()
        elif frame.type in ("response_end", "error"):
            raise wire.UnexpectedFrameError(frame)


class Messages:
    """The messages that run, each in a channel of its own, oldest first."""

    def __init__(self, connections: list[WebSocketConnection]) -> None:
        """No message runs on the connections yet."""
        self._connections = connections
        self._by_id: dict[str, Running] = {}
        self._running: deque[Running] = deque()

    async def start_all(self, count: int) -> None:
        """Start `count` messages, spread over the connections, and wait until they run."""
        for n in range(count):
            await self._start(self._connections[n % len(self._connections)], f"channel-{n}")
        for message in self._running:
            await message.started.wait()

    async def replace(self, old: Running) -> None:
        """Start a message where a cancelled one was, and wait until it runs."""
        new = await self._start(old.connection, old.channel)
        await new.started.wait()

    async def cancel_oldest(self) -> Running:
        """Ask for the end of the message that has run longest, and return it."""
        oldest = self._running.popleft()
        await client.send(oldest.connection, wire.Cancel(oldest.request_id))
        return oldest

    async def cancel_all(self) -> list[Running]:
        """Ask for the end of all messages, and return them."""
        return [await self.cancel_oldest() for _ in range(len(self._running))]

    async def listen(self, connection: WebSocketConnection) -> None:
        """Hand every frame of the connection to its message."""
        while True:
            frame = await client.receive(connection)
            at = time.perf_counter()
            if frame.request_id in self._by_id:
                self._by_id[frame.request_id].take(frame, at)
            elif frame.type == "error":
                raise wire.UnexpectedFrameError(frame)

    async def _start(self, connection: WebSocketConnection, channel: str) -> Running:
        message = Running(connection, channel)
        self._by_id[message.request_id] = message
        self._running.append(message)
        await client.send(connection, client.message(message.request_id, channel, "run"))
        return message


@asynccontextmanager
async def listening(connections: list[WebSocketConnection]) -> AsyncIterator[Messages]:
    """Messages on the connections, all of which are read for as long as this is open."""
    messages = Messages(connections)
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(messages.listen, connection)
        yield messages
        nursery.cancel_scope.cancel(reason="measured")
