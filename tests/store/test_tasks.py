"""What the store remembers of tasks between starts, on SQLite and on PostgreSQL."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

import pytest
import trio
from sqlalchemy import Engine

from clarad.store import StoreError, Tasks, TasksChanged, TaskState, Writer
from clarad.store.models import Base
from clarad.store.tasks import read_task_states, write_pause
from tests.answer import answer
from tests.postgres import SHARED
from tests.store.conftest import Outside
from tests.store.daemons import Daemon, Share

NOON: Final = datetime(2027, 3, 1, 12, 0, 0, 654321, UTC)
DAILY: Final = TaskState("0 3 * * * in Europe/Berlin", NOON, NOON + timedelta(days=1))
PAUSED: Final = DAILY._replace(paused_at=NOON + timedelta(hours=1))


@dataclass
class Desk:
    """The states of tasks on a migrated database."""

    tasks: Tasks
    engine: Engine

    async def account(self, task: str, until: datetime) -> None:
        await answer(partial(self.tasks.account, task, until))

    def seen(self) -> dict[str, TaskState]:
        """Return what another connection sees: what has been committed."""
        with self.engine.connect() as connection:
            return read_task_states(connection)


@pytest.fixture
async def desk(engine: Engine, nursery: trio.Nursery) -> Desk:
    """A store that serves; it ends with the test. Its tables are what the migrations make."""
    Base.metadata.create_all(engine)
    writer = Writer(engine)
    await nursery.start(writer.run)
    return Desk(Tasks(writer), engine)


# --- saved, loaded, forgotten --------------------------------------------------------------------


async def test_nothing_is_remembered_at_first(desk: Desk) -> None:
    assert await desk.tasks.load() == {}


async def test_what_is_saved_is_on_the_disk_and_comes_back(desk: Desk) -> None:
    states = {"backup": DAILY, "report": PAUSED}
    await desk.tasks.save(states)
    assert desk.seen() == await desk.tasks.load() == states


async def test_times_come_back_as_the_same_moments_in_utc(desk: Desk) -> None:
    odd = timezone(timedelta(hours=5, minutes=45))
    await desk.tasks.save({"t": TaskState("x", *[NOON.astimezone(odd)] * 3)})
    state = (await desk.tasks.load())["t"]
    assert state == TaskState("x", NOON, NOON, NOON)
    assert state.anchor_at.utcoffset() == timedelta(0)


async def test_what_is_saved_again_takes_the_place_of_what_was_there(desk: Desk) -> None:
    await desk.tasks.save({"backup": PAUSED, "report": DAILY})
    changed = TaskState("every 60.0 s", NOON, NOON)
    await desk.tasks.save({"backup": changed})
    assert await desk.tasks.load() == {"backup": changed, "report": DAILY}


async def test_what_is_forgotten_is_gone_and_the_others_stay(desk: Desk) -> None:
    await desk.tasks.save({"backup": DAILY, "report": PAUSED, "old": DAILY})
    await desk.tasks.save({"new": DAILY}, forget=["old", "backup", "never there"])
    assert await desk.tasks.load() == {"report": PAUSED, "new": DAILY}


async def test_saving_nothing_changes_nothing(desk: Desk) -> None:
    await desk.tasks.save({"backup": PAUSED})
    await desk.tasks.save({})
    assert await desk.tasks.load() == {"backup": PAUSED}


async def test_if_one_cannot_be_saved_all_stays_as_it_was(desk: Desk) -> None:
    await desk.tasks.save({"backup": DAILY, "old": DAILY})
    no_schedule: Any = None
    with pytest.raises(StoreError):
        await desk.tasks.save(
            {"backup": PAUSED, "bad": DAILY._replace(schedule=no_schedule)}, forget=["old"]
        )
    assert await desk.tasks.load() == {"backup": DAILY, "old": DAILY}


@pytest.mark.parametrize(
    "name", ["'; DROP TABLE clarad_tasks; --", "%s :name ?", "\N{CRAB}" * 200, " backup ", "a/b"]
)
async def test_a_name_is_a_name_whatever_is_in_it(desk: Desk, name: str) -> None:
    await desk.tasks.save({"backup": DAILY, name: DAILY})
    await desk.account(name, NOON + timedelta(days=2))
    await desk.tasks.pause(name, NOON)
    states = await desk.tasks.load()
    assert states["backup"] == DAILY
    assert states[name] == DAILY._replace(accounted_until=NOON + timedelta(days=2), paused_at=NOON)
    await desk.tasks.save({}, forget=[name])
    assert await desk.tasks.load() == {"backup": DAILY}


async def test_ten_thousand_are_saved_loaded_and_forgotten(desk: Desk) -> None:
    states = {
        f"task {n}": TaskState(f"every {n} s", NOON, NOON + timedelta(microseconds=n))
        for n in range(10_000)
    }
    await desk.tasks.save(states | {"one more": PAUSED})
    assert await desk.tasks.load() == states | {"one more": PAUSED}
    await desk.tasks.save({}, forget=list(states))
    assert await desk.tasks.load() == {"one more": PAUSED}


# --- how far a task is accounted for -------------------------------------------------------------


async def test_what_is_accounted_for_moves_on(desk: Desk) -> None:
    await desk.tasks.save({"backup": PAUSED, "report": DAILY})
    later = DAILY.accounted_until + timedelta(microseconds=1)
    await desk.account("backup", later)
    assert desk.seen() == {"backup": PAUSED._replace(accounted_until=later), "report": DAILY}


@pytest.mark.parametrize("back", [timedelta(), timedelta(microseconds=1), timedelta(days=900)])
async def test_what_is_accounted_for_never_moves_back(desk: Desk, back: timedelta) -> None:
    await desk.tasks.save({"backup": DAILY})
    await desk.account("backup", DAILY.accounted_until - back)
    assert await desk.tasks.load() == {"backup": DAILY}


async def test_accounts_are_of_moments_whatever_the_zone(desk: Desk) -> None:
    await desk.tasks.save({"backup": DAILY})
    for hours in (-12, 14):
        there = timezone(timedelta(hours=hours))
        before = (DAILY.accounted_until - timedelta(seconds=1)).astimezone(there)
        await desk.account("backup", before)
    assert await desk.tasks.load() == {"backup": DAILY}


async def test_however_accounts_come_the_latest_counts(desk: Desk) -> None:
    await desk.tasks.save({"backup": DAILY, "report": DAILY})
    latest = DAILY.accounted_until + timedelta(seconds=199)
    accounts = [DAILY.accounted_until + timedelta(seconds=n) for n in range(200)]
    random.Random(1).shuffle(accounts)
    async with trio.open_nursery() as nursery:
        for until in accounts:
            nursery.start_soon(desk.account, "backup", until)
    assert await desk.tasks.load() == {
        "backup": DAILY._replace(accounted_until=latest),
        "report": DAILY,
    }


async def test_an_account_of_a_task_that_is_forgotten_is_nothing(desk: Desk) -> None:
    await desk.tasks.save({"backup": DAILY})
    await desk.account("report", NOON)
    assert await desk.tasks.load() == {"backup": DAILY}


# --- paused --------------------------------------------------------------------------------------


async def test_a_task_is_paused_and_goes_on(desk: Desk) -> None:
    await desk.tasks.save({"backup": DAILY, "report": DAILY})
    await desk.tasks.pause("backup", NOON)
    assert desk.seen() == {"backup": DAILY._replace(paused_at=NOON), "report": DAILY}
    await desk.tasks.pause("backup", None)
    assert desk.seen() == {"backup": DAILY, "report": DAILY}


async def test_a_task_that_is_not_there_is_not_paused(desk: Desk) -> None:
    await desk.tasks.save({"backup": DAILY})
    await desk.tasks.pause("report", NOON)
    with desk.engine.begin() as connection:
        assert write_pause(connection, "backup", NOON)
        assert not write_pause(connection, "report", NOON)
    assert desk.seen() == {"backup": DAILY._replace(paused_at=NOON)}


# --- shared --------------------------------------------------------------------------------------

OWNERS: Final = "SELECT name, owner FROM clarad_tasks ORDER BY name"
FRESH: Final = dict.fromkeys("abcd", DAILY)

shared = pytest.mark.parametrize("url", SHARED, indirect=True)


class Having(Tasks):
    """The tasks that one of several daemons has."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon.writer)
        self.daemon = daemon

    async def take(self, most: int, names: str = "abcd", *, enroll: bool = True) -> bool:
        """Claim tasks that are called by single letters, at most so many."""
        return await self.claim([*names], most, FRESH if enroll else {})

    async def names(self) -> str:
        return "".join(sorted(await self.load()))


@pytest.fixture
async def two(share: Share) -> list[Having]:
    """What two daemons have of the tasks."""
    return [Having(daemon) for daemon in await share(2)]


async def test_who_has_the_database_to_itself_has_all_tasks(desk: Desk) -> None:
    assert not Tasks(Writer(desk.engine)).are_shared
    await desk.tasks.save({"a": DAILY})
    await desk.tasks.inherit([1])
    assert await desk.tasks.load() == {"a": DAILY}


@shared
async def test_a_daemon_takes_as_many_free_tasks_as_it_may(
    two: list[Having], outside: Outside
) -> None:
    here, there = two
    assert await here.take(2)
    assert await here.load() == {"a": DAILY, "b": DAILY}
    assert await there.take(3)
    assert await there.load() == {"c": DAILY, "d": DAILY}
    assert not await here.take(1)
    assert await here.names() == "ab"


@shared
async def test_who_may_take_none_writes_down_what_is_new_all_the_same(
    two: list[Having], outside: Outside
) -> None:
    here, there = two
    assert not await here.take(0)
    assert not await here.take(-1)
    assert outside.rows(OWNERS) == [(name, None) for name in "abcd"]
    assert await there.take(9, enroll=False)
    assert await there.names() == "abcd"


@shared
async def test_a_daemon_takes_no_task_that_it_does_not_know(two: list[Having]) -> None:
    here, there = two
    await here.take(0)
    assert await there.take(9, "bx", enroll=False)
    assert await there.names() == "b"


@shared
async def test_what_is_remembered_of_a_task_outlasts_that_another_daemon_knows_it_as_new(
    two: list[Having],
) -> None:
    here, there = two
    await here.take(4)
    await here.save({"a": PAUSED})
    await there.take(4)
    assert (await here.load())["a"] == PAUSED
    assert await there.load() == {}


@shared
async def test_daemons_that_take_tasks_at_once_have_each_once(
    two: list[Having], outside: Outside
) -> None:
    async def take_one_at_a_time(having: Having) -> None:
        while await having.take(1):
            pass

    async with trio.open_nursery() as nursery:
        for having in two:
            nursery.start_soon(take_one_at_a_time, having)
    had = [await having.names() for having in two]
    assert sorted("".join(had)) == [*"abcd"]


@shared
async def test_a_task_that_is_released_is_free_and_all_are_told(two: list[Having]) -> None:
    here, there = two
    await here.take(4)
    there.daemon.said()
    await here.release(["a", "b"])
    assert there.daemon.said() == [TasksChanged()]
    assert await here.names() == "cd"
    assert await there.take(4)
    assert await there.names() == "ab"


@shared
async def test_a_daemon_does_not_release_what_is_another_s(
    two: list[Having], outside: Outside
) -> None:
    here, there = two
    await here.take(4)
    await there.release(["a", "b"])
    assert await here.names() == "abcd"


@shared
async def test_the_tasks_of_the_dead_are_those_of_who_inherits_from_them(
    two: list[Having],
) -> None:
    here, there = two
    await here.take(3)
    await there.take(1)
    await there.inherit([there.daemon.number])
    assert await there.names() == "d"
    await there.inherit([here.daemon.number])
    assert await there.names() == "abcd"


@shared
async def test_a_start_takes_up_the_tasks_of_all_lives_that_were_taken_over(
    two: list[Having],
) -> None:
    here, there = two
    await here.take(4)
    there.daemon.epoch.owners |= {here.daemon.number}
    await there.inherit()
    assert await there.names() == "abcd"
    assert await here.names() == ""


@shared
async def test_a_task_is_paused_by_whichever_daemon_and_all_are_told(two: list[Having]) -> None:
    here, there = two
    await here.take(4)
    here.daemon.said()
    await there.pause("a", NOON)
    assert here.daemon.said() == [TasksChanged()]
    assert (await here.load())["a"] == DAILY._replace(paused_at=NOON)


# --- when the database fails ---------------------------------------------------------------------


async def test_whatever_fails_says_so_in_one_line(desk: Desk, outside: Outside) -> None:
    outside.do("DROP TABLE clarad_tasks")
    for ask in (
        desk.tasks.load,
        partial(desk.tasks.save, {"backup": DAILY}),
        partial(desk.tasks.save, {}, forget=["backup"]),
        partial(desk.account, "backup", NOON),
        partial(desk.tasks.pause, "backup", NOON),
    ):
        with pytest.raises(StoreError) as failed:
            await ask()
        assert "\n" not in str(failed.value)
        assert "clarad_tasks" in str(failed.value)
