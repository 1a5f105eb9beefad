"""The chain of runs that led to what a node does, as the store knows it; nodes may make one up."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, union_all

from clarad.store.models import HookRunRow, TaskRunRow
from clarad.store.writer import Writer


class Causes:
    """The runs of hooks and tasks that are under way, with any daemon."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def confirm(self, said: Sequence[str]) -> tuple[str, ...]:
        """Return the chain of runs that ends with the last one of `said` that is under way.

        A node says which run's command it is part of, and which runs led to that one. Those have
        often ended, so the store's own record of the chain counts. If no run of `said` is under way
        the chain is empty: runs that are made up, or have ended, keep no hook from running.

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

        found = await self._writer.call(find)
        nearest = next((run for run in reversed(said) if run in found), None)
        return () if nearest is None else (*found[nearest].split(), nearest)
