"""An adapter's connection to the gateway, under Trio."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final

import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    DisconnectionTimeout,
    HandshakeError,
    WebSocketConnection,
    open_websocket_url,
)

from clarad import protocol
from clarad.events import CAUSED_BY

CONNECT_TIMEOUT: Final = 10.0
"""Seconds until the gateway has answered a handshake, and then the registration."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a good-bye may take."""

MAX_FRAME: Final = 64 * 1024 * 1024
"""Characters of one frame of the gateway; the whole text of an answer and its files are in one."""


class GatewayError(Exception):
    """The gateway cannot be talked to; the text says why, in one line."""


class GatewayClient:
    """A registered connection."""

    def __init__(self, websocket: WebSocketConnection, url: str) -> None:
        self._websocket = websocket
        self._url = url

    async def send(self, frame: protocol.Inbound) -> None:
        """Send a frame. Not to be cancelled half way: the connection would be unusable.

        Raises:
            GatewayError: the connection is closed.
        """
        try:
            await self._websocket.send_message(protocol.encode(frame).decode())
        except ConnectionClosed:
            raise self._closed() from None

    async def receive(self) -> protocol.Outbound:
        """Wait for the next frame.

        Raises:
            GatewayError: the connection is closed, or what came is not of this protocol.
        """
        try:
            return protocol.decode_outbound(await self._websocket.get_message())
        except ConnectionClosed:
            raise self._closed() from None
        except msgspec.MsgspecError as error:
            raise GatewayError(f"{self._url} does not speak this protocol: {error}") from None

    async def register(self, register: protocol.Register) -> protocol.Registered:
        """Register this connection; the first thing to do with it."""
        await self.send(register)
        answer = await self.receive()
        if isinstance(answer, protocol.Registered):
            return answer
        if isinstance(answer, protocol.Error):
            raise GatewayError(f"{self._url} refuses: {answer.message}")
        raise GatewayError(f"{self._url} answered the registration with {type(answer).__name__}")

    def _closed(self) -> GatewayError:
        why = self._websocket.closed
        if why is None or why.code == 1006:
            return GatewayError(f"the connection to {self._url} was lost")
        return GatewayError(f"{self._url} closed the connection: {why.reason or why.code}")


@asynccontextmanager
async def open_gateway(
    url: str,
    *,
    node_id: str,
    platform: str,
    capabilities: Sequence[str] = (),
    secret: str | None = None,
) -> AsyncIterator[GatewayClient]:
    """Connect and register; at the end of the block, unregister and close.

    Raises:
        GatewayError: nobody listens there, the gateway refuses, or the connection was lost.
    """
    register = protocol.Register(
        node_id=node_id,
        platform=platform,
        capabilities=list(capabilities),
        secret=secret,
        # Set in what a hook or a task runs: so the daemon knows a loop.
        caused_by=os.environ.get(CAUSED_BY, "").split(),
    )
    opening = _open(url)
    try:
        async with opening as websocket:
            try:
                client = GatewayClient(websocket, url)
                await _register(client, register, url)
                yield client
                # The gateway closes in answer, so nothing that is under way is lost.
                with suppress(GatewayError), trio.move_on_after(CLOSE_TIMEOUT):
                    await client.send(protocol.Unregister())
                    while True:
                        await client.receive()
            finally:
                # trio-websocket 0.12 leaves the socket open if the peer has closed first.
                await trio.aclose_forcefully(websocket._stream)
    except ConnectionRejected as error:
        reason = (error.body or b"").decode(errors="replace").strip()
        raise GatewayError(f"{url} refuses: {reason or error.status_code}") from None
    except DisconnectionTimeout:
        return  # everything was said, only the good-bye was not answered
    except HandshakeError as error:
        why = error.__cause__ or "no answer in time"
        raise GatewayError(f"nobody answers at {url}; is the daemon running? ({why})") from None


async def _register(client: GatewayClient, register: protocol.Register, url: str) -> None:
    with trio.move_on_after(CONNECT_TIMEOUT) as limit:
        await client.register(register)
    if limit.cancelled_caught:
        raise GatewayError(f"{url} does not answer the registration")


def _open(url: str) -> AbstractAsyncContextManager[WebSocketConnection]:
    try:
        return open_websocket_url(
            url,
            max_message_size=MAX_FRAME,
            connect_timeout=CONNECT_TIMEOUT,
            disconnect_timeout=CLOSE_TIMEOUT,
        )
    except ValueError as error:
        raise GatewayError(f"{url!r} is not the address of a gateway: {error}") from None
