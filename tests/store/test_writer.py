"""The writer's promises, with a table that has nothing to do with clarad's."""

import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Executable,
    Integer,
    MetaData,
    Table,
    delete,
    event,
    insert,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from trio.testing import wait_all_tasks_blocked

from clarad.store import StoreError, Writer
from clarad.store.writer import MAX_BATCH, MAX_CHARACTERS
from tests.store.conftest import Outside
from tests.store.desk import FAIL_SAFE, queueing_up

THINGS = Table("things", MetaData(), Column("n", Integer, primary_key=True, autoincrement=False))
INSERT = insert(THINGS)
EMPTY = delete(THINGS)
NOWHERE = text("INSERT INTO nowhere VALUES (:n)")


async def write(writer: Writer, n: int, statement: Executable = INSERT) -> None:
    """Run the statement with the number, and wait until it is committed."""
    await writer.execute(statement, {"n": n}).wait()


class Callers:
    """Tasks that each give the writer one job, and what came back to them."""

    def __init__(self, writer: Writer, nursery: trio.Nursery) -> None:
        self.writer = writer
        self.answers: dict[object, Exception | None] = {}
        self.on_answer: Callable[[], None] = lambda: None
        self._nursery = nursery
        self._waiting: set[trio.lowlevel.Task] = set()
        self._writer_scope = trio.CancelScope()
        self._writer_ended = trio.Event()

    async def start_writer(self) -> None:
        await self._nursery.start(self._run_writer)

    def cancel_writer(self) -> None:
        self._writer_scope.cancel("stopping")

    async def stop_writer(self) -> None:
        """Cancel the writer and wait for its end."""
        self.cancel_writer()
        await self._writer_ended.wait()

    async def insert(self, *numbers: int, statement: Executable = INSERT) -> None:
        """Ask for an insert of each number, in this order; the number is the answer's name."""
        for n in numbers:
            await self._ask(n, write, self.writer, n, statement)

    async def call(self, name: str, function: Callable[[Connection], object]) -> None:
        """Ask for a call of the function."""
        await self._ask(name, self.writer.call, function)

    def queueing_up(self) -> AbstractAsyncContextManager[None]:
        """Have the thread stand still: what is asked for here is one transaction afterwards."""
        return queueing_up(self.writer)

    async def all_answered(self) -> None:
        while self._waiting:
            await wait_all_tasks_blocked()
            # Through the queue and back: whoever was before it has been answered.
            await self.writer.call(lambda _connection: None)

    @property
    def failed(self) -> set[object]:
        """The names of the jobs that failed."""
        return {name for name, error in self.answers.items() if error is not None}

    def release(self) -> int:
        """Let those go who wait for an answer that never comes; return how many they were."""
        for task in self._waiting:
            trio.lowlevel.reschedule(task)
        return len(self._waiting)

    async def _run_writer(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self._writer_scope:
            await self.writer.run(task_status=task_status)
        self._writer_ended.set()

    async def _ask(self, name: object, ask: Any, *arguments: Any) -> None:
        self._nursery.start_soon(self._note, name, ask, *arguments)
        await wait_all_tasks_blocked()

    async def _note(self, name: object, ask: Any, *arguments: Any) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.add(task)
        error = None
        try:
            await ask(*arguments)
        except Exception as caught:
            error = caught
        self._waiting.remove(task)
        self.answers[name] = error
        self.on_answer()


@pytest.fixture
async def callers(engine: Engine, outside: Outside, nursery: trio.Nursery) -> Callers:
    """A writer that serves, on a database with an empty table; it ends with the test."""
    outside.do("CREATE TABLE things (n INTEGER NOT NULL PRIMARY KEY)")
    callers = Callers(Writer(engine), nursery)
    await callers.start_writer()
    return callers


@pytest.fixture
def writer(callers: Callers) -> Writer:
    """The writer of the callers."""
    return callers.writer


@pytest.fixture
def commits(engine: Engine) -> list[Connection]:
    """One entry for each transaction of the writer that was committed."""
    seen: list[Connection] = []
    event.listen(engine, "commit", seen.append)
    return seen


def things(outside: Outside) -> list[int]:
    return [n for (n,) in outside.rows("SELECT n FROM things ORDER BY n")]


async def test_a_write_is_on_the_disk_when_it_returns(writer: Writer, outside: Outside) -> None:
    await write(writer, 1)
    assert things(outside) == [1]


async def test_a_call_returns_what_the_function_returns(writer: Writer) -> None:
    assert await writer.call(lambda connection: connection.scalar(text("SELECT 42"))) == 42


async def test_what_a_called_function_writes_is_committed(writer: Writer, outside: Outside) -> None:
    await writer.call(lambda connection: connection.execute(INSERT, {"n": 1}).rowcount)
    assert things(outside) == [1]


async def test_what_has_queued_up_is_committed_once(
    callers: Callers, outside: Outside, commits: list[Connection]
) -> None:
    async with callers.queueing_up():
        await callers.insert(*range(50))
    await callers.stop_writer()
    assert things(outside) == list(range(50))
    assert len(commits) == 2, "one for what held the writer up, one for all the others"


async def test_everyone_is_answered_after_the_commit(callers: Callers, outside: Outside) -> None:
    seen: list[int] = []
    callers.on_answer = lambda: seen.append(len(things(outside)))
    async with callers.queueing_up():
        await callers.insert(*range(20))
        assert not seen
    await callers.all_answered()
    assert seen == [20] * 20


async def test_more_jobs_than_fit_into_one_transaction_are_all_done(
    callers: Callers, outside: Outside, commits: list[Connection]
) -> None:
    async with callers.queueing_up():
        for n in range(2 * MAX_BATCH + 1):
            callers.writer.execute(INSERT, {"n": n})
    await callers.stop_writer()
    assert things(outside) == list(range(2 * MAX_BATCH + 1))
    assert len(commits) == 4, "one for what held the writer up, three for the others"


async def test_long_jobs_do_not_keep_a_short_one_waiting_for_all_of_them(
    callers: Callers, outside: Outside, commits: list[Connection]
) -> None:
    statement = text("INSERT INTO things SELECT CAST(:n AS INTEGER) WHERE CAST(:long AS TEXT) > ''")
    async with callers.queueing_up():
        for n in range(6):
            callers.writer.execute(statement, {"n": n, "long": "x" * (MAX_CHARACTERS // 2)})
        callers.writer.execute(INSERT, {"n": 6})
    await callers.stop_writer()
    assert things(outside) == list(range(7))
    assert len(commits) == 5, "one for what held the writer up, a pair in each other"


async def test_jobs_are_done_in_the_order_in_which_they_came(
    callers: Callers, writer: Writer
) -> None:
    done: list[str] = []
    async with callers.queueing_up():
        for name in "abcdef":
            await callers.call(name, lambda _connection, name=name: done.append(name))  # type: ignore[misc]
    await callers.all_answered()
    assert "".join(done) == "abcdef"


async def test_what_was_waited_for_is_done_before_what_builds_on_it(
    callers: Callers, outside: Outside
) -> None:
    await callers.writer.execute(INSERT, {"n": 1}).wait()
    await callers.writer.execute(EMPTY, {}).wait()
    callers.writer.execute(INSERT, {"n": 2})
    await callers.stop_writer()
    assert things(outside) == [2]


async def test_what_nobody_waits_for_is_done_too(callers: Callers, outside: Outside) -> None:
    callers.writer.execute(INSERT, {"n": 1})
    await callers.stop_writer()
    assert things(outside) == [1]


async def test_who_comes_for_the_answer_late_gets_it(writer: Writer) -> None:
    good, bad = writer.execute(INSERT, {"n": 1}), writer.execute(INSERT, {"n": 1})
    await writer.call(lambda _connection: None)
    await good.wait()
    with pytest.raises(StoreError, match=r"(?i)unique"):
        await bad.wait()


async def test_a_bad_job_fails_alone(callers: Callers, outside: Outside) -> None:
    outside.do("INSERT INTO things VALUES (3)")
    async with callers.queueing_up():
        await callers.insert(*range(6))
    await callers.all_answered()
    assert callers.failed == {3}
    assert isinstance(callers.answers[3], StoreError)
    assert things(outside) == list(range(6))


async def test_a_bad_job_among_other_statements_fails_alone(
    callers: Callers, outside: Outside
) -> None:
    async with callers.queueing_up():
        await callers.insert(0, 1)
        await callers.insert(2, statement=NOWHERE)
        await callers.insert(3)
    await callers.all_answered()
    assert callers.failed == {2}
    assert isinstance(callers.answers[2], StoreError)
    assert things(outside) == [0, 1, 3]


async def test_of_two_equal_keys_that_queue_up_the_first_is_in(
    callers: Callers, outside: Outside, nursery: trio.Nursery
) -> None:
    answers: dict[str, str] = {}

    async def insert_as(name: str) -> None:
        try:
            await write(callers.writer, 1)
        except StoreError:
            answers[name] = "is not in"
        else:
            answers[name] = "is in"

    async with callers.queueing_up():
        for name in ("first", "second"):
            nursery.start_soon(insert_as, name)
            await wait_all_tasks_blocked()
    await callers.stop_writer()
    assert answers == {"first": "is in", "second": "is not in"}
    assert things(outside) == [1]


async def test_that_rows_are_there_is_answered_and_costs_no_commit(
    callers: Callers, outside: Outside, commits: list[Connection]
) -> None:
    outside.do("INSERT INTO things VALUES (3)")
    insert = callers.writer.insert_into(THINGS).on_conflict_do_nothing()
    async with callers.queueing_up():
        jobs = [callers.writer.insert(insert, {"n": n}) for n in (1, 2, 3, 2, 4)]
        calls = [callers.writer.submit(lambda _connection, n=n: n) for n in range(2)]  # type: ignore[misc]
    await callers.stop_writer()
    assert [(job.result, job.error) for job in jobs] == [
        (True, None),
        (True, None),
        (False, None),
        (False, None),
        (True, None),
    ]
    assert [call.result for call in calls] == [0, 1]
    assert things(outside) == [1, 2, 3, 4]
    assert len(commits) == 2, "one for what held the writer up, one for all the others"


async def test_rows_are_answered_for_also_if_another_job_fails(
    callers: Callers, outside: Outside
) -> None:
    insert = callers.writer.insert_into(THINGS).on_conflict_do_nothing()
    async with callers.queueing_up():
        jobs = [callers.writer.insert(insert, {"n": n}) for n in (1, 1)]
        failing = callers.writer.execute(NOWHERE, {"n": 1})
    with pytest.raises(StoreError):
        await failing.wait()
    assert [(job.result, job.error) for job in jobs] == [(True, None), (False, None)]
    assert things(outside) == [1]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_locked_database_is_waited_for_once_by_all_that_wait(
    url: str,
    connect: Callable[[str], Engine],
    outside: Outside,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outside.do("CREATE TABLE things (n INTEGER NOT NULL PRIMARY KEY)")
    monkeypatch.setattr("clarad.store.engine.BUSY_TIMEOUT", 0.01)
    engine, tries = connect(url), list[Connection]()
    writer = Writer(engine)
    await nursery.start(writer.run)
    event.listen(engine, "begin", tries.append, insert=True)
    with connect(url).begin():  # somebody's open shell
        jobs = [writer.execute(INSERT, {"n": n}) for n in range(50)]
        jobs += [writer.submit(lambda _connection: None) for _ in range(50)]
        for job in jobs:
            with pytest.raises(StoreError, match="locked"):
                await job.wait()
    assert len(tries) <= 2, "the thread may have taken the first before the others were there"
    await write(writer, 1)
    assert things(outside) == [1], "what is tried again is done"


async def test_a_function_that_raises_fails_alone_and_leaves_nothing(
    callers: Callers, outside: Outside
) -> None:
    def write_and_fail(connection: Connection) -> None:
        connection.execute(INSERT, {"n": 100})
        raise ValueError("no")

    async with callers.queueing_up():
        await callers.insert(0)
        await callers.call("bad", write_and_fail)
        await callers.insert(2)
    await callers.all_answered()
    assert callers.failed == {"bad"}
    assert isinstance(callers.answers["bad"], ValueError)
    assert things(outside) == [0, 2]


async def test_after_a_failure_the_writer_goes_on(writer: Writer, outside: Outside) -> None:
    with pytest.raises(StoreError):
        await write(writer, 1, NOWHERE)
    await write(writer, 2)
    assert things(outside) == [2]


async def test_what_a_cancelled_caller_wrote_is_on_the_disk_when_it_leaves(
    callers: Callers, outside: Outside, nursery: trio.Nursery
) -> None:
    scope = trio.CancelScope()
    on_the_disk: list[list[int]] = []

    async def write_and_look() -> None:
        with scope:
            try:
                await write(callers.writer, 1)
            finally:
                on_the_disk.append(things(outside))

    async with callers.queueing_up():
        nursery.start_soon(write_and_look)
        await wait_all_tasks_blocked()
        scope.cancel("nobody waits for it any more")
        await wait_all_tasks_blocked()
        assert not on_the_disk
    await callers.stop_writer()
    assert on_the_disk == [[1]]


async def test_what_is_queued_when_the_writer_is_cancelled_is_committed(
    callers: Callers, outside: Outside
) -> None:
    async with callers.queueing_up():
        await callers.insert(*range(10))
        callers.cancel_writer()
        await wait_all_tasks_blocked()
    await callers.stop_writer()
    await wait_all_tasks_blocked()
    assert callers.answers == dict.fromkeys(range(10))
    assert things(outside) == list(range(10))


async def test_what_is_asked_for_while_the_writer_ends_is_answered(
    callers: Callers, outside: Outside
) -> None:
    """Cancelling the whole tree cancels the writer together with messages that still have to write
    down how they ended; and a write cannot be cancelled."""
    async with callers.queueing_up():
        callers.cancel_writer()
        await wait_all_tasks_blocked()
        await callers.insert(0, 1, 2)
    await callers.stop_writer()
    await wait_all_tasks_blocked()
    assert callers.release() == 0, "they wait for ever"
    assert things(outside) == [n for n in (0, 1, 2) if n not in callers.failed]


async def test_what_is_asked_for_after_the_writer_has_ended_is_answered(callers: Callers) -> None:
    await callers.stop_writer()
    await callers.insert(0)
    assert callers.release() == 0, "it waits for ever"
    assert callers.failed == {0}


async def test_a_writer_that_has_ended_can_be_run_again(
    callers: Callers, outside: Outside, nursery: trio.Nursery
) -> None:
    await callers.stop_writer()
    await nursery.start(callers.writer.run)
    await write(callers.writer, 1)
    assert things(outside) == [1]


async def test_a_database_that_cannot_be_opened_is_said_at_the_start(
    tmp_path: Path, connect: Callable[[str], Engine], nursery: trio.Nursery
) -> None:
    with pytest.raises(SQLAlchemyError, match="unable to open"):
        await nursery.start(Writer(connect(f"sqlite:///{tmp_path}")).run)


# --- what may wait -------------------------------------------------------------------------------


async def test_what_may_wait_is_done_before_what_comes_next(
    callers: Callers, outside: Outside
) -> None:
    callers.writer.execute_later(INSERT, {"n": 1})
    await write(callers.writer, 0, text("DELETE FROM things WHERE n > :n"))
    assert outside.rows("SELECT n FROM things") == []


async def test_what_may_wait_does_not_wait_for_ever(callers: Callers) -> None:
    done = trio.Event()
    callers.writer.execute_later(INSERT, {"n": 1}, lambda _error: done.set())
    with trio.fail_after(FAIL_SAFE):
        await done.wait()


async def test_what_may_wait_is_done_when_the_writer_stops(
    callers: Callers, outside: Outside
) -> None:
    callers.writer.execute_later(INSERT, {"n": 1})
    await callers.stop_writer()
    assert outside.rows("SELECT n FROM things") == [(1,)]


async def test_who_has_something_done_later_is_told_that_it_failed(callers: Callers) -> None:
    errors: list[Exception | None] = []
    callers.writer.execute_later(NOWHERE, {"n": 1}, errors.append)
    await write(callers.writer, 2)
    assert isinstance(errors[0], StoreError)


# --- whether it gets on --------------------------------------------------------------------------


class Asked:
    """Somebody who waits for the writer to get on."""

    def __init__(self, writer: Writer, nursery: trio.Nursery) -> None:
        self.got_on = trio.Event()
        nursery.start_soon(self._wait, writer)

    async def _wait(self, writer: Writer) -> None:
        await writer.progress()
        self.got_on.set()

    async def answer(self) -> None:
        with trio.fail_after(FAIL_SAFE):
            await self.got_on.wait()


async def test_an_idle_writer_gets_on(callers: Callers, nursery: trio.Nursery) -> None:
    await Asked(callers.writer, nursery).answer()


async def test_a_writer_whose_thread_stands_still_does_not(
    callers: Callers, nursery: trio.Nursery
) -> None:
    async with callers.queueing_up():
        asked = Asked(callers.writer, nursery)
        await wait_all_tasks_blocked()
        assert not asked.got_on.is_set()
    await asked.answer()


async def test_a_writer_gets_on_that_works_off_a_long_queue(
    callers: Callers, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clarad.store.writer.PROGRESS_INTERVAL", 0.01)
    go_on = threading.Event()
    async with callers.queueing_up():
        nursery.start_soon(callers.writer.call, lambda _connection: go_on.wait(FAIL_SAFE))
        await wait_all_tasks_blocked()
        asked = Asked(callers.writer, nursery)
        await wait_all_tasks_blocked()
    await asked.answer()
    assert not go_on.is_set(), "its turn has not come"
    go_on.set()


async def test_a_writer_gets_on_whose_database_fails(
    callers: Callers, engine: Engine, nursery: trio.Nursery
) -> None:
    def fail(_connection: Connection) -> None:
        raise SQLAlchemyError("the server is not there")

    event.listen(engine, "begin", fail)
    await Asked(callers.writer, nursery).answer()
    event.remove(engine, "begin", fail)


async def test_of_a_writer_that_is_stopped_nothing_is_expected(
    callers: Callers, nursery: trio.Nursery
) -> None:
    await callers.stop_writer()
    await Asked(callers.writer, nursery).answer()
