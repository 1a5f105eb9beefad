"""Where the daemon listens: what is made, what is left alone, and what is said if it cannot."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from clarad.transport.listeners import (
    MAX_NAME,
    CannotListen,
    TcpEndpoint,
    UnixEndpoint,
    peer_address,
    socket_name,
)
from tests.unprivileged import unprivileged


@pytest.fixture
def endpoint(tmp_path: Path) -> UnixEndpoint:
    return UnixEndpoint(tmp_path / "control.sock")


@contextmanager
def listening_by_hand(path: Path, backlog: int = 5) -> Iterator[socket.socket]:
    """Listen as another program does; its file stays."""
    with socket.socket(socket.AF_UNIX) as other, socket_name(path) as name:
        other.bind(name)
        other.listen(backlog)
        yield other


async def connect(endpoint: UnixEndpoint) -> trio.SocketStream:
    with socket_name(endpoint.address) as name:
        return await trio.open_unix_socket(name)


async def answers(endpoint: UnixEndpoint, listener: trio.SocketListener) -> bool:
    """Return whether a connection to the path reaches this listener."""
    with trio.fail_after(10):
        async with await connect(endpoint) as client, await listener.accept() as server:
            await client.send_all(b"hello")
            return bool(await server.receive_some() == b"hello")


def stretched(directory: Path, length: int) -> Path:
    """Return a path of so many bytes below a directory."""
    path = directory / "control.sock"
    missing = length - len(os.fsencode(path))
    if missing <= 0:
        return path
    name = "d" * max(1, min(missing, 200) - 1)
    return stretched(directory / name, length)


# --- TCP -----------------------------------------------------------------------------------------


async def test_a_free_port_is_kept_when_it_is_opened_again() -> None:
    endpoint = TcpEndpoint("127.0.0.1", 0)
    await endpoint.open()
    host, port = endpoint.address
    endpoint.close()
    assert port > 0
    await endpoint.open()
    endpoint.close()
    assert endpoint.address == (host, port)


async def test_the_peer_of_a_tcp_connection_is_its_address() -> None:
    endpoint = TcpEndpoint("127.0.0.1", 0)
    (listener,) = await endpoint.open()
    async with await trio.open_tcp_stream(*endpoint.address), await listener.accept() as server:
        assert peer_address(server.socket) == "127.0.0.1"
    endpoint.close()


# --- a socket file -------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_it_is_for_its_user_and_group_whatever_the_umask(
    endpoint: UnixEndpoint, umask: int
) -> None:
    before = os.umask(umask)
    try:
        await endpoint.open()
    finally:
        os.umask(before)
    assert stat.S_IMODE(endpoint.address.stat().st_mode) == 0o660
    endpoint.close()


async def test_it_is_gone_when_it_is_closed_and_can_be_opened_again(endpoint: UnixEndpoint) -> None:
    for _ in range(2):
        (listener,) = await endpoint.open()
        assert await answers(endpoint, listener)
        endpoint.close()
        assert not endpoint.address.exists()


async def test_closing_what_is_not_open_removes_nothing(endpoint: UnixEndpoint) -> None:
    endpoint.address.touch()
    endpoint.close()
    assert endpoint.address.exists()


async def test_somebody_else_may_have_removed_it(endpoint: UnixEndpoint) -> None:
    await endpoint.open()
    endpoint.address.unlink()
    endpoint.close()


@pytest.mark.parametrize("length", [MAX_NAME, MAX_NAME + 1, 1000])
async def test_its_path_may_be_longer_than_a_socket_address(tmp_path: Path, length: int) -> None:
    endpoint = UnixEndpoint(stretched(tmp_path, length))
    endpoint.address.parent.mkdir(parents=True, exist_ok=True)
    (listener,) = await endpoint.open()
    assert endpoint.address.is_socket()
    assert await answers(endpoint, listener)
    endpoint.close()
    assert not endpoint.address.exists()


async def test_the_peer_of_its_connection_is_a_user(endpoint: UnixEndpoint) -> None:
    (listener,) = await endpoint.open()
    async with await connect(endpoint), await listener.accept() as server:
        assert peer_address(server.socket) == f"uid {os.geteuid()}"
    endpoint.close()


# --- what is there already -----------------------------------------------------------------------


async def test_what_a_dead_daemon_left_is_replaced(endpoint: UnixEndpoint) -> None:
    with listening_by_hand(endpoint.address):
        pass
    (listener,) = await endpoint.open()
    assert await answers(endpoint, listener)
    endpoint.close()


async def test_a_process_that_listens_there_is_named_and_left_alone(endpoint: UnixEndpoint) -> None:
    with listening_by_hand(endpoint.address) as other:
        with pytest.raises(CannotListen, match="listens there") as caught:
            await endpoint.open()
        assert str(endpoint.address) in str(caught.value)
        assert f"process {os.getpid()}" in str(caught.value)
        assert endpoint.address.is_socket()
        other.accept()[0].close()


async def test_a_process_that_listens_there_may_be_busy(endpoint: UnixEndpoint) -> None:
    with listening_by_hand(endpoint.address, backlog=0):
        async with await connect(endpoint):  # nobody takes it: the queue is full
            with pytest.raises(CannotListen, match="listens there"):
                await endpoint.open()
        assert endpoint.address.is_socket()


async def test_a_file_is_not_removed(endpoint: UnixEndpoint) -> None:
    endpoint.address.write_text("somebody's")
    with pytest.raises(CannotListen, match="move it"):
        await endpoint.open()
    assert endpoint.address.read_text() == "somebody's"


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing", "missing" * 30])
async def test_a_directory_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "control.sock"
    with pytest.raises(CannotListen, match="No such file") as caught:
        await UnixEndpoint(path).open()
    assert_one_sentence(caught.value, path)


async def test_a_directory_that_cannot_be_written_is_named(endpoint: UnixEndpoint) -> None:
    endpoint.address.parent.chmod(0o500)
    with unprivileged(), pytest.raises(CannotListen, match="denied") as caught:
        await endpoint.open()
    assert_one_sentence(caught.value, endpoint.address)


async def test_a_file_that_cannot_be_removed_is_left_to_the_next_daemon(
    endpoint: UnixEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    await endpoint.open()
    endpoint.address.parent.chmod(0o500)
    with unprivileged():
        endpoint.close()
    endpoint.address.parent.chmod(0o700)
    assert str(endpoint.address) in caplog.text
    await endpoint.open()
    endpoint.close()


def assert_one_sentence(error: CannotListen, path: Path) -> None:
    text = str(error)
    assert text.startswith(f"cannot listen on {path}: ")
    assert f"see that {path.parent} is a directory" in text
    assert "\n" not in text
