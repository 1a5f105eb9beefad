"""Whether a new message is taken in: its channel, the room for all of them, the rates. No I/O."""

import math
import sys
from typing import Final, NamedTuple

from clarad import protocol
from clarad.nodes import Node
from clarad.pool import Pool
from clarad.protocol import ErrorCode
from clarad.rates import Rate, Rates
from clarad.roster import MAX_WAITING, Roster
from clarad.store import MessageKey
from clarad.turn import Turn

MAX_SHARED: Final = 256 * 1024 * 1024
"""Bytes that all messages which live may have together; `clarad.pool` says how nodes share them."""

OWN_BYTES: Final = 64 * 1024
"""Bytes beside those that the messages of each node may have."""

OVERHEAD: Final = 8 * 1024
"""Bytes that a message costs beside its text, with its task and its session."""


QUEUE_RETRY: Final = 5
"""Seconds until a message that finds no room is worth another try."""


class Refusal(NamedTuple):
    """What a message is refused with; it may be sent again, after so many seconds."""

    code: ErrorCode
    why: str
    retry_after: int = QUEUE_RETRY


def size(text: str) -> int:
    """Return the bytes that a message counts for; a text may need four for each character."""
    return sys.getsizeof(text) + OVERHEAD


class Intake:
    """Keeps the account of what has been taken in."""

    def __init__(self, roster: Roster, rates: Rates) -> None:
        self._roster = roster
        self._rates = rates
        self._room = Pool(MAX_SHARED, OWN_BYTES)
        self._held: dict[tuple[str, str], int] = {}

    def set_rates(self, node: Rate | None, user: Rate | None) -> None:
        """Limit messages like this from here on; rates that stay the same go on counting."""
        if (self._rates.node, self._rates.user) != (node, user):
            self._rates = Rates(node, user)

    def refusal(
        self, node: Node, message: protocol.Message, text: str, now: float
    ) -> Refusal | None:
        """Say why a message is not taken in; if it is, it counts for its node and its user."""
        key = MessageKey(node.platform, message.channel.id, message.id)
        if self._roster.is_full(key):
            return Refusal(
                ErrorCode.QUEUE_FULL, f"{MAX_WAITING} messages wait in this channel; try later."
            )
        held = self._held.get(_owner(node), 0)
        if not self._room.fits(held, held + size(text)):
            return Refusal(
                ErrorCode.QUEUE_FULL, "Too many messages of this node are waiting; try later."
            )
        user = node.platform, message.user.id
        if wait := math.ceil(self._rates.wait(_owner(node), user, now)):
            why = f"Too many messages in a short time; send it again in {wait} s."
            return Refusal(ErrorCode.RATE_LIMITED, why, wait)
        return None

    def add(self, turn: Turn) -> None:
        """Count a message that lives."""
        self._change(turn.node, turn.size)

    def remove(self, turn: Turn) -> None:
        """Count it no more."""
        self._change(turn.node, -turn.size)

    def _change(self, node: Node, more: int) -> None:
        before = self._held.get(_owner(node), 0)
        self._held[_owner(node)] = after = before + more
        self._room.change(before, after)
        if not after:
            del self._held[_owner(node)]


def _owner(node: Node) -> tuple[str, str]:
    return node.platform, node.id
