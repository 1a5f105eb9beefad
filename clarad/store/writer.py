"""The one task that talks to the database: a thread that commits in groups.

Whatever has queued up while the last commit was under way goes into one transaction, equal
statements as one `executemany`, and everyone is answered after its commit: on a disk that takes
0.3 ms to flush this is ten times the commits of one by one. If a job fails the transaction, each is
done again in a transaction of its own, so that only the job at fault fails. That a row is there
already is an answer, and fails nothing.

Rejected: a savepoint around each job. A full disk makes SQLite take back the whole transaction, not
only the statement (sqlite.org/lang_transaction.html), and jobs before it would be lost after they
had been called done. Rejected too: `trio.to_thread` for each batch, a thread hop that one long call
saves.

If the answer to a COMMIT is lost with the connection, the transaction may have been committed or
not. PostgreSQL is asked until it says which: done again, a new message would be taken for one that
was sent twice.
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
from clarad.store.epoch import Epoch, InDoubt, fate
from clarad.store.health import Health, write_something
from clarad.store.job import Job, SomeExist, Then, run_grouped
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BATCH: Final = 512
"""Jobs in one transaction. Bounds how long the first of them waits for the last."""

MAX_CHARACTERS: Final = 1024 * 1024
"""Characters in the parameters of a transaction's jobs with which it takes no more, for the same
reason. What functions write is not counted."""

LATER: Final = 1.0
"""Seconds that a job may wait for another to be committed with."""

ASK_AGAIN: Final = 0.5
"""Seconds between two questions about what became of a transaction."""

ANSWER_WITHIN: Final = 3.0
"""Seconds that the database has to answer when somebody asks whether it is well."""

LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at a database that fails, until it works again."""

LOOK: Final = 1.0
"""Seconds between two looks at whether the thread has got on with other jobs."""


class _Probe(NamedTuple):
    """Something that the database was given to write, to see whether it works."""

    size: int
    answered: trio.Event

    @property
    def is_answered(self) -> bool:
        return self.answered.is_set()


class Writer:
    """Hands jobs to the thread. `run` is the thread's place in the tree of scopes.

    `life` is the daemon's, if others may write the same tables: what it does not own it does not
    write.
    """

    def __init__(self, engine: Engine, life: Epoch | None = None) -> None:
        self.life = life
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
        """Have one statement run; `wait` for the job, or be called back with what failed it.

        Jobs with the same statement run in the order in which they are handed in. Different ones
        may overtake each other: wait for the one before handing in what builds on it.
        """
        return self._hand_in(Job(statement, parameters, then=then))

    def insert(
        self,
        statement: Executable,
        parameters: dict[str, Any],
        then: Then | None = None,
        *,
        instead: Callable[[Connection], bool] | None = None,
    ) -> Job:
        """Have a row inserted, as `execute` does; the job's `result` is whether it is new.

        The statement is one of `insert_into`, and says what is done about a row that is there.
        `instead` is a function to run in its place, in the order of these jobs.
        """
        return self._hand_in(Job(statement, parameters, instead, then, asks_if_new=True))

    def insert_into(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """Return an INSERT that can say what is done about a row that is there already."""
        statement: postgresql.Insert | sqlite.Insert
        if self._engine.dialect.name == "postgresql":
            statement = postgresql.insert(table)
        else:
            statement = sqlite.insert(table)
        return statement.execution_options(preserve_rowcount=True)

    def execute_later(
        self, statement: Executable, parameters: dict[str, Any], then: Then | None = None
    ) -> None:
        """Have a statement run before whatever is handed in next, or `LATER` from now.

        It costs no commit of its own while there is other work. A kill meanwhile loses it.
        """
        self._later.append(Job(statement, parameters, then=then))
        self._has_later.set()

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in the thread, inside a transaction, and return its result."""
        job = self.hand_in(function)
        await job.wait()
        result: T = job.result
        return result

    def hand_in(
        self,
        function: Callable[[Connection], T],
        then: Then | None = None,
        *,
        texts: dict[str, Any] | None = None,
    ) -> Job:
        """Have `function` run in the thread, after all that was handed in before.

        `texts` are those that it writes, if they may be long.
        """
        return self._hand_in(Job(None, texts, function, then))

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for the thread, and no transaction is under way."""
        return self._jobs.empty() and self._began_at == math.inf

    async def progress(self) -> None:
        """Wait until the thread has got on: a transaction has ended, by a commit or an error.

        The thread is given one for the purpose. What has to wait behind others that make progress
        is answered for by them, so a database that is slow, or that fails, gets on.
        """
        answered = trio.Event()
        before = self._steps
        self._hand_in(Job(then=lambda _error: answered.set()))
        while not answered.is_set() and self._steps == before:
            with trio.move_on_after(LOOK):
                await answered.wait()

    async def complaint(self) -> str | None:
        """Have the database write something, and return what is wrong with it, if anything is."""
        # A probe that is under way will do, unless something larger has failed meanwhile.
        if self._probe is None or self._probe.is_answered or self._probe.size < self.health.wanted:
            self._probe = self._hand_in_probe(self.health.wanted)
        probe = self._probe
        with trio.move_on_after(ANSWER_WITHIN):
            await probe.answered.wait()
        if self.health.failing is not None:
            return str(self.health.failing)
        if not probe.is_answered:
            return f"the database has not answered for {ANSWER_WITHIN:g} s"
        return None

    def _hand_in_probe(self, size: int) -> "_Probe":
        probe = _Probe(size, trio.Event())

        def then(error: Exception | None) -> None:
            if error is None:
                self.health.works(size)
            probe.answered.set()

        self._hand_in(
            Job(function=partial(write_something, owner=self.owner, size=size), then=then)
        )
        return probe

    async def _keep_looking(self) -> None:
        """Find out when a database that fails works again."""
        while True:
            await self.health.fails()
            await trio.sleep(LOOK_AGAIN)
            await self.complaint()

    def cut(self) -> None:
        """Have what is under way fail at once, if the database does not answer it."""
        if self._driver is not None:
            cut(self._driver)

    def cut_if_it_hangs(self, patience: float) -> None:
        """Cut what has been under way for longer than this, in seconds, while others are answered.

        Of a network that has gone the kernel finds it out, but not of one behind a proxy.
        """
        if time.monotonic() - self._began_at > patience:
            about = catalogue.STORE_FAILED.about()
            log.error("the store has not answered for %g s; asking again", patience, extra=about)
            self.cut()

    def _hand_in(self, job: Job) -> Job:
        self._hand_in_later()
        return self._put(job)

    def _hand_in_later(self) -> None:
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
        """Return the time: the same for all daemons that write the same tables."""
        return datetime.now(UTC) if self.life is None else self.life.now()

    @property
    def owner(self) -> int | None:
        """Whose rows are written: the number of the daemon's life."""
        return None if self.life is None else self.life.id

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
                nursery.start_soon(self._keep_looking)
                self._serving = True
                self._ending.clear()
                task_status.started()
                try:
                    await self._keep_handing_in_later()
                finally:
                    self._hand_in_later()
                    self._serving = False
                    self._ending.set()
                    self._jobs.put(None)
        finally:
            self._fail_what_is_left()

    async def _keep_handing_in_later(self) -> None:
        while True:
            await self._has_later.wait()
            self._has_later = trio.Event()
            await trio.sleep(LATER)
            self._hand_in_later()

    def _fail_what_is_left(self) -> None:
        """Answer whoever came too late: nobody is to wait for a thread that has ended."""
        left = []
        with suppress(queue.Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.error = StoreError("the store has stopped")
                    left.append(job)
        self._answer(left)

    def _answer(self, batch: Sequence[Job]) -> None:
        for job in batch:
            if job.error is not None:
                self.health.note(job.error, job.size)
            job.finish()

    async def _run_thread(self, connection: Connection) -> None:
        # Not cancellable, and it need not be: `None` in the queue wakes it and ends it.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._serve, connection, limiter=self._limiter)

    def _serve(self, connection: Connection) -> None:
        with connection:
            while (batch := self._next_batch()) is not None:
                self._commit(connection, batch)
                self._token.run_sync_soon(self._answer, batch)

    def _next_batch(self) -> list[Job] | None:
        """Wait for a job, and take with it what else is there; `None` when it is time to end."""
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
                self._jobs.put(None)
                break
            batch.append(job)
            characters += job.characters
        return batch

    def _commit(
        self, connection: Connection, batch: Sequence[Job], *, one_by_one: bool = False
    ) -> bool:
        """Run and commit all jobs; what fails is noted in the job.

        Returns whether another transaction is worth a try at once: `False` if none could be begun,
        or the connection is lost.
        """
        transaction, is_begun = None, False
        self._began_at = time.monotonic()
        try:
            if self.life is not None:
                self.life.require()  # before a connection is made, which can take long
            with connection.begin():
                number = self._fence(connection)
                is_begun = True
                run_grouped(connection, batch, one_by_one=one_by_one)
                transaction = number  # from here on it may be committed, whatever is heard of it
        except SomeExist:
            return self._commit(connection, batch, one_by_one=True)
        except Exception as error:
            if not is_begun and not connection.invalidated:
                # No job's fault. Somebody may have an SQLite database locked: it was waited for.
                for job in batch:
                    job.error = error
            elif transaction is None or not self._is_settled(connection, batch, transaction):
                self._fail(connection, batch, error)
        self._began_at = math.inf
        self._steps += 1
        return is_begun and not connection.invalidated

    def _fence(self, connection: Connection) -> str | None:
        if self.life is None:
            return None
        self._driver = connection.connection.driver_connection
        return self.life.fence(connection)

    def _fail(self, connection: Connection, batch: Sequence[Job], error: Exception) -> None:
        """Note what failed a job; with several, find out which one it was.

        What no transaction can be begun for fails the rest as well: each attempt can take long.
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
        """Ask what became of a transaction whose COMMIT failed; `False` if it is to be done again.

        It takes as long as the database is out of reach. If the daemon ends meanwhile, the jobs
        fail with `InDoubt`.
        """
        about = catalogue.STORE_FAILED.about()
        log.warning("the database has not said whether it has committed; asking it", extra=about)
        while True:
            self._began_at = time.monotonic()
            try:
                with connection.begin():
                    self._driver = connection.connection.driver_connection
                    was_committed = fate(connection, transaction)
            except SQLAlchemyError as error:
                self._token.run_sync_soon(self.health.note, error)
                log.debug("it does not answer: %s", one_line(error))
                was_committed = None
            if was_committed is not None:
                return was_committed
            if self._ending.is_set() or (self.life is not None and self.life.is_lost):
                break
            self._steps += 1
            self._ending.wait(ASK_AGAIN)
        for job in batch:
            job.error = InDoubt("the database has not said whether it has committed")
        return True
