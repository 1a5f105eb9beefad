"""What is told to systemd, on a socket of the kind that systemd has."""

import logging
import secrets
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.systemd import notify
from clarad.systemd.notify import MAX_STATUS, READY, WATCHDOG, Notifier
from tests.systemd.manager import Manager


def test_without_systemd_nothing_is_told_and_all_is_well() -> None:
    nobody = Notifier(None)
    assert not nobody.is_enabled
    assert nobody.send(READY)


@pytest.mark.parametrize("is_abstract", [False, True])
def test_an_address_is_a_path_or_an_abstract_name(tmp_path: Path, *, is_abstract: bool) -> None:
    address = f"@clarad-{secrets.token_hex(8)}" if is_abstract else str(tmp_path / "notify")
    with Manager(address) as manager:
        notifier = Notifier(address)
        assert notifier.send(READY, notify.status("well"))
        notifier.close()
        assert manager.take().assignments == {"READY": "1", "STATUS": "well"}


def test_a_reload_says_when_it_began(notifier: Notifier, manager: Manager) -> None:
    notifier.send(notify.reloading())
    notifier.send(notify.reloading())
    first, second = manager.take_all()
    assert first["RELOADING"] == "1"
    assert 0 < int(first["MONOTONIC_USEC"]) <= int(second["MONOTONIC_USEC"])


def test_more_time_is_asked_for_in_microseconds(notifier: Notifier, manager: Manager) -> None:
    notifier.send(notify.extend_timeout(1.5))
    assert manager.take().assignments == {"EXTEND_TIMEOUT_USEC": "1500000"}


@given(st.text())
def test_a_status_is_one_line_and_not_too_long_whatever_is_in_it(text: str) -> None:
    (line,) = notify.status(text).splitlines()
    assert line.startswith("STATUS=")
    assert len(line) <= len("STATUS=") + MAX_STATUS
    line.encode()


def test_sockets_go_along(notifier: Notifier, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        assert notifier.keep("clarad-gateway", [one, other])
        told = manager.take()
        assert told.assignments == {"FDSTORE": "1", "FDNAME": "clarad-gateway"}
        names = [each.getsockname() for each in told.sockets]
        assert names == [one.getsockname(), other.getsockname()]


def test_sockets_are_forgotten_by_their_name(notifier: Notifier, manager: Manager) -> None:
    assert notifier.forget("clarad-gateway")
    assert manager.take().assignments == {"FDSTOREREMOVE": "1", "FDNAME": "clarad-gateway"}


def test_a_systemd_that_is_busy_holds_nobody_up(
    notifier: Notifier, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    while notifier.send(WATCHDOG):
        pass
    assert not notifier.send(READY)
    assert len(caplog.records) == 1, "it is said once"
    manager.take_all()
    assert notifier.send(READY)
    assert manager.take().assignments == {"READY": "1"}


def test_a_systemd_that_is_not_there_is_said_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "missing"))
    assert not notifier.send(READY)
    notifier.close()
    assert caplog.record_tuples == [
        (
            "clarad.systemd.notify",
            logging.WARNING,
            "systemd was not told READY=1: No such file or directory",
        )
    ]
