"""The process around the daemon: one life after another, until a signal ends it."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, NullPool, create_engine, make_url

from clarad.app import service
from tests.daemon_process import Process, daemon
from tests.postgres import SHARED, database

TAKEN_OVER = (
    "UPDATE clarad_daemons SET heir = id",
    """SELECT pg_notify('clarad', '{"type":"members"}')""",
)
"""Has every daemon find out that it has lost its lease."""


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that daemons can share."""
    with database(request.param, tmp_path, request.config) as url:
        yield url


@pytest.fixture
def process(url: str, tmp_path: Path) -> Iterator[Process]:
    """A daemon that listens."""
    with daemon(tmp_path, DATABASE_URL=url) as process:
        yield process


@contextmanager
def away(url: str) -> Iterator[Connection]:
    """Have the database take no new connection; gives out one that is there already."""
    inside = create_engine(url, poolclass=NullPool)
    parsed = make_url(url)
    beside = create_engine(parsed.set(database="postgres"), isolation_level="AUTOCOMMIT")
    allow = f"ALTER DATABASE {parsed.database} ALLOW_CONNECTIONS"
    with inside.connect() as connection, beside.connect() as administrator:
        administrator.exec_driver_sql(f"{allow} false")
        try:
            yield connection
        finally:
            administrator.exec_driver_sql(f"{allow} true")
    beside.dispose()


def take_over(connection: Connection) -> None:
    """Take over from all daemons that live."""
    with connection.begin():
        for statement in TAKEN_OVER:
            connection.exec_driver_sql(statement)


def test_a_daemon_that_has_lost_its_lease_begins_a_new_life_once_its_database_answers(
    process: Process, url: str
) -> None:
    with away(url) as connection:
        take_over(connection)
        process.wait_for_log("the database does not answer yet")
        assert process.log.count("listening on") == 1
    process.wait_for_log("listening on", times=2)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "Traceback" not in process.log


def test_a_signal_ends_a_daemon_that_waits_for_its_database(process: Process, url: str) -> None:
    with away(url) as connection:
        take_over(connection)
        process.wait_for_log("the database does not answer yet")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert process.log.count("listening on") == 1
    assert "Traceback" not in process.log


async def test_a_signal_that_comes_as_the_start_ends_is_heeded() -> None:
    async def work() -> None:
        done = trio.Event()
        os.kill(os.getpid(), signal.SIGUSR1)  # Trio passes it on in the step that ends the work
        trio.lowlevel.current_trio_token().run_sync_soon(done.set)
        await done.wait()

    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        assert not await service._run_unless_signalled(signals, work)


def test_where_systemd_starts_it_anew_a_daemon_ends_with_its_life(url: str, tmp_path: Path) -> None:
    heard = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(heard))
        state_dir = tmp_path / "state"
        with daemon(state_dir, DATABASE_URL=url, NOTIFY_SOCKET=str(heard)) as process:
            engine = create_engine(url, poolclass=NullPool)
            with engine.connect() as connection:
                take_over(connection)
            assert process.wait() != 0
            assert process.log.count("listening on") == 1
            assert "Traceback" not in process.log
