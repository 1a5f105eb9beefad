"""Whether the database does what it is asked, and since when it does not."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import trio
from sqlalchemy import Connection, String, column, delete, insert, table
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from clarad.store.engine import Damaged, one_line
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

_VERSIONS: Final = table("clarad_alembic_version", column("version_num", String))


class Failing(NamedTuple):
    """What the database said when it failed first, and when that was."""

    since: datetime
    words: str

    def __str__(self) -> str:
        since, now = self.since.astimezone(), datetime.now().astimezone()
        day = "" if since.date() == now.date() else f"{since:%Y-%m-%d} "
        return f"the database fails since {day}{since:%H:%M} ({self.words})"


class Health:
    """What the writer's transactions say of the database; all in Trio's thread.

    Any transaction can find out that it fails. That it works again only one says that writes: on a
    full disk what only reads still succeeds.
    """

    def __init__(self) -> None:
        self.failing: Failing | None = None
        self.changed: Callable[[], None] = lambda: None
        """Called when the database has begun to fail, or works again."""
        self._fails = trio.Event()
        self._is_damaged = False

    def note(self, error: Exception) -> None:
        """Take note of what failed a job; some errors are the job's own."""
        if isinstance(error, Damaged) and not self._is_damaged:
            self._is_damaged = True
            log.critical("%s", error, extra=catalogue.STORE_UNFIT.about())
        own = isinstance(error, (IntegrityError, DataError))
        if self.failing is None and isinstance(error, (DBAPIError, Damaged)) and not own:
            self.failing = Failing(datetime.now(UTC), one_line(error))
            self._fails.set()
            self.changed()

    def works(self) -> None:
        """Something was written; a damaged file stays one until the daemon starts anew."""
        if self.failing is not None and not self._is_damaged:
            self.failing = None
            self._fails = trio.Event()
            self.changed()

    async def fails(self) -> None:
        """Wait until the database fails."""
        await self._fails.wait()


def write_something(connection: Connection, owner: int | None) -> None:
    """Write as a message would be written; nobody sees it, and it is gone with the commit.

    `owner` is the number of the daemon's life: what it writes is its own, as daemons that wrote the
    same key would wait for each other until one is refused as a deadlock.
    """
    mark = f"probe {owner or 0}"
    connection.execute(insert(_VERSIONS).values(version_num=mark))
    connection.execute(delete(_VERSIONS).where(_VERSIONS.c.version_num == mark))
