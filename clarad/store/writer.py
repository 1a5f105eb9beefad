"""Group commit: the one thread that talks to the database.

All jobs that have queued up during the last commit go into one transaction, equal statements as one
`executemany`, and each job is answered after the commit. On a disk that takes 0.3 ms to flush this
commits ten times as many jobs as one by one. If a job fails the transaction, each job runs again in
a transaction of its own, so that only the job at fault fails. A row that exists already fails
nothing: it is a result.

Rejected: a savepoint around each job. A full disk makes SQLite take back the whole transaction, not
only the statement (sqlite.org/lang_transaction.html), and jobs before it would be lost after they
had been called done. Rejected too: `trio.to_thread` for each batch, a thread hop that one long call
saves.

If the answer to a COMMIT is lost with the connection, the writer asks PostgreSQL until it says
whether the transaction was committed. Running the jobs again without asking would take a new
message for one that was sent twice.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import trio
from sqlalchemy import Connection, Engine, Executable, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from clarad.store.engine import StoreError, cut, one_line
from clarad.store.epoch import Epoch, InDoubt, commit_status
from clarad.store.health import Health, write_probe
from clarad.store.job import Job, SomeExist, Then, run_grouped
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BATCH: Final = 512
"""Jobs in one transaction at most. Bounds how long the first of them waits for the last."""

MAX_CHARACTERS: Final = 1024 * 1024
"""Characters in the parameters of a transaction's jobs, after which it takes no more jobs, for the
same reason. What functions write is not counted."""

MAX_DELAY: Final = 1.0
"""Seconds that a job of `execute_later` may wait for another job to share a commit with."""

STATUS_RETRY: Final = 0.5
"""Seconds between two attempts to find out whether a transaction was committed."""

HEALTH_TIMEOUT: Final = 3.0
"""Seconds that the database has to answer `check_health`."""

PROBE_INTERVAL: Final = 1.0
"""Seconds between two probes of a database that fails, until it works again."""

PROGRESS_INTERVAL: Final = 1.0
"""Seconds between two looks of `progress` at whether the thread has ended a transaction."""


class _Probe(NamedTuple):
    """A write that shows whether the database works."""

    size: int
    answered: trio.Event

    @property
    def is_answered(self) -> bool:
        return self.answered.is_set()


class Writer:
    """Hands jobs to the thread; `run` is the thread's place in the tree of scopes.

    With an `epoch`, other daemons may write the same tables, and each transaction is fenced.
    """

    def __init__(self, engine: Engine, epoch: Epoch | None = None) -> None:
        self.epoch = epoch
        self._engine = engine
        self._driver: Any = None
        self._token: trio.lowlevel.TrioToken
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._limiter = trio.CapacityLimiter(1)
        self.health = Health()
        self._probe: _Probe | None = None
        self._serving = False
        self._ending = threading.Event()
        self._later: list[Job] = []
        self._has_later = trio.Event()
        self._steps = 0
        self._began_at = math.inf

    def execute(
        self, statement: Executable, parameters: dict[str, Any], then: Then | None = None
    ) -> Job:
        """Submit one statement; `wait` for the job, or have `then` called with its error.

        Jobs with the same statement run in the order in which they are submitted. Those with
        different statements may overtake each other: wait for one before submitting the next.
        """
        return self._submit(Job(statement, parameters, then=then))

    def insert(
        self,
        statement: Executable,
        parameters: dict[str, Any],
        then: Then | None = None,
        *,
        instead: Callable[[Connection], bool] | None = None,
    ) -> Job:
        """Submit an INSERT made by `insert_into`; the job's `result` is whether the row is new.

        `instead` is a function to run in place of the statement, in the order of its jobs.
        """
        return self._submit(Job(statement, parameters, instead, then, asks_if_new=True))

    def insert_into(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """Return an INSERT that takes `on_conflict_do_nothing` and `on_conflict_do_update`."""
        statement: postgresql.Insert | sqlite.Insert
        if self._engine.dialect.name == "postgresql":
            statement = postgresql.insert(table)
        else:
            statement = sqlite.insert(table)
        return statement.execution_options(preserve_rowcount=True)

    def execute_later(
        self, statement: Executable, parameters: dict[str, Any], then: Then | None = None
    ) -> None:
        """Submit a statement right before the next job, or `MAX_DELAY` from now.

        It costs no commit of its own while there are other jobs. A kill meanwhile loses it.
        """
        self._later.append(Job(statement, parameters, then=then))
        self._has_later.set()

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in the thread, inside a transaction, and return its result."""
        job = self.submit(function)
        await job.wait()
        result: T = job.result
        return result

    def submit(
        self,
        function: Callable[[Connection], T],
        then: Then | None = None,
        *,
        texts: dict[str, Any] | None = None,
    ) -> Job:
        """Submit a function; it runs in the thread, after all functions submitted before.

        `texts` are the columns with long texts that it writes, if any.
        """
        return self._submit(Job(None, texts, function, then))

    @property
    def is_idle(self) -> bool:
        """Whether no job waits, and no transaction is open."""
        return self._jobs.empty() and self._began_at == math.inf

    async def progress(self) -> None:
        """Wait until the thread has ended a transaction, by a commit or an error.

        This submits a job so that there is one. Any other transaction counts, too: a database that
        is slow, or that fails, makes progress as well.
        """
        answered = trio.Event()
        before = self._steps
        self._submit(Job(then=lambda _error: answered.set()))
        while not answered.is_set() and self._steps == before:
            with trio.move_on_after(PROGRESS_INTERVAL):
                await answered.wait()

    async def check_health(self) -> str | None:
        """Have the database write something; return a sentence on what is wrong, if anything is."""
        # A probe that is under way will do, unless a larger job has failed since.
        if (
            self._probe is None
            or self._probe.is_answered
            or self._probe.size < self.health.probe_size
        ):
            self._probe = self._submit_probe(self.health.probe_size)
        probe = self._probe
        with trio.move_on_after(HEALTH_TIMEOUT):
            await probe.answered.wait()
        if self.health.failing is not None:
            return str(self.health.failing)
        if not probe.is_answered:
            return f"the database has not answered for {HEALTH_TIMEOUT:g} s"
        return None

    def _submit_probe(self, size: int) -> "_Probe":
        probe = _Probe(size, trio.Event())

        def then(error: StoreError | None) -> None:
            if error is None:
                self.health.record_success(size)
            probe.answered.set()

        self._submit(Job(function=partial(write_probe, owner=self.owner, size=size), then=then))
        return probe

    async def _watch_health(self) -> None:
        """Probe a database that fails until it works again."""
        while True:
            await self.health.wait_failing()
            await trio.sleep(PROBE_INTERVAL)
            await self.check_health()

    def cut(self) -> None:
        """Shut the connection to PostgreSQL down: the open transaction fails at once."""
        if self._driver is not None:
            cut(self._driver)

    def cut_if_stuck(self, patience: float) -> None:
        """Cut a transaction that is older than `patience` seconds.

        To be called when the database answers another connection. The kernel notices a network
        that is gone, but not one that is gone behind a proxy.
        """
        if time.monotonic() - self._began_at > patience:
            about = catalogue.STORE_FAILED.about()
            log.error("the store has not answered for %g s; asking again", patience, extra=about)
            self.cut()

    def _submit(self, job: Job) -> Job:
        self._submit_later()
        return self._put(job)

    def _submit_later(self) -> None:
        later, self._later = self._later, []
        for job in later:
            self._put(job)

    def _put(self, job: Job) -> Job:
        if self._serving:
            self._jobs.put(job)
        else:
            job.error = StoreError("the store is not running")
            job.finish()
        return job

    def now(self) -> datetime:
        """Return the time by the clock that all daemons on the database share."""
        return datetime.now(UTC) if self.epoch is None else self.epoch.now()

    @property
    def owner(self) -> int | None:
        """The `owner` of the rows that this daemon writes: the number of its epoch."""
        return None if self.epoch is None else self.epoch.id

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve jobs until cancelled; then commit what is queued, and return.

        Raises:
            SQLAlchemyError: the database cannot be opened.
        """
        self._token = trio.lowlevel.current_trio_token()
        connection = await trio.to_thread.run_sync(self._engine.connect)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_thread, connection)
                nursery.start_soon(self._watch_health)
                self._serving = True
                self._ending.clear()
                task_status.started()
                try:
                    await self._submit_later_jobs()
                finally:
                    self._submit_later()
                    self._serving = False
                    self._ending.set()
                    self._jobs.put(None)
        finally:
            self._fail_leftovers()

    async def _submit_later_jobs(self) -> None:
        while True:
            await self._has_later.wait()
            self._has_later = trio.Event()
            await trio.sleep(MAX_DELAY)
            self._submit_later()

    def _fail_leftovers(self) -> None:
        """Fail the jobs that came too late: no task may wait for a thread that is gone."""
        left = []
        with suppress(queue.Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.error = StoreError("the store has stopped")
                    left.append(job)
        self._finish(left)

    def _finish(self, batch: Sequence[Job]) -> None:
        for job in batch:
            if job.error is not None:
                self.health.record_failure(job.error, job.size)
            job.finish()

    async def _run_thread(self, connection: Connection) -> None:
        # Not cancellable, and it need not be: `None` in the queue wakes it and ends it.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._serve, connection, limiter=self._limiter)

    def _serve(self, connection: Connection) -> None:
        with connection:
            while (batch := self._next_batch()) is not None:
                self._commit(connection, batch)
                self._token.run_sync_soon(self._finish, batch)

    def _next_batch(self) -> list[Job] | None:
        """Wait for a job, and take what else is queued; `None` when the thread must end."""
        job = self._jobs.get()
        if job is None:
            return None
        batch = [job]
        characters = job.characters
        while len(batch) < MAX_BATCH and characters < MAX_CHARACTERS:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # commit this batch first, and end at the next call
                break
            batch.append(job)
            characters += job.characters
        return batch

    def _commit(
        self, connection: Connection, batch: Sequence[Job], *, one_by_one: bool = False
    ) -> bool:
        """Run and commit all jobs; each gets its result or its error.

        Returns whether another transaction is worth a try at once: `False` if none could be begun,
        or the connection is lost.

        An error has one of three causes, and `is_begun` and `transaction` tell them apart. Before
        the transaction has begun, no job is at fault, and all fail alike. While it runs, one job is
        at fault, and nothing is committed. After the last job, the COMMIT itself failed, and
        PostgreSQL may have committed all the same.
        """
        transaction, is_begun = None, False
        self._began_at = time.monotonic()
        try:
            if self.epoch is not None:
                self.epoch.require()  # before a connection is made, which can take long
            with connection.begin():
                number = self._fence(connection)
                is_begun = True
                run_grouped(connection, batch, one_by_one=one_by_one)
                transaction = number  # from here on PostgreSQL may commit it
        except SomeExist:
            return self._commit(connection, batch, one_by_one=True)
        except Exception as error:
            if not is_begun and not connection.invalidated:
                # Such as an SQLite database that another process has locked for too long.
                for job in batch:
                    job.error = error
            elif transaction is None or not self._is_settled(connection, batch, transaction):
                self._fail(connection, batch, error)
        self._began_at = math.inf
        self._steps += 1
        return is_begun and not connection.invalidated

    def _fence(self, connection: Connection) -> str | None:
        if self.epoch is None:
            return None
        self._driver = connection.connection.driver_connection
        return self.epoch.fence(connection)

    def _fail(self, connection: Connection, batch: Sequence[Job], error: Exception) -> None:
        """Fail the one job of a batch, or run the jobs one by one to find the one at fault.

        If no transaction can be begun for one of them, the rest fail without a try: each try could
        wait as long as the first.
        """
        if len(batch) == 1:
            batch[0].error = error
            return
        self._steps += 1
        for number, job in enumerate(batch, start=1):
            if not self._commit(connection, [job]) and job.error is not None:
                for other in batch[number:]:
                    other.error = job.error
                return

    def _is_settled(self, connection: Connection, batch: Sequence[Job], transaction: str) -> bool:
        """Find out what became of a transaction whose COMMIT failed; `False`: run the jobs again.

        This asks for as long as the database is out of reach. If the daemon stops meanwhile, the
        jobs fail with `InDoubt`.
        """
        about = catalogue.STORE_FAILED.about()
        log.warning("the database has not said whether it has committed; asking it", extra=about)
        while True:
            self._began_at = time.monotonic()
            try:
                with connection.begin():
                    self._driver = connection.connection.driver_connection
                    was_committed = commit_status(connection, transaction)
            except SQLAlchemyError as error:
                self._token.run_sync_soon(self.health.record_failure, error)
                log.debug("it does not answer: %s", one_line(error))
                was_committed = None
            if was_committed is not None:
                return was_committed
            if self._ending.is_set() or (self.epoch is not None and self.epoch.is_lost):
                break
            self._steps += 1
            self._ending.wait(STATUS_RETRY)
        for job in batch:
            job.error = InDoubt("the database has not said whether it has committed")
        return True
