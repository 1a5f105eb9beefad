"""Who may talk to the gateway: the secret, the origins, and the door that guessing closes."""

import hmac
import ipaddress
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final

MAX_FAILURES: Final = 10
"""Wrong secrets from one address within `WINDOW` that close the door to it."""

WINDOW: Final = 60.0
"""Seconds that failures count, and that the door then stays closed."""

MAX_ADDRESSES: Final = 10_000
"""Addresses that are remembered; beyond that the one that failed longest ago is forgotten."""


class Door:
    """Checks handshakes and secrets. Times are given by the caller, in seconds of one clock."""

    def __init__(self, secret: str | None, allowed_origins: frozenset[str]) -> None:
        self._secret = None if secret is None else secret.encode()
        self.allowed_origins = allowed_origins
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._closed_until: OrderedDict[str, float] = OrderedDict()

    def admits_origin(self, headers: Mapping[str, str]) -> bool:
        """Whether the handshake may come from where it comes from.

        Browsers send `Origin` with every WebSocket handshake and pages cannot forge it (RFC 6455,
        section 10.2); adapters send none. So a page that the operator visits is kept out.
        """
        origin = headers.get("origin")
        return origin is None or origin.lower().rstrip("/") in self.allowed_origins

    def is_closed(self, address: str, now: float) -> bool:
        """Whether `address` has failed too often lately."""
        return self._closed_until.get(_household(address), now) > now

    def admits(self, address: str, secret: str | None, now: float) -> bool:
        """Check a secret, in constant time, and count a failure against `address`.

        While the door is closed to the address nothing is compared, so nothing can be learned.
        """
        if self._secret is None:
            return True
        if self.is_closed(address, now):
            return False
        if hmac.compare_digest((secret or "").encode(errors="replace"), self._secret):
            self._failures.pop(_household(address), None)
            return True
        self.note_failure(address, now)
        return False

    @property
    def has_secret(self) -> bool:
        """Whether there is one at all."""
        return self._secret is not None

    def note_failure(self, address: str, now: float) -> None:
        """Count something wrong that was shown, and close the door if it is one too many."""
        address = _household(address)
        failures = self._failures.setdefault(address, deque(maxlen=MAX_FAILURES))
        self._failures.move_to_end(address)
        failures.append(now)
        if len(failures) == MAX_FAILURES and failures[0] > now - WINDOW:
            del self._failures[address]
            self._closed_until[address] = now + WINDOW
            self._closed_until.move_to_end(address)
        for remembered in (self._failures, self._closed_until):
            if len(remembered) > MAX_ADDRESSES:
                remembered.popitem(last=False)


def _household(address: str) -> str:
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
