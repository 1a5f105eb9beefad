"""How many messages or runs go on at once, and whose is next when more are ready. No I/O.

Whoever needs a slot asks under a key: a message under its node, a run under its hook. A rule says
how many slots a key may hold. Keys that wait take turns; within a key, the first to ask is first.

Messages have the rule `fair_share`. A node that is alone has nearly all slots, however long its
messages run the next node finds one, and among many that want more they even out. It is the rule of
`clarad.limits.memory` with another factor: memory has to be free for whoever comes next, while a
few free slots are enough.

Rejected: turns alone. A node whose messages run for minutes would have all, and the next one would
wait for minutes.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

import trio

SHARE: Final = 8
"""How many times as many slots as are free a node may have."""

K = TypeVar("K", bound=Hashable)


def fair_share(_key: object, held: int, free: int) -> bool:
    """Allow a key another slot while it holds fewer than `SHARE` times as many as are free."""
    return held < SHARE * free


class Slots(Generic[K]):
    """A limit on what goes on at once, in all and for each key."""

    def __init__(
        self, capacity: int, may_acquire: Callable[[K, int, int], bool] = fair_share
    ) -> None:
        """`may_acquire` is asked with a key, how many slots it holds, and how many are free.

        If it allows more from some moment on, call `grant`.
        """
        self.in_use = 0
        self._capacity = capacity
        self._may_acquire = may_acquire
        self._held: dict[K, int] = {}
        # The first key in this order that may have a slot is given the next one.
        self._waiting: OrderedDict[K, OrderedDict[Callable[[], None], None]] = OrderedDict()

    def resize(self, capacity: int) -> None:
        """Change the capacity. Slots above a smaller one stay in use until they are released."""
        self._capacity = capacity
        self.grant()

    def held(self, key: K) -> int:
        """Return how many slots this key holds."""
        return self._held.get(key, 0)

    def is_waiting(self, key: K) -> bool:
        """Whether somebody waits for a slot under this key."""
        return key in self._waiting

    def acquire_nowait(self, key: K) -> bool:
        """Acquire a slot if the key may have one and nobody waits under it; say whether it did."""
        if key in self._waiting or not self._is_allowed(key):
            return False
        self._acquire(key)
        return True

    async def acquire(self, key: K) -> None:
        """Wait for a slot and acquire it. Cancelling acquires none."""
        granted = trio.Event()
        self.call_when_acquired(key, granted.set)
        try:
            await granted.wait()
        except trio.Cancelled:
            if granted.is_set():  # between the grant and this task's next step
                self.release(key)
            else:
                self.withdraw(key, granted.set)
            raise

    def call_when_acquired(self, key: K, start: Callable[[], None]) -> None:
        """Call `start` once a slot is acquired for it, at once if that can be."""
        if self.acquire_nowait(key):
            start()
        else:
            self._waiting.setdefault(key, OrderedDict())[start] = None

    def withdraw(self, key: K, start: Callable[[], None]) -> None:
        """Do not wait any longer in order to call `start`."""
        del self._waiting[key][start]
        if not self._waiting[key]:
            del self._waiting[key]

    def release(self, key: K) -> None:
        """Give a slot back; whoever is next has it then."""
        self.in_use -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self.grant()

    def grant(self) -> None:
        """Give the free slots to those that wait."""
        while self.in_use < self._capacity:
            for key in self._waiting:
                if self._is_allowed(key):
                    break
            else:
                return
            start, _ = self._waiting[key].popitem(last=False)
            if self._waiting[key]:
                self._waiting.move_to_end(key)  # a long queue starves no other key
            else:
                del self._waiting[key]
            self._acquire(key)
            start()

    def _is_allowed(self, key: K) -> bool:
        free = self._capacity - self.in_use
        return free > 0 and self._may_acquire(key, self.held(key), free)

    def _acquire(self, key: K) -> None:
        self.in_use += 1
        self._held[key] = self.held(key) + 1
