"""A connection to a gateway, for checks that send and expect single frames."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import anyio

from clarad.adapters.websocket import Lost, WebSocket, connect
from clarad.conformance.report import Broken

Frame = dict[str, Any]

TERMINAL: Final = ("response_end", "cancelled", "error")
PLATFORM: Final = "conformance"


def fresh() -> str:
    """Return an ID that was never used."""
    return f"{PLATFORM}-{uuid4().hex}"


class Wire:
    """A connection; every wait ends after `patience` seconds."""

    def __init__(self, websocket: WebSocket, patience: float) -> None:
        self._websocket = websocket
        self._patience = patience
        self.registered: Frame = {}

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a frame."""
        await self.send_text(json.dumps({"type": kind, **fields}))

    async def send_text(self, text: str) -> None:
        """Send a text that need not be a frame."""
        try:
            await self._websocket.send(text)
        except Lost as lost:
            raise Broken(f"{lost}") from None

    async def ask(self, request_id: str, channel: str) -> None:
        """Send a message."""
        user = {"id": f"{PLATFORM}-user", "platform_id": "user"}
        about = {"user": user, "channel": {"id": channel}, "content": "hello"}
        await self.send("message", id=request_id, **about)

    async def receive(self) -> Frame:
        """Return the next frame."""
        with anyio.move_on_after(self._patience):
            try:
                frame = json.loads(await self._websocket.receive())
            except Lost as lost:
                raise Broken(f"{lost}") from None
            except ValueError:
                raise Broken("a frame came that is not JSON") from None
            if not isinstance(frame, dict):
                raise Broken("a frame came that is not an object")
            return frame
        raise Broken(f"nothing came within {self._patience:g} s")

    async def expect(self, kind: str, **fields: Any) -> Frame:
        """Return the next frame; raise `Broken` unless it has this type and these fields."""
        frame = await self.receive()
        wanted = {"type": kind, **fields}
        seen = {name: frame.get(name) for name in wanted}
        if seen != wanted:
            raise Broken(f"expected {json.dumps(wanted)}, and came {json.dumps(seen)}")
        return frame

    async def until_end(self, request_id: str) -> list[Frame]:
        """Return the frames about a message, up to its terminal one."""
        frames = []
        while True:
            frame = await self.receive()
            if frame.get("request_id") == request_id:
                frames.append(frame)
                if frame["type"] in TERMINAL:
                    return frames

    async def rest(self) -> list[Frame]:
        """Return every frame that the gateway still had to send.

        It sends a new message, and returns what comes before the end of that.
        """
        last = fresh()
        await self.ask(last, fresh())
        frames = []
        while (frame := await self.receive()).get("type") not in TERMINAL or (
            frame.get("request_id") != last
        ):
            frames.append(frame)
        return [frame for frame in frames if frame.get("request_id") != last]

    async def close_code(self) -> int | None:
        """Wait until the gateway closes, and return its code."""
        with anyio.move_on_after(self._patience):
            try:
                while True:
                    await self._websocket.receive()
            except Lost as lost:
                return lost.code
        raise Broken(f"the gateway has not closed within {self._patience:g} s")


class Kit:
    """The gateway's address and secret, and connections to it."""

    def __init__(self, url: str, secret: str | None, patience: float) -> None:
        """`patience` is how long to wait for each frame, in seconds."""
        self._url = url
        self._secret = secret
        self._patience = patience

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Wire]:
        """Connect for the length of the block; at its end, drop the connection without a close."""
        websocket, stream = await connect(self._url, self._patience)
        try:
            yield Wire(websocket, self._patience)
        finally:
            await anyio.aclose_forcefully(stream)

    @asynccontextmanager
    async def node(
        self, node_id: str, capabilities: Sequence[str] = (), **fields: Any
    ) -> AsyncIterator[Wire]:
        """Connect and register for the length of the block."""
        about = {"node_id": node_id, "platform": PLATFORM, "capabilities": list(capabilities)}
        async with self.connection() as wire:
            await wire.send("register", **{"secret": self._secret, **about, **fields})
            wire.registered = await wire.expect("registered", node_id=node_id)
            yield wire
