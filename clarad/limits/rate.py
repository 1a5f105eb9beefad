"""Rate limits of nodes and users: token buckets without timers. No I/O.

A bucket is one number, the time at which it will be full again; a message that finds a token moves
it on. This is the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371).
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

MAX_KEYS: Final = 10_000
"""Buckets that are remembered. Beyond that the least recently used one is dropped, as if full."""


class Rate(NamedTuple):
    """Messages a minute in the long run, and how many may come at once."""

    per_minute: int
    at_once: int


class Buckets:
    """A token bucket for each key, full at first. The caller passes the time, in seconds."""

    def __init__(self, rate: Rate) -> None:
        self._interval = 60 / rate.per_minute
        self._room = self._interval * (rate.at_once - 1)
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def delay(self, key: Hashable, now: float) -> float:
        """Return the seconds until there is a token, 0 if there is one."""
        return max(self._full_at.get(key, now) - self._room - now, 0.0)

    def acquire(self, key: Hashable, now: float) -> None:
        """Take a token; `delay` has returned 0."""
        self._full_at[key] = max(self._full_at.get(key, now), now) + self._interval
        self._full_at.move_to_end(key)
        if len(self._full_at) > MAX_KEYS:
            self._full_at.popitem(last=False)


class Rates:
    """The rate limits of a message's node and user; a rate that is `None` limits nothing."""

    def __init__(self, node: Rate | None = None, user: Rate | None = None) -> None:
        self.node = node
        self.user = user
        self._nodes = None if node is None else Buckets(node)
        self._users = None if user is None else Buckets(user)

    def replaced(self, node: Rate | None, user: Rate | None) -> "Rates":
        """Return other limits, with the buckets of a rate that stays the same."""
        rates = Rates(node, user)
        if node == self.node:
            rates._nodes = self._nodes
        if user == self.user:
            rates._users = self._users
        return rates

    def acquire(self, node: Hashable, user: Hashable, now: float) -> float:
        """Take a token of each and return 0; else take none and return the seconds to wait."""
        kinds = ((self._nodes, node), (self._users, user))
        limits = [(buckets, key) for buckets, key in kinds if buckets is not None]
        wait = max((buckets.delay(key, now) for buckets, key in limits), default=0.0)
        if not wait:
            for buckets, key in limits:
                buckets.acquire(key, now)
        return wait
