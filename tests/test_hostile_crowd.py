"""A crowd that sends rubbish, cuts connections and never reads, and one good client among them."""

import json
import random
import socket
from collections.abc import Awaitable, Callable

import trio

from tests.conftest import Running
from tests.nurseries.test_connection import MALFORMED
from tests.nurseries.test_gateway import STRANGERS
from tests.raw import RawPeer

Villain = Callable[[Running, random.Random], Awaitable[None]]

REGISTER = '{"type":"register","node_id":"villain","platform":"p"}'


async def stranger(running: Running, chance: random.Random) -> None:
    """Something that does not speak WebSocket, and goes away in the middle of it."""
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        data = chance.choice(list(STRANGERS.values()))
        await stream.send_all(data[: chance.randint(0, len(data))])
        if chance.random() < 0.5:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def babbler(running: Running, chance: random.Random) -> None:
    """Frames that cannot be used, then a cut."""
    async with RawPeer.connected(running.host, running.port) as peer:
        await peer.send_text(REGISTER)
        texts = [text for text, _ in MALFORMED if isinstance(text, str)]
        await peer.send_text(*chance.choices(texts, k=20))


async def breaker(running: Running, chance: random.Random) -> None:
    """Bytes that are no frame, after a good handshake."""
    async with RawPeer.connected(running.host, running.port) as peer:
        await peer.stream.send_all(chance.randbytes(1000))


async def sloth(running: Running, chance: random.Random) -> None:
    """Many messages, none of whose answers it reads."""
    async with RawPeer.connected(running.host, running.port) as peer:
        await peer.send_text(REGISTER.replace("villain", f"sloth-{chance.random()}"))
        for n in range(20):
            user = {"id": "u", "platform_id": "u"}
            message = {"id": f"{chance.random()}", "user": user, "content": "x" * 1000}
            await peer.send_text(
                json.dumps({"type": "message", **message, "channel": {"id": f"{n}"}})
            )


async def impostor(running: Running, chance: random.Random) -> None:
    """One node name, registered over and over."""
    async with RawPeer.connected(running.host, running.port) as peer:
        await peer.send_text(REGISTER, REGISTER, '{"type":"unregister"}', REGISTER)
        await trio.sleep(chance.random() / 100)


async def plague(running: Running, villain: Villain, seed: int) -> None:
    """Let one villain come back until the test is over."""
    chance = random.Random(seed)
    while True:
        try:
            await villain(running, chance)
        except (OSError, EOFError, trio.BrokenResourceError):
            await trio.lowlevel.checkpoint()  # turned away, as it should be


async def test_a_good_client_is_answered_among_a_hostile_crowd(running: Running) -> None:
    good = await running.node("good")
    async with trio.open_nursery() as crowd:
        for seed, villain in enumerate((stranger, babbler, breaker, sloth, impostor) * 3):
            crowd.start_soon(plague, running, villain, seed)
        for n in range(300):
            await good.ask(f"m{n}", f"text {n}")
            assert (await good.outcome_of(f"m{n}"))["full_text"] == f"text {n}"
        crowd.cancel_scope.cancel("the good client has been answered often enough")
    assert await good.is_silent()
