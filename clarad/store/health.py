"""Health of the database: whether it works, and since when it does not."""

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

_BESIDE_TEXTS: Final = 64 * 1024
"""Bytes: more than any transaction of the daemon writes beside its texts."""

_PIECE: Final = 1024 * 1024
"""Bytes of one row of a probe; making more at once would hold the interpreter for too long."""


class Failing(NamedTuple):
    """What the database said when it failed first, and when that was."""

    since: datetime
    words: str

    def __str__(self) -> str:
        since, now = self.since.astimezone(), datetime.now().astimezone()
        day = "" if since.date() == now.date() else f"{since:%Y-%m-%d} "
        return f"the database fails since {day}{since:%H:%M} ({self.words})"


class Health:
    """What the writer's transactions have shown of the database. Lives in Trio's thread.

    Any transaction can show that the database fails. Only a probe shows that it works again: on a
    full disk reading still succeeds, and so does a write that is small enough for the room that the
    log has left. So a probe writes as much as the largest job that has failed.
    """

    def __init__(self) -> None:
        self.failing: Failing | None = None
        self.probe_size = 0
        """Bytes that a probe has to write before the database counts as working again."""
        self.changed: Callable[[], None] = lambda: None
        """Called when the database begins to fail, and when it works again."""
        self._fails = trio.Event()
        self._is_damaged = False

    def record_failure(self, error: Exception, size: int = 0) -> None:
        """Note what failed a job with so many bytes of text, unless the job itself is at fault."""
        if isinstance(error, Damaged) and not self._is_damaged:
            self._is_damaged = True
            log.critical("%s", error, extra=catalogue.STORE_UNFIT.about())
        own = isinstance(error, (IntegrityError, DataError))
        if not isinstance(error, (DBAPIError, Damaged)) or own:
            return
        self.probe_size = max(self.probe_size, _BESIDE_TEXTS + size)
        if self.failing is None:
            self.failing = Failing(datetime.now(UTC), one_line(error))
            self._fails.set()
            self.changed()

    def record_success(self, size: int) -> None:
        """Note that a probe wrote so many bytes; a damaged file stays damaged until a restart."""
        if self.failing is not None and not self._is_damaged and size >= self.probe_size:
            self.failing = None
            self.probe_size = 0
            self._fails = trio.Event()
            self.changed()

    async def wait_failing(self) -> None:
        """Wait until the database fails."""
        await self._fails.wait()


def write_probe(connection: Connection, owner: int | None, size: int) -> None:
    """Write messages with so many bytes of text, and delete them in the same transaction.

    SQLite writes the pages of deleted rows, too. `owner` is the number of the daemon's epoch: it
    makes the key unique, since daemons that wrote the same key would wait for each other until
    PostgreSQL refuses one of them as a deadlock.
    """
    names = dict.fromkeys(("platform", "channel_id", "node_id", "user_id", "session_id"), "")
    for piece in range(0, size + 1, _PIECE):
        probe = insert(MessageRow).values(
            **names,
            request_id=f"probe {owner or 0} {piece}",
            # PostgreSQL would compress what repeats.
            frame=secrets.token_hex(min(_PIECE, size - piece) // 2),
            received_at=datetime.now(UTC),
            owner=owner,
        )
        number = connection.execute(probe.returning(MessageRow.id)).scalar_one()
        connection.execute(delete(MessageRow).where(MessageRow.id == number))
