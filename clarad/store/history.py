"""What has been run, for people: read beside a daemon that may be writing it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Select, select

from clarad.store.engine import errors_in_one_line, open_engine
from clarad.store.migrate import is_behind, require_head
from clarad.store.models import HookRunRow, TaskRunRow
from clarad.store.runs import FAILURES
from clarad.store.tasks import TaskState, read_task_states
from clarad.store.tokens import Token, read_tokens

Found = dict[str, Any]
"""A run as people are shown it; times are aware."""

_OF_HOOKS: Final = ("hook", "event_type", "event_id", "replay_of")
_OF_TASKS: Final = ("task", "nominal_at", "origin")
_OF_BOTH: Final = ("outcome", "reason", "attempts", "due_at", "begun_at", "ended_at", "duration")
_DETAILS: Final = ("exit_status", "stdout", "stdout_cut", "stderr", "stderr_cut")


class History:
    """What is in the store of one installation. `None` for the connection: there is no store yet.

    Whatever is asked raises `StoreError` if the database cannot be read.
    """

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def hook_runs(self, *, hook: str | None, failed: bool, limit: int) -> list[Found]:
        """Return runs of hooks, the newest first."""
        newest = [HookRunRow.id.desc()]
        return self._runs(HookRunRow, HookRunRow.hook, hook, failed, limit, newest)

    def task_runs(self, *, task: str | None, failed: bool, limit: int) -> list[Found]:
        """Return runs of tasks, those of the newest occurrences first."""
        newest = [TaskRunRow.nominal_at.desc(), TaskRunRow.id.desc()]
        return self._runs(TaskRunRow, TaskRunRow.task, task, failed, limit, newest)

    def find(self, run_id: str) -> Found | None:
        """Return a run with everything that is known of it."""
        for row in (HookRunRow, TaskRunRow):
            names = [*_names(row), "caused_by", *_DETAILS, *_event(row)]
            statement = _select(row, names).where(row.run_id == run_id)
            for found in self._read(statement, names):
                return found
        return None

    def last_hook_run(self, hook: str) -> Found | None:
        """Return the newest run of a hook."""
        return next(iter(self.hook_runs(hook=hook, failed=False, limit=1)), None)

    def last_task_run(self, task: str) -> Found | None:
        """Return the newest run of a task."""
        return next(iter(self.task_runs(task=task, failed=False, limit=1)), None)

    def task_states(self) -> dict[str, TaskState]:
        """Return what is remembered of every task."""
        if self._connection is None:
            return {}
        with errors_in_one_line():
            return read_task_states(self._connection)

    def tokens(self) -> list[Token]:
        """Return all tokens, by their names."""
        if self._connection is None:
            return []
        with errors_in_one_line():
            return read_tokens(self._connection)

    def _runs(
        self,
        row: type[HookRunRow | TaskRunRow],
        column: Any,
        name: str | None,
        failed: bool,
        limit: int,
        newest: Sequence[Any],
    ) -> list[Found]:
        names = _names(row)
        statement = _select(row, names).order_by(*newest).limit(limit)
        if name is not None:
            statement = statement.where(column == name)
        if failed:
            statement = statement.where(row.outcome.in_([str(outcome) for outcome in FAILURES]))
        return list(self._read(statement, names))

    def _read(self, statement: Select[Any], names: Iterable[str]) -> Iterator[Found]:
        if self._connection is not None:
            with errors_in_one_line():
                rows = self._connection.execute(statement).all()
            for row in rows:
                found = {"run": row[0], **dict(zip(names, row[1:], strict=True))}
                yield found | {"state": _state(found)}


@contextmanager
def open_history(database_url: str) -> Iterator[History]:
    """Open the store for reading; nothing is made that is not there.

    Raises:
        StoreError: the database cannot be read.
    """
    engine = open_engine(database_url, read_only=True)
    try:
        if is_behind(engine):
            yield History(None)
        else:
            with errors_in_one_line(), engine.connect() as connection:
                yield History(connection)
    finally:
        engine.dispose()


@contextmanager
def open_writable(database_url: str) -> Iterator[Connection]:
    """Open the store for one transaction; for what no running daemon has in its memory.

    Raises:
        StoreError: the database cannot be written, or has not been migrated.
    """
    engine = open_engine(database_url)
    try:
        require_head(engine, migrate=False)
        with errors_in_one_line(), engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _names(row: type[HookRunRow | TaskRunRow]) -> tuple[str, ...]:
    return (*(_OF_HOOKS if row is HookRunRow else _OF_TASKS), *_OF_BOTH)


def _event(row: type[HookRunRow | TaskRunRow]) -> tuple[str, ...]:
    return ("event",) if row is HookRunRow else ()


def _select(row: type[HookRunRow | TaskRunRow], names: Iterable[str]) -> Select[Any]:
    return select(row.run_id, *(getattr(row, name) for name in names))


def _state(found: Found) -> str:
    if found["outcome"] is not None:
        return str(found["outcome"])
    return "waiting" if found["begun_at"] is None else "running"
