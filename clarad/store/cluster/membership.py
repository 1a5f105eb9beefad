"""The daemons that share a PostgreSQL database: their leases, and takeovers.

A daemon's row holds when its lease expires, by the database's clock; the daemon renews it well
before. A daemon that finds an expired row makes itself its successor (column `heir`), in one
transaction. From then on the dead daemon can write nothing (`clarad.store.epoch`), and the
successor adopts its work. The rows of that work keep their owner: a successor that fails half way
reads them again, and its own successor inherits them, too.

All this has a connection of its own, which the store's writer cannot hold up, and which receives
the notices of the other daemons.
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
"""How many times longer the lease of a daemon without others lasts, so that it survives a database
that is away for some minutes. The first renewal after another daemon joins shortens it."""

LOCKED_FOR: Final = 100
"""Milliseconds to wait for a table that another program has locked, before the next renewal tries
again."""

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
# Earlier epochs of the same claimant have ended, however long their leases last: one process at a
# time can lock the state directory.
_IS_DEAD: Final = "(expires_at <= clock_timestamp() OR holder = %(holder)s AND id < %(me)s)"
# SKIP LOCKED leaves an epoch that has a transaction open to the next renewal.
_TAKE_OVER: Final = f"""
WITH dead AS (
    SELECT id FROM clarad_daemons WHERE heir IS NULL AND id <> %(me)s AND {_IS_DEAD}
    FOR UPDATE SKIP LOCKED
)
UPDATE clarad_daemons AS daemon SET heir = %(me)s FROM dead
WHERE daemon.id = dead.id OR daemon.heir = dead.id
"""  # noqa: S608
_FORGET: Final = """
DELETE FROM clarad_daemons WHERE heir = %(me)s AND id = ANY(%(adopted)s) AND id NOT IN (
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
    """Another program has a table locked."""


class Membership:
    """The table `clarad_daemons`. Methods block: call them in a thread, one at a time.

    They raise `StoreError` if the database fails; call `connect` again then.
    """

    def __init__(
        self, engine: Engine, epoch: Epoch, *, instance: str, claimant: str, lease: float
    ) -> None:
        """`instance` and `claimant` are as in `clarad.config.instance`; `lease` in seconds."""
        self.epoch = epoch
        self.lease = lease
        self._engine = engine
        self._given: dict[str, Any] = {
            "instance": instance,
            "holder": claimant,
            "lease": timedelta(seconds=lease),
            "alone": timedelta(seconds=lease * ALONE),
        }
        self._connection: psycopg.Connection | None = None
        self._received: list[bytes] = []

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that has not failed yet."""
        return self._connection is not None and not self._connection.closed

    def connect(self) -> None:
        """Connect, and receive notices from now on; those sent before are lost."""
        self.close()
        try:
            self._connection = connection = connect_alone(self._engine)
        except psycopg.Error as error:
            raise StoreError(one_line(error)) from error
        connection.autocommit = True
        connection.add_notify_handler(lambda notify: self._received.append(notify.payload.encode()))
        self._execute(f"SET idle_in_transaction_session_timeout = '{STANDSTILL}s'")
        self._execute(f"LISTEN {CHANNEL}")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cut(self) -> None:
        """Shut the connection down, so that a method that waits for the database fails.

        This never blocks, and may be called from another thread.
        """
        if self._connection is not None:
            cut(self._connection)

    def join(self) -> None:
        """Begin an epoch, and own the unfinished rows that have no owner."""
        with self._transaction():
            asked_at = time.monotonic()
            ((me, now),) = self._execute(_JOIN)
            answered_at = time.monotonic()
            self._execute(_CLAIM, me=me)
            self._execute("SELECT pg_notify(%(channel)s, %(said)s)", said=encode(MembersChanged()))
        self.epoch.id = me
        self.epoch.tell_time(now, asked_at, answered_at)

    def renew(self, *, address: str, tasks: str, adopted: Collection[int]) -> Heartbeat:
        """Renew the lease, and take over from daemons whose leases have expired.

        `tasks` is a digest of the tasks that this daemon knows. `adopted` are epochs whose work it
        has adopted: their rows are deleted once that work has ended.

        Raises:
            LeaseLost: another daemon has taken over from this one.
        """
        given = {"address": address[:255], "tasks": tasks}
        with self._transaction():
            # First, as it locks our row until the commit: no daemon can take over from this one
            # while this one takes over from others.
            asked_at = time.monotonic()
            renewed = self._execute(_RENEW, **given)
            answered_at = time.monotonic()
            if not renewed:
                raise LeaseLost("another daemon has taken over from this one")
            self._execute(_TAKE_OVER)
            inherited = frozenset(row[0] for row in self._execute(_INHERITED))
            ((others, alike, is_held_up),) = self._execute(_OTHERS, **given)
        ((now, lasts),) = renewed
        self.epoch.tell_time(now, asked_at, answered_at)
        return Heartbeat(inherited - self._forget(adopted), others, alike, lasts, is_held_up)

    def _forget(self, adopted: Collection[int]) -> frozenset[int]:
        """Delete the epochs among these that have no work left, and return them.

        This has a transaction of its own, as it reads tables that another program may have locked:
        the renewal must not wait for that.
        """
        if not adopted:
            return frozenset()
        try:
            with self._transaction():
                self._execute(f"SET LOCAL lock_timeout = '{LOCKED_FOR}ms'")
                return frozenset(row[0] for row in self._execute(_FORGET, adopted=list(adopted)))
        except Locked:
            return frozenset()  # the next renewal tries again

    def leave(self) -> None:
        """End the epoch: other daemons can take its unfinished work over at once."""
        with self._transaction():
            self._execute(_LEAVE)
            self._execute("SELECT pg_notify(%(channel)s, %(said)s)", said=encode(MembersChanged()))

    # --- what others say -------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor of the socket: when it is readable, there may be notices."""
        assert self._connection is not None
        return self._connection.fileno()

    def receive(self) -> list[Notice]:
        """Return the notices since the last call. Does not block; for Trio's thread."""
        assert self._connection is not None
        try:
            self._connection.pgconn.consume_input()
            while (notify := self._connection.pgconn.notifies()) is not None:
                self._received.append(notify.extra)
        except psycopg.Error as error:
            self.close()
            raise StoreError(one_line(error)) from error
        received, self._received = self._received, []
        return [notice for one in received if (notice := decode(one)) is not None]

    def _execute(self, statement: str, **parameters: Any) -> list[Any]:
        assert self._connection is not None
        given = self._given | {"me": self.epoch.id, "channel": CHANNEL} | parameters
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
        """Return the error to raise, and close the connection unless only a lock has failed."""
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return Locked(one_line(error))
        self.close()
        return StoreError(one_line(error))
