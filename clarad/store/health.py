"""Whether the database does what it is asked, and since when it does not."""

import logging
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import trio
from sqlalchemy import Connection, delete, insert
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from clarad.store.engine import Damaged, one_line
from clarad.store.models import MessageRow
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

_LEAST: Final = 64 * 1024
"""Characters that a look writes: more than any transaction of the daemon's beside its texts."""


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
    full disk what only reads still succeeds, and so does a small write that finds room in the log
    where a larger one did not: what says it has to be as large as the largest that has failed.
    """

    def __init__(self) -> None:
        self.failing: Failing | None = None
        self.wanted = _LEAST
        """Characters that have to be written before the database counts as working."""
        self.changed: Callable[[], None] = lambda: None
        """Called when the database has begun to fail, or works again."""
        self._fails = trio.Event()
        self._is_damaged = False

    def note(self, error: Exception, characters: int = 0) -> None:
        """Take note of what failed a job with so many characters; some errors are its own."""
        if isinstance(error, Damaged) and not self._is_damaged:
            self._is_damaged = True
            log.critical("%s", error, extra=catalogue.STORE_UNFIT.about())
        own = isinstance(error, (IntegrityError, DataError))
        if not isinstance(error, (DBAPIError, Damaged)) or own:
            return
        self.wanted = max(self.wanted, _LEAST + characters)
        if self.failing is None:
            self.failing = Failing(datetime.now(UTC), one_line(error))
            self._fails.set()
            self.changed()

    def works(self, characters: int) -> None:
        """So many were written; a damaged file stays one until the daemon starts anew."""
        if self.failing is not None and not self._is_damaged and characters >= self.wanted:
            self.failing = None
            self.wanted = _LEAST
            self._fails = trio.Event()
            self.changed()

    async def fails(self) -> None:
        """Wait until the database fails."""
        await self._fails.wait()


def write_something(connection: Connection, owner: int | None, characters: int) -> None:
    """Write as a message of this length is written; nobody sees it, and the commit removes it.

    SQLite writes the pages of what was deleted, too. `owner` is the number of the daemon's life:
    what it writes is its own, as daemons that wrote the same key would wait for each other until
    one is refused as a deadlock.
    """
    names = dict.fromkeys(("platform", "channel_id", "node_id", "user_id", "session_id"), "")
    probe = insert(MessageRow).values(
        **names,
        request_id=f"probe {owner or 0}",
        frame=secrets.token_hex(characters // 2),  # PostgreSQL would compress what repeats
        received_at=datetime.now(UTC),
        owner=owner,
    )
    number = connection.execute(probe.returning(MessageRow.id)).scalar_one()
    connection.execute(delete(MessageRow).where(MessageRow.id == number))
