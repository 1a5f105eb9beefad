"""How many messages a node and a user may send: token buckets without timers. No I/O.

A bucket is one number, when it will be full again; a message that finds a token moves it on. This
is the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371).
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

MAX_KEYS: Final = 10_000
"""Buckets that are remembered; of more, the one used longest ago counts as full."""


class Rate(NamedTuple):
    """Messages a minute in the long run, and how many may come at once."""

    per_minute: int
    at_once: int


class Buckets:
    """A bucket for each key, full at first. Times are given by the caller, in seconds."""

    def __init__(self, rate: Rate) -> None:
        self._interval = 60 / rate.per_minute
        self._room = self._interval * (rate.at_once - 1)
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def delay(self, key: Hashable, now: float) -> float:
        """Return the seconds until there is a token, 0 if there is one."""
        return max(self._full_at.get(key, now) - self._room - now, 0.0)

    def acquire(self, key: Hashable, now: float) -> None:
        """Take a token that is there."""
        self._full_at[key] = max(self._full_at.get(key, now), now) + self._interval
        self._full_at.move_to_end(key)
        if len(self._full_at) > MAX_KEYS:
            self._full_at.popitem(last=False)


class Rates:
    """What is asked before a message is taken in; without a rate there is no limit."""

    def __init__(self, node: Rate | None = None, user: Rate | None = None) -> None:
        self.node = node
        self.user = user
        self._nodes = None if node is None else Buckets(node)
        self._users = None if user is None else Buckets(user)

    def acquire(self, node: Hashable, user: Hashable, now: float) -> float:
        """Take a message in and return 0, or return the seconds until it is worth another try.

        A message that is refused counts for nothing.
        """
        kinds = ((self._nodes, node), (self._users, user))
        limits = [(buckets, key) for buckets, key in kinds if buckets is not None]
        wait = max((buckets.delay(key, now) for buckets, key in limits), default=0.0)
        if not wait:
            for buckets, key in limits:
                buckets.acquire(key, now)
        return wait
