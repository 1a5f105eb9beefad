"""Who may talk to the gateway: the secret, the origins, and the lockout of those who guess."""

import hmac
import ipaddress
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final

MAX_FAILURES: Final = 10
"""Wrong secrets from one address within `WINDOW` that lock it out."""

WINDOW: Final = 60.0
"""Seconds that failures count, and that the lockout then lasts."""

MAX_ADDRESSES: Final = 10_000
"""Addresses that are remembered; beyond that the one that failed longest ago is forgotten."""


class AuthGuard:
    """Checks origins and secrets, and counts failures. Times are in seconds of one clock.

    The right secret opens the door from everywhere, also from an address that has failed too often:
    a stranger behind the same proxy, or in the same network, could shut others out otherwise. So
    the lockout bounds what wrong guesses cost us (see `clarad.transport.auth`), and what keeps them
    from being right is the length of the secret. (Rejected: to answer a locked address late. A
    guesser opens more connections meanwhile, and it is the right secret that has to wait.)
    """

    def __init__(self, secret: str | None, allowed_origins: frozenset[str]) -> None:
        self._secret = None if secret is None else secret.encode()
        self.allowed_origins = allowed_origins
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._locked_until: OrderedDict[str, float] = OrderedDict()

    def admits_origin(self, headers: Mapping[str, str]) -> bool:
        """Whether the handshake may come from where it comes from.

        Browsers send `Origin` with every WebSocket handshake and pages cannot forge it (RFC 6455,
        section 10.2); adapters send none. So a page that the operator visits is kept out.
        """
        origin = headers.get("origin")
        return origin is None or origin.lower().rstrip("/") in self.allowed_origins

    def admits(self, secret: str | None) -> bool:
        """Whether this is the secret, compared in constant time; without one, anything is."""
        if self._secret is None:
            return True
        return hmac.compare_digest((secret or "").encode(errors="replace"), self._secret)

    @property
    def has_secret(self) -> bool:
        """Whether there is one at all."""
        return self._secret is not None

    def is_locked(self, address: str, now: float) -> bool:
        """Whether `address` has failed too often lately."""
        return self._locked_until.get(household(address), now) > now

    def note_failure(self, address: str, now: float) -> bool:
        """Count something wrong that was shown, unless `address` is locked out already.

        Returns:
            Whether that was one too many, and locks the address out from now on.
        """
        if self.is_locked(address, now):
            return False
        address = household(address)
        failures = self._failures.setdefault(address, deque(maxlen=MAX_FAILURES))
        self._failures.move_to_end(address)
        failures.append(now)
        locks = len(failures) == MAX_FAILURES and failures[0] > now - WINDOW
        if locks:
            del self._failures[address]
            self._locked_until[address] = now + WINDOW
            self._locked_until.move_to_end(address)
        for remembered in (self._failures, self._locked_until):
            if len(remembered) > MAX_ADDRESSES:
                remembered.popitem(last=False)
        return locks


def household(address: str) -> str:
    """Return what of an address is one party's: everybody with IPv6 has 2^64 of them to guess from.

    That is the network's 64 bits (RFC 7421); of a unix socket, and in IPv4, it is all of it.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, ipaddress.IPv6Address) or ip.ipv4_mapped is not None:
        return address
    return str(ipaddress.IPv6Network((int(ip), 64), strict=False))


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the token of an `Authorization: Bearer` header (RFC 6750, section 2.1)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
