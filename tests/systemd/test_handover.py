"""What is taken out of the environment, and whom it is meant for."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.systemd import handover
from clarad.systemd.handover import NOTHING, Handover
from tests.daemon_process import daemon

NOT_US = str(os.getpid() + 1)

WHOLE = {
    "NOTIFY_SOCKET": "/run/systemd/notify",
    "WATCHDOG_USEC": "30000000",
    "WATCHDOG_PID": str(os.getpid()),
    "LISTEN_FDS": "0",
    "LISTEN_PID": str(os.getpid()),
    "LISTEN_FDNAMES": "",
}


def test_nothing_is_left_for_those_whom_the_daemon_starts() -> None:
    environ = WHOLE | {"HOME": "/root"}
    assert handover.receive(environ) == Handover("/run/systemd/notify", 30.0, ())
    assert environ == {"HOME": "/root"}
    assert handover.receive(environ) == NOTHING


def test_a_watchdog_without_a_process_is_ours() -> None:
    assert handover.receive({"WATCHDOG_USEC": "1500000"}).watchdog == 1.5


def test_what_is_meant_for_another_process_is_forgotten() -> None:
    environ = WHOLE | {"WATCHDOG_PID": NOT_US, "LISTEN_PID": NOT_US, "LISTEN_FDS": "3"}
    assert handover.receive(environ) == Handover("/run/systemd/notify")
    assert environ == {}


@given(st.text().filter(lambda text: not (text.isascii() and text.isdigit())))
def test_what_is_no_number_has_no_effect(text: str) -> None:
    broken = {"WATCHDOG_USEC": text, "LISTEN_FDS": text, "LISTEN_PID": str(os.getpid())}
    assert handover.receive(broken) == NOTHING


def test_what_is_no_number_is_named(caplog: pytest.LogCaptureFixture) -> None:
    handover.receive({"WATCHDOG_USEC": "soon"})
    assert "WATCHDOG_USEC='soon'" in caplog.text


async def test_what_is_no_socket_and_what_is_nobodys_is_said_and_left(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with (
        os.fdopen(reading) as pipe,
        os.fdopen(writing),
        daemon(tmp_path, [pipe], LISTEN_FDNAMES="queue") as process,
    ):
        assert "descriptor 3 (queue) is no socket" in process.log
