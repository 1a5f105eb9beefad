"""A daemon that deletes what it has kept long enough."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import trio

from clarad.config import Settings
from clarad.nurseries import retention as module
from clarad.nurseries.retention import Sweeper
from clarad.protocol import Attachment
from clarad.store import MessageKey, Stored, StoreError
from clarad.store.retention import ATTACHMENTS, HOOK_RUNS, MESSAGES, TASK_RUNS, Extent, Kind, Place
from tests.conftest import Start
from tests.daemon_process import PATIENCE
from tests.store.conftest import Outside

EVERY = [MESSAGES, ATTACHMENTS, HOOK_RUNS, TASK_RUNS]
COUNT = "SELECT count(*) FROM clarad_messages"


@pytest.fixture
def outside(url: str) -> Outside:
    """Another program that uses the test's database."""
    return Outside(url)


async def until(outside: Outside, query: str, wanted: Any) -> None:
    """Wait until this is what the query finds."""
    with trio.fail_after(PATIENCE):
        while outside.rows(query) != [(wanted,)]:
            await trio.sleep(0.01)


async def test_a_message_that_comes_again_after_it_was_deleted_is_new(
    start: Start, outside: Outside
) -> None:
    running = await start(database_url=outside.url, keep=0.2)
    node = await running.node()
    await node.ask("m-1")
    assert (await node.outcome_of("m-1"))["type"] == "response_end"
    await until(outside, COUNT, 0)
    await node.ask("m-1")
    assert (await node.outcome_of("m-1"))["type"] == "response_end"
    assert running.responder.ran == ["m-1", "m-1"]


async def test_one_that_is_deleted_while_it_comes_again_is_asked_for_once_more(
    start: Start, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(database_url=outside.url)
    node = await running.node()
    await node.ask("m-1")
    await node.outcome_of("m-1")
    find = running.daemon._messages.find

    async def find_too_late(key: MessageKey) -> Stored | None:
        outside.do("DELETE FROM clarad_messages")
        return await find(key)

    monkeypatch.setattr(running.daemon._messages, "find", find_too_late)
    await node.ask("m-1")
    refused = await node.outcome_of("m-1")
    assert (refused["code"], refused["recoverable"]) == ("processing_error", True)


async def test_a_message_that_is_not_finished_stays(start: Start, outside: Outside) -> None:
    running = await start(database_url=outside.url, keep=0.2)
    node = await running.node()
    await node.ask("m-1", "hold")
    await running.responder.begun["m-1"].wait()
    for n in range(2, 5):
        await node.ask(f"m-{n}", channel=f"c-{n}")
        await node.outcome_of(f"m-{n}")
    await until(outside, COUNT, 1)
    running.responder.release["m-1"].set()
    assert (await node.outcome_of("m-1"))["full_text"] == "partly done"


async def test_what_is_owed_is_given_to_a_node_that_comes_late(
    start: Start, outside: Outside
) -> None:
    running = await start(database_url=outside.url, keep=0.2)
    node, other = await running.node(), await running.node("node-2")
    await node.ask("m-1", "hold")
    await running.responder.begun["m-1"].wait()
    await node.drop()
    running.responder.release["m-1"].set()
    await until(outside, f"{COUNT} WHERE ended_at IS NOT NULL", 1)
    await other.ask("m-2", channel="other")
    await other.outcome_of("m-2")
    await until(outside, f"{COUNT} WHERE request_id = 'm-2'", 0)
    late = await running.node()
    assert (await late.outcome_of("m-1"))["full_text"] == "partly done"


async def test_a_reload_of_the_periods_holds_at_once(start: Start, outside: Outside) -> None:
    running = await start(database_url=outside.url, keep=None)
    node = await running.node()
    await node.ask("m-1")
    await node.outcome_of("m-1")
    running.daemon._sweeper.apply(Settings(running.settings.state_dir, outside.url, keep=0.01))
    await until(outside, COUNT, 0)


async def test_the_status_says_how_far_back_it_reaches(start: Start, outside: Outside) -> None:
    running = await start(database_url=outside.url)
    received_at = datetime.now(UTC)
    node = await running.node()
    await node.ask("m-1")
    await node.outcome_of("m-1")
    await running.daemon._sweeper._measure()
    report = await running.daemon.operations.status()
    said = report.text.splitlines()[-1]
    assert said.startswith("database: ")
    stamps = [received_at, datetime.now(UTC)]
    assert said.partition(", ")[2] in {
        f"messages since {at.astimezone():%Y-%m-%d %H:%M}" for at in stamps
    }


async def test_what_a_killed_daemon_leaves_is_answered_with_its_attachments(start: Start) -> None:
    before = await start()
    node = await before.node("node-1", ["accepted"])
    await node.ask("m-1", "hold")
    await before.responder.begun["m-1"].wait()
    attachment = Attachment(type="text", filename="a.txt", content="a long text")
    await node.ask("m-2", attachments=[msgspec.to_builtins(attachment)])
    while (frame := await node.receive())["request_id"] != "m-2":
        pass
    assert frame["type"] == "accepted"
    after = await start()  # on the same database, as if the first had been killed
    await after.responder.begun["m-2"].wait()
    assert after.responder.given["m-2"].attachments == [attachment]


# --- by itself -----------------------------------------------------------------------------------


class Scripted:
    """A store with so many transactions' worth to delete, and what it was asked for."""

    def __init__(self) -> None:
        self.is_idle = True
        self.work = dict.fromkeys(EVERY, 1)
        self.failures = 0
        self.given_back = 0
        self.asked: list[Kind] = []
        self.before: dict[Kind, datetime] = {}

    def now(self) -> datetime:
        return datetime(2027, 1, 1, tzinfo=UTC)

    async def delete(self, kind: Kind, before: datetime, after: Place | None) -> Place | None:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        self.asked.append(kind)
        self.before[kind] = before
        self.work[kind] -= 1
        return Place(before, 1) if self.work[kind] > 0 else None

    async def shrink(self) -> bool:
        await trio.lowlevel.checkpoint()
        self.given_back += 1
        return self.given_back % 3 != 0

    async def extent(self) -> Extent:
        await trio.lowlevel.checkpoint()
        return Extent(3 * 2**20, None, None)


def settings(**given: Any) -> Settings:
    return Settings(**{"state_dir": "/", "database_url": ""} | given)


def sweeper(store: Any, **given: Any) -> Sweeper:
    return Sweeper(store, settings(**given))


async def run_for(seconds: float, sweeping: Sweeper) -> None:
    with trio.move_on_after(seconds):
        await sweeping.run()


async def test_each_kind_is_kept_for_its_period(autojump_clock: trio.abc.Clock) -> None:
    store = Scripted()
    await run_for(1, sweeper(store, keep=86400.0, keep_runs=60.0, keep_attachments=3600.0))
    now = store.now()
    runs_before = now - timedelta(minutes=1)
    assert store.before == {
        MESSAGES: now - timedelta(days=1),
        ATTACHMENTS: now - timedelta(hours=1),
        HOOK_RUNS: runs_before,
        TASK_RUNS: runs_before,
    }


async def test_what_is_kept_forever_is_not_looked_at(autojump_clock: trio.abc.Clock) -> None:
    store = Scripted()
    await run_for(100, sweeper(store, keep=None, keep_runs=None, keep_attachments=None))
    assert store.asked == []


@pytest.mark.parametrize(("keep", "sweeps"), [(90 * 86400.0, 2), (100.0, 10)])
async def test_it_looks_every_minute_or_each_tenth_of_the_period(
    autojump_clock: trio.abc.Clock, keep: float, sweeps: int
) -> None:
    store = Scripted()
    await run_for(95, sweeper(store, keep=keep, keep_runs=None, keep_attachments=None))
    assert store.asked == [MESSAGES] * sweeps


async def test_it_goes_on_until_nothing_is_left(autojump_clock: trio.abc.Clock) -> None:
    store = Scripted()
    store.work |= {MESSAGES: 3, HOOK_RUNS: 2}
    await run_for(30, sweeper(store))
    assert store.asked == [MESSAGES] * 3 + [ATTACHMENTS] + [HOOK_RUNS] * 2 + [TASK_RUNS]


async def test_a_reload_holds_for_the_rest_of_a_sweep(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    store = Scripted()
    store.work[MESSAGES] = 8
    sweeping = sweeper(store, keep=86400.0)
    await nursery.start(sweeping.run)
    while len(store.asked) < 3:
        await trio.sleep(0.01)
    store.before.clear()
    sweeping.apply(settings(keep=90 * 86400.0))
    while not store.before:
        await trio.sleep(0.01)
    assert store.before == {MESSAGES: store.now() - timedelta(days=90)}


async def test_what_is_kept_forever_from_now_on_is_not_looked_at_again(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    store = Scripted()
    store.work[MESSAGES] = 8
    sweeping = sweeper(store, keep=86400.0)
    await nursery.start(sweeping.run)
    while len(store.asked) < 3:
        await trio.sleep(0.01)
    sweeping.apply(settings(keep=None))
    while TASK_RUNS not in store.asked:
        await trio.sleep(0.01)
    assert store.asked == [MESSAGES] * 3 + [ATTACHMENTS, HOOK_RUNS, TASK_RUNS]


async def test_then_it_gives_back_what_is_free(autojump_clock: trio.abc.Clock) -> None:
    store = Scripted()
    await run_for(30, sweeper(store))
    assert (store.asked, store.given_back) == (EVERY, 3)


async def test_it_waits_for_a_moment_in_which_nobody_else_waits(
    autojump_clock: trio.abc.Clock,
) -> None:
    store = Scripted()
    store.is_idle = False
    await run_for(module.PATIENCE / 2, sweeper(store))
    assert store.asked == []


async def test_it_gets_on_with_a_store_that_is_never_idle(autojump_clock: trio.abc.Clock) -> None:
    store = Scripted()
    store.is_idle = False
    await run_for(30, sweeper(store))
    assert store.asked == EVERY


async def test_a_store_that_fails_is_tried_again_with_the_next_look(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = Scripted()
    store.failures = 1
    await run_for(100, sweeper(store))
    assert store.asked == EVERY
    assert "the disk is full" in caplog.text
