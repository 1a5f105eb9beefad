"""What the writer is handed: statements and functions of the connection, one job each."""

import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import trio
from sqlalchemy import Connection, Executable

from clarad.store.engine import StoreError, as_store_error, errors_in_one_line
from clarad.systemd import catalogue

log = logging.getLogger(__name__)


Then = Callable[[StoreError | None], None]


class SomeExist(Exception):  # noqa: N818 - it is what has happened
    """Some rows of one `executemany` exist already; the database does not say which."""


class Job:
    """A statement with its parameters, or a function of the connection, and its result.

    With `asks_if_new`, the `result` of a statement is whether it wrote a row. With a statement and
    a function, the function runs in the order of the statement's jobs.
    """

    __slots__ = (
        "asks_if_new",
        "error",
        "finished",
        "function",
        "parameters",
        "result",
        "statement",
        "then",
        "waiter",
    )

    def __init__(
        self,
        statement: Executable | None = None,
        parameters: dict[str, Any] | None = None,
        function: Callable[[Connection], Any] | None = None,
        then: Then | None = None,
        *,
        asks_if_new: bool = False,
    ) -> None:
        self.asks_if_new = asks_if_new
        self.statement = statement
        self.parameters = parameters
        self.function = function
        self.then = then
        self.finished = False
        self.waiter: trio.lowlevel.Task | None = None
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def characters(self) -> int:
        """The number of characters in the job's parameters."""
        return sum(len(value) for value in (self.parameters or {}).values() if type(value) is str)

    @property
    def size(self) -> int:
        """Bytes of text in its parameters.

        It encodes them all, so batches are bounded by `characters` instead.
        """
        texts = (value for value in (self.parameters or {}).values() if type(value) is str)
        return sum(len(text.encode(errors="replace")) for text in texts)

    def run(self, connection: Connection) -> None:
        """Run the job in the open transaction."""
        if self.function is not None:
            self.result = self.function(connection)
        elif self.statement is not None:
            done = connection.execute(self.statement, self.parameters)
            if self.asks_if_new:
                self.result = done.rowcount == 1

    def finish(self) -> None:
        """Wake the waiting task and call `then`. Runs in Trio's thread."""
        self.finished = True
        if self.waiter is not None:
            trio.lowlevel.reschedule(self.waiter)
        if self.then is not None:
            try:
                self.then(None if self.error is None else as_store_error(self.error))
            except Exception:  # it would take Trio's run loop down, and everything with it
                about = catalogue.INTERNAL_ERROR.about()
                log.exception("what was to follow a commit failed; this is a bug", extra=about)

    async def wait(self) -> None:
        """Wait until the job is committed. One task can wait, once.

        Cancelling has no effect: when this ends, the job is on the disk or has failed.

        Raises:
            StoreError: the database failed, or the writer is not running.
            Exception: whatever else the job's function has raised.
        """
        if not self.finished:
            self.waiter = trio.lowlevel.current_task()
            # A shielded wait for an Event would say the same, at three times the cost.
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        if self.error is not None:
            with errors_in_one_line():
                raise self.error


def run_grouped(connection: Connection, batch: Sequence[Job], *, one_by_one: bool) -> None:
    """Run equal statements as one `executemany`; with `one_by_one`, not those that ask if new.

    Raises:
        SomeExist: some rows exist already. Begin the transaction again, `one_by_one`.
    """
    groups: dict[int, list[Job]] = {}
    for job in batch:
        alone = job.statement is None or (one_by_one and job.asks_if_new)
        groups.setdefault(id(job if alone else job.statement), []).append(job)
    for jobs in groups.values():
        for function, some in groupby(jobs, attrgetter("function")):
            if function is None:
                _run_alike(connection, list(some))
            else:
                for job in some:
                    job.run(connection)


def _run_alike(connection: Connection, jobs: Sequence[Job]) -> None:
    if len(jobs) == 1:
        jobs[0].run(connection)
        return
    statement = jobs[0].statement
    assert statement is not None
    done = connection.execute(statement, [job.parameters or {} for job in jobs])
    if jobs[0].asks_if_new:
        if done.rowcount != len(jobs):
            raise SomeExist
        for job in jobs:
            job.result = True
