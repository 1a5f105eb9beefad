"""What the store promises of the runs of hooks, on SQLite and on PostgreSQL."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

import pytest
import trio
from sqlalchemy import Engine, select

from clarad.store import Ending, HookRuns, Outcome, StoredHookRun, StoreError, Writer
from clarad.store.hook_runs import write_replay
from clarad.store.models import Base, HookRunRow
from tests.answer import answer
from tests.store.conftest import Outside

PRIVATE: Final = "a private word"
"""Stands in every event; no error may show it."""

DUE: Final = datetime(2027, 3, 28, 3, 0, 0, 123456, timezone(timedelta(hours=2)))
DONE: Final = Ending(Outcome.RAN, "", 0, 1.5, "out", "err", 7, 8)
BROKEN: Final = Ending(Outcome.FAILED, "exit status 3", 3, 0.25, "half", "way", 0, 0)

TEXTS: Final = {
    "empty": "",
    "quotes": "'); DROP TABLE clarad_hook_runs; --",
    "placeholders": "%s %(event)s :event ? $1 {event}",
    "lines": "line\r\nline\u2028line",
    "unicode": "\N{PILE OF POO} \N{RIGHT-TO-LEFT OVERRIDE}abc e\N{COMBINING ACUTE ACCENT} \ufffe",
    "escapes": r"\u0000 \ud800 \x00",
    "4 MB": "x" * 4_000_000,
}

LETTERS: Final = TEXTS | {
    "NUL": "a\0b\0",
    "only NUL": "\0",
    "64 KiB": "x" * 64 * 1024,
    "half a pair": "half \ud800 a pair",
    "the wrong way round": "\udfff\ud800",
}


@dataclass
class Desk:
    """Runs of hooks on a migrated database, and what tests do with them again and again."""

    runs: HookRuns
    engine: Engine

    def submit(
        self, run_id: str, *, then: Callable[[StoreError | None], None], **changed: Any
    ) -> None:
        about: dict[str, Any] = {
            "hook": "greet",
            "event_id": "event-1",
            "event_type": "tool:error",
            "event": PRIVATE,
            "caused_by": (),
            "due_at": DUE,
            "begun": False,
        }
        self.runs.add(run_id=run_id, then=then, **about | changed)

    async def add(self, run_id: str = "hook-1", **changed: Any) -> None:
        """Have a run written, and wait for the answer."""
        await answer(partial(self.submit, run_id, **changed))

    def row(self, run_id: str = "hook-1") -> Any:
        """Return what another connection sees of a run: what has been committed."""
        statement = select(HookRunRow).where(HookRunRow.run_id == run_id)
        with self.engine.connect() as connection:
            return connection.execute(statement).one()

    def ending(self, run_id: str = "hook-1") -> dict[str, Any]:
        row = self.row(run_id)
        return {name: getattr(row, name) for name in Ending._fields}

    async def unfinished(self, largest_event: int = 1000) -> list[str]:
        return [stored.run_id for stored in await self.runs.unfinished(largest_event)]


@pytest.fixture
async def desk(engine: Engine, nursery: trio.Nursery) -> Desk:
    """A store that serves; it ends with the test. Its tables are what the migrations make."""
    Base.metadata.create_all(engine)
    writer = Writer(engine)
    await nursery.start(writer.run)
    return Desk(HookRuns(writer), engine)


# --- a new run -----------------------------------------------------------------------------------


async def test_a_new_run_waits_and_is_on_the_disk(desk: Desk) -> None:
    await desk.add(caused_by=("task-1", "hook-9"), replay_of="hook-0")
    row = desk.row()
    assert (row.hook, row.event_id, row.event_type) == ("greet", "event-1", "tool:error")
    assert (row.event, row.caused_by, row.replay_of) == (PRIVATE, "task-1 hook-9", "hook-0")
    assert (row.attempts, row.begun_at, row.ended_at) == (0, None, None)
    assert set(desk.ending().values()) == {None}


async def test_a_run_can_be_new_and_begun(desk: Desk) -> None:
    before = datetime.now(UTC)
    await desk.add(begun=True)
    row = desk.row()
    assert row.attempts == 1
    assert before <= row.begun_at <= datetime.now(UTC)
    assert row.ended_at is None


async def test_a_run_can_be_new_and_ended(desk: Desk) -> None:
    before = datetime.now(UTC)
    await desk.add(ending=Ending(Outcome.SKIPPED, "overload"))
    row = desk.row()
    assert (row.attempts, row.begun_at) == (0, None)
    assert before <= row.ended_at <= datetime.now(UTC)
    assert (row.outcome, row.reason) == ("skipped", "overload")


async def test_when_it_was_due_survives_to_the_microsecond_and_in_utc(desk: Desk) -> None:
    await desk.add()
    due = desk.row().due_at
    assert due == DUE
    assert due.utcoffset() == timedelta(0)


async def test_who_is_called_back_can_see_the_run(desk: Desk) -> None:
    seen: list[str] = []
    called_back = trio.Event()

    def then(error: StoreError | None) -> None:
        assert error is None
        seen.append(desk.row().event_id)
        called_back.set()

    desk.submit("hook-1", then=then)
    await called_back.wait()
    assert seen == ["event-1"]


async def test_an_id_that_is_taken_is_an_error_and_changes_nothing(desk: Desk) -> None:
    await desk.add()
    await desk.runs.end("hook-1", DONE)
    before = desk.row()
    with pytest.raises(StoreError) as refused:
        await desk.add(hook="other", event="other")
    assert desk.row() == before
    assert "\n" not in str(refused.value)


async def test_hundreds_at_once_are_written_but_for_the_one_at_fault(
    desk: Desk,
) -> None:
    names = [f"hook-{n}" for n in range(200)]
    await desk.add("hook-100", hook="first")
    failed: list[str] = []

    async def add(name: str) -> None:
        try:
            await desk.add(name, event_id=name)
        except StoreError:
            failed.append(name)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(add, name)
    assert failed == ["hook-100"]
    assert sorted(await desk.unfinished(), key=names.index) == names
    assert desk.row("hook-100").hook == "first"


async def test_runs_come_back_in_the_order_in_which_they_were_handed_in(desk: Desk) -> None:
    names = [f"hook-{n}" for n in range(1000)]
    answers: list[StoreError | None] = []
    all_answered = trio.Event()

    def then(error: StoreError | None) -> None:
        answers.append(error)
        if len(answers) == len(names):
            all_answered.set()

    for name in names:
        desk.submit(name, then=then)
    await all_answered.wait()
    assert set(answers) == {None}
    assert await desk.unfinished() == names


# --- its attempts --------------------------------------------------------------------------------


async def test_an_attempt_begins(desk: Desk) -> None:
    await desk.add()
    before = datetime.now(UTC)
    await desk.runs.begin("hook-1", 3)
    row = desk.row()
    assert row.attempts == 3
    assert before <= row.begun_at <= datetime.now(UTC)
    assert row.ended_at is None


async def test_a_run_that_is_put_off_waits_and_has_what_its_last_attempt_left(desk: Desk) -> None:
    await desk.add(begun=True)
    await desk.runs.put_off("hook-1", BROKEN)
    row = desk.row()
    assert (row.attempts, row.begun_at, row.ended_at) == (1, None, None)
    assert desk.ending() == BROKEN._asdict() | {"outcome": None}


async def test_a_run_that_was_put_off_begins_and_ends(desk: Desk) -> None:
    await desk.add(begun=True)
    await desk.runs.put_off("hook-1", BROKEN)
    await desk.runs.begin("hook-1", 2)
    await desk.runs.end("hook-1", DONE)
    row = desk.row()
    assert row.attempts == 2
    assert row.begun_at <= row.ended_at
    assert desk.ending() == DONE._asdict() | {"reason": None}


async def test_a_run_ends_in_every_outcome_that_there_is(desk: Desk) -> None:
    for outcome in Outcome:
        await desk.add(outcome, begun=True)
        before = datetime.now(UTC)
        await desk.runs.end(outcome, DONE._replace(outcome=outcome, reason="so"))
        assert desk.ending(outcome) == DONE._asdict() | {"outcome": outcome.value, "reason": "so"}
        assert before <= desk.row(outcome).ended_at <= datetime.now(UTC)


async def test_a_run_that_never_began_ends_without_what_it_never_had(desk: Desk) -> None:
    await desk.add()
    await desk.runs.end("hook-1", Ending(Outcome.CANCELLED, "the hook was removed"))
    assert desk.row().begun_at is None
    assert desk.ending() == {
        "outcome": "cancelled",
        "reason": "the hook was removed",
        "exit_status": None,
        "duration": None,
        "stdout": None,
        "stderr": None,
        "stdout_cut": 0,
        "stderr_cut": 0,
    }


async def test_what_is_noted_of_a_run_is_noted_of_no_other(desk: Desk) -> None:
    for name in ("hook-1", "hook-2", "hook-3"):
        await desk.add(name)
    before = desk.row("hook-2")
    await desk.runs.begin("hook-1", 1)
    await desk.runs.put_off("hook-3", BROKEN)
    await desk.runs.end("hook-1", DONE)
    assert desk.row("hook-2") == before


@pytest.mark.parametrize("text", LETTERS.values(), ids=LETTERS)
async def test_a_run_ends_whatever_it_has_written(desk: Desk, text: str) -> None:
    """PostgreSQL cannot hold NUL, and neither database half a surrogate pair."""
    await desk.add()
    await desk.runs.put_off("hook-1", BROKEN._replace(stdout=text, reason=text[:99]))
    await desk.runs.end("hook-1", DONE._replace(stdout=text, stderr=text, reason=text[:99]))
    ending = desk.ending()
    readable = text.replace("\0", "").encode(errors="replace").decode() or None
    assert (ending["stdout"], ending["stderr"]) == (readable, readable)
    assert await desk.unfinished() == []


# --- its event -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_an_event_comes_back_letter_for_letter(desk: Desk, text: str) -> None:
    await desk.add(event=text)
    assert await desk.runs.event("hook-1") == text
    found = await desk.runs.find("hook-1")
    assert found is not None
    assert found.event == text


async def test_the_event_of_a_run_that_is_not_there_is_an_error(desk: Desk) -> None:
    with pytest.raises(StoreError):
        await desk.runs.event("hook-1")


async def test_a_run_is_found_by_its_id(desk: Desk) -> None:
    await desk.add("hook-1", event_id="event-7", begun=True)
    await desk.add("hook-2")
    assert await desk.runs.find("hook-1") == StoredHookRun(
        "hook-1", "greet", "event-7", PRIVATE, attempts=1, begun=True
    )
    assert await desk.runs.find("hook-3") is None


# --- what is unfinished --------------------------------------------------------------------------


async def test_what_has_not_ended_is_unfinished_in_the_order_in_which_it_came(desk: Desk) -> None:
    for name in ("hook-b", "hook-c", "hook-a", "hook-d"):
        await desk.add(name, begun=name == "hook-c")
    await desk.runs.begin("hook-a", 3)
    await desk.runs.put_off("hook-a", BROKEN)
    await desk.runs.begin("hook-d", 1)
    await desk.runs.end("hook-d", DONE)
    about = ("greet", "event-1", PRIVATE)
    assert await desk.runs.unfinished(1000) == [
        StoredHookRun("hook-b", *about, attempts=0, begun=False),
        StoredHookRun("hook-c", *about, attempts=1, begun=True),
        StoredHookRun("hook-a", *about, attempts=3, begun=False),
    ]


async def test_what_was_skipped_at_once_is_not_unfinished(desk: Desk) -> None:
    await desk.add(ending=Ending(Outcome.SKIPPED, "overload"))
    assert await desk.unfinished() == []


@pytest.mark.parametrize("letter", ["x", "\N{CRAB}"])
async def test_an_event_that_is_too_large_is_left_out_and_can_be_read(
    desk: Desk, letter: str
) -> None:
    await desk.add("hook-1", event=letter * 100)
    await desk.add("hook-2", event=letter * 101)
    events = [stored.event for stored in await desk.runs.unfinished(100)]
    assert events == [letter * 100, None]
    assert await desk.runs.event("hook-2") == letter * 101


# --- to be run again -----------------------------------------------------------------------------


async def test_a_replay_is_a_new_run_that_waits_with_the_event_of_the_first(desk: Desk) -> None:
    await desk.add(caused_by=("task-1", "hook-9"), begun=True)
    await desk.runs.end("hook-1", BROKEN)
    first = desk.row()
    with desk.engine.begin() as connection:
        anew = write_replay(connection, "hook-1", {"greet", "other"})
    assert anew is not None
    assert desk.row() == first
    row = desk.row(anew)
    assert row.replay_of == "hook-1"
    for name in ("hook", "event_id", "event_type", "event", "caused_by"):
        assert getattr(row, name) == getattr(first, name)
    assert (row.attempts, row.begun_at, row.ended_at) == (0, None, None)
    assert set(desk.ending(anew).values()) == {None}
    assert await desk.unfinished() == [anew]


async def test_a_run_can_be_replayed_again_and_again(desk: Desk) -> None:
    await desk.add(ending=BROKEN)
    with desk.engine.begin() as connection:
        made = [write_replay(connection, "hook-1", {"greet"}) for _ in range(3)]
    assert await desk.unfinished() == made


@pytest.mark.parametrize(("run_id", "hooks"), [("hook-2", {"greet"}), ("hook-1", {"other"})])
async def test_a_run_that_is_not_there_or_whose_hook_is_gone_is_not_replayed(
    desk: Desk, run_id: str, hooks: set[str]
) -> None:
    await desk.add(ending=BROKEN)
    with desk.engine.begin() as connection:
        assert write_replay(connection, run_id, hooks) is None
    assert await desk.unfinished() == []


# --- when the database fails ---------------------------------------------------------------------


async def test_whatever_fails_says_so_in_one_line_without_what_is_private(
    desk: Desk, outside: Outside
) -> None:
    await desk.add()
    outside.do("DROP TABLE clarad_hook_runs")
    private = DONE._replace(stdout=PRIVATE)
    for ask in (
        desk.add,
        partial(desk.runs.begin, "hook-1", 1),
        partial(desk.runs.put_off, "hook-1", private),
        partial(desk.runs.end, "hook-1", private),
        partial(desk.runs.event, "hook-1"),
        partial(desk.runs.find, "hook-1"),
        partial(desk.runs.unfinished, 100),
    ):
        with pytest.raises(StoreError) as failed:
            await ask()
        assert "\n" not in str(failed.value)
        assert "clarad_hook_runs" in str(failed.value)
        assert PRIVATE not in str(failed.value)


async def test_a_store_that_has_stopped_says_so(engine: Engine) -> None:
    runs = HookRuns(Writer(engine))
    with pytest.raises(StoreError, match="not running"):
        await Desk(runs, engine).add()
    with pytest.raises(StoreError, match="not running"):
        await runs.begin("hook-1", 1)
