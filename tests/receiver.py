"""A server on loopback that answers webhooks with whatever a test tells it to."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import h11
import pytest
import standardwebhooks
import trio

PATIENCE: Final = 30
"""Seconds until something that has to happen counts as not happening."""

Answer = Callable[[trio.abc.Stream], Awaitable[None]]


@dataclass
class Received:
    """One request, as it came."""

    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A server: takes a request on each connection, answers, and waits for the end of it."""

    url: str
    answer: Answer
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    _deserted: trio.Event = field(default_factory=trio.Event)

    async def serve(self, stream: trio.abc.Stream) -> None:
        if not self.connections:
            self._deserted = trio.Event()
        self.connections += 1
        try:
            async with stream:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._talk(stream)
        finally:
            self.connections -= 1
            if not self.connections:
                self._deserted.set()

    async def _talk(self, stream: trio.abc.Stream) -> None:
        if (request := await _request(stream)) is not None:
            self.requests.append(request)
            await self.answer(stream)
            while await stream.receive_some():
                pass

    async def deserted(self) -> None:
        """Wait until no connection is left."""
        with trio.fail_after(PATIENCE):
            if self.connections:
                await self._deserted.wait()


async def _request(stream: trio.abc.Stream) -> Received | None:
    """Read a request; `None` if the other side hangs up before the end of it."""
    connection = h11.Connection(h11.SERVER)
    received: Received | None = None
    with suppress(h11.RemoteProtocolError):
        while True:
            match connection.next_event():
                case h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some()))
                case h11.Request() as head:
                    fields = {name.decode(): value.decode() for name, value in head.headers}
                    assert len(fields) == len(head.headers), "a header came twice"
                    received = Received(head.target.decode(), fields, b"")
                case h11.Data(data=data):
                    assert received is not None
                    received.body += data
                case h11.EndOfMessage():
                    return received
                case _:
                    return None
    return None


def says(raw: bytes) -> Answer:
    """Send this, and nothing after it."""

    async def answer(stream: trio.abc.Stream) -> None:
        await stream.send_all(raw)
        await stream.aclose()

    return answer


def answers(status: int, *headers: str, body: bytes = b"") -> Answer:
    """Answer with this status, these headers and this body."""
    lines = [f"HTTP/1.1 {status} Whatever", *headers, f"Content-Length: {len(body)}", "", ""]
    return says("\r\n".join(lines).encode() + body)


@asynccontextmanager
async def listening(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """Serve on loopback, at the port that is yielded."""
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel("the test has ended")


@asynccontextmanager
async def receiver(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Serve on loopback; what comes is in the receiver's `requests`."""
    made = Receiver("", answer)

    async def serve(stream: trio.SocketStream) -> None:
        if tls is None:
            await made.serve(stream)
        else:
            secured = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            await made.serve(secured)

    async with listening(serve) as port:
        made.url = f"https://localhost:{port}/hook" if tls else f"http://127.0.0.1:{port}/hook"
        yield made


def forget_proxies(environment: pytest.MonkeyPatch) -> None:
    """Have clients that are made from here on use no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        environment.delenv(name, raising=False)
        environment.delenv(name.upper(), raising=False)


def verify(secret: str, request: Received) -> None:
    """Raise what the specification's own library does if the signature is not this secret's."""
    standardwebhooks.Webhook(secret).verify(request.body, request.headers, json_parse=False)
