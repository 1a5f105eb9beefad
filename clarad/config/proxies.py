"""Which proxies are trusted, and whose handshake it is that they pass on. No I/O."""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SAY: Final = (
    "write addresses and networks, separated by commas, such as 127.0.0.1, 10.0.0.0/8, and unix "
    "for the socket file"
)

# RFC 7239, section 4; `token` and `quoted-string` are RFC 9110's. Nothing is tried twice (`+` after
# another quantifier), so a header takes no longer than it has characters.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_PAIR: Final = rf"({_WORD})=({_WORD}|{_QUOTED})"
_ELEMENT: Final = re.compile(
    rf"[ \t]*+(?:{_PAIR})?+(?:[ \t]*+;[ \t]*+(?:{_PAIR})?+)*+[ \t]*+(?:,|\Z)"
)
_EACH_PAIR: Final = re.compile(_PAIR)
_ESCAPED: Final = re.compile(r"\\(.)")

# An address as both headers have it, with a port or without: an IPv6 address with one, and in
# `Forwarded` always, is in brackets.
_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\w+)?|([0-9.]+):\w+|([0-9A-Fa-f:.]+)")


class ForwardedError(Exception):
    """What a trusted proxy passes on cannot be understood; the text says why, to the client."""


@dataclass(frozen=True)
class Proxies:
    """Those whose word is taken for where a connection comes from; by default nobody's."""

    networks: tuple[_Network, ...] = ()
    unix: bool = False
    """Whether who connects to the socket file is one of them."""

    def trusts(self, address: str) -> bool:
        """Whether this is one of them: an address, or a user at the socket file."""
        if (ip := _ip(address)) is None:
            return self.unix and address.startswith("uid ")
        return any(ip in network for network in self.networks)

    def client(self, address: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return whose handshake it is that came from `address`.

        Each proxy puts the address that it was connected from at the end of the list: so it is
        walked from there, as long as what is there is a proxy that is trusted. What comes before
        was said by somebody who is not, and may be anything.

        Raises:
            ForwardedError: there is more than one list, or it cannot be understood.
        """
        if (ip := _ip(address)) is not None:
            address = f"{ip}"
        if not self.trusts(address):
            return address
        for said in _said(headers):
            if (ip := _ip(said)) is None:  # `unknown`, or a name that hides the address
                break
            address = f"{ip}"
            if not self.trusts(address):
                break
        return address


NO_PROXIES: Final = Proxies()


def parse(text: str) -> Proxies:
    """Read the setting; raises `ValueError`, which says what to write."""
    networks = []
    unix = False
    for word in (part.strip() for part in text.split(",")):
        if word == "unix":
            unix = True
        elif word:
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError as error:
                raise ValueError(f"{error}; {_SAY}") from None
    return Proxies(tuple(networks), unix)


def _ip(text: str) -> _IP | None:
    """Read an address; one of IPv4 that is written as one of IPv6 is the former."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _said(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
    """Yield the addresses that the proxies have said, the nearest first."""
    found: dict[str, list[str]] = {"forwarded": [], "x-forwarded-for": []}
    for name, value in headers:
        if (lines := found.get(name.decode("latin-1").lower())) is not None:
            lines.append(value.decode("latin-1"))
    forwarded, old = found["forwarded"], found["x-forwarded-for"]
    if forwarded and old:
        # A proxy writes one of them, and passes on the other as the client has sent it.
        raise ForwardedError(
            "The handshake has both Forwarded and X-Forwarded-For; have the proxy remove one of "
            "them from what it is sent."
        )
    nodes = [node for line in forwarded for node in _forwarded(line)]
    nodes += [node.strip() for line in old for node in line.split(",")]
    for node in reversed(nodes):
        match = _NODE.fullmatch(node)
        yield "" if match is None else next(filter(None, match.groups()))


def _forwarded(line: str) -> Iterator[str]:
    """Yield what `for` is in each element of a `Forwarded` header, and "" where there is none."""
    at = 0
    while at < len(line):
        element = _ELEMENT.match(line, at)
        if element is None:
            # What a client has begun to quote might otherwise hold what the proxy has added.
            raise ForwardedError("The Forwarded header is not as RFC 7239 has it.")
        pairs = {name.lower(): value for name, value in _EACH_PAIR.findall(element[0])}
        yield _unquoted(pairs.get("for", ""))
        at = element.end()


def _unquoted(value: str) -> str:
    return _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
