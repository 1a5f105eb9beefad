"""Whether a new message is taken in, and when: its channel, the room for all of them, the rates.

No I/O.
"""

import math
import sys
from typing import Final

import trio

from clarad import protocol
from clarad.delivery.node import Node
from clarad.limits.memory import MemoryBudget
from clarad.limits.rate import Rate, Rates
from clarad.messages.inflight import MAX_WAITING, InFlight
from clarad.messages.turn import Turn
from clarad.protocol import Error, ErrorCode
from clarad.store import MessageKey

MAX_SHARED: Final = 256 * 1024 * 1024
"""Bytes that all messages which live may have together; `clarad.limits.memory` says how nodes share
them."""

OWN_BYTES: Final = 64 * 1024
"""Bytes beside those that the messages of each node may have."""

OVERHEAD: Final = 8 * 1024
"""Bytes that a message costs beside its text, with its task and its session."""

VALUE_OVERHEAD: Final = 136
"""Bytes that a value of JSON costs at the most beside its text, once it is decoded; measured."""

MAX_UNCOMMITTED: Final = 16
"""Messages and cancels of one node that are on their way to the store at once; then its next frame
waits, and with it the node, so that those of others need not wait for a queue of its own."""

MAX_PAUSE: Final = 0.1
"""Seconds that it waits: a store that stands still is not to keep a `cancel` or a pong from us."""

RETRY_AFTER: Final = 5
"""Seconds until a message that finds no room is worth another try."""


def queue_full(request_id: str, why: str) -> Error:
    """Return what a message is refused with that there is no room for."""
    return Error(ErrorCode.QUEUE_FULL, why, True, request_id, RETRY_AFTER)


def size(text: str, message: protocol.Message) -> int:
    """Return the bytes that a message counts for; a text may need four for each character.

    Of `{},{},{}` in a chain or in metadata 24 times as much is kept. So what separates values is
    counted, wherever it is: too much is counted then, if it is in the content.
    """
    has_values = message.reply_chain or message.metadata or message.attachments
    values = sum(map(text.count, "{[,")) if has_values else 0
    return sys.getsizeof(text) + OVERHEAD + VALUE_OVERHEAD * values


class AdmissionControl:
    """Keeps the account of what has been taken in."""

    def __init__(self, inflight: InFlight, rates: Rates) -> None:
        self._inflight = inflight
        self._rates = rates
        self._budget = MemoryBudget(MAX_SHARED, OWN_BYTES)
        self._held: dict[tuple[str, str], int] = {}
        self._uncommitted: dict[Node, int] = {}
        self._committed: dict[Node, trio.Event] = {}

    def set_rates(self, node: Rate | None, user: Rate | None) -> None:
        """Limit messages like this from here on; rates that stay the same go on counting."""
        if (self._rates.node, self._rates.user) != (node, user):
            self._rates = Rates(node, user)

    def admit(self, node: Node, message: protocol.Message, text: str, now: float) -> Error | None:
        """Say why a message is not taken in; if it is, it counts for its node and its user."""
        key = MessageKey(node.platform, message.channel.id, message.id)
        if self._inflight.is_full(key):
            return queue_full(
                message.id, f"{MAX_WAITING} messages wait in this channel; try later."
            )
        held, more = self._held.get(_owner(node), 0), size(text, message)
        if not self._budget.fits(held, held + more):
            if not self._budget.can_ever_fit(more):
                why = "The message has too many values for the room there is; send less."
                return Error(ErrorCode.TOO_LARGE, why, False, message.id)
            return queue_full(message.id, "Too many messages of this node are waiting; try later.")
        user = node.platform, message.user.id
        if wait := math.ceil(self._rates.acquire(_owner(node), user, now)):
            why = f"Too many messages in a short time; send it again in {wait} s."
            return Error(ErrorCode.RATE_LIMITED, why, True, message.id, wait)
        return None

    def add_uncommitted(self, node: Node) -> None:
        """Count a message, or a cancel of one, that is on its way to the store."""
        self._uncommitted[node] = self._uncommitted.get(node, 0) + 1

    def remove_uncommitted(self, node: Node) -> None:
        """Count it no more: it is there, or cannot be."""
        self._uncommitted[node] -= 1
        if not self._uncommitted[node]:
            del self._uncommitted[node]
        if (committed := self._committed.pop(node, None)) is not None:
            committed.set()

    async def apply_backpressure(self, node: Node) -> None:
        """Wait for the store, if very much of the node's is on its way to it."""
        if self._uncommitted.get(node, 0) >= MAX_UNCOMMITTED:
            committed = self._committed.setdefault(node, trio.Event())
            with trio.move_on_after(MAX_PAUSE):
                await committed.wait()

    def add(self, turn: Turn) -> None:
        """Count a message that lives."""
        self._change(turn.node, turn.size)

    def remove(self, turn: Turn) -> None:
        """Count it no more."""
        self._change(turn.node, -turn.size)

    def _change(self, node: Node, more: int) -> None:
        before = self._held.get(_owner(node), 0)
        self._held[_owner(node)] = after = before + more
        self._budget.change(before, after)
        if not after:
            del self._held[_owner(node)]


def _owner(node: Node) -> tuple[str, str]:
    return node.platform, node.id
