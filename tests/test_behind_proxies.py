"""A daemon behind a real nginx or HAProxy: whose guesses count against whom, and what is logged.

Clients have addresses of their own in 127.0.0.0/8; the proxy's is 127.0.0.1, and it is trusted.
"""

import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
from trio_websocket import wrap_client_stream

from clarad.config.proxies import parse
from clarad.events import EventType
from clarad.transport.lockout import MAX_FAILURES
from clarad.transport.tls import client_context
from tests import certificates
from tests.conftest import Running, Start
from tests.installation import Installation
from tests.nurseries.test_gateway import SECRET, exchange, handshake
from tests.peer import Peer
from tests.web_proxies import INSTALLED, PORT, proxy

Transport = trio.SocketStream | trio.SSLStream[trio.SocketStream]

GUESSER: Final = "127.0.0.99"
ADAPTER: Final = "127.0.0.5"

FORWARDED: Final = {
    "X-Forwarded-For $remote_addr": 'X-Forwarded-For ""',
    'Forwarded "";': 'Forwarded "for=$remote_addr;proto=https";',
}
HTTP: Final = {
    "mode tcp": "mode http",
    "send-proxy-v2": "",
    "    default_backend": "    option forwardfor\n    default_backend",
}


@dataclass(frozen=True)
class Way:
    """How a proxy is set up: changes to the documented configuration, and which side has TLS."""

    name: str
    changes: dict[str, str]
    tls: str  # where it ends: "proxy", "daemon", or nowhere


WAYS: Final = {
    "nginx, X-Forwarded-For": Way("nginx", {}, "proxy"),
    "nginx, Forwarded": Way("nginx", FORWARDED, "proxy"),
    "haproxy, PROXY 2": Way("haproxy", {}, "daemon"),
    "haproxy, PROXY 1": Way("haproxy", {"send-proxy-v2": "send-proxy"}, "daemon"),
    "haproxy, PROXY 2, no TLS": Way("haproxy", {}, ""),
    "haproxy, TLS, PROXY 2": Way("haproxy", {}, "proxy"),
    "haproxy, TLS, X-Forwarded-For": Way("haproxy", HTTP, "proxy"),
}


class Behind:
    """A daemon behind a proxy, and what comes to it through that."""

    def __init__(self, running: Running, host: str, tls: ssl.SSLContext | None) -> None:
        self.running = running
        self._host = host
        self._tls = tls

    @asynccontextmanager
    async def stream(self, source: str) -> AsyncIterator[Transport]:
        """Connect to the proxy, from this address."""
        tcp = await trio.open_tcp_stream(self._host, PORT, local_address=source)
        if self._tls is None:
            stream: Transport = tcp
        else:
            stream = trio.SSLStream(tcp, self._tls, https_compatible=True)
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)

    async def status(self, source: str, *headers: str) -> int:
        """Return the status that a handshake is answered with."""
        async with self.stream(source) as stream:
            with trio.fail_after(10):
                await stream.send_all(handshake(*headers))
                return int((await stream.receive_some()).split()[1])

    @asynccontextmanager
    async def peer(self, source: str) -> AsyncIterator[Peer]:
        """Be connected for the length of the block, and cut the connection then."""
        async with self.stream(source) as stream, trio.open_nursery() as nursery:
            with trio.fail_after(10):
                yield Peer(await wrap_client_stream(nursery, stream, "localhost", "/"))
            nursery.cancel_scope.cancel("the test has done with it")


@pytest.fixture(params=[name for name, way in WAYS.items() if way.name in INSTALLED])
async def behind(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path
) -> AsyncIterator[Behind]:
    """A daemon behind a proxy, in each way."""
    way: Way = WAYS[request.param]
    certificate = certificates.make(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.key.read_bytes() + certificate.certificate.read_bytes())
    settings: dict[str, Any] = {"gateway_tls_cert": both} if way.tls == "daemon" else {}
    running = await start(gateway_secret=SECRET, trusted_proxies=parse("127.0.0.1"), **settings)
    changes = dict(way.changes)
    if way.name == "nginx":
        changes |= {
            "/etc/ssl/clarad.pem": f"{certificate.certificate}",
            "/etc/ssl/clarad.key": f"{certificate.key}",
        }
    elif way.tls == "proxy":
        changes["bind :443"] = f"bind :443 ssl crt {both}"
    tls = client_context(certificate.certificate) if way.tls else None
    async with proxy(way.name, tmp_path, running.port, changes) as host:
        yield Behind(running, host, tls)


async def test_the_address_is_the_client_s_and_messages_are_answered(behind: Behind) -> None:
    async with behind.peer(ADAPTER) as peer:
        await peer.register(secret=SECRET)
        event = await behind.running.event(EventType.ADAPTER_CONNECTED)
        assert event.data["address"] == ADAPTER
        for text in ("hello", "x" * 1_000_000):
            await peer.ask(f"m{len(text)}", text)
            assert (await peer.outcome_of(f"m{len(text)}"))["full_text"] == text


async def test_guesses_lock_out_their_address_and_not_the_secret(behind: Behind) -> None:
    for _ in range(MAX_FAILURES):
        assert await behind.status(GUESSER, "Authorization: Bearer wrong") == 401
    assert await behind.status(GUESSER, "Authorization: Bearer wrong") == 429
    assert await behind.status(ADAPTER, "Authorization: Bearer wrong") == 401
    for source in (ADAPTER, GUESSER):
        assert await behind.status(source, f"Authorization: Bearer {SECRET}") == 101


async def test_an_address_that_a_client_makes_up_is_not_believed(
    behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    for header in ("X-Forwarded-For: 127.0.0.1, 192.0.2.1", 'Forwarded: for="192.0.2.1'):
        caplog.clear()
        status = await behind.status(GUESSER, "Authorization: Bearer wrong", header)
        assert status in (400, 401)
        [said] = [text for text in caplog.messages if text.startswith("refused a handshake from")]
        assert status == 400 or f"from {GUESSER}:" in said


# --- without a proxy -----------------------------------------------------------------------------

TCP4 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
GUESS = handshake("Authorization: Bearer wrong", "X-Forwarded-For: 198.51.100.1")


def refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return from where handshakes were refused."""
    found = [text for text in caplog.messages if text.startswith("refused a handshake from")]
    return [text.removeprefix("refused a handshake from ").partition(": ")[0] for text in found]


@pytest.mark.parametrize(
    ("sent", "address"),
    [
        (GUESS, "198.51.100.1"),
        (TCP4 + GUESS, "192.0.2.7"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4711 443\r\n" + GUESS, "192.0.2.7"),
        (b"PROXY TCP4 127.0.0.1 192.0.2.1 4711 443\r\n" + GUESS, "198.51.100.1"),
        (b"PROXY UNKNOWN\r\n" + GUESS, "127.0.0.1"),
        (LOCAL + GUESS, "127.0.0.1"),
    ],
    ids=["none", "v1", "mapped", "another proxy", "unknown", "local"],
)
async def test_the_header_goes_before_the_request_and_what_is_not_named_is_not_believed(
    start: Start, caplog: pytest.LogCaptureFixture, sent: bytes, address: str
) -> None:
    running = await start(gateway_secret=SECRET, trusted_proxies=parse("127.0.0.1"))
    assert b" 401 " in await exchange(running, sent)
    assert refused(caplog) == [address]


async def test_who_is_not_trusted_is_not_listened_to(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(gateway_secret=SECRET, trusted_proxies=parse("192.0.2.1, unix"))
    assert b" 401 " in await exchange(running, GUESS)
    assert refused(caplog) == ["127.0.0.1"]


UNTRUSTED = "refused a connection from 127.0.0.1: it sends a PROXY header and is not in "


@pytest.mark.parametrize("sent", [TCP4, LOCAL], ids=["v1", "v2"])
async def test_a_proxy_that_is_not_trusted_is_refused_and_both_sides_are_told(
    running: Running, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    head, _, body = (await exchange(running, sent + handshake())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"CLARA_TRUSTED_PROXIES" in body
    assert f"{UNTRUSTED}CLARA_TRUSTED_PROXIES" in caplog.messages


async def test_a_proxy_that_is_not_trusted_is_named_also_where_the_port_speaks_tls(
    start: Start, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    made = certificates.make(tmp_path)
    running = await start(gateway_tls_cert=made.certificate, gateway_tls_key=made.key)
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        await stream.send_all(TCP4)
        with trio.fail_after(10):
            while f"{UNTRUSTED}CLARA_TRUSTED_PROXIES" not in caplog.messages:
                await trio.testing.wait_all_tasks_blocked()


async def test_a_proxy_that_is_refused_again_and_again_does_not_fill_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start()
    for _ in range(MAX_FAILURES + 5):
        await exchange(running, TCP4 + handshake())
    said = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(said) == MAX_FAILURES + 1
    assert said[-2].getMessage() == (
        "refused 127.0.0.1 too often: for a minute, what else is wrong from there is not logged"
    )


@pytest.mark.parametrize("sent", [b"PROXY rubbish\r\n", b"\r\n\r\n\0\r\nQUIT\n\xff" * 2])
async def test_rubbish_instead_of_a_header_ends_the_connection_and_is_logged(
    start: Start, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    running = await start(trusted_proxies=parse("127.0.0.1"))
    good = await running.node()
    answer = await exchange(running, sent + handshake())
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    [said] = [text for text in caplog.messages if text.startswith("refused a connection from")]
    assert said.startswith("refused a connection from 127.0.0.1: ")
    assert await good.is_silent()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_plain_http_from_a_proxy_is_told_that_it_is_wrong_here(
    start: Start, method: str
) -> None:
    running = await start(trusted_proxies=parse("127.0.0.1"))
    answer = await exchange(running, f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")


async def test_who_connects_to_the_socket_file_can_be_a_proxy(
    start: Start, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "gateway.sock"
    await start(gateway_socket=path, gateway_secret=SECRET, trusted_proxies=parse("unix"))
    for sent in (GUESS, TCP4 + GUESS):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(sent)
            with trio.fail_after(10):
                assert b" 401 " in await stream.receive_some()
    assert refused(caplog) == ["198.51.100.1", "192.0.2.7"]


def test_a_reload_changes_the_trusted_proxies_and_the_log_has_the_real_address(
    tmp_path: Path,
) -> None:
    file = tmp_path / "clarad.env"
    file.write_text("")
    installation = Installation(tmp_path, CLARA_GATEWAY_SECRET=SECRET, CLARA_ENV_FILE=f"{file}")
    with installation.daemon() as daemon:
        _, port = daemon.url.removeprefix("ws://").split(":")
        guess(int(port))
        file.write_text("CLARA_TRUSTED_PROXIES=127.0.0.1\n")
        said = installation.clarad("reload")
        assert said.out.endswith("CLARA_TRUSTED_PROXIES\n"), said
        guess(int(port))
        daemon.wait_for_log("refused a handshake from 198.51.100.1: 401")
        assert daemon.log.count("refused a handshake from 127.0.0.1: 401") == 1


def guess(port: int) -> None:
    """Have a guess refused."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        stream.sendall(GUESS)
        assert b" 401 " in stream.recv(1000)
