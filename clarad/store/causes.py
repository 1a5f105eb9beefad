"""Which runs led to what a node does: by what the store knows, not by what the node says."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, union_all

from clarad.store.engine import errors_in_one_line
from clarad.store.models import HookRunRow, TaskRunRow
from clarad.store.writer import Writer


class Causes:
    """The runs of hooks and tasks that go on, of whichever daemon."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def confirm(self, said: Sequence[str]) -> tuple[str, ...]:
        """Return the runs that led to the nearest of these that goes on, and this one, as the last.

        A node says which run's command it is part of, and names those before it. They have often
        ended by then, so the store's word is taken for them. If none of these goes on there is no
        chain: what is made up, or is over, keeps no hook from running.

        Raises:
            StoreError: the database fails.
        """
        if not said:
            return ()

        def find(connection: Connection) -> dict[str, str]:
            going_on: list[Any] = [
                select(row.run_id, row.caused_by).where(
                    row.run_id.in_(said), row.begun_at.is_not(None), row.ended_at.is_(None)
                )
                for row in (HookRunRow, TaskRunRow)
            ]
            rows = connection.execute(union_all(*going_on))
            return {row.run_id: row.caused_by for row in rows}

        with errors_in_one_line():
            found = await self._writer.call(find)
        nearest = next((run for run in reversed(said) if run in found), None)
        return () if nearest is None else (*found[nearest].split(), nearest)
