"""Those who send a gateway rubbish, cut connections in the middle, and never read."""

import json
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tests.nurseries.test_connection import MALFORMED
from tests.nurseries.test_gateway import NOT_WEBSOCKET
from tests.raw import RawPeer
from tests.strangers import FLOODS

Villain = Callable[[str, int, random.Random], Awaitable[None]]
"""Does its worst once at a host and a port."""

REGISTER = '{"type":"register","node_id":"villain","platform":"p"}'


async def stranger(host: str, port: int, chance: random.Random) -> None:
    """Something that does not speak WebSocket, and goes away in the middle of it."""
    async with await trio.open_tcp_stream(host, port) as stream:
        data = chance.choice(list(NOT_WEBSOCKET.values()))
        await stream.send_all(data[: chance.randint(0, len(data))])
        if chance.random() < 0.5:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def babbler(host: str, port: int, chance: random.Random) -> None:
    """Frames that cannot be used, then a cut."""
    async with RawPeer.connected(host, port) as peer:
        await peer.send_text(REGISTER)
        texts = [text for text, _ in MALFORMED if isinstance(text, str)]
        await peer.send_text(*chance.choices(texts, k=20))


async def breaker(host: str, port: int, chance: random.Random) -> None:
    """Bytes that are no frame, after a good handshake."""
    async with RawPeer.connected(host, port) as peer:
        await peer.stream.send_all(chance.randbytes(1000))


async def sloth(host: str, port: int, chance: random.Random) -> None:
    """Many messages, none of whose answers it reads."""
    async with RawPeer.connected(host, port) as peer:
        await peer.send_text(REGISTER.replace("villain", f"sloth-{chance.random()}"))
        for n in range(20):
            user = {"id": "u", "platform_id": "u"}
            message = {"id": f"{chance.random()}", "user": user, "content": "x" * 1000}
            await peer.send_text(
                json.dumps({"type": "message", **message, "channel": {"id": f"{n}"}})
            )


async def impostor(host: str, port: int, chance: random.Random) -> None:
    """One node name, registered over and over."""
    async with RawPeer.connected(host, port) as peer:
        await peer.send_text(REGISTER, REGISTER, '{"type":"unregister"}', REGISTER)
        await trio.sleep(chance.random() / 100)


async def flooder(host: str, port: int, chance: random.Random) -> None:
    """Frames without end that carry nothing, with and without a registration."""
    flood = chance.choice(list(FLOODS.values()))
    async with RawPeer.connected(host, port) as peer:
        if chance.random() < 0.5:
            await peer.send_text(REGISTER.replace("villain", f"flooder-{chance.random()}"))
        await peer.stream.send_all(flood.first + flood.then * 10_000)


VILLAINS: Final[tuple[Villain, ...]] = (stranger, babbler, breaker, sloth, impostor, flooder)

TURNED_AWAY: Final = (OSError, EOFError, trio.BrokenResourceError)
"""What a villain ends with, if the gateway is well."""
