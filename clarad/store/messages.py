"""The table of messages. A message is not answered before it is on the disk."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, case, exists, func, select, update
from sqlalchemy.orm import aliased

from clarad.store.attachments import keep, split
from clarad.store.engine import StoreError
from clarad.store.epoch import owned
from clarad.store.message_rows import IS_OWED, THIS, MessageKey, owed_since, this_message
from clarad.store.models import MessageRow
from clarad.store.unfinished import ToCancel, Unfinished, count_by_node, read_cancelled, read_page
from clarad.store.writer import Writer
from clarad.systemd import catalogue

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """A message as it came, without attachments, and its terminal frame if it has ended; both JSON.

    `owed_to` is the node that has still to be given the terminal frame.
    """

    frame: str
    terminal: str | None
    owed_to: str | None = None


class ChannelFull(StoreError):  # noqa: N818 - it is what has happened
    """Too many unfinished messages are in the channel; the message was not inserted."""


UNREGISTERED: Final = "the node unregistered"
"""Why messages of a node are cancelled that is gone for good."""

_ROW: Final = MessageRow.__table__
_BEGIN: Final = (
    update(_ROW).where(THIS).values(begun_at=bindparam("begun_at"))  # type: ignore[arg-type]
)
END: Final = (
    update(_ROW)  # type: ignore[arg-type]
    .where(THIS)
    .values(
        ended_at=bindparam("ended_at"),
        outcome=bindparam("outcome"),
        reason=bindparam("reason"),
        terminal=bindparam("terminal"),
        seq=bindparam("new_seq"),
        # It is there already if the node has unregistered meanwhile.
        delivered_at=func.coalesce(MessageRow.delivered_at, bindparam("delivered_at")),
    )
)
_DELIVERED: Final = (
    update(_ROW).where(THIS).values(delivered_at=bindparam("delivered_at"))  # type: ignore[arg-type]
)
_AHEAD: Final = select(func.count()).where(
    MessageRow.platform == bindparam("key_platform"),
    MessageRow.channel_id == bindparam("key_channel_id"),
    MessageRow.ended_at.is_(None),
)
_FIND: Final = select(
    MessageRow.frame, MessageRow.terminal, case((IS_OWED, MessageRow.node_id))
).where(THIS)
_EARLIER: Final = aliased(MessageRow)
_BEGIN_IF_FIRST: Final = _BEGIN.where(
    ~exists().where(
        _EARLIER.platform == bindparam("key_platform"),
        _EARLIER.channel_id == bindparam("key_channel_id"),
        _EARLIER.ended_at.is_(None),
        _EARLIER.id < MessageRow.id,
    )
)


class Messages:
    """The table `clarad_messages`.

    If the database fails, what is awaited raises `StoreError`, and what calls back is given one.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._insert = writer.insert_into(_ROW).on_conflict_do_nothing(  # type: ignore[arg-type]
            index_elements=MessageKey._fields
        )

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
        """Insert a new message after those handed in before; `begun` if it starts at once.

        `about` are the columns `node_id`, `user_id`, `session_id` and `frame`. `then` is called
        once the message is on the disk, with whether it is new: if it is not, nothing has changed.

        Pass `queued` while the caller does not know all unfinished messages of the channel. They
        are counted in the same transaction, and `queued` is called before `then` with their number
        unless it is 0. If there are more than `most`, `then` is called with `ChannelFull`.
        """
        row = self.row(key, begun=begun, **about)

        def insert(connection: Connection) -> bool:
            if not has_attachments:
                return connection.execute(self._insert, row).rowcount == 1
            frame, attachments = split(row["frame"])
            is_new = connection.execute(self._insert, row | {"frame": frame}).rowcount == 1
            if is_new:
                keep(connection, row, attachments)
            return is_new

        def count_and_insert(connection: Connection) -> int | ChannelFull | None:
            ahead: int = connection.execute(_AHEAD, this_message(key)).scalar_one()
            if (full := channel_full(connection, key, ahead, most)) is not None:
                return full
            return ahead if insert(connection) else None

        def answer(error: StoreError | None) -> None:
            if error is not None:
                then(error)
            elif queued is None:
                then(bool(job.result))
            else:
                report_place(job.result, queued, then)

        if queued is None:
            instead = insert if has_attachments else None  # others are inserted many at a time
            job = self._writer.insert(self._insert, row, answer, instead=instead)
        else:
            job = self._writer.submit(count_and_insert, answer, texts=row)

    def row(self, key: MessageKey, *, begun: bool, **about: str) -> dict[str, Any]:
        """Return the columns of a new message."""
        now = self._writer.now()
        times = {"received_at": now, "begun_at": now if begun else None}
        return {**key._asdict(), **about, **times, "owner": self._writer.owner}

    async def begin(self, key: MessageKey) -> bool:
        """Note that the message begins now. The caller knows that it is first in its channel."""
        begun = {"begun_at": self._writer.now()}
        await self._writer.execute(_BEGIN, this_message(key) | begun).wait()
        return True

    def end(
        self,
        key: MessageKey,
        *,
        outcome: str,
        reason: str | None,
        terminal: str,
        seq: int | None,
        wanted: bool,
        node_id: str | None = None,
        is_here: bool = True,
        then: Callable[[StoreError | None], None],
        moved: Callable[[], None] | None = None,
    ) -> None:
        """Store how the message ended, with its terminal frame; then call `then`.

        `seq` is the number of that frame, if it has one. A frame that is `wanted` is kept for its
        node until it is delivered. Unless the node is connected here (`is_here`), other daemons get
        a notice. If it has registered with another one by now, `moved` is called before `then`.
        """
        now = self._writer.now()
        values = {
            "ended_at": now,
            "outcome": outcome,
            # PostgreSQL cannot hold NUL; in the frame JSON has it escaped.
            "reason": None if reason is None else reason.replace("\0", ""),
            "terminal": terminal,
            "new_seq": seq,
            "delivered_at": None if wanted else now,
        }

        owed_to = node_id if wanted else None
        self._write_end(key, values, owed_to, is_here, then, moved)

    def _write_end(
        self,
        key: MessageKey,
        values: dict[str, Any],
        _owed_to: str | None,
        _is_here: bool,
        then: Callable[[StoreError | None], None],
        _moved: Callable[[], None] | None,
    ) -> None:
        self._writer.execute(END, this_message(key) | values, then)

    def delivered(self, key: MessageKey) -> None:
        """Note, within a second, that the terminal frame was written to a connection of its node.

        After a kill before that, the node gets the frame a second time.
        """
        now = {"delivered_at": self._writer.now()}
        self._writer.execute_later(_DELIVERED, this_message(key) | now, log_failure)

    async def find(self, key: MessageKey) -> Stored | None:
        """Return a message and its terminal frame; `None` if the store does not have it."""
        given = this_message(key) | owed_since(self._writer.now())

        def find(connection: Connection) -> Stored | None:
            row = connection.execute(_FIND, given).one_or_none()
            return None if row is None else Stored(*row)

        return await self._writer.call(find)

    @property
    def owners(self) -> Collection[int] | None:
        """The epochs whose messages this daemon sees to; `None` without other daemons."""
        return None if self._writer.epoch is None else self._writer.epoch.owners

    async def backlog(self) -> tuple[int, Counter[tuple[str, str]]]:
        """Return the highest number of all messages, and how many of each node are unfinished.

        Nodes are by platform and id. Messages of other daemons are not counted.
        """
        return await self._writer.call(partial(count_by_node, which=self._owned()))

    async def begin_if_first(self, key: MessageKey) -> bool:
        """Note that the message begins, unless one before it in its channel is unfinished.

        Returns whether it begins. Needed while recovery has not read all unfinished messages.
        """

        def begin(connection: Connection) -> bool:
            given = this_message(key) | {"begun_at": self._writer.now()}
            return connection.execute(_BEGIN_IF_FIRST, given).rowcount == 1

        return await self._writer.call(begin)

    def cancel(
        self,
        platform: str,
        node_id: str,
        request_id: str,
        reason: str,
        then: Callable[[bool | StoreError], None],
    ) -> None:
        """Note that a node's unfinished messages with this id have to be cancelled.

        The daemon that recovers them finds it in the table. `then` is called with whether there are
        any. Runs in the order of the functions submitted to the writer.
        """
        theirs = (MessageRow.platform == platform) & (MessageRow.node_id == node_id)
        theirs &= MessageRow.request_id == request_id
        asked = update(MessageRow).where(theirs, MessageRow.ended_at.is_(None))
        # PostgreSQL cannot hold NUL.
        asked = asked.values(cancel_reason=reason.replace("\0", ""))

        def ask(connection: Connection) -> bool:
            if not connection.execute(asked).rowcount:
                return False
            self._tell_cancel(connection, platform, node_id)
            return True

        def answer(error: StoreError | None) -> None:
            then(bool(job.result) if error is None else error)

        job = self._writer.submit(ask, answer)

    def _tell_cancel(self, connection: Connection, platform: str, node_id: str) -> None:
        """Notify the daemons that may have the messages: on SQLite there is no other."""

    async def to_cancel(self, after: int = 0, last: int | None = None) -> Sequence[ToCancel]:
        """Return this daemon's messages that the table says to cancel.

        With `after` and `last`, only those with numbers from after the one to the other.
        """
        read = partial(read_cancelled, which=self._owned(), after=after, last=last)
        return await self._writer.call(read)

    async def unfinished(
        self, after: int = 0, of: Collection[int] | None = None, last: int | None = None
    ) -> Sequence[Unfinished]:
        """Return the next page of unfinished messages, by their numbers; empty after the last one.

        They are this daemon's, or those of the epochs `of`, with numbers from after `after` to
        `last`.
        """
        read = partial(read_page, which=self._owned(of), after=after, last=last)
        return await self._writer.call(read)

    def _owned(self, by: Collection[int] | None = None) -> ColumnElement[bool]:
        return owned(MessageRow.owner, self._writer.epoch, by)


def channel_full(
    connection: Connection, key: MessageKey, ahead: int, most: int | None
) -> ChannelFull | None:
    """Return why a message with `ahead` before it is refused; `None` if it is not, or is known."""
    if most is None or ahead <= most:
        return None
    known = connection.execute(select(MessageRow.id).where(THIS), this_message(key)).scalar()
    return None if known is not None else ChannelFull(f"{most} messages wait here; try later.")


def report_place(
    place: int | ChannelFull | None,
    queued: Callable[[int], None] | None,
    then: Callable[[bool | StoreError], None],
) -> None:
    """Tell how many messages are before a new one; `None` is for one that the store has already."""
    if isinstance(place, ChannelFull):
        then(place)
        return
    if place and queued is not None:
        queued(place)
    then(place is not None)


def abandon(connection: Connection, platform: str, node_id: str, now: datetime) -> bool:
    """Cancel a node's unfinished messages in the table, and keep none of their terminal frames.

    The node has unregistered, and its ID may soon belong to another client. Returns whether there
    were any.
    """
    theirs = (MessageRow.platform == platform) & (MessageRow.node_id == node_id)
    every = update(MessageRow).where(theirs, MessageRow.ended_at.is_(None))
    every = every.values(cancel_reason=UNREGISTERED, delivered_at=now)
    return connection.execute(every).rowcount > 0


def log_failure(error: StoreError | None) -> None:
    """Log that a note was not stored: the node will get a frame a second time."""
    if error is not None:
        about = catalogue.STORE_FAILED.about()
        text = "what has arrived cannot be noted, the store failed: %s"
        log.warning(text, error, extra=about)
