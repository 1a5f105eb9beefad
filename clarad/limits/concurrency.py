"""How many messages run at once, and whose is next when more are ready. No I/O.

A node may have another slot while it has fewer than `SHARE` times as many as are free, and nodes
whose messages wait take turns. So a node that is alone has nearly all of them, however long its
messages run the next node finds one, and among many that want more they even out. It is the rule of
`clarad.limits.memory` with another factor: memory has to be free for who comes next, of slots a few
will do.

Rejected: turns alone. A node whose messages run for minutes would have all, and the next one would
wait for minutes.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

import trio

SHARE: Final = 8
"""How many times as many as are free a node may have."""


class Slots:
    """Gives them to nodes, to each in the order in which it asks."""

    def __init__(self, capacity: int) -> None:
        self.taken = 0
        self._capacity = capacity
        self._held: dict[Hashable, int] = {}
        # The nodes in the order in which they are looked at.
        self._waiting: OrderedDict[Hashable, OrderedDict[trio.Event, None]] = OrderedDict()

    def resize(self, capacity: int) -> None:
        """Have so many from here on; of fewer, those that are taken stay so until given back."""
        self._capacity = capacity
        self._look()

    def take(self, node: Hashable) -> bool:
        """Take one at once, if the node may have it and does not wait for others already."""
        if node in self._waiting or not self._may_have(node):
            return False
        self._give(node)
        return True

    async def enter(self, node: Hashable) -> None:
        """Wait for one and take it. Cancelling takes none."""
        if self.take(node):
            return
        given = trio.Event()
        self._waiting.setdefault(node, OrderedDict())[given] = None
        try:
            await given.wait()
        except trio.Cancelled:
            if given.is_set():
                self.leave(node)
            else:
                self._forget(node, given)
            raise

    def leave(self, node: Hashable) -> None:
        """Give one back."""
        self.taken -= 1
        self._held[node] -= 1
        if not self._held[node]:
            del self._held[node]
        self._look()

    def _may_have(self, node: Hashable) -> bool:
        return self._held.get(node, 0) < SHARE * (self._capacity - self.taken)

    def _give(self, node: Hashable) -> None:
        self.taken += 1
        self._held[node] = self._held.get(node, 0) + 1

    def _look(self) -> None:
        """Give what is free to those that wait. Who is passed over has `SHARE` at the least."""
        while self.taken < self._capacity:
            node = next(filter(self._may_have, self._waiting), None)
            if node is None:
                return
            given, _ = self._waiting[node].popitem(last=False)
            self._waiting.move_to_end(node)
            self._drop_if_empty(node)
            self._give(node)
            given.set()

    def _forget(self, node: Hashable, given: trio.Event) -> None:
        del self._waiting[node][given]
        self._drop_if_empty(node)

    def _drop_if_empty(self, node: Hashable) -> None:
        if not self._waiting[node]:
            del self._waiting[node]
