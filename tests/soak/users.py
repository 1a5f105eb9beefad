"""Those who write through a node: what they ask, when they change their minds, when they pause."""

import random
from typing import Final, Protocol

import trio

from clarad import protocol
from clarad.adapters import Outcome
from tests.soak.ledger import Asked, Ledger

PLATFORM: Final = "soak"

CHANNELS: Final = 3

HANGS: Final = "hang"

SCRIPTS: Final = {
    "text": "/sh echo text",
    "parts": "/sh for part in a b c d; do echo $part; sleep 0.02; done",
    "slow": "/sh sleep 0.2; echo slow",
    "big": "/sh head -c 100000 /dev/zero | tr '\\0' x",
    "python": "/python print(sum(range(1000)))",
    HANGS: "/sh setsid sleep 1000 & sleep 1000",
}
"""What the messages of each kind say: the tools run it in a sandbox, the command as it is."""

_OFTEN: Final = {"text": 6, "parts": 3, "slow": 3, "python": 3, "big": 1, HANGS: 0.5}

LONG_PAUSE: Final = 6.0
"""Seconds, at the most: a session may time out in it."""


class Node(Protocol):
    """What users write through."""

    def ask(self, message: Asked) -> None:
        """Send it, and again until it has ended. Never waits."""

    def cancel(self, message: Asked) -> None:
        """Have it cancelled, if it has not ended."""


class Users:
    """Those of one node: a task a channel."""

    def __init__(self, name: str, ledger: Ledger, chance: random.Random, pause: float) -> None:
        """`pause` is the most between two bursts, in seconds; few are longer."""
        self.name = name
        self.ledger = ledger
        self.chance = chance
        self._pause = pause
        self.enough = trio.Event()

    async def write(self, channel: int, node: Node) -> None:
        """Ask in bursts, wait for the answers, and cancel some, until it is enough."""
        while not self.enough.is_set():
            burst = [self._ask(channel) for _ in range(self.chance.choice((1, 1, 2, 4)))]
            async with trio.open_nursery() as nursery:
                for message in burst:
                    node.ask(message)
                    likely = 0.5 if message.kind == HANGS else 0.1
                    if self.chance.random() < likely:
                        nursery.start_soon(self._cancel, node, message)
                for message in burst:
                    await message.over.wait()
            longest = LONG_PAUSE if self.chance.random() < 0.05 else self._pause
            with trio.move_on_after(self.chance.uniform(0, longest)):
                await self.enough.wait()

    def on_stray(self, outcome: Outcome) -> None:
        """Complain: its process is the only one that there was."""
        self.ledger.broken.append(f"{self.name} was answered what it knows: {outcome}")

    def _ask(self, channel: int) -> Asked:
        (kind,) = self.chance.choices(list(_OFTEN), list(_OFTEN.values()))
        return self.ledger.ask(self.name, channel, kind)

    async def _cancel(self, node: Node, message: Asked) -> None:
        await trio.sleep(self.chance.uniform(0, 0.3))
        node.cancel(message)


def frame_of(message: Asked) -> protocol.Message:
    """Return what is sent."""
    user = message.channel.rpartition("-")[2]
    return protocol.Message(
        id=message.id,
        user=protocol.User(id=f"soak-{user}", platform_id=user),
        channel=protocol.Channel(id=message.channel),
        content=SCRIPTS[message.kind],
    )
