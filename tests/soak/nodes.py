"""Adapters with users: some resume, some are plain ones that only send again what has not ended."""

from contextlib import suppress
from typing import Final

import anyio
import msgspec
import trio

from clarad import protocol
from clarad.adapters import Adapter, Answer, Outcome, open_adapter
from clarad.adapters.adapter import CONNECT_TIMEOUT
from clarad.adapters.websocket import Lost, WebSocket, connect
from tests.soak.ledger import Asked, is_refusal
from tests.soak.line import Line
from tests.soak.users import CHANNELS, PLATFORM, Users, frame_of

MOST: Final = 10_000
"""Frames that wait to be written on one connection."""


class Resuming:
    """A node as `clarad.adapters` makes it."""

    def __init__(self, users: Users, line: Line) -> None:
        self._users = users
        self._line = line
        self._adapter: Adapter | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Live until the users have had enough."""
        async with (
            open_adapter(
                self._line.url,
                node_id=self._users.name,
                platform=PLATFORM,
                on_stray=self._users.on_stray,
            ) as self._adapter,
            trio.open_nursery() as self._nursery,
        ):
            for channel in range(CHANNELS):
                self._nursery.start_soon(self._users.write, channel, self)

    def ask(self, message: Asked) -> None:
        assert self._nursery is not None
        assert self._adapter is not None
        # At once, so that the order of a burst is that of its channel.
        answer = self._adapter.ask(frame_of(message))
        self._nursery.start_soon(self._await, message, answer)

    def cancel(self, message: Asked) -> None:
        assert self._adapter is not None
        self._adapter.cancel(message.id, "changed their mind")

    async def _await(self, message: Asked, answer: Answer) -> None:
        assert self._adapter is not None
        message.end(await follow(self._adapter, message, answer))


async def follow(adapter: Adapter, message: Asked, answer: Answer) -> Outcome:
    """Wait for the outcome; what is refused is asked again. Under Trio and under asyncio."""
    while is_refusal(outcome := await answer.outcome()):
        message.refusals += 1
        await anyio.sleep(0.5)
        answer = adapter.ask(frame_of(message))
    return outcome


class Plain:
    """A node without `resume`, which sends what has not ended on each new connection, and at times
    twice: it may be told an end once on each, and always the same one.
    """

    def __init__(self, users: Users, line: Line) -> None:
        self._users = users
        self._line = line
        self._waiting: dict[str, Asked] = {}
        self._nursery: trio.Nursery | None = None
        self._outgoing, unconnected = trio.open_memory_channel[protocol.Inbound](MOST)
        unconnected.close()
        self._ends: dict[str, Outcome] = {}

    async def run(self) -> None:
        """Live until the users have had enough."""
        async with trio.open_nursery() as self._nursery:
            async with trio.open_nursery() as writing:
                self._nursery.start_soon(self._keep_connected)
                for channel in range(CHANNELS):
                    writing.start_soon(self._users.write, channel, self)
            self._nursery.cancel_scope.cancel("enough")

    def ask(self, message: Asked) -> None:
        self._waiting[message.id] = message
        twice = self._users.chance.random() < 0.1
        self._users.ledger.sent_twice += twice
        for _ in range(1 + twice):
            self._send(frame_of(message))

    def cancel(self, message: Asked) -> None:
        if message.id in self._waiting:
            self._send(protocol.Cancel(request_id=message.id))

    async def _keep_connected(self) -> None:
        while True:
            try:
                websocket, stream = await connect(self._line.url, CONNECT_TIMEOUT)
                async with stream, trio.open_nursery() as nursery:
                    await self._talk(nursery, websocket)
            except* Lost:
                pass
            await trio.sleep(self._users.chance.uniform(0.05, 0.3))

    async def _talk(self, nursery: trio.Nursery, websocket: WebSocket) -> None:
        register = protocol.Register(
            node_id=self._users.name, platform=PLATFORM, capabilities=["accepted"]
        )
        await websocket.send(protocol.encode(register).decode())
        await websocket.receive()
        self._outgoing, frames = trio.open_memory_channel[protocol.Inbound](MOST)
        nursery.start_soon(self._write, websocket, frames)
        for message in self._waiting.values():
            self._send(frame_of(message))
        ended: set[str] = set()
        while True:
            try:
                frame = protocol.decode_outbound(await websocket.receive())
            except msgspec.ValidationError:
                continue
            self._take(frame, ended)

    async def _write(
        self, websocket: WebSocket, frames: "trio.MemoryReceiveChannel[protocol.Inbound]"
    ) -> None:
        with frames, suppress(Lost):
            async for frame in frames:
                await websocket.send(protocol.encode(frame).decode())

    def _send(self, frame: protocol.Inbound) -> None:
        with suppress(trio.BrokenResourceError):  # no connection: it is sent on the next
            self._outgoing.send_nowait(frame)

    def _take(self, frame: protocol.Outbound, ended: set[str]) -> None:
        if not isinstance(frame, Outcome) or not isinstance(frame.request_id, str):
            return
        message = self._users.ledger.asked[frame.request_id]
        if isinstance(frame, protocol.Error) and frame.code is protocol.ErrorCode.NOT_FOUND:
            return
        if is_refusal(frame):
            message.refusals += 1
            assert self._nursery is not None
            self._nursery.start_soon(self._send_later, message)
            return
        if message.id in ended:
            message.outcomes.append(frame)  # twice on one connection: the ledger complains
        ended.add(message.id)
        if self._ends.setdefault(message.id, frame) != frame:
            text = f"{message.id} ended twice, and differently: {self._ends[message.id]}, {frame}"
            self._users.ledger.broken.append(text)
        if self._waiting.pop(message.id, None) is not None:
            message.end(frame)

    async def _send_later(self, message: Asked) -> None:
        await trio.sleep(0.5)
        if message.id in self._waiting:
            self._send(frame_of(message))
