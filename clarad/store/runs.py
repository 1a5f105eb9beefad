"""What the runs of hooks and of tasks have in common in the store."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, insert, update

from clarad.store.models import HookRunRow, TaskRunRow
from clarad.store.writer import Writer


class Outcome(StrEnum):
    """How a run, or one attempt of it, ended: the closed list."""

    RAN = "ran"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"


FAILURES: Final = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.INTERRUPTED)
"""What `--failed` lists. A hook's run that ended so is a dead letter until it is replayed."""

MISSED: Final = "missed"
"""The reason of an occurrence that came due while nobody was there to run it."""


class Ending(NamedTuple):
    """How a run, or an attempt of it, ended; `duration` in seconds, what was cut in bytes."""

    outcome: Outcome
    reason: str = ""
    exit_status: int | None = None
    duration: float | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_cut: int = 0
    stderr_cut: int = 0


class Runs:
    """What the tables of hooks' and tasks' runs have in common.

    If the database fails, what is awaited raises `StoreError`.
    """

    def __init__(self, writer: Writer, row: type[HookRunRow | TaskRunRow]) -> None:
        self._writer = writer
        this = row.run_id == bindparam("this_run")
        table: Any = row.__table__
        self.insert = insert(table)
        self._begin = (
            update(table)
            .where(this)
            .values(begun_at=bindparam("begun_at"), attempts=bindparam("attempts"))
        )
        ending: dict[str, Any] = {name: bindparam(name) for name in Ending._fields}
        self._put_off = update(table).where(this).values(begun_at=None, **ending)
        self._end = update(table).where(this).values(ended_at=bindparam("ended_at"), **ending)

    async def begin(self, run_id: str, attempt: int) -> None:
        """Note that an attempt, counted from 1, begins now."""
        values = {"this_run": run_id, "begun_at": datetime.now(UTC), "attempts": attempt}
        await self._writer.execute(self._begin, values).wait()

    async def put_off(self, run_id: str, ending: Ending) -> None:
        """Note how an attempt ended, and that the run waits for another one."""
        values = {"this_run": run_id, **_columns(ending), "outcome": None}
        await self._writer.execute(self._put_off, values).wait()

    async def end(self, run_id: str, ending: Ending) -> None:
        """Note how the run ended."""
        values = {"this_run": run_id, "ended_at": datetime.now(UTC), **_columns(ending)}
        await self._writer.execute(self._end, values).wait()


def new_row(
    run_id: str,
    caused_by: Sequence[str],
    due_at: datetime,
    *,
    begun: bool,
    ending: Ending | None,
    owner: int | None,
) -> dict[str, Any]:
    """Return the columns of a new run that hooks and tasks have in common."""
    now = datetime.now(UTC)
    columns = dict.fromkeys(Ending._fields) if ending is None else _columns(ending)
    return {
        "run_id": run_id,
        "caused_by": " ".join(caused_by),
        "due_at": due_at,
        "attempts": int(begun),
        "begun_at": now if begun else None,
        "ended_at": None if ending is None else now,
        "owner": owner,
        **columns,
    }


def _columns(ending: Ending) -> dict[str, Any]:
    return {
        name: (_storable(value) or None) if isinstance(value, str) else value
        for name, value in ending._asdict().items()
    }


def _storable(text: str) -> str:
    """PostgreSQL cannot hold NUL, and no database half a surrogate pair."""
    return text.replace("\0", "").encode(errors="replace").decode()
