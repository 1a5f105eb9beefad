"""What `systemctl status` shows, and what systemd knows of the daemon's life."""

import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from clarad.automation.definitions import Definitions
from clarad.automation.tasks.task import Task
from clarad.protocol.control import Refused
from clarad.systemd import notify, status
from clarad.systemd.extension import EXTENSION
from clarad.systemd.handover import Handover
from clarad.systemd.notify import Notifier
from clarad.systemd.status import Counts, Status
from tests.conftest import Running, Start
from tests.daemon_process import Process, clarad, environment
from tests.installation import Installation
from tests.machine import task
from tests.peer import connect
from tests.systemd.manager import Manager

HOOKS = "- {name: greet, event: gateway:startup, command: echo hello}\n"

IDLE = Counts(adapters=0, sessions=0, running=0, queued=0, runs=0)


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is looked at as soon as something has changed."""
    monkeypatch.setattr(status, "PAUSE", 0.01)


class Told:
    """A status by itself; `counts` is how things are, `looks` how often that was asked."""

    def __init__(self, notifier: Notifier) -> None:
        self.counts = IDLE
        self.looks = 0
        self.status = Status(notifier, self.count)

    def count(self) -> Counts:
        self.looks += 1
        return self.counts


@pytest.fixture
async def told(notifier: Notifier, nursery: trio.Nursery) -> Told:
    """A status that runs; its tests have a clock of their own."""
    made = Told(notifier)
    await nursery.start(made.status.run)
    return made


# --- ready ---------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path, manager: Manager) -> Iterator[Process]:
    """A daemon that the manager has just started."""
    process = Process(tmp_path / "state", NOTIFY_SOCKET=manager.address)
    yield process
    process.kill()


async def test_who_is_told_that_it_is_ready_can_have_an_answer(
    process: Process, manager: Manager, nursery: trio.Nursery
) -> None:
    await manager.until("READY", "1")
    peer = await connect(nursery, process.url)
    await peer.register()
    await peer.ask("m1")
    assert (await peer.outcome_of("m1"))["type"] == "response_end"
    await peer.drop()


def test_a_start_that_fails_is_never_ready(tmp_path: Path, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = environment(tmp_path, NOTIFY_SOCKET=manager.address, CLARA_GATEWAY_PORT=port)
        assert clarad("run", env=env).returncode == 69
    told = {name for one in manager.take_all() for name in one}
    assert "READY" not in told
    assert "STOPPING" in told


# --- what there is -------------------------------------------------------------------------------


async def status_of(manager: Manager, *words: str) -> str:
    return (await manager.until("STATUS", *words)).assignments["STATUS"]


@pytest.mark.usefixtures("_hasty")
async def test_it_counts_adapters_sessions_and_messages(
    start: Start, manager: Manager, handed: Handover
) -> None:
    running = await start(handed=handed)
    assert await status_of(manager) == "0 adapters, 0 sessions, 0 messages running, 0 queued"
    peer = await running.node()
    await status_of(manager, "1 adapter, 0 sessions")
    for request_id in ("m1", "m2", "m3"):
        await peer.ask(request_id, "hold")
    await status_of(manager, "1 adapter, 1 session, 1 message running, 2 queued")
    for request_id in ("m1", "m2", "m3"):
        running.responder.release[request_id].set()
    await peer.outcomes_of("m1", "m2", "m3")
    await status_of(manager, "1 adapter, 1 session, 0 messages running, 0 queued")
    await peer.drop()
    await status_of(manager, "0 adapters")


def later(name: str, **fields: Any) -> Task:
    """A task for another day."""
    return task(name=name, type="one_shot", run_at=datetime(2999, 1, 2, tzinfo=UTC), **fields)


@pytest.mark.usefixtures("_hasty")
async def test_it_names_the_next_task_that_is_to_run(
    start: Start, manager: Manager, handed: Handover
) -> None:
    tasks = [later("off", enabled=False), later("soon"), later("tomorrow")]
    running = await start(Definitions(tasks=tasks), handed)
    when = datetime(2999, 1, 2, tzinfo=UTC).astimezone()
    await status_of(manager, f"; next task: soon at {when:%a %Y-%m-%d %H:%M:%S %Z}")
    await running.daemon.operations.pause_task("soon")
    await status_of(manager, "next task: tomorrow")


async def test_however_much_happens_it_is_told_once_a_second(
    told: Told, autojump_clock: MockClock, manager: Manager
) -> None:
    told.status.ready()
    for n in range(1000):
        told.counts = IDLE._replace(adapters=n)
        told.status.changed()
        await trio.sleep(0.01)
    assert len(manager.take_all()) <= 12
    await trio.sleep(2)
    assert manager.take().assignments["STATUS"].startswith("999 adapters")


async def test_while_nothing_changes_nothing_is_done(
    told: Told, autojump_clock: MockClock, manager: Manager
) -> None:
    told.status.ready()
    await trio.sleep(10)
    looks = told.looks
    await trio.sleep(50_000)
    assert told.looks == looks
    assert len(manager.take_all()) == 1


async def test_it_looks_again_when_the_next_task_was_due(
    told: Told, autojump_clock: MockClock, manager: Manager
) -> None:
    due_at = datetime.now(UTC) + timedelta(hours=1)
    told.counts = IDLE._replace(next_task=("first", due_at))
    told.status.ready()
    await trio.sleep(10)
    told.counts = IDLE._replace(next_task=("second", due_at + timedelta(hours=1)))
    await trio.sleep(3600)
    assert "first" in manager.take().assignments["STATUS"]
    assert "second" in manager.take().assignments["STATUS"]


async def test_what_systemd_had_no_room_for_is_told_again(
    told: Told, autojump_clock: MockClock, manager: Manager, notifier: Notifier
) -> None:
    while notifier.send(notify.WATCHDOG):
        pass
    told.status.ready()
    await trio.sleep(5)
    assert not any("READY" in one for one in manager.take_all())
    await trio.sleep(5)
    assert [one["READY"] for one in manager.take_all()] == ["1"]


# --- a reload ------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Installation:
    made = Installation(tmp_path)
    made.write(hooks=HOOKS)
    return made


async def begun(manager: Manager) -> None:
    """Wait until a reload has begun."""
    told = await manager.until("RELOADING", "1")
    assert int(told.assignments["MONOTONIC_USEC"]) > 0


async def test_a_reload_by_a_signal_begins_and_ends(house: Installation, manager: Manager) -> None:
    with house.daemon(NOTIFY_SOCKET=manager.address) as process:
        await manager.until("READY", "1")
        process.signal(signal.SIGHUP)
        await begun(manager)
        await manager.until("READY", "1")


async def test_a_reload_that_is_refused_ends_too_and_the_status_says_why_until_the_next(
    house: Installation, manager: Manager
) -> None:
    with house.daemon(NOTIFY_SOCKET=manager.address) as process:
        await manager.until("READY", "1")
        house.write(hooks="- {name: odd}\n")
        assert clarad("reload", env=process.environment).returncode == 1
        await begun(manager)
        after = (await manager.until("READY", "1")).assignments["STATUS"]
        assert "; not reloaded: " in after
        assert "hooks.yaml" in after
        house.write(hooks=HOOKS)
        assert clarad("reload", env=process.environment).returncode == 0
        await begun(manager)
        after = (await manager.until("READY", "1")).assignments["STATUS"]
        assert "not reloaded" not in after


async def test_a_reload_while_it_stops_does_not_make_it_ready(
    told: Told, autojump_clock: MockClock, manager: Manager
) -> None:
    told.status.stopping(10)
    with pytest.raises(Refused), told.status.reloading():
        raise Refused(["bad"])
    assert {"READY", "RELOADING"}.isdisjoint(name for one in manager.take_all() for name in one)


# --- a stop --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hasty")
async def test_a_stop_counts_what_is_waited_for(
    start: Start, manager: Manager, handed: Handover
) -> None:
    running: Running = await start(handed=handed)
    peer = await running.node()
    for request_id, channel in (("m1", "a"), ("m2", "b"), ("left to the next start", "a")):
        await peer.ask(request_id, "hold", channel)
    await status_of(manager, "2 messages running, 1 queued")
    running.daemon.request_stop()
    told = (await manager.until("STOPPING", "1")).assignments
    assert told["STATUS"] == "stopping: 2 messages, 2 sessions, 1 adapter left"
    running.responder.release["m1"].set()
    await status_of(manager, "stopping: 1 message, 2 sessions, 1 adapter left")
    running.responder.release["m2"].set()
    assert await peer.close_code() == 1001
    await peer.drop()
    await running.daemon.stopped.wait()
    assert not any("READY" in one for one in manager.take_all())


async def test_it_asks_for_more_time_as_long_as_its_budget_lasts_and_not_beyond(
    told: Told, autojump_clock: MockClock, manager: Manager
) -> None:
    told.status.ready()
    manager.take_all()
    asked_until = began_at = trio.current_time()
    told.status.stopping(42.5)
    while trio.current_time() < began_at + 100:
        for one in manager.take_all():
            asked_until = trio.current_time() + int(one["EXTEND_TIMEOUT_USEC"]) / 1e6
        if trio.current_time() < began_at + 40:
            assert asked_until >= trio.current_time() + EXTENSION / 2
        await trio.sleep(0.1)
    assert asked_until <= began_at + 42.5 + 0.1, "but for the time until it was read"
