"""The adapter's side of the wire, in dicts: what tests talk to a real gateway with."""

import json
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    connect_websocket_url,
    wrap_client_stream,
)

Frame = dict[str, Any]

TERMINAL = {"response_end", "cancelled", "error"}


class Peer:
    """One connection. `patience` is how long a test waits for a frame, in seconds."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self.websocket = websocket
        self.patience = 10.0

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_text(json.dumps({"type": kind, **fields}, ensure_ascii=False))

    async def send_text(self, text: str | bytes) -> None:
        await self.websocket.send_message(text)

    async def receive(self) -> Frame:
        with trio.fail_after(self.patience):
            frame: Frame = json.loads(await self.websocket.get_message())
        return frame

    async def expect(self, kind: str) -> Frame:
        """Return the next frame, which has to be of this type."""
        frame = await self.receive()
        assert frame["type"] == kind, frame
        return frame

    async def register(
        self, node_id: str = "node-1", capabilities: Sequence[str] = ("streaming",), **fields: Any
    ) -> Frame:
        whole = {"node_id": node_id, "platform": "test", "capabilities": list(capabilities)}
        await self.send("register", **whole | fields)
        return await self.expect("registered")

    async def ask(
        self, request_id: str, content: str = "hello", channel: str = "c", **fields: Any
    ) -> None:
        await self.send("message", **message(request_id, content, channel) | fields)

    async def frames_of(self, request_id: str) -> list[Frame]:
        """Return the frames of a message up to its terminal one; other messages' are dropped."""
        frames = []
        while True:
            frame = await self.receive()
            if frame.get("request_id") == request_id:
                frames.append(frame)
                if frame["type"] in TERMINAL:
                    return frames

    async def outcome_of(self, request_id: str) -> Frame:
        return (await self.frames_of(request_id))[-1]

    async def outcomes_of(self, *request_ids: str) -> list[Frame]:
        """Return the terminal frames of several messages, whichever ends first."""
        found: dict[str, Frame] = {}
        while len(found) < len(request_ids):
            frame = await self.receive()
            if frame["type"] in TERMINAL and frame.get("request_id") in request_ids:
                found[frame["request_id"]] = frame
        return [found[request_id] for request_id in request_ids]

    async def close_code(self) -> int:
        """Wait until the gateway has closed, and return its code."""
        with trio.fail_after(self.patience), suppress(ConnectionClosed):
            while True:
                await self.websocket.get_message()
        assert self.websocket.closed is not None
        return self.websocket.closed.code

    async def is_silent(self) -> bool:
        """Whether the gateway has nothing more to say: it answers a ping, and only that."""
        await self.send("ping")
        return bool((await self.receive())["type"] == "pong")

    async def drop(self) -> None:
        """Cut the connection without a good-bye."""
        await trio.aclose_forcefully(self.websocket._stream)


def message(request_id: str, content: str = "hello", channel: str = "c") -> Frame:
    return {
        "id": request_id,
        "user": {"id": "test-u", "platform_id": "u"},
        "channel": {"id": channel},
        "content": content,
        "attachments": [],
        "reply_chain": [],
        "metadata": {},
    }


async def connect(
    nursery: trio.Nursery,
    url: str,
    headers: Sequence[tuple[str, str]] = (),
    tls: ssl.SSLContext | None = None,
) -> Peer:
    """Open a connection whose tasks live in `nursery`."""
    extra = [(name.encode(), value.encode()) for name, value in headers]
    return Peer(await connect_websocket_url(nursery, url, tls, extra_headers=extra))


async def connect_unix(
    nursery: trio.Nursery, path: Path, headers: Sequence[tuple[str, str]] = ()
) -> Peer:
    """Open a connection to a socket file."""
    extra = [(name.encode(), value.encode()) for name, value in headers]
    stream = await trio.open_unix_socket(path)
    return Peer(await wrap_client_stream(nursery, stream, "localhost", "/", extra_headers=extra))
