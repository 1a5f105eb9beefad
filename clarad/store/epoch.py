"""The life of a daemon on a PostgreSQL database that it may share: what is its own, and how long.

Rejected: an owner and an epoch on each row, compared by each statement. The fence is one look at
the daemon's own row in each transaction, which locks it against a takeover until the commit:
whatever the transaction writes is behind it, and none of it can be forgotten.
"""

import math
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Text, bindparam, func, select, text, true

from clarad.store.engine import STANDSTILL, StoreError
from clarad.store.models import DaemonRow

# A daemon that stands still in the middle of a transaction, with its machine or its network, must
# not hold up those who are to take its work over.
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
    """The daemon has lost its lease: its work is, or may be, another's by now."""


class InDoubt(StoreError):  # noqa: N818 - it is what has happened
    """The database may have what was to be committed, or not: it has not said."""


class Heartbeat(NamedTuple):
    """What a renewal has found."""

    inherited: frozenset[int]
    """The lives that this daemon is the heir of, and that have work left."""
    others: int
    """How many other daemons live."""
    alike: int
    """How many of them know the same tasks."""
    lasts: float
    """How long the lease lasts from the renewal on, in seconds."""
    is_held_up: bool
    """Whether a life has ended that nobody could take over: one of its transactions is open."""


class Epoch:
    """One life; it has a number from when it has joined the others."""

    def __init__(self) -> None:
        self.id: int | None = None
        self.owners: frozenset[int] = frozenset()
        """Whose rows it sees to: its own, and those of the lives that it has taken over."""
        self.is_lost = False
        self._epoch = math.nan  # what the database's clock said when `time.monotonic` was 0

    def require(self) -> None:
        """Raise `LeaseLost` if it is known that the work is not this life's any more."""
        if self.is_lost:
            raise LeaseLost("this daemon has lost its lease on the database")

    def fence(self, connection: Connection) -> str | None:
        """Have this transaction fail unless the work is this life's, and stays so until its end.

        Returns its number, by which `fate` finds it; `None` before the life has begun.

        Raises:
            LeaseLost: it is not.
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
        """Take the time from the database, which was asked and has answered by `time.monotonic`.

        Between the two it was `now`. What that leaves open stays as it was: an answer that is slow
        to come does not set the clock.
        """
        told = now.timestamp()
        earliest, latest = told - answered_at, told - asked_at
        known = earliest if math.isnan(self._epoch) else self._epoch
        self._epoch = min(max(known, earliest), latest)

    def now(self) -> datetime:
        """Return the time as the database has it, so that all its daemons have the same."""
        if math.isnan(self._epoch):
            return datetime.now(UTC)
        return datetime.fromtimestamp(self._epoch + time.monotonic(), UTC)


def fate(connection: Connection, transaction: str) -> bool | None:
    """Whether a transaction was committed, `None` while it is still open."""
    status = connection.scalar(_FATE, {"number": transaction})
    return None if status == "in progress" else status == "committed"


def owned(owner: Any, life: Epoch | None, by: Collection[int] | None = None) -> ColumnElement[bool]:
    """Whether rows are this daemon's to see to; or only those that these lives had.

    Without a life all are: nobody else uses the database.
    """
    if life is None:
        return true()
    condition: ColumnElement[bool] = owner.in_(life.owners if by is None else by)
    return condition
