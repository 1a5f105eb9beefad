"""Signals are obeyed during the start, too, whatever it waits for."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from sqlalchemy import Engine, NullPool, create_engine

from clarad.store import StoreError, interruptible
from clarad.store.engine import errors_in_one_line
from clarad.store.migrate import _MIGRATING
from tests.daemon_process import PATIENCE, Process, environment
from tests.migrated import migrate
from tests.postgres import SHARED, database
from tests.store.conftest import Outside

ENDLESS = {
    "sqlite": "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n FROM n) SELECT sum(n) FROM n",
    "postgresql": "SELECT pg_sleep(1000)",
}


@contextmanager
def holding(url: str, *statements: str) -> Iterator[None]:
    """Hold the locks that these statements take."""
    with create_engine(url, poolclass=NullPool).connect() as holder:
        for statement in statements:
            holder.exec_driver_sql(statement)
        yield


@contextmanager
def starting(state_dir: Path, url: str) -> Iterator[Process]:
    """Start a daemon on the database, and wait until it waits for a lock."""
    process = Process(state_dir, DATABASE_URL=url)
    outside = Outside(url)
    deadline = time.monotonic() + PATIENCE
    try:
        while outside.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
            assert time.monotonic() < deadline, process.log
            time.sleep(0.02)
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("backend", SHARED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_while_another_daemon_migrates(
    backend: str, number: signal.Signals, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    with (
        database(backend, tmp_path, pytestconfig) as url,
        holding(url, f"SELECT pg_advisory_lock({_MIGRATING})"),
        starting(tmp_path / "state", url) as process,
    ):
        process.signal(number)
        assert process.wait() == 0, process.log
        assert "Traceback" not in process.log
        assert "clarad_daemons" not in Outside(url).tables()


@pytest.mark.parametrize("backend", SHARED)
@pytest.mark.parametrize("table", ["clarad_daemons", "clarad_nodes", "clarad_messages"])
def test_a_signal_is_obeyed_while_a_table_cannot_be_read(
    backend: str, table: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    with database(backend, tmp_path, pytestconfig) as url:
        engine = create_engine(url, poolclass=NullPool)
        migrate(engine)
        lock = f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
        with holding(url, lock), starting(tmp_path / "state", url) as process:
            process.signal(signal.SIGTERM)
            assert process.wait() == 0, process.log
            assert "listening on" not in process.log
            assert "Traceback" not in process.log


BEFORE_THE_LOOP = """\
import signal
from clarad.app import service
from clarad.cli import main
service.run = lambda *_: signal.raise_signal(signal.{number})
raise SystemExit(main(["run"]))
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_is_obeyed_before_there_is_a_loop(tmp_path: Path, number: str) -> None:
    words = [sys.executable, "-c", BEFORE_THE_LOOP.format(number=number)]
    ended = subprocess.run(words, env=environment(tmp_path), capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


# --- what waits for the database in a thread -----------------------------------------------------


async def test_a_thread_that_waits_for_the_database_is_cancelled(
    url: str, connect: Callable[[str], Engine]
) -> None:
    engine, begun = connect(url), threading.Event()

    def wait() -> None:
        with errors_in_one_line(), engine.connect() as connection:
            begun.set()
            connection.exec_driver_sql(ENDLESS[engine.dialect.name])

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interruptible, engine, wait)
            await trio.to_thread.run_sync(begun.wait, PATIENCE)
            nursery.cancel_scope.cancel()


async def test_what_a_thread_returns_or_raises_comes_through(
    url: str, connect: Callable[[str], Engine]
) -> None:
    def fail() -> None:
        raise StoreError("as the test wants it")

    assert await interruptible(connect(url), lambda: 7) == 7
    with pytest.raises(StoreError, match="wants it"):
        await interruptible(connect(url), fail)
