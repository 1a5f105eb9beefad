"""A crowd without the secret that costs a gateway as much as it can, and comes back when closed.

`strangers.py HOST PORT KIND [COUNT [SECONDS]]`, with `--tls` where the port speaks TLS, needs
nothing but Python, so that it runs beside an installed daemon as well. It prints `ready` once each
stranger has got as far as it can for the first time, and at the end how often they came.
"""

import argparse
import asyncio
import ssl
from typing import Final, NamedTuple

COUNT: Final = 60
BYTES_PER_SECOND: Final = 5_000_000
"""What all of them send together, at the most."""

_FROM: Final = ("127.0.0.2", 0)
"""Where they come from: what an address is refused for is not to meet good clients of 127.0.0.1."""

_BLOCK: Final = 2_000
"""Frames in one write."""

_ASK: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_CLOSE: Final = b"\x88"


def frame(head: int, payload: bytes = b"") -> bytes:
    """Return a client's frame of at most 125 bytes, masked with zeros."""
    return bytes([head, 0x80 | len(payload)]) + bytes(4) + payload


class Flood(NamedTuple):
    """What a stranger sends after its handshake: something first, then one frame on and on."""

    first: bytes
    then: bytes


_REGISTER: Final = b'{"type":"register","node_id":"n","platform":"p","secret":"guess"}'

FLOODS: Final = {
    "empty continuations": Flood(frame(0x01), frame(0x00)),
    "one-byte fragments": Flood(frame(0x01, b"x"), frame(0x00, b"x")),
    "empty pongs": Flood(b"", frame(0x8A)),
    "empty pings": Flood(b"", frame(0x89)),
    "empty messages": Flood(b"", frame(0x81)),
    "guesses": Flood(frame(0x81, _REGISTER), b""),
    "handshakes": Flood(b"", b""),
}
HELLOS: Final = "hellos"
GONE: Final = "gone"
PLAIN: Final = (*FLOODS, GONE)
KINDS: Final = (*PLAIN, HELLOS)
"""`HELLOS` begin a TLS handshake, which costs the server most of it, and go.

`GONE` say something, and go before anybody can have read it.
"""


class Crowd:
    """All strangers of one kind."""

    def __init__(self, host: str, port: int, kind: str, count: int, *, tls: bool) -> None:
        self._address = host, port
        self._kind = kind
        self._count = count
        self._tls = _context() if tls else None
        self._been: set[int] = set()
        self.came = 0

    async def run(self, seconds: float | None) -> None:
        """Come again and again, for as long as this lasts."""
        strangers = [asyncio.create_task(self._come_back(n)) for n in range(self._count)]
        await asyncio.wait(strangers, timeout=seconds)
        for stranger in strangers:
            stranger.cancel()
        await asyncio.wait(strangers)

    async def _come_back(self, number: int) -> None:
        while True:
            try:
                if self._kind == HELLOS:
                    await self._say_hello(number)
                elif self._kind == GONE:
                    await self._come_and_go(number)
                else:
                    await self._flood(FLOODS[self._kind], number)
            except (OSError, EOFError, ssl.SSLError):
                await asyncio.sleep(0.001)  # turned away
            self.came += 1

    def _note(self, number: int) -> None:
        """Note that a stranger has got as far as it can."""
        if number not in self._been:
            self._been.add(number)
            if len(self._been) == self._count:
                print("ready", flush=True)

    async def _say_hello(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(*self._address, local_addr=_FROM)
        try:
            writer.write(_hello())
            await reader.read(1)
            self._note(number)
        finally:
            writer.close()

    async def _come_and_go(self, number: int) -> None:
        _, writer = await asyncio.open_connection(*self._address, local_addr=_FROM)
        writer.write(_hello() if self._tls else _ASK)
        writer.close()
        await writer.wait_closed()
        self._note(number)

    async def _flood(self, flood: Flood, number: int) -> None:
        reader, writer = await asyncio.open_connection(
            *self._address, ssl=self._tls, local_addr=_FROM
        )
        try:
            writer.write(_ASK)
            answer = await reader.readuntil(b"\r\n\r\n")
            self._note(number)
            if not answer.startswith(b"HTTP/1.1 101"):
                return
            writer.write(flood.first)
            sending = asyncio.create_task(self._send(writer, flood.then))
            try:
                while flood.first + flood.then and (data := await reader.read(65536)):
                    if _CLOSE in data:
                        break
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        finally:
            writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter, one: bytes) -> None:
        block = one * _BLOCK
        try:
            while block:
                writer.write(block)
                await writer.drain()
                await asyncio.sleep(len(block) * self._count / BYTES_PER_SECOND)
        except OSError:
            pass  # the reader sees it too


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _hello() -> bytes:
    """Return what a TLS client says first."""
    outgoing = ssl.MemoryBIO()
    client = _context().wrap_bio(ssl.MemoryBIO(), outgoing)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a client waits for the server")


def main() -> None:
    """Read the arguments, be a crowd, and say how it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("count", type=int, nargs="?", default=COUNT)
    parser.add_argument("seconds", type=float, nargs="?")
    parser.add_argument("--tls", action="store_true")
    given = parser.parse_args()
    crowd = Crowd(given.host, given.port, given.kind, given.count, tls=given.tls)
    asyncio.run(crowd.run(given.seconds))
    print(crowd.came)


if __name__ == "__main__":
    main()
