"""Signs of life: while everything gets on, and not while one part does not."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from clarad.systemd.handover import Handover
from clarad.systemd.notify import Notifier
from clarad.systemd.watchdog import Part, Watchdog
from tests.conftest import Running, Start
from tests.daemon_process import PATIENCE, Process
from tests.systemd.manager import Manager

TIMEOUT = 30.0


class Parts:
    """Parts of a daemon that get on as long as they are not stuck."""

    def __init__(self) -> None:
        self.stuck: set[str] = set()

    def part(self, name: str, patience: float = 0) -> Part:
        async def progress() -> None:
            while name in self.stuck:
                await trio.sleep(0.1)
            await trio.lowlevel.checkpoint()

        return Part(name, progress, patience)


@pytest.fixture
async def parts(notifier: Notifier, nursery: trio.Nursery) -> Parts:
    """A quick part and a slow one, which may be silent for 100 s; both are watched."""
    made = Parts()
    watched = [made.part("quick"), made.part("slow", patience=100)]
    await nursery.start(Watchdog(notifier, TIMEOUT, watched).run)
    return made


def signs(manager: Manager) -> int:
    """Return how many signs of life have come since this was asked last."""
    told = manager.take_all()
    assert all(one == {"WATCHDOG": "1"} for one in told)
    return len(told)


async def test_a_sign_comes_twice_in_the_timeout(
    parts: Parts, autojump_clock: MockClock, manager: Manager
) -> None:
    await trio.sleep(4 * TIMEOUT - 1)
    assert signs(manager) == 8


async def test_no_sign_comes_while_a_part_is_stuck_and_the_stacks_are_logged_once(
    parts: Parts, autojump_clock: MockClock, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    await trio.sleep(100)
    parts.stuck.add("quick")
    await trio.sleep(TIMEOUT)
    signs(manager)
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert "stuck: the quick (for " in record.message
    assert "in progress" in record.message, "the stack of the task that does not get on"
    assert "thread MainThread" in record.message
    await trio.sleep(10 * TIMEOUT)
    assert signs(manager) == 0
    assert caplog.records == [record]


async def test_the_stacks_are_there_before_systemd_loses_its_patience(
    parts: Parts, autojump_clock: MockClock, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    await trio.sleep(100)
    parts.stuck.add("quick")
    last_sign_at = trio.current_time()
    while not caplog.records:
        await trio.sleep(0.1)
        if signs(manager):
            last_sign_at = trio.current_time()
    assert trio.current_time() < last_sign_at + TIMEOUT - 1


async def test_a_part_that_gets_on_again_saves_the_daemon(
    parts: Parts, autojump_clock: MockClock, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    await trio.sleep(100)
    parts.stuck.add("quick")
    while not caplog.records:
        await trio.sleep(0.1)
    signs(manager)
    parts.stuck.clear()
    await trio.sleep(2)
    assert signs(manager) == 1
    assert caplog.messages[1:] == ["the quick gets on again"]


async def test_a_slow_part_has_the_patience_that_it_needs(
    parts: Parts, autojump_clock: MockClock, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    parts.stuck.add("slow")
    await trio.sleep(99)
    assert signs(manager) == 7
    assert not caplog.records
    await trio.sleep(TIMEOUT)
    assert "stuck: the slow" in caplog.text


# --- the parts of a daemon -----------------------------------------------------------------------


@pytest.fixture
async def watched(start: Start, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A daemon that is to give signs in short order, and has given some."""
    monkeypatch.setattr("clarad.app.daemon.STORE_PATIENCE", 0.5)
    monkeypatch.setattr("clarad.nurseries.scheduler.STEP", 0.05)
    running = await start(handed=Handover(manager.address, watchdog=0.4))
    for _ in range(3):
        await manager.until("WATCHDOG", "1")
    return running


async def stuck(caplog: pytest.LogCaptureFixture, part: str, function: str) -> None:
    """Wait until the log says that a part is stuck, and in which function."""
    with trio.fail_after(PATIENCE):
        while f"stuck: the {part}" not in caplog.text:
            await trio.sleep(0.01)
    assert f"in {function}\n" in caplog.text


async def gets_on(manager: Manager) -> None:
    """Wait for a sign that has not been given before."""
    manager.take_all()
    await manager.until("WATCHDOG", "1")


@contextmanager
def held_thread(running: Running) -> Iterator[None]:
    """Have the store's thread stand still for the length of the block."""
    go_on = threading.Event()

    def stand_still(_connection: object) -> None:
        go_on.wait(PATIENCE)

    running.nursery.start_soon(running.daemon.writer.call, stand_still)
    try:
        yield
    finally:
        go_on.set()


async def test_a_store_that_is_stuck_is_found(
    watched: Running, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    with held_thread(watched):
        await stuck(caplog, "store", "stand_still")
    await gets_on(manager)


async def test_a_gateway_that_is_stuck_is_found(
    watched: Running,
    manager: Manager,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = trio.Event()
    accept = trio.SocketListener.accept

    async def stand_still(listener: trio.SocketListener) -> trio.SocketStream:
        await released.wait()
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", stand_still)
    await stuck(caplog, "gateway", "stand_still")
    released.set()
    await gets_on(manager)


async def test_a_scheduler_that_is_stuck_is_found(
    watched: Running,
    manager: Manager,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = trio.Event()

    async def stand_still(*_: object) -> None:
        await released.wait()

    monkeypatch.setattr(type(watched.daemon._scheduler), "_sleep", stand_still)
    await stuck(caplog, "scheduler", "stand_still")
    monkeypatch.undo()
    released.set()
    await gets_on(manager)


async def test_signs_come_while_the_daemon_drains(watched: Running, manager: Manager) -> None:
    peer = await watched.node()
    await peer.ask("m1", "hold")
    await watched.responder.begun["m1"].wait()
    watched.daemon.request_stop()
    await manager.until("STOPPING", "1")
    for _ in range(5):
        await manager.until("WATCHDOG", "1")
    watched.responder.release["m1"].set()
    await peer.outcome_of("m1")


# --- the loop ------------------------------------------------------------------------------------


STUCK: Final = """
import time

from clarad.config import discovery as address

def announce(*_, **__):
    time.sleep(1000)

address.announce = announce
"""


async def test_a_loop_that_is_stuck_gives_no_sign_and_leaves_its_stacks(
    tmp_path: Path, manager: Manager
) -> None:
    # It is stuck where it writes its address down, the last thing before it is ready.
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    settings = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    process = Process(tmp_path / "state", PYTHONPATH=f"{tmp_path}", **settings)
    try:
        await manager.until("WATCHDOG", "1")
        with trio.move_on_after(0.6):  # three times as long as it may be silent
            await manager.until("WATCHDOG", "1")
            raise AssertionError("a loop that is stuck has given a sign")
        process.signal(signal.SIGABRT)
        assert process.wait() == -signal.SIGABRT
        assert "most recent call first" in process.log
        assert "in announce" in process.log
    finally:
        process.kill()


async def test_without_a_watchdog_there_are_no_signs(
    start: Start, manager: Manager, handed: Handover
) -> None:
    running = await start(handed=handed)
    running.daemon.request_stop()
    await running.daemon.stopped.wait()
    assert not any("WATCHDOG" in told for told in manager.take_all())
