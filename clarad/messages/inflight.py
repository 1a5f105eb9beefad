"""The messages in flight, indexed by identity, by request and by channel."""

from collections import deque
from collections.abc import Iterator
from typing import Final, TypeVar

from clarad.delivery.node import Node
from clarad.messages.turn import Turn
from clarad.store import MessageKey

MAX_WAITING: Final = 100
"""Messages that may wait in one channel."""

K = TypeVar("K")
C = TypeVar("C", list[Turn], deque[Turn])


class InFlight:
    """Every message from its arrival to its terminal frame."""

    def __init__(self) -> None:
        self._turns: dict[MessageKey, Turn] = {}
        self._by_request: dict[tuple[str, str, str], list[Turn]] = {}
        # The messages of each channel in order; only the first may run.
        self._channels: dict[tuple[str, str], deque[Turn]] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Turn]:
        """Iterate over a copy: messages may come and go meanwhile."""
        return iter(list(self._turns.values()))

    def find(self, key: MessageKey) -> Turn | None:
        """Return the message of this identity, if it is in flight."""
        return self._turns.get(key)

    def is_full(self, key: MessageKey) -> bool:
        """Return whether the channel of this message is full: one runs, `MAX_WAITING` wait."""
        return len(self._channels.get(key[:2], ())) > MAX_WAITING

    def of_request(self, node: Node, request_id: str) -> list[Turn]:
        """Return the node's messages with this id, at most one for each channel."""
        return list(self._by_request.get((node.platform, node.id, request_id), ()))

    def of_node(self, node: Node) -> list[Turn]:
        """Return the node's messages."""
        return [turn for turn in self._turns.values() if turn.node is node]

    def position(self, turn: Turn) -> int:
        """Return how many messages of its channel are before this one."""
        return self._channels[turn.key[:2]].index(turn)

    def is_first(self, turn: Turn) -> bool:
        """Return whether the message is first in its channel."""
        return self._channels[turn.key[:2]][0] is turn

    def add(self, turn: Turn) -> None:
        """Add a message behind the others of its channel; a recovered one goes before new ones."""
        self._turns[turn.key] = turn
        self._by_request.setdefault(_request(turn), []).append(turn)
        channel = self._channels.setdefault(turn.key[:2], deque())
        place = len(channel)
        while place and channel[place - 1].number > turn.number:
            place -= 1
        channel.insert(place, turn)

    def remove(self, turn: Turn) -> Turn | None:
        """Remove a message; if it was first in its channel, return the one that is first now."""
        was_first = self.is_first(turn)
        del self._turns[turn.key]
        _remove(self._by_request, _request(turn), turn)
        channel = _remove(self._channels, turn.key[:2], turn)
        return channel[0] if channel and was_first else None


def _request(turn: Turn) -> tuple[str, str, str]:
    return turn.node.platform, turn.node.id, turn.message.id


def _remove(index: dict[K, C], key: K, turn: Turn) -> C | None:
    """Take the message out of an index; return what is left under the key, if anything."""
    turns = index[key]
    turns.remove(turn)
    if turns:
        return turns
    del index[key]
    return None
