"""The PROXY header: what it says, however it arrives, and what is none."""

import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from clarad.transport.proxy_protocol import Header, ProxyHeaderError, parse, read_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"

HERE_4, THERE_4 = (ipaddress.ip_address(f"192.0.2.{n}").packed for n in (1, 2))
HERE_6, THERE_6 = (ipaddress.ip_address(f"2001:db8::{n}").packed for n in (1, 2))
MAPPED = f"{ipaddress.ip_address('::ffff:192.0.2.1')}"
PORTS = struct.pack("!HH", 4711, 443)


def binary(kind: int, addresses: bytes, command: int = 0x21, more: bytes = b"") -> bytes:
    """Return a header of version 2."""
    body = addresses + more
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


HEADERS = {
    "v1, IPv4": (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n", "192.0.2.1"),
    "v1, IPv6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "2001:db8::1"),
    "v1, IPv4 as IPv6": (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", MAPPED),
    "v1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1, unknown, and more": (b"PROXY UNKNOWN ffff:f::1 ffff::1 65535 65535\r\n", None),
    "v2, IPv4": (binary(0x11, HERE_4 + THERE_4 + PORTS), "192.0.2.1"),
    "v2, IPv6": (binary(0x21, HERE_6 + THERE_6 + PORTS), "2001:db8::1"),
    "v2, with more": (binary(0x11, HERE_4 + THERE_4 + PORTS, more=b"\x20" * 4068), "192.0.2.1"),
    "v2, unix": (binary(0x31, b"/run/client".ljust(108, b"\0") * 2), None),
    "v2, unspecified": (binary(0x00, b""), None),
    "v2, unspecified, and more": (binary(0x00, b"\xff" * 50), None),
    "v2, local": (binary(0x00, b"", command=0x20), None),
    "v2, local, with addresses": (binary(0x11, HERE_4 + THERE_4 + PORTS, command=0x20), None),
}

RUBBISH = {
    "an unknown kind": b"PROXY TCP5 192.0.2.1 192.0.2.2 4711 443\r\n",
    "UDP": b"PROXY UDP4 192.0.2.1 192.0.2.2 4711 443\r\n",
    "two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 4711 443\r\n",
    "no CR": b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\n",
    "a port too few": b"PROXY TCP4 192.0.2.1 192.0.2.2 4711\r\n",
    "a port too large": b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 65536\r\n",
    "no address": b"PROXY TCP4 example.org 192.0.2.2 4711 443\r\n",
    "IPv6 as IPv4": b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n",
    "an endless line": b"PROXY UNKNOWN " + b"x" * 200,
    "version 1 in binary": binary(0x11, HERE_4 + THERE_4 + PORTS, command=0x11),
    "an unknown command": binary(0x11, HERE_4 + THERE_4 + PORTS, command=0x22),
    "datagrams": binary(0x12, HERE_4 + THERE_4 + PORTS),
    "an unknown family": binary(0x41, HERE_4 + THERE_4 + PORTS),
    "more bytes than a header may have": binary(0x00, b"", more=b"\x20" * 4081),
    "addresses that are too short": binary(0x21, HERE_4 + THERE_4 + PORTS),
}

PLAIN = {
    "a request": REQUEST,
    "another method": b"POST / HTTP/1.1\r\n\r\n",
    "another word": b"PROXIES\r\n",
    "half a signature": SIGNATURE[:8] + b"POST",
    "TLS": b"\x16\x03\x01\x02\x00",
    "a lone byte": b"\xff",
}


def parse_pieces(pieces: list[bytes]) -> Header | str | None:
    """Parse what comes in pieces, as it is read; a refusal is a word."""
    data = b""
    for piece in pieces:
        data += piece
        try:
            header = parse(data)
        except ProxyHeaderError:
            return "refused"
        if header is not None:
            return header
    return None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


places = st.lists(st.integers(0, 10_000), max_size=20)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_has_the_client_s_address_and_an_end(name: str) -> None:
    header, source = HEADERS[name]
    assert parse(header) == parse(header + REQUEST) == Header(len(header), source)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_waited_for_to_its_end(name: str) -> None:
    header, _ = HEADERS[name]
    for size in range(min(len(header), 300)):
        assert parse(header[:size]) is None


@pytest.mark.parametrize("name", RUBBISH)
def test_what_begins_as_a_header_and_is_none_is_refused(name: str) -> None:
    with pytest.raises(ProxyHeaderError) as caught:
        parse(RUBBISH[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PLAIN)
def test_what_begins_otherwise_has_no_header(name: str) -> None:
    assert parse(PLAIN[name]) == Header(0, None)


@given(
    st.sampled_from([data for data, _ in HEADERS.values()] + [*RUBBISH.values(), *PLAIN.values()]),
    places,
)
def test_however_the_bytes_are_split_the_result_is_the_same(data: bytes, where: list[int]) -> None:
    assert parse_pieces(cut(data + REQUEST, where)) == parse_pieces([data + REQUEST])


@given(st.one_of(st.binary(max_size=300), st.binary().map(SIGNATURE.__add__)), places)
@example(b"PROXY ", [])
def test_rubbish_is_refused_or_no_header_and_nothing_else(data: bytes, where: list[int]) -> None:
    whole = parse_pieces([data])
    assert parse_pieces(cut(data, where)) == whole
    assert not isinstance(whole, Header) or whole.size <= len(data)


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 65535))
def test_every_address_comes_through(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
) -> None:
    destination = other if other.version == source.version else source
    line = f"PROXY TCP{source.version} {source} {destination} {port} 443\r\n".encode()
    assert parse(line) == Header(len(line), f"{source}")
    packed = source.packed + destination.packed + struct.pack("!HH", port, 443)
    whole = binary(0x11 if source.version == 4 else 0x21, packed)
    assert parse(whole) == Header(len(whole), f"{source}")


# --- a socket ------------------------------------------------------------------------------------


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Two ends of a TCP connection."""
    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with (
        listener,
        await trio.open_tcp_stream(*listener.socket.getsockname()) as client,
        await listener.accept() as server,
    ):
        yield client, server


@pytest.mark.parametrize("name", [*HEADERS, *PLAIN])
async def test_nothing_behind_the_header_is_read(name: str) -> None:
    header, source = HEADERS.get(name, (b"", None))
    after = PLAIN.get(name, REQUEST)
    async with connected() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, header + after)
        with trio.fail_after(10):
            assert await read_header(server.socket) == Header(len(header), source)
            rest = b""
            while len(rest) < len(after):
                rest += await server.receive_some()
    assert rest == after


async def test_a_header_that_comes_byte_by_byte_is_read() -> None:
    header, source = HEADERS["v2, IPv6"]
    async with connected() as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            for byte in header:
                await client.send_all(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()

        nursery.start_soon(send)
        with trio.fail_after(10):
            assert await read_header(server.socket) == Header(len(header), source)


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 ", SIGNATURE], ids=["nothing", "v1", "v2"])
async def test_a_connection_that_ends_before_its_header_does_is_broken(sent: bytes) -> None:
    async with connected() as (client, server):
        await client.send_all(sent)
        await client.send_eof()
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await read_header(server.socket)


async def test_what_has_looked_like_a_header_and_is_a_request_is_refused() -> None:
    async with connected() as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(b"P")
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(b"OST / HTTP/1.1\r\n\r\n")

        nursery.start_soon(send)
        with trio.fail_after(10), pytest.raises(ProxyHeaderError, match="POST"):
            await read_header(server.socket)
