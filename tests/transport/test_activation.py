"""Listening sockets that outlive the daemon: taken from systemd, and put there."""

import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from clarad.systemd.handover import Handed
from clarad.systemd.notify import Notifier
from clarad.transport.activation import STORED, UNIT, ActivatedEndpoint
from clarad.transport.listeners import CannotListen
from tests.daemon_process import daemon
from tests.peer import connect
from tests.systemd.manager import Manager

Make = Callable[..., ActivatedEndpoint]


@pytest.fixture
async def endpoint(notifier: Notifier) -> AsyncIterator[Make]:
    """Make endpoints; what they have open ends with the test."""
    made: list[ActivatedEndpoint] = []

    def make(
        *handed: Handed, host: str = "127.0.0.1", port: int = 0, is_guarded: bool = False
    ) -> ActivatedEndpoint:
        one = ActivatedEndpoint(host, port, handed=handed, notifier=notifier, is_guarded=is_guarded)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
        one.release()


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket as systemd hands it over."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family)
    made.setblocking(False)
    return made


async def answers(endpoint: ActivatedEndpoint, listener: trio.SocketListener) -> bool:
    """Return whether a connection to the endpoint reaches this listener."""
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(*endpoint.address), await listener.accept() as server:
            await server.send_all(b"hello")
            return True


def names(sockets: Sequence[socket.socket]) -> list[object]:
    return [one.getsockname() for one in sockets]


# --- systemd's store -----------------------------------------------------------------------------


async def test_what_is_bound_is_given_to_systemd(endpoint: Make, manager: Manager) -> None:
    fresh = endpoint()
    (listener,) = await fresh.open()
    assert await answers(fresh, listener)
    told = manager.take()
    assert told.assignments == {"FDSTORE": "1", "FDNAME": STORED}
    assert names(told.sockets) == [fresh.address]


async def test_what_systemd_kept_is_used(endpoint: Make, manager: Manager) -> None:
    kept = listening()
    port = kept.getsockname()[1]
    again = endpoint(Handed(STORED, kept), port=port)
    (listener,) = await again.open()
    assert again.address == ("127.0.0.1", port)
    assert await answers(again, listener)
    assert manager.take_all() == [], "it is there already"


async def test_any_port_is_the_one_of_the_last_time(endpoint: Make, manager: Manager) -> None:
    kept = listening()
    again = endpoint(Handed(STORED, kept), port=0)
    await again.open()
    assert again.address == kept.getsockname()


async def test_a_client_waits_while_no_daemon_accepts(endpoint: Make) -> None:
    fresh = endpoint()
    await fresh.open()
    fresh.close()
    async with await trio.open_tcp_stream(*fresh.address) as client:
        (listener,) = await fresh.open()
        with trio.fail_after(10):
            async with await listener.accept() as server:
                await server.send_all(b"hello")
            assert await client.receive_some() == b"hello"


async def test_one_that_listens_elsewhere_is_closed_and_another_is_bound(
    endpoint: Make, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    with listening() as free:
        port = free.getsockname()[1]
    stale = listening()
    old_port = stale.getsockname()[1]
    moved = endpoint(Handed(STORED, stale), port=port)
    (listener,) = await moved.open()
    assert await answers(moved, listener)
    assert stale.fileno() == -1
    assert f"127.0.0.1:{old_port}, kept from the last daemon" in caplog.text
    forgotten, kept = manager.take(), manager.take()
    assert forgotten.assignments == {"FDSTOREREMOVE": "1", "FDNAME": STORED}
    assert names(kept.sockets) == [("127.0.0.1", port)]


async def test_one_that_is_in_the_way_until_systemd_has_closed_it_is_waited_for(
    endpoint: Make, manager: Manager, nursery: trio.Nursery
) -> None:
    everywhere = listening("0.0.0.0")
    copy_of_systemd = everywhere.dup()
    port = everywhere.getsockname()[1]

    async def forget() -> None:
        await manager.until("FDSTOREREMOVE", "1")
        copy_of_systemd.close()

    nursery.start_soon(forget)
    narrower = endpoint(Handed(STORED, everywhere), port=port)
    (listener,) = await narrower.open()
    assert await answers(narrower, listener)
    assert narrower.address == ("127.0.0.1", port)


async def test_a_socket_that_does_not_listen_is_not_used(endpoint: Make, manager: Manager) -> None:
    odd = socket.socket()
    odd.bind(("127.0.0.1", 0))
    fresh = endpoint(Handed(STORED, odd))
    (listener,) = await fresh.open()
    assert await answers(fresh, listener)


async def test_a_socket_of_another_name_is_said_and_closed(
    endpoint: Make, caplog: pytest.LogCaptureFixture
) -> None:
    other = listening()
    await endpoint(Handed("other.socket", other)).open()
    assert "'other.socket'" in caplog.text
    assert other.fileno() == -1


async def test_a_port_that_another_program_has_is_named(endpoint: Make) -> None:
    with listening() as taken, pytest.raises(CannotListen, match="CLARA_GATEWAY_PORT"):
        await endpoint(port=taken.getsockname()[1]).open()


async def test_a_name_that_nobody_knows_is_named(endpoint: Make) -> None:
    with pytest.raises(CannotListen, match="CLARA_GATEWAY_HOST"):
        await endpoint(host="nowhere.invalid").open()


# --- a name with several addresses ---------------------------------------------------------------


class TwoAddresses(trio.abc.HostnameResolver):
    """Knows `both`, as most machines know `localhost`."""

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the interface's
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        await trio.lowlevel.checkpoint()
        return [
            found
            for address in ("127.0.0.1", "::1")
            for found in socket.getaddrinfo(address, port, family, type, proto, flags)
        ]

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        raise NotImplementedError


async def test_all_addresses_of_a_name_are_kept(endpoint: Make, manager: Manager) -> None:
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    with listening() as free:
        port = free.getsockname()[1]
    assert len(await endpoint(host="both", port=port).open()) == 2
    told = manager.take()
    assert names(told.sockets) == [("127.0.0.1", port), ("::1", port, 0, 0)]


async def test_what_is_missing_of_them_is_bound(endpoint: Make, manager: Manager) -> None:
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    kept = listening("::1")
    port = kept.getsockname()[1]
    listeners = await endpoint(Handed(STORED, kept), host="both", port=port).open()
    assert [one.socket.getsockname()[0] for one in listeners] == ["127.0.0.1", "::1"]
    assert len(manager.take().sockets) == 2


# --- clarad.socket -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_any_port_good", [False, True])
async def test_the_socket_of_the_unit_is_used_and_is_systemds_to_keep(
    endpoint: Make, manager: Manager, caplog: pytest.LogCaptureFixture, *, is_any_port_good: bool
) -> None:
    handed = listening()
    port = 0 if is_any_port_good else handed.getsockname()[1]
    from_unit = endpoint(Handed(UNIT, handed), port=port)
    (listener,) = await from_unit.open()
    assert await answers(from_unit, listener)
    assert manager.take_all() == []
    assert caplog.text == ""


async def test_where_the_unit_listens_goes_before_the_settings_and_the_log_says_so(
    endpoint: Make, caplog: pytest.LogCaptureFixture
) -> None:
    handed = listening()
    port = handed.getsockname()[1]
    from_unit = endpoint(Handed(UNIT, handed), port=1)
    (listener,) = await from_unit.open()
    assert await answers(from_unit, listener)
    (said,) = caplog.messages
    assert f"the gateway is on 127.0.0.1:{port}, as clarad.socket says" in said
    assert "CLARA_GATEWAY_PORT say 127.0.0.1:1, and have no effect" in said


async def test_a_unit_that_lets_others_in_needs_a_secret(endpoint: Make) -> None:
    with pytest.raises(CannotListen, match="CLARA_GATEWAY_SECRET"):
        await endpoint(Handed(UNIT, listening("0.0.0.0"))).open()
    await endpoint(Handed(UNIT, listening("0.0.0.0")), is_guarded=True).open()


async def test_a_unit_with_a_socket_file_is_refused(tmp_path: Path, endpoint: Make) -> None:
    with socket.socket(socket.AF_UNIX) as file:
        file.bind(str(tmp_path / "gateway"))
        file.listen()
        with pytest.raises(CannotListen, match="ListenStream="):
            await endpoint(Handed(UNIT, file)).open()


# --- a restart -----------------------------------------------------------------------------------


async def ask(url: str, nursery: trio.Nursery, answered: trio.Event) -> None:
    """Connect, wait for as long as it takes, and have a message answered."""
    peer = await connect(nursery, url)
    await peer.register()
    await peer.ask("m1")
    assert (await peer.outcome_of("m1"))["type"] == "response_end"
    await peer.drop()
    answered.set()


async def kept_by(manager: Manager) -> list[socket.socket]:
    while not (told := await manager.receive()).sockets:
        pass
    return told.sockets


async def test_a_client_that_connects_during_a_restart_is_served_by_the_next_daemon(
    tmp_path: Path, manager: Manager, nursery: trio.Nursery
) -> None:
    settings = {"NOTIFY_SOCKET": manager.address, "LISTEN_FDNAMES": STORED}
    with daemon(tmp_path, **settings) as first:
        url = first.url
        sockets = await kept_by(manager)
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
    answered = trio.Event()
    nursery.start_soon(ask, url, nursery, answered)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not answered.is_set()
    with daemon(tmp_path, sockets, **settings) as second:
        assert second.url == url
        with trio.fail_after(10):
            await answered.wait()


async def test_a_connection_that_comes_during_the_drain_is_not_refused(
    tmp_path: Path, manager: Manager, nursery: trio.Nursery
) -> None:
    gate = tmp_path / "gate"
    command = f"while [ ! -e {gate} ]; do sleep 0.01; done"
    settings = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": command}
    with daemon(tmp_path, NOTIFY_SOCKET=manager.address, **settings) as process:
        host, port = "127.0.0.1", int(process.url.rpartition(":")[2])
        peer = await connect(nursery, process.url)
        await peer.register()
        await peer.ask("m1")
        await manager.until("STATUS", "1 message running")
        process.signal(signal.SIGTERM)
        await manager.until("STOPPING", "1")
        async with await trio.open_tcp_stream(host, port):
            gate.touch()
            assert (await peer.outcome_of("m1"))["type"] == "response_end"
        await peer.drop()
