"""Messages in tables that several daemons share: one at a time for each channel, in order.

A daemon looks without a lock whether its message is the first of the channel. Only then it takes an
advisory lock of the channel and looks again, in the transaction in which the message begins: a
message with a lower number may have been committed meanwhile. No transaction waits for that lock,
so there are no deadlocks: a daemon that does not get it tries again some milliseconds later, when
the other transaction has ended.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import trio
from sqlalchemy import (
    Connection,
    bindparam,
    case,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import aliased

from clarad.store.attachments import keep, split
from clarad.store.engine import StoreError
from clarad.store.message_rows import MessageKey, this_message
from clarad.store.messages import END, ChannelFull, Messages, channel_full, report_place
from clarad.store.models import MessageRow
from clarad.store.notify import CancelAsked, ChannelMoved, NodeOwed, notify

LOCK_RETRY: Final = 0.005
"""Seconds until the next try, if another daemon has the lock of the channel."""


# How many are before a new message. If it may begin and none is, the channel is locked.
_PLACE: Final = text(
    "SELECT count(*), CASE WHEN CAST(:may_begin AS boolean) AND count(*) = 0"
    " THEN pg_try_advisory_xact_lock(:lock) ELSE false END FROM clarad_messages"
    " WHERE platform = :key_platform AND channel_id = :key_channel_id AND ended_at IS NULL"
)
_IS_FREE: Final = ~exists().where(
    MessageRow.platform == bindparam("key_platform"),
    MessageRow.channel_id == bindparam("key_channel_id"),
    MessageRow.ended_at.is_(None),
)
# The end of one message and the beginning of the next are times of one clock, in this order.
_INSERT: Final = (
    postgresql.insert(MessageRow.__table__)  # type: ignore[arg-type]
    .values(begun_at=case((bindparam("has_lock") & _IS_FREE, func.clock_timestamp())))
    .on_conflict_do_nothing(index_elements=list(MessageKey._fields))
    .returning(MessageRow.begun_at)
)
_OTHER: Final = aliased(MessageRow)
_NEXT_OWNER: Final = (
    select(_OTHER.owner)
    .where(_OTHER.platform == MessageRow.platform, _OTHER.channel_id == MessageRow.channel_id)
    .where(_OTHER.ended_at.is_(None), _OTHER.id != MessageRow.id)
    .order_by(_OTHER.id)
    .limit(1)
    .scalar_subquery()
)
_END: Final = END.values(ended_at=func.clock_timestamp()).returning(_NEXT_OWNER)
_IS_FIRST: Final = (
    "NOT EXISTS (SELECT 1 FROM clarad_messages AS other WHERE other.ended_at IS NULL"
    " AND other.platform = mine.platform AND other.channel_id = mine.channel_id"
    " AND other.id <> mine.id AND (other.id < mine.id OR other.begun_at IS NOT NULL))"
)
_MINE: Final = (
    "platform = :key_platform AND channel_id = :key_channel_id AND request_id = :key_request_id"
)
# Null if it is not the first, false if another transaction has locked the channel.
_LOCK_IF_FIRST: Final = text(
    f"SELECT CASE WHEN {_IS_FIRST} THEN pg_try_advisory_xact_lock(:lock) END"  # noqa: S608
    f" FROM clarad_messages AS mine WHERE {_MINE}"
)
_BEGIN: Final = text(
    "UPDATE clarad_messages AS mine SET begun_at = clock_timestamp()"  # noqa: S608
    f" WHERE {_MINE} AND {_IS_FIRST}"
)

# A node that registers with another daemon meanwhile has its frames numbered there. The lock makes
# the message end before that, where the other daemon finds it, or after it.
_HAVE_NODE: Final = text(
    "SELECT 1 FROM clarad_nodes WHERE platform = :key_platform AND node_id = :node_id"
    " AND owner = :me FOR KEY SHARE"
)


class ClusterMessages(Messages):
    """The table `clarad_messages`, with messages of other daemons in it."""

    def accept(
        self,
        key: MessageKey,
        *,
        begun: bool,
        then: Callable[[bool | StoreError], None],
        queued: Callable[[int], None] | None = None,
        most: int | None = None,
        has_attachments: bool = False,
        **about: str,
    ) -> None:
        """Have a new message written, after those before it.

        It begins at once with `begun`, unless some of its channel are before it with other
        daemons; then `queued` is called with how many, before `then`, which is called with
        `ChannelFull` if there are more than `most`.
        """
        row = self.row(key, begun=False, **about) | this_message(key)
        del row["begun_at"]
        given = {"may_begin": begun, "lock": channel_lock(key)} | this_message(key)

        def accept(connection: Connection) -> int | ChannelFull | None:
            """Return how many are before it; `None` if it is there already."""
            ahead, has_lock = connection.execute(_PLACE, given).one()
            if (full := channel_full(connection, key, ahead, most)) is not None:
                return full
            changed: dict[str, Any] = {"has_lock": has_lock}
            if has_attachments:
                changed["frame"], attachments = split(row["frame"])
            new = connection.execute(_INSERT, row | changed).one_or_none()
            if new is None:
                return None
            if has_attachments:
                keep(connection, row, attachments)
            return 0 if new.begun_at is not None else max(ahead, 1)

        def answer(error: StoreError | None) -> None:
            if error is not None:
                then(error)
            else:
                report_place(job.result, queued, then)

        job = self._writer.submit(accept, answer, texts=row)

    async def begin_if_first(self, key: MessageKey) -> bool:
        """Note that the message begins, if it is first in its channel; return whether it is."""
        given = this_message(key) | {"lock": channel_lock(key)}

        def begin(connection: Connection) -> bool | None:
            has_lock = connection.execute(_LOCK_IF_FIRST, given).scalar()
            if has_lock is None:
                return False
            return connection.execute(_BEGIN, given).rowcount == 1 if has_lock else None

        while (has_begun := await self._writer.call(begin)) is None:
            await trio.sleep(LOCK_RETRY)
        return has_begun

    def has(self, owner: int | None) -> bool:
        """Whether this daemon sees to the messages of this epoch."""
        return self._writer.epoch is not None and owner in self._writer.epoch.owners

    def _write_end(
        self,
        key: MessageKey,
        values: dict[str, Any],
        owed_to: str | None,
        is_here: bool,
        then: Callable[[StoreError | None], None],
        moved: Callable[[], None] | None,
    ) -> None:
        given = this_message(key) | {"me": self._writer.owner}
        del values["ended_at"]
        is_numbered = values["new_seq"] is not None

        def end(connection: Connection) -> bool:
            has_node, ending = is_here, this_message(key) | values
            if owed_to is not None and (is_here or is_numbered):
                node = given | {"node_id": owed_to}
                if connection.execute(_HAVE_NODE, node).scalar() is None:
                    has_node, ending["new_seq"] = False, None
            following = connection.execute(_END, ending).scalar()
            if following is not None and not self.has(following):
                notify(connection, ChannelMoved(key.platform, key.channel_id, following))
            if owed_to is not None and not has_node:
                notify(connection, NodeOwed(key.platform, owed_to))
            return has_node

        def answer(error: StoreError | None) -> None:
            if error is None and is_here and not job.result and moved is not None:
                moved()
            then(error)

        job = self._writer.submit(end, answer, texts=values)

    def _tell_cancel(self, connection: Connection, platform: str, node_id: str) -> None:
        """Notify all daemons; one that misses the notice finds it in the table."""
        notify(connection, CancelAsked(platform, node_id))


def channel_lock(key: MessageKey) -> int:
    """Return the advisory lock of the message's channel."""
    name = f"{key.platform}\0{key.channel_id}".encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), signed=True)
