"""Admission of new messages: a full channel, the memory budget, the rates; and backpressure.

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
"""Bytes that nodes share for their messages in flight; `clarad.limits.memory` has the rule."""

OWN_BYTES: Final = 64 * 1024
"""Bytes that are guaranteed to the messages of each node."""

OVERHEAD: Final = 8 * 1024
"""Bytes that a message costs beside its text, with its task and its session."""

VALUE_OVERHEAD: Final = 136
"""Bytes that a decoded JSON value costs at most beside its text; measured."""

MAX_UNCOMMITTED: Final = 16
"""Backpressure: a node with so many messages and cancels that are not committed yet is not read
from, so that one node cannot fill the store's queue."""

MAX_PAUSE: Final = 0.1
"""Seconds for which it is not read from: even if the store hangs, cancels and pongs are read."""

RETRY_AFTER: Final = 5
"""Seconds after which a node may try a message again that was refused with `queue_full`."""


def queue_full(request_id: str, why: str) -> Error:
    """Return the error for a message that does not fit."""
    return Error(ErrorCode.QUEUE_FULL, why, True, request_id, RETRY_AFTER)


def size(text: str, message: protocol.Message) -> int:
    """Return how many bytes a message counts for.

    A decoded `{},{},{}` takes 24 times its text, so the separators of values are counted as well.
    Separators in the content count, too: that overestimates, but needs no second parser.
    """
    has_values = message.reply_chain or message.metadata or message.attachments
    values = sum(map(text.count, "{[,")) if has_values else 0
    return sys.getsizeof(text) + OVERHEAD + VALUE_OVERHEAD * values


class AdmissionControl:
    """Admits or refuses new messages, and counts what has been admitted."""

    def __init__(self, inflight: InFlight, rates: Rates) -> None:
        self._inflight = inflight
        self._rates = rates
        self._budget = MemoryBudget(MAX_SHARED, OWN_BYTES)
        self._held: dict[tuple[str, str], int] = {}
        self._uncommitted: dict[Node, int] = {}
        self._committed: dict[Node, trio.Event] = {}

    def set_rates(self, node: Rate | None, user: Rate | None) -> None:
        """Replace the rates. Rates that stay the same keep their buckets."""
        self._rates = self._rates.replaced(node, user)

    def admit(self, node: Node, message: protocol.Message, text: str, now: float) -> Error | None:
        """Return why the message is refused; `None` if it is admitted, which takes its tokens."""
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
        """Count a message or a cancel that was handed to the store."""
        self._uncommitted[node] = self._uncommitted.get(node, 0) + 1

    def remove_uncommitted(self, node: Node) -> None:
        """Count it no more: the store has committed it, or has failed."""
        self._uncommitted[node] -= 1
        if not self._uncommitted[node]:
            del self._uncommitted[node]
        if (committed := self._committed.pop(node, None)) is not None:
            committed.set()

    async def apply_backpressure(self, node: Node) -> None:
        """Wait up to `MAX_PAUSE` for a commit if the node has `MAX_UNCOMMITTED` on their way."""
        if self._uncommitted.get(node, 0) >= MAX_UNCOMMITTED:
            committed = self._committed.setdefault(node, trio.Event())
            with trio.move_on_after(MAX_PAUSE):
                await committed.wait()

    def add(self, turn: Turn) -> None:
        """Count a message in flight."""
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
