"""The fence of a PostgreSQL database that daemons share: only the owner of an epoch writes.

An epoch of a daemon lasts from when it joins the others until it leaves or loses its lease. Each
transaction begins by reading the daemon's own row, with a lock that keeps others from taking over
until the commit: no write can slip past the fence, and no statement can forget it.

Rejected: an owner and an epoch on each row, compared by each statement.
"""

import math
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Text, bindparam, func, select, text, true

from clarad.store.engine import STANDSTILL, StoreError
from clarad.store.models import DaemonRow

# A daemon whose machine or network freezes in the middle of a transaction must not hold up those
# that take its work over: PostgreSQL ends the transaction.
_FENCE: Final = (
    select(
        func.set_config("idle_in_transaction_session_timeout", f"{STANDSTILL}s", True),
        func.set_config("tcp_user_timeout", f"{STANDSTILL}s", True),
        func.pg_current_xact_id().cast(Text),
    )
    .where(DaemonRow.id == bindparam("me"))
    .where(DaemonRow.heir.is_(None))
    # Renewals go on beside it; a takeover, which locks FOR UPDATE, does not.
    .with_for_update(read=True, key_share=True)
)
_FATE: Final = text("SELECT pg_xact_status(CAST(:number AS xid8))")


class LeaseLost(StoreError):  # noqa: N818 - it is what has happened
    """The daemon has lost its lease: another one may already do its work."""


class InDoubt(StoreError):  # noqa: N818 - it is what has happened
    """The connection was lost during COMMIT: the transaction may be committed, or not."""


class Heartbeat(NamedTuple):
    """What a renewal of the lease has found."""

    inherited: frozenset[int]
    """The epochs that this daemon is the successor of, and that have work left."""
    others: int
    """How many other daemons hold a lease."""
    alike: int
    """How many of them know the same tasks."""
    lasts: float
    """How long the lease lasts from the renewal on, in seconds."""
    is_held_up: bool
    """Whether an expired epoch could not be taken over: one of its transactions is still open."""


class Epoch:
    """One epoch of this daemon; `id` is its number once the daemon has joined the others."""

    def __init__(self) -> None:
        self.id: int | None = None
        self.owners: frozenset[int] = frozenset()
        """The epochs whose rows it sees to: this one, and those that it has taken over."""
        self.is_lost = False
        self._offset = math.nan  # what the database's clock said when `time.monotonic` was 0

    def require(self) -> None:
        """Raise `LeaseLost` if the lease is known to be lost."""
        if self.is_lost:
            raise LeaseLost("this daemon has lost its lease on the database")

    def fence(self, connection: Connection) -> str | None:
        """Lock this daemon's row against a takeover until the transaction ends.

        Returns the number of the transaction, for `commit_status`; `None` before the epoch begins.

        Raises:
            LeaseLost: another daemon has taken over.
        """
        self.require()
        if self.id is None:
            return None
        found = connection.execute(_FENCE, {"me": self.id}).first()
        if found is None:
            raise LeaseLost("this daemon has lost its lease on the database")
        number: str = found[-1]
        return number

    def tell_time(self, now: datetime, asked_at: float, answered_at: float) -> None:
        """Set the clock by the database's, which said `now` between two times of `time.monotonic`.

        The clock moves only as far as that proves it wrong: a late answer proves little.
        """
        told = now.timestamp()
        earliest, latest = told - answered_at, told - asked_at
        known = earliest if math.isnan(self._offset) else self._offset
        self._offset = min(max(known, earliest), latest)

    def now(self) -> datetime:
        """Return the time by the database's clock, which all its daemons share."""
        if math.isnan(self._offset):
            return datetime.now(UTC)
        return datetime.fromtimestamp(self._offset + time.monotonic(), UTC)


def commit_status(connection: Connection, transaction: str) -> bool | None:
    """Return whether a transaction was committed; `None` while it is still open."""
    status = connection.scalar(_FATE, {"number": transaction})
    return None if status == "in progress" else status == "committed"


def owned(
    owner: Any, epoch: Epoch | None, by: Collection[int] | None = None
) -> ColumnElement[bool]:
    """Return the condition for rows that this daemon sees to, or only those of the epochs `by`.

    Without an epoch no other daemon uses the database, and all rows are meant.
    """
    if epoch is None:
        return true()
    condition: ColumnElement[bool] = owner.in_(epoch.owners if by is None else by)
    return condition
