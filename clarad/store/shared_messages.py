"""Messages in tables that several daemons share: those of a channel one at a time, in order.

Whose turn it is in a channel is decided under an advisory lock of the channel, in the transaction
that has the message begin. Nobody waits for that lock, so no two transactions wait for each other:
who does not get it tries again, when the channel has moved on or after a second.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, select, text, update
from sqlalchemy.dialects import postgresql

from clarad.store.engine import StoreError, as_store_error, errors_in_one_line
from clarad.store.life import owned
from clarad.store.messages import END, THIS, MessageKey, Messages, this_message
from clarad.store.models import MessageRow
from clarad.store.notices import CancelAsked, ChannelMoved, NodeOwed, notify


class ChannelFull(StoreError):  # noqa: N818 - it is what has happened
    """Too many messages wait in the channel, with all daemons together."""


_LOCK: Final = text("SELECT pg_try_advisory_xact_lock(:channel)")
_AHEAD: Final = text(
    "SELECT count(*) FROM clarad_messages"
    " WHERE platform = :platform AND channel_id = :channel_id AND ended_at IS NULL"
)
_INSERT: Final = (
    postgresql.insert(MessageRow.__table__)  # type: ignore[arg-type]
    .on_conflict_do_nothing()
    .returning(MessageRow.__table__.c.id)
)
# When one message ends and the next begins is by one clock, and read in this order.
_NOW: Final = select(func.clock_timestamp())
_END: Final = END.values(ended_at=func.clock_timestamp())
_BEGIN: Final = text(
    "UPDATE clarad_messages AS mine SET begun_at = clock_timestamp()"
    " WHERE platform = :key_platform AND channel_id = :key_channel_id"
    " AND request_id = :key_request_id AND NOT EXISTS ("
    "  SELECT 1 FROM clarad_messages AS other WHERE other.ended_at IS NULL"
    "  AND other.platform = mine.platform AND other.channel_id = mine.channel_id"
    "  AND other.id <> mine.id AND (other.id < mine.id OR other.begun_at IS NOT NULL))"
)
_OTHERS_WAIT: Final = text(
    "SELECT 1 FROM clarad_messages WHERE platform = :key_platform"
    " AND channel_id = :key_channel_id AND ended_at IS NULL AND owner <> :me LIMIT 1"
)

# A node that registers elsewhere meanwhile has its frames numbered there. The lock has this end
# come before that, where it is found, or after it.
_HAVE_NODE: Final = text(
    "SELECT 1 FROM clarad_nodes WHERE platform = :key_platform AND node_id = :node_id"
    " AND owner = :me FOR KEY SHARE"
)


class SharedMessages(Messages):
    """The table `clarad_messages`, with messages of other daemons in it."""

    def accept(
        self,
        key: MessageKey,
        *,
        begun: bool,
        then: Callable[[bool | StoreError], None],
        queued: Callable[[int], None] | None = None,
        most: int | None = None,
        **about: str,
    ) -> None:
        """Have a new message written, after those before it.

        It begins at once with `begun`, unless some of its channel are before it with other
        daemons; then `queued` is called with how many, before `then`, which is called with
        `ChannelFull` if there are more than `most`.
        """
        row = self.row(key, begun=False, **about)
        found: list[int | None] = []  # how many are before it; None if it is there already

        def accept(connection: Connection) -> None:
            # Before the others are counted: who has had the lock until now may have begun.
            has_turn = begun and _lock(connection, key)
            ahead = connection.execute(_AHEAD, row).scalar_one()
            if most is not None and ahead > most and not _is_known(connection, key):
                raise ChannelFull(f"{most} messages wait here; try later.")
            begins = has_turn and not ahead
            # Each time: it is done again if the transaction fails.
            begun_at = connection.execute(_NOW).scalar_one() if begins else None
            is_new = connection.execute(_INSERT, row | {"begun_at": begun_at}).scalar() is not None
            found[:] = [(0 if begins else max(ahead, 1)) if is_new else None]

        def answer(error: Exception | None) -> None:
            if error is not None:
                then(as_store_error(error))
            elif (ahead := found[0]) is None:
                then(False)
            else:
                if ahead and queued is not None:
                    queued(ahead)
                then(True)

        self._writer.hand_in(accept, answer)

    async def begin(self, key: MessageKey) -> bool:
        """Note that work on the message begins now, if it is its turn; say whether it is."""

        def begin(connection: Connection) -> bool:
            if not _lock(connection, key):
                return False
            return connection.execute(_BEGIN, this_message(key)).rowcount == 1

        with errors_in_one_line():
            return await self._writer.call(begin)

    def _write_end(
        self,
        key: MessageKey,
        values: dict[str, Any],
        owed_to: str | None,
        is_here: bool,
        then: Callable[[Exception | None], None],
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
            connection.execute(_END, ending)
            if connection.execute(_OTHERS_WAIT, given).scalar() is not None:
                notify(connection, ChannelMoved(key.platform, key.channel_id))
            if owed_to is not None and not has_node:
                notify(connection, NodeOwed(key.platform, owed_to))
            return has_node

        def answer(error: Exception | None) -> None:
            if error is None and is_here and not job.result and moved is not None:
                moved()
            then(error)

        job = self._writer.hand_in(end, answer)

    async def cancel(self, platform: str, node_id: str, request_id: str, reason: str) -> bool:
        """Have the daemons that have a node's unfinished messages of this id cancel them.

        Whoever does not hear of it finds it in the table. Returns whether there are any.
        """
        theirs = (MessageRow.platform == platform) & (MessageRow.node_id == node_id)
        theirs &= MessageRow.request_id == request_id

        def ask(connection: Connection) -> bool:
            return ask_to_cancel(connection, platform, node_id, theirs, reason)

        with errors_in_one_line():
            return await self._writer.call(ask)

    async def to_cancel(self) -> Sequence[tuple[MessageKey, str]]:
        """Return those of this daemon that another one was asked to cancel, with the reasons."""
        columns = (MessageRow.platform, MessageRow.channel_id, MessageRow.request_id)
        mine = (
            select(*columns, MessageRow.cancel_reason)
            .where(MessageRow.ended_at.is_(None), MessageRow.cancel_reason.is_not(None))
            .where(owned(MessageRow.owner, self._writer.life))
        )

        def find(connection: Connection) -> list[tuple[MessageKey, str]]:
            return [(MessageKey(*key), str(reason)) for *key, reason in connection.execute(mine)]

        with errors_in_one_line():
            return await self._writer.call(find)


def ask_to_cancel(
    connection: Connection, platform: str, node_id: str, which: ColumnElement[bool], reason: str
) -> bool:
    """Note that these messages of a node are to be cancelled; `False` if none is unfinished."""
    asked = update(MessageRow).where(which, MessageRow.ended_at.is_(None))
    if not connection.execute(asked.values(cancel_reason=reason.replace("\0", ""))).rowcount:
        return False
    notify(connection, CancelAsked(platform, node_id))
    return True


def _is_known(connection: Connection, key: MessageKey) -> bool:
    which = select(MessageRow.id).where(THIS)
    return connection.execute(which, this_message(key)).scalar() is not None


def _lock(connection: Connection, key: MessageKey) -> bool:
    """Lock the message's channel until the commit; `False` if somebody else has it locked."""
    name = f"{key.platform}\0{key.channel_id}".encode()
    number = int.from_bytes(blake2b(name, digest_size=8).digest(), signed=True)
    return bool(connection.execute(_LOCK, {"channel": number}).scalar_one())
