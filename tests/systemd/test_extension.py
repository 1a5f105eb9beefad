"""More time for what keeps the main thread busy: a migration."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from clarad.systemd import extension
from clarad.systemd.extension import EXTENSION, extending
from clarad.systemd.notify import Notifier
from tests.daemon_process import environment
from tests.systemd.manager import Manager


def begin(*words: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command."""
    return subprocess.Popen([sys.executable, "-m", "clarad", *words], env=env)


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "PAUSE", 0.01)


@pytest.mark.usefixtures("_hasty")
async def test_time_is_asked_for_again_and_again(notifier: Notifier, manager: Manager) -> None:
    with extending(notifier, 1000, "busy"):
        for _ in range(3):
            assert (await manager.receive()).assignments == {
                "EXTEND_TIMEOUT_USEC": str(int(EXTENSION * 1e6)),
                "STATUS": "busy",
            }
    threads = threading.active_count()
    manager.take_all()
    with extending(notifier, 1000, "busy"):
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads, "with the block it ends"


@pytest.mark.usefixtures("_hasty")
async def test_a_budget_that_is_used_up_is_not_exceeded(
    notifier: Notifier, manager: Manager
) -> None:
    with extending(notifier, 0.05, "busy"):
        for thread in threading.enumerate():
            if thread.name == "extension":
                await trio.to_thread.run_sync(thread.join)
    asked = [int(told["EXTEND_TIMEOUT_USEC"]) for told in manager.take_all()]
    assert asked == sorted(asked, reverse=True)
    assert all(0 < one < 50_000 for one in asked)


def test_without_systemd_there_is_no_thread() -> None:
    before = threading.active_count()
    with extending(Notifier(None), 1000, "busy"):
        assert threading.active_count() == before


@pytest.mark.parametrize("words", [["migrate"], ["run"]])
async def test_a_migration_that_takes_long_asks_for_time(
    tmp_path: Path, manager: Manager, words: list[str]
) -> None:
    env = environment(tmp_path, NOTIFY_SOCKET=manager.address)
    holder = sqlite3.connect(tmp_path / "clarad.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with begin(*words, env=env) as migrating:
        told = (await manager.receive()).assignments
        assert int(told["EXTEND_TIMEOUT_USEC"]) > 0
        assert told["STATUS"] == "migrating the database"
        holder.execute("ROLLBACK")
        holder.close()
        if words == ["migrate"]:
            assert migrating.wait() == 0
        else:
            await manager.until("READY", "1")
            migrating.terminate()
            assert migrating.wait() == 0
