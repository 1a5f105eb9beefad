"""The one task that talks to the database: a thread that commits in groups.

Whatever has queued up while the last commit was under way goes into one transaction, equal
statements as one `executemany`, and everyone is answered after its commit: on a disk that takes
0.3 ms to flush this is ten times the commits of one by one. If the transaction fails, it is done
again with a savepoint around each job, so that only the job at fault fails.

Rejected: a savepoint around each job from the start (two statements more a job, for a failure that
hardly ever comes), and `trio.to_thread` for each batch (a thread hop that one long call saves).
"""

import queue
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import trio
from sqlalchemy import Connection, Engine, Executable
from sqlalchemy.exc import SQLAlchemyError

T = TypeVar("T")

MAX_BATCH: Final = 512
"""Jobs in one transaction. Bounds how long the first of them waits for the last."""


class Job:
    """A statement with its parameters, or a function of the connection, and what came of it."""

    __slots__ = ("error", "function", "parameters", "result", "statement", "waiter")

    def __init__(
        self,
        statement: Executable | None = None,
        parameters: dict[str, Any] | None = None,
        function: Callable[[Connection], Any] | None = None,
    ) -> None:
        self.statement = statement
        self.parameters = parameters
        self.function = function
        self.waiter: trio.lowlevel.Task | None = None
        self.result: Any = None
        self.error: Exception | None = None

    def run(self, connection: Connection) -> None:
        """Do it, within the transaction that is open."""
        if self.statement is not None:
            connection.execute(self.statement, self.parameters)
        elif self.function is not None:
            self.result = self.function(connection)


class Writer:
    """Hands jobs to the thread. `run` is the thread's place in the tree of scopes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._limiter = trio.CapacityLimiter(1)

    async def execute(self, statement: Executable, parameters: dict[str, Any]) -> None:
        """Run one statement and return once it is committed.

        Raises whatever SQLAlchemy raises. Not cancelled half way: it is on the disk or it failed.
        """
        await self._submit(Job(statement, parameters))

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in the thread, inside a transaction, and return its result."""
        job = Job(function=function)
        await self._submit(job)
        result: T = job.result
        return result

    async def _submit(self, job: Job) -> None:
        job.waiter = trio.lowlevel.current_task()
        self._jobs.put(job)
        # A shielded wait for an Event would say the same, at three times the cost.
        await trio.lowlevel.wait_task_rescheduled(_refuse_abort)
        if job.error is not None:
            raise job.error

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve jobs until cancelled; then commit what is queued, and return.

        Raises:
            SQLAlchemyError: the database cannot be opened.
        """
        token = trio.lowlevel.current_trio_token()
        connection = await trio.to_thread.run_sync(self._engine.connect)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_thread, connection, token)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._jobs.put(None)

    async def _run_thread(self, connection: Connection, token: trio.lowlevel.TrioToken) -> None:
        # Not cancellable, and it need not be: `None` in the queue wakes it and ends it.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._serve, connection, token, limiter=self._limiter)

    def _serve(self, connection: Connection, token: trio.lowlevel.TrioToken) -> None:
        with connection:
            while (batch := self._next_batch()) is not None:
                _commit(connection, batch)
                token.run_sync_soon(_answer, batch)

    def _next_batch(self) -> list[Job] | None:
        """Wait for a job, and take with it what else is there; `None` when it is time to end."""
        job = self._jobs.get()
        if job is None:
            return None
        batch = [job]
        while len(batch) < MAX_BATCH:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            batch.append(job)
        return batch


def _answer(batch: Sequence[Job]) -> None:
    for job in batch:
        assert job.waiter is not None
        trio.lowlevel.reschedule(job.waiter)


def _refuse_abort(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _commit(connection: Connection, batch: Sequence[Job]) -> None:
    """Run and commit all jobs; what fails is noted in the job."""
    try:
        with connection.begin():
            _run_grouped(connection, batch)
    except Exception as error:
        if len(batch) == 1:
            batch[0].error = error
        else:
            _commit_apart(connection, batch)


def _run_grouped(connection: Connection, batch: Sequence[Job]) -> None:
    groups: dict[int, list[Job]] = {}
    for job in batch:
        groups.setdefault(id(job.statement) if job.statement is not None else id(job), []).append(
            job
        )
    for jobs in groups.values():
        if len(jobs) == 1:
            jobs[0].run(connection)
        else:
            statement = jobs[0].statement
            assert statement is not None
            connection.execute(statement, [job.parameters or {} for job in jobs])


def _commit_apart(connection: Connection, batch: Sequence[Job]) -> None:
    try:
        with connection.begin():
            for job in batch:
                job.error = _run_in_savepoint(connection, job)
    except SQLAlchemyError as error:
        for job in batch:
            job.error = job.error or error


def _run_in_savepoint(connection: Connection, job: Job) -> Exception | None:
    try:
        with connection.begin_nested():
            job.run(connection)
    except Exception as error:
        return error
    return None
