"""The PROXY protocol, versions 1 and 2: how a proxy says whose connection it passes on.

The header comes before everything else, TLS included. Only that of a trusted proxy is read
(`clarad.config.proxies`); anybody else who sends one is refused, and told why. The specification is
HAProxy's doc/proxy-protocol.txt.
"""

import ipaddress
import re
import struct
from typing import Final, NamedTuple

import trio

# No byte behind the header may be read: a TLS handshake or a request begins there. So whatever is
# there is looked at with MSG_PEEK, and what belongs to the header is then taken.
MAX_HEADER: Final = 4096
"""Bytes of a header; one that comes in pieces is parsed again with each. nginx allows as many."""

_SIGNATURE_2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_SIGNATURE_1: Final = b"PROXY "
_MAX_LINE: Final = 107
_LINE: Final = re.compile(
    r"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP([46]) (\S+) (\S+) (\d{1,5}) (\d{1,5}))\r\n", re.ASCII
)

_FIXED: Final = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_SIZES: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}
"""Bytes of the two addresses and ports, for each kind of connection that there is."""


class ProxyHeaderError(Exception):
    """What a trusted proxy has sent is no header; the text says why."""


class Header(NamedTuple):
    """A whole header; without one, `size` is 0."""

    size: int
    """Its bytes."""
    source: str | None
    """The address of whoever has connected to the proxy, `None` if it does not say."""


def parse(data: bytes) -> Header | None:
    """Parse what begins a connection; `None` if the header goes on behind `data`.

    A handshake begins with `GET`, and one of TLS with 0x16: what does not begin with the signature
    of one of the two versions has no header.

    Raises:
        ProxyHeaderError: it begins with a signature, and is no header.
    """
    if not data:
        return None
    if _begins(data, _SIGNATURE_1):
        return _parse_line(data)
    if _begins(data, _SIGNATURE_2):
        return _parse_binary(data)
    return Header(0, None)


async def begins_with_header(connected: trio.socket.SocketType) -> bool:
    """Whether a connection begins with the signature of a header, all in one piece; reads nothing.

    Waits for the first byte.

    Raises:
        trio.BrokenResourceError: the connection is lost.
    """
    try:
        seen = await connected.recv(len(_SIGNATURE_2), trio.socket.MSG_PEEK)
    except OSError as error:
        raise trio.BrokenResourceError(f"{error}") from error
    return seen.startswith((_SIGNATURE_1, _SIGNATURE_2))


async def read_header(connected: trio.socket.SocketType) -> Header:
    """Read the header that a connection may begin with, and nothing behind it.

    Waits for the first byte. Cancelling leaves the connection unusable.

    Raises:
        ProxyHeaderError: what comes is no header.
        trio.BrokenResourceError: the connection is lost, or closed before its header has come.
    """
    taken = b""
    try:
        while seen := await connected.recv(MAX_HEADER, trio.socket.MSG_PEEK):
            header = parse(taken + seen)
            if header is not None and header.size < len(taken):
                # Its first bytes came alone, looked like a signature's, and cannot be put back.
                raise ProxyHeaderError(
                    f"it begins with {(taken + seen)[:_MAX_LINE]!r}, which is no PROXY header"
                )
            size = len(seen) if header is None else header.size - len(taken)
            if size:
                taken += await connected.recv(size)
            if header is not None:
                return header
    except OSError as error:
        raise trio.BrokenResourceError(f"{error}") from error
    raise trio.BrokenResourceError("closed before anything came")


def _parse_line(data: bytes) -> Header | None:
    line, end, _ = data[:_MAX_LINE].partition(b"\n")
    if not end and len(data) < _MAX_LINE:
        return None
    match = _LINE.fullmatch((line + end).decode("latin-1"))
    if match is None:
        raise ProxyHeaderError(f"it begins with {data[:_MAX_LINE]!r}, which is no PROXY header")
    version, source, destination, *ports = match.groups()
    if version is None:
        return Header(len(match[0]), None)
    if any(int(port) > 65535 for port in ports):
        raise ProxyHeaderError(f"a port in {line!r} is none")
    return Header(len(match[0]), _address(version, source, destination))


def _address(version: str, *addresses: str) -> str:
    kind = ipaddress.IPv4Address if version == "4" else ipaddress.IPv6Address
    try:
        source, _ = map(kind, addresses)
    except ValueError as error:
        raise ProxyHeaderError(f"an address in the PROXY header is none: {error}") from None
    return f"{source}"


def _parse_binary(data: bytes) -> Header | None:
    if len(data) < _FIXED.size:
        return None
    _, command, kind, length = _FIXED.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"the PROXY header has version and command {command:#04x}")
    # Of a connection of the proxy's own, such as a health check, the rest means nothing.
    said = _UNSPECIFIED if command == _LOCAL else kind
    if said not in _SIZES or length < _SIZES[said]:
        raise ProxyHeaderError(f"the PROXY header has {length} bytes for a kind {kind:#04x}")
    size = _FIXED.size + length
    if size > MAX_HEADER:
        raise ProxyHeaderError(f"the PROXY header has {size} bytes, more than {MAX_HEADER}")
    if len(data) < size:
        return None
    addresses = data[_FIXED.size :]
    match said:
        case 0x11:
            return Header(size, f"{ipaddress.IPv4Address(addresses[:4])}")
        case 0x21:
            return Header(size, f"{ipaddress.IPv6Address(addresses[:16])}")
        case _:  # whoever has connected to a socket file of the proxy has no address
            return Header(size, None)


def _begins(data: bytes, signature: bytes) -> bool:
    """Whether `data` begins with the signature, or may do so when there is more of it."""
    return data.startswith(signature[: len(data)])
