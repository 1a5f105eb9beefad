"""What the store promises of the runs of tasks: a row for each occurrence, and never two."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
import trio
from sqlalchemy import Connection, Engine, event, select
from trio.testing import wait_all_tasks_blocked

from clarad.store import Ending, Outcome, StoredTaskRun, StoreError, TaskRuns, Writer
from clarad.store.models import Base, TaskRunRow
from clarad.store.runs import MISSED
from tests.store.conftest import Outside
from tests.store.desk import queueing_up

BERLIN: Final = ZoneInfo("Europe/Berlin")
NOON: Final = datetime(2027, 3, 1, 12, 0, 0, 654321, UTC)
SKIPPED: Final = Ending(Outcome.SKIPPED, MISSED)
DONE: Final = Ending(Outcome.RAN, "done", 0, 1.5, "out", "err", 7, 8)


@dataclass
class Desk:
    """Runs of tasks on a migrated database, and what tests do with them again and again."""

    runs: TaskRuns
    engine: Engine
    writer: Writer

    async def add(
        self, run_id: str = "task-1", *, task: str = "backup", at: datetime = NOON, **changed: Any
    ) -> bool:
        about: dict[str, Any] = {"due_at": at, "origin": "schedule"} | changed
        return await self.runs.add(run_id=run_id, task=task, nominal_at=at, **about)

    def rows(self) -> list[Any]:
        """Return what another connection sees: what has been committed."""
        statement = select(TaskRunRow).order_by(TaskRunRow.id)
        with self.engine.connect() as connection:
            return list(connection.execute(statement))

    @property
    def row(self) -> Any:
        """The only row."""
        (row,) = self.rows()
        return row

    async def unfinished(self) -> list[str]:
        return [stored.run_id for stored in await self.runs.unfinished()]


@pytest.fixture
async def desk(engine: Engine, nursery: trio.Nursery) -> Desk:
    """A store that serves; it ends with the test. Its tables are what the migrations make."""
    Base.metadata.create_all(engine)
    writer = Writer(engine)
    await nursery.start(writer.run)
    return Desk(TaskRuns(writer), engine, writer)


# --- a new run -----------------------------------------------------------------------------------


async def test_a_new_run_waits_and_is_on_the_disk(desk: Desk) -> None:
    due = NOON + timedelta(seconds=0.000001)
    assert await desk.add(due_at=due, origin="operator", caused_by=("hook-1", "task-9"))
    row = desk.row
    assert (row.run_id, row.task, row.origin) == ("task-1", "backup", "operator")
    assert (row.nominal_at, row.due_at, row.caused_by) == (NOON, due, "hook-1 task-9")
    assert (row.attempts, row.begun_at, row.ended_at, row.outcome) == (0, None, None, None)


async def test_a_run_can_be_new_and_begun(desk: Desk) -> None:
    before = datetime.now(UTC)
    assert await desk.add(begun=True)
    assert desk.row.attempts == 1
    assert before <= desk.row.begun_at <= datetime.now(UTC)


async def test_an_occurrence_can_be_skipped_and_says_why(desk: Desk) -> None:
    before = datetime.now(UTC)
    assert await desk.add(ending=Ending(Outcome.SKIPPED, "overlap: run task-0 goes on"))
    row = desk.row
    assert (row.outcome, row.reason) == ("skipped", "overlap: run task-0 goes on")
    assert (row.attempts, row.begun_at) == (0, None)
    assert before <= row.ended_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    "at",
    [
        datetime(2027, 3, 1, 12, 0, 0, 1, UTC),
        datetime(2027, 10, 31, 2, 30, tzinfo=BERLIN),
        datetime(2027, 10, 31, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2027, 3, 1, 12, tzinfo=ZoneInfo("Asia/Kathmandu")),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 30, 23, 59, 59, 999999, UTC),
    ],
    ids=str,
)
async def test_a_nominal_time_comes_back_as_the_same_moment_in_utc(
    desk: Desk, at: datetime
) -> None:
    await desk.add(at=at)
    (stored,) = await desk.runs.unfinished()
    assert stored.nominal_at == at.astimezone(UTC)
    assert stored.nominal_at.utcoffset() == timedelta(0)
    assert desk.row.due_at == at.astimezone(UTC)


# --- one row for each occurrence -----------------------------------------------------------------


@pytest.mark.parametrize("first", [{}, {"begun": True}, {"ending": DONE}], ids=repr)
@pytest.mark.parametrize("second", [{}, {"begun": True}, {"ending": SKIPPED}], ids=repr)
async def test_an_occurrence_that_has_its_row_gets_no_other_and_keeps_it(
    desk: Desk, first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert await desk.add(**first)
    before = desk.row
    assert not await desk.add("task-2", origin="operator", caused_by=("hook-1",), **second)
    assert desk.row == before


async def test_the_same_moment_in_another_zone_is_the_same_occurrence(desk: Desk) -> None:
    assert await desk.add("task-1", at=NOON)
    assert not await desk.add("task-2", at=NOON.astimezone(BERLIN))


async def test_an_hour_that_comes_twice_has_two_occurrences(desk: Desk) -> None:
    twice = datetime(2027, 10, 31, 2, 30, tzinfo=BERLIN)
    assert await desk.add("task-1", at=twice)
    assert await desk.add("task-2", at=twice.replace(fold=1))


async def test_a_microsecond_makes_another_occurrence(desk: Desk) -> None:
    assert await desk.add("task-1", at=NOON)
    assert await desk.add("task-2", at=NOON + timedelta(microseconds=1))


async def test_two_tasks_may_be_due_at_the_same_time(desk: Desk) -> None:
    assert await desk.add("task-1", task="backup")
    assert await desk.add("task-2", task="Backup")
    assert await desk.add("task-3", task="backup ")


async def test_of_many_that_come_at_once_for_one_occurrence_one_is_new(desk: Desk) -> None:
    (winner,) = await at_once(desk, [(f"task-{n}", NOON) for n in range(30)])
    assert await desk.unfinished() == [winner]


async def test_of_hundreds_at_once_only_the_one_that_has_its_row_is_refused(desk: Desk) -> None:
    times = [NOON + timedelta(seconds=n) for n in range(120)]
    assert await desk.add("earlier", at=times[100])
    new = await at_once(desk, [(f"task-{n}", at) for n, at in enumerate(times)])
    assert new == {f"task-{n}" for n in range(120)} - {"task-100"}
    assert len(desk.rows()) == 120


async def test_an_occurrence_that_has_its_row_costs_the_others_no_commit(desk: Desk) -> None:
    await desk.add("first")
    commits: list[Connection] = []
    event.listen(desk.engine, "commit", commits.append)
    new: dict[str, bool] = {}

    async def add(run_id: str, at: datetime) -> None:
        new[run_id] = await desk.add(run_id, at=at)

    async with trio.open_nursery() as nursery, queueing_up(desk.writer):
        for hours in range(4):
            nursery.start_soon(add, f"later-{hours}", NOON + timedelta(hours=hours))
            await wait_all_tasks_blocked()
    assert new == {"later-0": False, "later-1": True, "later-2": True, "later-3": True}
    assert len(commits) == 2, "one for what held the writer up, one for all of them"


async def test_an_id_that_is_taken_is_not_taken_for_an_occurrence_that_has_its_row(
    desk: Desk,
) -> None:
    await desk.add("task-1", at=NOON)
    with pytest.raises(StoreError):
        await desk.add("task-1", at=NOON + timedelta(hours=1))


async def at_once(desk: Desk, wanted: list[tuple[str, datetime]], **about: Any) -> set[str]:
    """Add these runs at the same time; return those that are new."""
    new = set()

    async def add(run_id: str, at: datetime) -> None:
        if await desk.add(run_id, at=at, **about):
            new.add(run_id)

    async with trio.open_nursery() as nursery:
        for run_id, at in wanted:
            nursery.start_soon(add, run_id, at)
    return new


# --- what was missed, and is run after all -------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
async def test_what_was_missed_may_still_be_run_and_the_row_is_that_runs(
    desk: Desk, begun: bool
) -> None:
    await desk.add("skip-1", ending=SKIPPED)
    due = NOON + timedelta(seconds=5)
    assert await desk.add("task-2", due_at=due, begun=begun, caused_by=("hook-1",))
    row = desk.row
    assert (row.run_id, row.nominal_at, row.due_at) == ("task-2", NOON, due)
    assert (row.caused_by, row.attempts, row.begun_at is not None) == ("hook-1", begun, begun)
    assert (row.ended_at, row.outcome, row.reason) == (None, None, None)
    assert await desk.unfinished() == ["task-2"]


async def test_what_was_missed_is_run_once(desk: Desk) -> None:
    await desk.add("skip-1", ending=SKIPPED)
    assert await desk.add("task-2")
    before = desk.row
    assert not await desk.add("task-3")
    assert desk.row == before
    await desk.runs.end("task-2", DONE)
    assert not await desk.add("task-4")
    assert desk.row.run_id == "task-2"


async def test_of_many_that_come_at_once_for_what_was_missed_one_runs_it(desk: Desk) -> None:
    await desk.add("skip-1", ending=SKIPPED)
    (winner,) = await at_once(desk, [(f"task-{n}", NOON) for n in range(30)])
    assert desk.row.run_id == winner


async def test_all_of_many_that_were_missed_can_be_run_at_once(desk: Desk) -> None:
    times = [NOON + timedelta(seconds=n) for n in range(30)]
    await at_once(desk, [(f"skip-{n}", at) for n, at in enumerate(times)], ending=SKIPPED)
    wanted = [(f"task-{n}", at) for n, at in enumerate(times)]
    assert await at_once(desk, wanted) == {run_id for run_id, _ in wanted}
    assert {(row.run_id, row.nominal_at) for row in desk.rows()} == set(wanted)


async def test_what_was_missed_of_one_task_is_not_another_ones(desk: Desk) -> None:
    await desk.add("skip-1", task="backup", ending=SKIPPED)
    assert await desk.add("task-2", task="report")
    assert [row.run_id for row in desk.rows()] == ["skip-1", "task-2"]


async def test_what_was_missed_is_not_skipped_again(desk: Desk) -> None:
    await desk.add("skip-1", ending=SKIPPED)
    before = desk.row
    assert not await desk.add("skip-2", ending=Ending(Outcome.SKIPPED, "paused"))
    assert desk.row == before


@pytest.mark.parametrize(
    "ending",
    [
        Ending(Outcome.SKIPPED, "overlap: run task-0 goes on"),
        Ending(Outcome.SKIPPED, "disabled"),
        Ending(Outcome.SKIPPED, "paused"),
        Ending(Outcome.SKIPPED, "missed, as was every occurrence from here to 2027-03-02"),
        Ending(Outcome.SKIPPED, "the task was removed"),
        Ending(Outcome.INTERRUPTED, MISSED),
        Ending(Outcome.CANCELLED, MISSED),
        *[Ending(outcome) for outcome in Outcome],
    ],
    ids=lambda ending: f"{ending.outcome} {ending.reason}",
)
async def test_what_ended_in_any_other_way_is_not_run(desk: Desk, ending: Ending) -> None:
    await desk.add("task-1", ending=ending)
    before = desk.row
    assert not await desk.add("task-2")
    assert desk.row == before


# --- its attempts --------------------------------------------------------------------------------


async def test_a_run_has_attempts_and_ends(desk: Desk) -> None:
    await desk.add("task-1", begun=True)
    await desk.add("task-2", at=NOON + timedelta(hours=1))
    await desk.runs.put_off("task-1", DONE._replace(outcome=Outcome.FAILED, exit_status=3))
    row = desk.rows()[0]
    assert (row.attempts, row.begun_at, row.ended_at) == (1, None, None)
    assert (row.outcome, row.exit_status, row.stdout) == (None, 3, "out")
    await desk.runs.begin("task-1", 2)
    assert desk.rows()[0].attempts == 2
    await desk.runs.end("task-1", DONE)
    ended, other = desk.rows()
    assert {name: getattr(ended, name) for name in Ending._fields} == DONE._asdict()
    assert ended.begun_at <= ended.ended_at
    assert (other.attempts, other.begun_at, other.ended_at) == (0, None, None)


async def test_what_has_not_ended_is_unfinished_in_the_order_in_which_it_came(desk: Desk) -> None:
    hours = [NOON + timedelta(hours=n) for n in range(4)]
    await desk.add("task-c", at=hours[2], caused_by=("hook-1", "task-9"))
    await desk.add("task-a", at=hours[0], begun=True)
    await desk.add("task-d", at=hours[3], begun=True)
    await desk.add("task-b", at=hours[1], begun=True)
    await desk.runs.begin("task-b", 3)
    await desk.runs.put_off("task-b", DONE)
    await desk.runs.end("task-d", DONE)
    assert await desk.runs.unfinished() == [
        StoredTaskRun("task-c", "backup", hours[2], "hook-1 task-9", attempts=0, begun=False),
        StoredTaskRun("task-a", "backup", hours[0], "", attempts=1, begun=True),
        StoredTaskRun("task-b", "backup", hours[1], "", attempts=3, begun=False),
    ]


# --- when the database fails ---------------------------------------------------------------------


async def test_whatever_fails_says_so_in_one_line_without_what_is_private(
    desk: Desk, outside: Outside
) -> None:
    private = DONE._replace(stdout="a private word")
    outside.do("DROP TABLE clarad_task_runs")
    for ask in (
        desk.add,
        partial(desk.add, ending=private),
        partial(desk.runs.begin, "task-1", 1),
        partial(desk.runs.put_off, "task-1", private),
        partial(desk.runs.end, "task-1", private),
        desk.runs.unfinished,
    ):
        with pytest.raises(StoreError) as failed:
            await ask()
        assert "\n" not in str(failed.value)
        assert "clarad_task_runs" in str(failed.value)
        assert "private" not in str(failed.value)


async def test_a_store_that_has_stopped_says_so(engine: Engine) -> None:
    writer = Writer(engine)
    desk = Desk(TaskRuns(writer), engine, writer)
    with pytest.raises(StoreError, match="not running"):
        await desk.add()
