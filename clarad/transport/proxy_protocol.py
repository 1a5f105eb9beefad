"""The PROXY protocol, versions 1 and 2: a header with the client's address, sent by a proxy.

The header precedes everything else, even TLS. It is read only from trusted proxies
(`clarad.config.proxies`); any other peer that sends one is refused. The specification is HAProxy's
doc/proxy-protocol.txt.
"""

import ipaddress
import re
import struct
from typing import Final, NamedTuple

import trio

# No byte after the header may be consumed: TLS or HTTP begins there. So read with MSG_PEEK, then
# consume only the header's bytes.
MAX_HEADER: Final = 4096
"""Bytes of a header, as in nginx. Each piece that arrives is parsed from the start."""

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
"""Bytes of the two addresses and ports, by address family."""


class ProxyHeaderError(Exception):
    """A malformed header, or one of a peer that is not trusted; the text says why."""


class Header(NamedTuple):
    """A complete header; `size` is 0 if there is none."""

    size: int
    """In bytes."""
    source: str | None
    """The address of the proxy's client; `None` if the header does not have it."""


def parse(data: bytes) -> Header | None:
    """Parse the first bytes of a connection; `None` if the header needs more than `data`.

    HTTP begins with `GET` and TLS with 0x16, so data without the signature of either version has no
    header.

    Raises:
        ProxyHeaderError: it begins with a signature, but is malformed.
    """
    if not data:
        return None
    if _begins(data, _SIGNATURE_1):
        return _parse_line(data)
    if _begins(data, _SIGNATURE_2):
        return _parse_binary(data)
    return Header(0, None)


async def begins_with_header(connected: trio.socket.SocketType) -> bool:
    """Wait for the first bytes; return whether they are a header's signature. Consumes nothing.

    Raises:
        trio.BrokenResourceError: the connection is lost.
    """
    try:
        seen = await connected.recv(len(_SIGNATURE_2), trio.socket.MSG_PEEK)
    except OSError as error:
        raise trio.BrokenResourceError(f"{error}") from error
    return seen.startswith((_SIGNATURE_1, _SIGNATURE_2))


async def read_header(connected: trio.socket.SocketType) -> Header:
    """Wait for the first bytes, and consume the header, if there is one.

    Cancelling leaves the connection unusable.

    Raises:
        ProxyHeaderError: the header is malformed.
        trio.BrokenResourceError: the connection is lost, or closed before its header is complete.
    """
    consumed = b""
    try:
        while seen := await connected.recv(MAX_HEADER, trio.socket.MSG_PEEK):
            header = parse(consumed + seen)
            if header is not None and header.size < len(consumed):
                # The first bytes came alone, looked like a signature's, and have been consumed.
                raise ProxyHeaderError(
                    f"it begins with {(consumed + seen)[:_MAX_LINE]!r}, which is no PROXY header"
                )
            # Consume an incomplete header at once: the kernel would report it as readable without
            # end, and this loop would spin until the rest has come.
            size = len(seen) if header is None else header.size - len(consumed)
            if size:
                consumed += await connected.recv(size)
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
    # LOCAL is the proxy's own connection, such as a health check: it has no address.
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
        case _:  # the proxy's client has connected to a unix socket
            return Header(size, None)


def _begins(data: bytes, signature: bytes) -> bool:
    """Whether `data` begins with the signature, or may do so when there is more of it."""
    return data.startswith(signature[: len(data)])
