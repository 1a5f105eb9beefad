"""The gateway: which handshakes it accepts, and what it answers to anything else."""

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from clarad.nurseries import gateway
from clarad.transport.listeners import CannotListen, peer_address
from clarad.transport.lockout import MAX_FAILURES
from tests.conftest import Running, Start
from tests.raw import RawPeer

SECRET = "a long random word"


async def refusal(running: Running, *headers: str) -> tuple[int, str]:
    """Return the HTTP status and the body that a handshake with these headers is refused with."""
    answer = await exchange(running, handshake(*headers))
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2].decode()


def handshake(*headers: str) -> bytes:
    """Return a WebSocket handshake with these headers."""
    lines = [
        "GET / HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def exchange(running: Running, request: bytes, *, then_eof: bool = False) -> bytes:
    """Send bytes, and return all that comes until the gateway closes."""
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        await stream.send_all(request)
        if then_eof:
            await stream.send_eof()
        answer = b""
        with trio.fail_after(10):
            while data := await stream.receive_some():
                answer += data
        return answer


async def test_port_0_binds_a_free_port(running: Running) -> None:
    assert running.port > 0


async def test_a_taken_port_is_named_with_what_to_do(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExceptionGroup) as caught:
            await start(gateway_port=port)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, CannotListen)
    assert str(port) in str(error)
    assert "CLARA_GATEWAY_PORT" in str(error)


# --- the secret ----------------------------------------------------------------------------------


async def test_the_secret_opens(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    peer = await running.connect()
    await peer.register(secret=SECRET)


@pytest.mark.parametrize("secret", ["", "wrong", None, SECRET + " ", "ä"])
async def test_a_wrong_secret_is_refused_and_closed(start: Start, secret: str | None) -> None:
    running = await start(gateway_secret=SECRET)
    peer = await running.connect()
    await peer.send("register", node_id="n", platform="p", secret=secret)
    assert (await peer.expect("error"))["code"] == "auth_failed"
    assert await peer.close_code() == 1008


async def test_the_secret_may_come_in_the_handshake(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    peer = await running.connect([("Authorization", f"Bearer {SECRET}")])
    await peer.register()


async def test_a_wrong_token_in_the_handshake_is_refused(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    status, _ = await refusal(running, "Authorization: Bearer wrong")
    assert status == 401


async def test_guessing_locks_out_the_address_and_not_the_secret(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    waiting = await running.connect()
    inside = await running.connect()
    await inside.register(secret=SECRET)
    for n in range(MAX_FAILURES):
        peer = await running.connect()
        await peer.send("register", node_id="n", platform="p", secret=f"guess {n}")
        assert (await peer.expect("error"))["code"] == "auth_failed"
    assert (await refusal(running, "Authorization: Bearer wrong"))[0] == 429
    await waiting.send("register", node_id="n", platform="p", secret="wrong")
    assert (await waiting.expect("error"))["code"] == "rate_limited"
    assert await waiting.close_code() == 1008
    assert await inside.is_silent()
    await (await running.connect()).register("n", secret=SECRET)


# --- browsers ------------------------------------------------------------------------------------


async def test_a_web_page_cannot_connect(running: Running) -> None:
    status, reason = await refusal(running, "Origin: https://evil.example")
    assert status == 403
    assert "CLARA_GATEWAY_ALLOWED_ORIGINS" in reason


async def test_a_web_page_that_is_listed_can(start: Start) -> None:
    origins = frozenset({"https://chat.example"})
    running = await start(gateway_allowed_origins=origins)
    peer = await running.connect([("Origin", "https://chat.example")])
    await peer.register()
    assert (await refusal(running, "Origin: https://chat.example.evil"))[0] == 403


# --- numbers -------------------------------------------------------------------------------------


async def test_one_connection_too_many_is_told_to_try_later(start: Start) -> None:
    running = await start(gateway_max_connections=2)
    first = await running.node("a")
    await running.node("b")
    assert await (await running.connect()).close_code() == 1013
    await first.drop()
    while running.daemon.nodes.find("a", "test").sink is not None:
        await trio.testing.wait_all_tasks_blocked()
    await running.node("c")


async def test_of_too_many_handshakes_at_once_those_are_cut_that_take_longest(
    start: Start, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(gateway, "MAX_HANDSHAKES", 3)
    running = await start()
    ended = list[int]()

    async def wait_for_end(number: int, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            ended.append(number)

    # All are there before the gateway takes the first one.
    there = (running.host, running.port)
    for number, one in enumerate([socket.create_connection(there) for _ in range(20)]):
        one.sendall(b"GET / HTTP/1.1\r\n")
        one.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(one))
        nursery.start_soon(wait_for_end, number, stream)
    with trio.fail_after(10):
        while len(ended) < 17:
            await trio.sleep(0.01)
    assert set(ended) == set(range(17))


async def test_a_peer_that_connects_and_closes_costs_no_task(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start()
    begun = list[str]()

    def begin(connected: trio.socket.SocketType) -> str:
        begun.append(peer_address(connected))
        return begun[-1]

    monkeypatch.setattr(gateway, "peer_address", begin)  # what a connection's task does first
    # All have come and gone before the gateway takes the first one.
    for _ in range(20):
        with socket.create_connection((running.host, running.port)) as one:
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    await running.node()
    assert len(begun) == 1


async def test_a_few_unauthenticated_peers_linger_to_read_why_they_were_closed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "MAX_LINGERING", 3)
    monkeypatch.setattr(gateway, "LINGER", 3600)
    running = await start()
    lingering = list[trio.SocketStream]()
    for _ in range(10):
        lingering.append(await trio.open_tcp_stream(running.host, running.port))
        await lingering[-1].send_all(NOT_WEBSOCKET["plain HTTP"])
        while await lingering[-1].receive_some():
            pass

    async def find_cut(one: trio.SocketStream) -> None:
        while True:
            await one.send_all(b"x")

    for one in lingering[:7]:
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await find_cut(one)
    for one in lingering[7:]:
        await one.send_all(b"x")
    for one in lingering:
        await one.aclose()


# --- what is no WebSocket ------------------------------------------------------------------------

TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(189))
NOT_WEBSOCKET = {
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a POST": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "TLS": TLS_HELLO,
    "rubbish": b"\x00\xff\r\n\r\n" * 100,
    "an endless header": b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
    "nothing": b"",
}


@pytest.mark.parametrize("name", NOT_WEBSOCKET)
async def test_what_is_no_websocket_is_refused_and_others_are_served(
    running: Running, name: str
) -> None:
    good = await running.node()
    answer = await exchange(running, NOT_WEBSOCKET[name], then_eof=True)
    assert b"101" not in answer.partition(b"\r\n")[0]
    await good.ask("m1")
    assert (await good.outcome_of("m1"))["type"] == "response_end"


@pytest.mark.parametrize("name", ["plain HTTP", "a POST", "another protocol"])
async def test_plain_http_is_told_that_it_is_wrong_here(running: Running, name: str) -> None:
    other = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = await exchange(running, (NOT_WEBSOCKET | {"another protocol": other})[name])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nUpgrade: websocket\r\n" in head
    assert body.startswith(b"This port speaks WebSocket")
    assert b"\r\nContent-Length: %d" % len(body) in head


async def test_a_reset_in_the_middle_of_the_handshake_disturbs_nobody(running: Running) -> None:
    good = await running.node()
    for _ in range(20):
        stream = await trio.open_tcp_stream(running.host, running.port)
        await stream.send_all(b"GET / HTTP/1.1\r\nrubbish")
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()
    assert await good.is_silent()


async def test_a_listener_that_fails_is_started_again_on_the_same_port(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve, failed, again = trio.serve_listeners, trio.Event(), trio.Event()

    async def fail_once(*arguments: Any, **named: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("as the test wants it")
        _, listeners = arguments
        if listeners[0].socket.family == socket.AF_INET:  # the control socket's is a unix one
            again.set()
        await serve(*arguments, **named)

    monkeypatch.setattr(trio, "serve_listeners", fail_once)
    running = await start()
    await again.wait()
    peer = await running.node()
    await peer.ask("m1")
    assert (await peer.outcome_of("m1"))["type"] == "response_end"


# --- a stop --------------------------------------------------------------------------------------


@asynccontextmanager
async def accepted_at_a_stop(
    running: Running, monkeypatch: pytest.MonkeyPatch, moment: str
) -> AsyncIterator[trio.SocketStream]:
    """Connect, and stop the gateway when it has begun the handshake, or has only accepted."""
    accept, port = trio.SocketListener.accept, running.daemon._servers.port

    def stop() -> None:
        port.stop_listening()
        port.close_all()

    async def accept_and_stop(listener: trio.SocketListener) -> trio.SocketStream:
        stream = await accept(listener)
        stop()
        return stream

    if moment == "accepted":
        monkeypatch.setattr(trio.SocketListener, "accept", accept_and_stop)
        (await trio.open_tcp_stream(running.host, running.port)).socket.close()  # for the old one
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        with trio.fail_after(10):
            while not port._handshakes:
                await trio.testing.wait_all_tasks_blocked()
        if moment == "begun":
            stop()
        yield stream


async def has_ended(running: Running) -> None:
    """Wait until the gateway has no connection any more."""
    supervisor = running.daemon._supervisor
    assert supervisor is not None
    with trio.fail_after(30):
        await supervisor.ended("gateway")


@pytest.mark.parametrize("moment", ["begun", "accepted"])
async def test_who_was_accepted_before_a_stop_finishes_the_handshake_and_is_told(
    start: Start, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(gateway, "STOP_HANDSHAKE_TIMEOUT", 3600)
    running = await start()
    async with accepted_at_a_stop(running, monkeypatch, moment) as stream:
        await trio.testing.wait_all_tasks_blocked()
        raw = RawPeer(stream)
        await raw.shake_hands()
        assert await raw.close_code() == 1001
    await has_ended(running)


@pytest.mark.parametrize("moment", ["begun", "accepted"])
async def test_a_stop_does_not_wait_for_a_handshake_that_never_ends(
    start: Start, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    for bound in ("HANDSHAKE_TIMEOUT", "LINGER"):
        monkeypatch.setattr(gateway, bound, 3600)
    running = await start()
    async with accepted_at_a_stop(running, monkeypatch, moment) as stream:
        await has_ended(running)
        assert await stream.receive_some() == b""


# --- whether it gets on --------------------------------------------------------------------------


async def gets_on(running: Running) -> None:
    with trio.fail_after(10):
        await running.daemon._servers.port.progress()


async def test_a_gateway_that_takes_connections_gets_on(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await gets_on(running)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    peer = await running.node()
    await peer.ask("m1")
    assert (await peer.outcome_of("m1"))["type"] == "response_end"


async def test_of_a_gateway_that_stops_nothing_is_expected(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stand_still(_listener: trio.SocketListener) -> trio.SocketStream:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(trio.SocketListener, "accept", stand_still)
    await gets_on(running)  # the one that is being accepted already
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gets_on, running)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        running.daemon.request_stop()
    await gets_on(running)
