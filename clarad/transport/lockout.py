"""Lockout: counts wrong secrets by address, and forgets them after a minute. No I/O."""

import ipaddress
from collections import OrderedDict, deque
from typing import Final

MAX_FAILURES: Final = 10
"""Failures of one address within `WINDOW` that lock it out."""

WINDOW: Final = 60.0
"""Seconds for which a failure counts, and for which a lockout lasts."""

MAX_ADDRESSES: Final = 10_000
"""Addresses to remember; beyond that, the one that failed longest ago is forgotten."""


class Lockout:
    """The addresses that have failed too often. Times are in seconds of one clock.

    A lockout bounds the work that wrong guesses cause (see `clarad.transport.auth`). It does not
    keep the right secret out, or a peer could shut out everybody behind the same proxy or in the
    same network. What keeps guesses from being right is the length of the secret.

    (Rejected: delaying answers to a locked address. A guesser opens more connections meanwhile, and
    only the peer with the right secret has to wait.)
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._locked_until: OrderedDict[str, float] = OrderedDict()

    def is_locked(self, address: str, now: float) -> bool:
        """Return whether `address` has failed too often within the last minute."""
        return self._locked_until.get(source_network(address), now) > now

    def count_failure(self, address: str, now: float) -> bool:
        """Count a failure, unless `address` is locked out already.

        Returns:
            Whether this failure locks the address out.
        """
        if self.is_locked(address, now):
            return False
        network = source_network(address)
        failures = self._failures.setdefault(network, deque(maxlen=MAX_FAILURES))
        self._failures.move_to_end(network)
        failures.append(now)
        locks = len(failures) == MAX_FAILURES and failures[0] > now - WINDOW
        if locks:
            del self._failures[network]
            self._locked_until[network] = now + WINDOW
            self._locked_until.move_to_end(network)
        for remembered in (self._failures, self._locked_until):
            if len(remembered) > MAX_ADDRESSES:
                remembered.popitem(last=False)
        return locks


def source_network(address: str) -> str:
    """Return the part of an address that stands for one party.

    That is the /64 network of an IPv6 address, since every customer has 2^64 addresses to guess
    from (RFC 7421), and otherwise the whole: an IPv4 address, or the user of a unix socket.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, ipaddress.IPv6Address) or ip.ipv4_mapped is not None:
        return address
    return str(ipaddress.IPv6Network((int(ip), 64), strict=False))
