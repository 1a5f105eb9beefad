"""The table of hooks' runs. No run starts before its row is on the disk."""

import secrets
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, func, insert, select

from clarad.store.engine import StoreError
from clarad.store.epoch import owned
from clarad.store.models import HookRunRow
from clarad.store.runs import Ending, Runs, new_row
from clarad.store.writer import Writer


class StoredHookRun(NamedTuple):
    """A run as it is in the store; `event` is JSON, and left out where it is large."""

    run_id: str
    hook: str
    event_id: str
    event: str | None
    attempts: int
    begun: bool


class HookRuns(Runs):
    """The table `clarad_hook_runs`."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer, HookRunRow)

    def add(
        self,
        *,
        run_id: str,
        hook: str,
        event_id: str,
        event_type: str,
        event: str,
        caused_by: Sequence[str],
        due_at: datetime,
        begun: bool,
        ending: Ending | None = None,
        replay_of: str | None = None,
        then: Callable[[StoreError | None], None],
    ) -> None:
        """Insert a new run; `then` is called once it is on the disk, or with why it is not.

        `begun` if its first attempt starts at once, `ending` if it does not start at all.
        """
        owner = self._writer.owner
        common = new_row(run_id, caused_by, due_at, begun=begun, ending=ending, owner=owner)
        values = common | {
            "hook": hook,
            "event_id": event_id,
            "event_type": event_type,
            "event": event,
            "replay_of": replay_of,
        }

        self._writer.execute(self.insert, values, then)

    async def event(self, run_id: str) -> str:
        """Return the event of a run, as JSON."""
        statement = select(HookRunRow.event).where(HookRunRow.run_id == run_id)

        def read(connection: Connection) -> str:
            return connection.execute(statement).scalar_one()

        return await self._writer.call(read)

    async def find(self, run_id: str) -> StoredHookRun | None:
        """Return what a replay needs of a run, `None` if there is no such run."""
        statement = _hook_runs(HookRunRow.event).where(HookRunRow.run_id == run_id)

        def read(connection: Connection) -> StoredHookRun | None:
            row = connection.execute(statement).one_or_none()
            return None if row is None else _stored(row)

        return await self._writer.call(read)

    async def unfinished(
        self, largest_event: int, of: Collection[int] | None = None
    ) -> list[StoredHookRun]:
        """Return the unfinished runs, oldest first: this daemon's, or those of the epochs `of`.

        Events of more than `largest_event` characters are left out.
        """
        small = case((func.length(HookRunRow.event) <= largest_event, HookRunRow.event))
        mine = owned(HookRunRow.owner, self._writer.epoch, of)
        statement = _hook_runs(small).where(HookRunRow.ended_at.is_(None), mine)
        statement = statement.order_by(HookRunRow.id)

        def read(connection: Connection) -> list[StoredHookRun]:
            return [_stored(row) for row in connection.execute(statement)]

        return await self._writer.call(read)


def write_replay(connection: Connection, run_id: str, hooks: Collection[str]) -> str | None:
    """Insert a replay of a run, if its hook is one of `hooks`; return the new run's id.

    The next start of the daemon runs it.
    """
    found = connection.execute(select(HookRunRow).where(HookRunRow.run_id == run_id)).one_or_none()
    if found is None or found.hook not in hooks:
        return None
    anew = f"hook-{secrets.token_hex(8)}"
    now = datetime.now(UTC)
    caused_by = found.caused_by.split()
    row = new_row(anew, caused_by, now, begun=False, ending=None, owner=None) | {
        "hook": found.hook,
        "event_id": found.event_id,
        "event_type": found.event_type,
        "event": found.event,
        "replay_of": run_id,
    }
    connection.execute(insert(HookRunRow).values(row))
    return anew


def _hook_runs(event: Any) -> Any:
    columns = (HookRunRow.run_id, HookRunRow.hook, HookRunRow.event_id, event.label("event"))
    return select(*columns, HookRunRow.attempts, HookRunRow.begun_at)


def _stored(row: Any) -> StoredHookRun:
    begun = row.begun_at is not None
    return StoredHookRun(row.run_id, row.hook, row.event_id, row.event, row.attempts, begun)
