"""What listens besides the port: the socket file, with the same door."""

import os
import stat
from pathlib import Path

import pytest
import trio

from clarad.transport.lockout import MAX_FAILURES
from tests.conftest import Running, Start
from tests.nurseries.test_gateway import SECRET, handshake, refusal
from tests.peer import Peer, connect_unix
from tests.transport.test_auth import make_token, revoke
from tests.transport.test_listeners import listening_by_hand


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.sock"


async def connect(running: Running, *headers: tuple[str, str]) -> Peer:
    """Connect to the socket file."""
    path = running.settings.gateway_socket
    assert path is not None
    connection = await connect_unix(running.nursery, path, headers)
    running.peers.append(connection)
    return connection


async def status_of(path: Path, header: str) -> int:
    """Return the status that a handshake with this header is answered with."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(handshake(header))
        with trio.fail_after(10):
            return int((await stream.receive_some()).split()[1])


async def test_messages_are_answered_over_the_socket_file(start: Start, path: Path) -> None:
    running = await start(gateway_socket=path)
    peer = await connect(running)
    await peer.register()
    await peer.ask("m1")
    assert (await peer.outcome_of("m1"))["type"] == "response_end"


async def test_a_node_can_go_from_the_port_to_the_socket_file(start: Start, path: Path) -> None:
    running = await start(gateway_socket=path)
    first = await running.node()
    second = await connect(running)
    await second.register()
    assert await first.close_code() == 4000
    assert await second.is_silent()


async def test_it_is_for_its_user_and_group(start: Start, path: Path) -> None:
    await start(gateway_socket=path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


async def test_what_a_killed_daemon_left_is_replaced(start: Start, path: Path) -> None:
    with listening_by_hand(path):
        pass
    running = await start(gateway_socket=path)
    await (await connect(running)).register()


async def test_a_stop_says_good_bye_and_removes_it(start: Start, path: Path) -> None:
    running = await start(gateway_socket=path)
    peer = await connect(running)
    await peer.register()
    running.daemon.request_stop()
    assert await peer.close_code() == 1001
    with trio.fail_after(10):
        await running.daemon.stopped.wait()
    assert not await trio.Path(path).exists()


async def test_the_secret_is_needed_there_too(start: Start, path: Path) -> None:
    running = await start(gateway_socket=path, gateway_secret=SECRET)
    peer = await connect(running)
    await peer.send("register", node_id="n", platform="p")
    assert (await peer.receive())["code"] == "auth_failed"
    assert await status_of(path, "Authorization: Bearer wrong") == 401
    await (await connect(running, ("Authorization", f"Bearer {SECRET}"))).register()


async def test_a_web_page_cannot_connect_there_either(start: Start, path: Path) -> None:
    await start(gateway_socket=path)
    assert await status_of(path, "Origin: https://evil.example") == 403


async def test_guessing_at_the_port_locks_nobody_out_at_the_socket_file(
    start: Start, path: Path
) -> None:
    running = await start(gateway_socket=path, gateway_secret=SECRET)
    for _ in range(MAX_FAILURES):
        await refusal(running, "Authorization: Bearer wrong")
    assert (await refusal(running, "Authorization: Bearer wrong"))[0] == 429
    assert await status_of(path, "Authorization: Bearer wrong") == 401


async def test_revoking_a_token_closes_its_connections_there_too(start: Start, path: Path) -> None:
    running = await start(gateway_socket=path)
    peer = await connect(running)
    await peer.register(secret=make_token(running, "mine"))
    assert await revoke(running, "mine") == "1 connection of it closed"
    assert await peer.close_code() == 1008
