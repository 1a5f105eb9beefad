"""The daemons that share a PostgreSQL database: who lives, and who takes over from whom.

A daemon's row says until when it lives, by the database's clock, and it renews that well before.
Whoever finds a row that has expired makes itself its heir, in one transaction; from then on the
dead one can write nothing (`clarad.store.epoch`), and the heir sees to its work. The rows of that
keep their owner: an heir that fails half way reads them again, and who inherits from the heir
inherits them too.

A connection of its own, which nothing of the store's writer can hold up, and which listens for what
the other daemons have to say.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import psycopg
from sqlalchemy import Engine

from clarad.store.engine import STANDSTILL, StoreError, connect_alone, cut, one_line
from clarad.store.epoch import Epoch, Heartbeat, LeaseLost
from clarad.store.notify import CHANNEL, MembersChanged, Notice, decode, encode

ALONE: Final = 10
"""How many times as long the lease of a daemon lasts that finds itself alone: a database that is
away for some minutes costs it nothing. It is shortened as soon as another one comes."""

LOCKED_FOR: Final = 100
"""Milliseconds that a table may be locked by somebody else until it is looked at another time."""

_JOIN: Final = """
INSERT INTO clarad_daemons (instance, holder, address, tasks, expires_at)
VALUES (%(instance)s, %(holder)s, '', '', clock_timestamp() + %(lease)s)
RETURNING id, clock_timestamp()
"""
_CLAIM: Final = """
WITH messages AS (
    UPDATE clarad_messages SET owner = %(me)s WHERE owner IS NULL AND ended_at IS NULL
), hook_runs AS (
    UPDATE clarad_hook_runs SET owner = %(me)s WHERE owner IS NULL AND ended_at IS NULL
)
UPDATE clarad_task_runs SET owner = %(me)s WHERE owner IS NULL AND ended_at IS NULL
"""
_RENEW: Final = """
UPDATE clarad_daemons
SET expires_at = clock_timestamp() + CASE WHEN EXISTS (
    SELECT 1 FROM clarad_daemons
    WHERE heir IS NULL AND id <> %(me)s AND expires_at > clock_timestamp()
) THEN %(lease)s ELSE %(alone)s END, address = %(address)s, tasks = %(tasks)s
WHERE id = %(me)s AND heir IS NULL
RETURNING clock_timestamp(), extract(epoch FROM expires_at - clock_timestamp())::float
"""
# Earlier lives with the same state directory are over, however long their leases last: one daemon
# at a time can hold it.
_IS_DEAD: Final = "(expires_at <= clock_timestamp() OR holder = %(holder)s AND id < %(me)s)"
# One that is in the middle of a transaction is left for the next look.
_TAKE_OVER: Final = f"""
WITH dead AS (
    SELECT id FROM clarad_daemons WHERE heir IS NULL AND id <> %(me)s AND {_IS_DEAD}
    FOR UPDATE SKIP LOCKED
)
UPDATE clarad_daemons AS daemon SET heir = %(me)s FROM dead
WHERE daemon.id = dead.id OR daemon.heir = dead.id
"""  # noqa: S608
_SEEN_TO: Final = """
DELETE FROM clarad_daemons WHERE heir = %(me)s AND id = ANY(%(seen_to)s) AND id NOT IN (
    SELECT owner FROM clarad_messages WHERE ended_at IS NULL AND owner IS NOT NULL
    UNION SELECT owner FROM clarad_hook_runs WHERE ended_at IS NULL AND owner IS NOT NULL
    UNION SELECT owner FROM clarad_task_runs WHERE ended_at IS NULL AND owner IS NOT NULL
    UNION SELECT owner FROM clarad_tasks WHERE owner IS NOT NULL
)
RETURNING id
"""
_INHERITED: Final = "SELECT id FROM clarad_daemons WHERE heir = %(me)s ORDER BY id"
_OTHERS: Final = f"""
SELECT count(*) FILTER (WHERE NOT {_IS_DEAD}),
count(*) FILTER (WHERE NOT {_IS_DEAD} AND tasks = %(tasks)s),
count(*) FILTER (WHERE {_IS_DEAD}) > 0
FROM clarad_daemons WHERE heir IS NULL AND id <> %(me)s
"""  # noqa: S608
_LEAVE: Final = "UPDATE clarad_daemons SET expires_at = clock_timestamp() WHERE id = %(me)s"


class Locked(StoreError):  # noqa: N818 - it is what has happened
    """Somebody else has a table locked."""


class Membership:
    """The table `clarad_daemons`. Each method blocks, and is called in a thread, one at a time.

    All of them raise `StoreError` if the database fails; then `connect` is to be called again.
    """

    def __init__(
        self, engine: Engine, life: Epoch, *, instance: str, holder: str, lease: float
    ) -> None:
        """`instance` and `holder` are as in `clarad.config.instance`; `lease` in seconds."""
        self.life = life
        self.lease = lease
        self._engine = engine
        self._given: dict[str, Any] = {
            "instance": instance,
            "holder": holder,
            "lease": timedelta(seconds=lease),
            "alone": timedelta(seconds=lease * ALONE),
        }
        self._connection: psycopg.Connection | None = None
        self._said: list[bytes] = []

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as anybody knows."""
        return self._connection is not None and not self._connection.closed

    def connect(self) -> None:
        """Connect, and listen from now on; what was said before is lost."""
        self.close()
        try:
            self._connection = connection = connect_alone(self._engine)
        except psycopg.Error as error:
            raise StoreError(one_line(error)) from error
        connection.autocommit = True
        connection.add_notify_handler(lambda notify: self._said.append(notify.payload.encode()))
        self._execute(f"SET idle_in_transaction_session_timeout = '{STANDSTILL}s'")
        self._execute(f"LISTEN {CHANNEL}")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cut(self) -> None:
        """Have whatever waits for the database fail; the one method that never blocks."""
        if self._connection is not None:
            cut(self._connection)

    def join(self) -> None:
        """Begin a life: from here on its rows are its own, and those that had no owner."""
        with self._transaction():
            asked_at = time.monotonic()
            ((me, now),) = self._execute(_JOIN)
            answered_at = time.monotonic()
            self._execute(_CLAIM, me=me)
            self._execute("SELECT pg_notify(%(channel)s, %(said)s)", said=encode(MembersChanged()))
        self.life.id = me
        self.life.tell_time(now, asked_at, answered_at)

    def look(self, *, address: str, tasks: str, seen_to: Collection[int]) -> Heartbeat:
        """Renew the lease, and take over from whoever has not renewed his.

        `tasks` says which tasks this daemon knows; `seen_to` are lives whose unfinished work is in
        hand, so that they can be forgotten once it has ended.

        Raises:
            LeaseLost: another daemon has taken over from this one.
        """
        given = {"address": address[:255], "tasks": tasks}
        with self._transaction():
            # First, and with a lock until the commit: nobody takes over from who is taking over.
            asked_at = time.monotonic()
            renewed = self._execute(_RENEW, **given)
            answered_at = time.monotonic()
            if not renewed:
                raise LeaseLost("another daemon has taken over from this one")
            self._execute(_TAKE_OVER)
            inherited = frozenset(row[0] for row in self._execute(_INHERITED))
            ((others, alike, is_held_up),) = self._execute(_OTHERS, **given)
        ((now, lasts),) = renewed
        self.life.tell_time(now, asked_at, answered_at)
        return Heartbeat(inherited - self._forget(seen_to), others, alike, lasts, is_held_up)

    def _forget(self, seen_to: Collection[int]) -> frozenset[int]:
        """Forget those of these lives that have no work left, and return which they were.

        Only this looks at tables that somebody may have locked, so it is no part of the renewal.
        """
        if not seen_to:
            return frozenset()
        try:
            with self._transaction():
                self._execute(f"SET LOCAL lock_timeout = '{LOCKED_FOR}ms'")
                return frozenset(row[0] for row in self._execute(_SEEN_TO, seen_to=list(seen_to)))
        except Locked:
            return frozenset()  # the next renewal looks again

    def leave(self) -> None:
        """End this life: what it has not finished is another's at once, if there is another."""
        with self._transaction():
            self._execute(_LEAVE)
            self._execute("SELECT pg_notify(%(channel)s, %(said)s)", said=encode(MembersChanged()))

    # --- what others say -------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the socket: when it is readable, somebody may have said something."""
        assert self._connection is not None
        return self._connection.fileno()

    def heard(self) -> list[Notice]:
        """Return what was said since; the one method that is called outside of the thread."""
        assert self._connection is not None
        try:
            self._connection.pgconn.consume_input()
            while (notify := self._connection.pgconn.notifies()) is not None:
                self._said.append(notify.extra)
        except psycopg.Error as error:
            self.close()
            raise StoreError(one_line(error)) from error
        said, self._said = self._said, []
        return [notice for one in said if (notice := decode(one)) is not None]

    def _execute(self, statement: str, **parameters: Any) -> list[Any]:
        assert self._connection is not None
        given = self._given | {"me": self.life.id, "channel": CHANNEL} | parameters
        try:
            cursor = self._connection.execute(statement, given)
            return [] if cursor.description is None else cursor.fetchall()
        except psycopg.Error as error:
            raise self._failed(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._connection is None:
            raise StoreError("the connection to the database is lost")
        try:
            with self._connection.transaction():
                yield
        except psycopg.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: psycopg.Error) -> StoreError:
        """Say what has failed; unless it is a lock, the connection is of no use any more."""
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return Locked(one_line(error))
        self.close()
        return StoreError(one_line(error))
