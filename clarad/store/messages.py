"""What the store knows of messages. Nothing is answered before it is on the disk."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from clarad.store.engine import StoreError, as_store_error, errors_in_one_line
from clarad.store.models import MessageRow
from clarad.store.writer import Writer


class MessageKey(NamedTuple):
    """A message's identity, on the wire and in the store."""

    platform: str
    channel_id: str
    request_id: str


class Stored(NamedTuple):
    """A message as it came, and its terminal frame if it has ended; both JSON."""

    frame: str
    terminal: str | None


class Unfinished(NamedTuple):
    """A message that an earlier run of the daemon accepted and did not end."""

    key: MessageKey
    node_id: str
    frame: str
    begun: bool


_ROW: Final = MessageRow.__table__
_THIS: Final = (
    (MessageRow.platform == bindparam("key_platform"))
    & (MessageRow.channel_id == bindparam("key_channel_id"))
    & (MessageRow.request_id == bindparam("key_request_id"))
)
_INSERT: Final = insert(_ROW)  # type: ignore[arg-type]
_BEGIN: Final = (
    update(_ROW).where(_THIS).values(begun_at=bindparam("begun_at"))  # type: ignore[arg-type]
)
_END: Final = (
    update(_ROW)  # type: ignore[arg-type]
    .where(_THIS)
    .values(
        ended_at=bindparam("ended_at"),
        outcome=bindparam("outcome"),
        reason=bindparam("reason"),
        terminal=bindparam("terminal"),
    )
)


class Messages:
    """The table `clarad_messages`.

    If the database fails, what is awaited raises `StoreError`, and what calls back is given one.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def accept(
        self,
        key: MessageKey,
        *,
        node_id: str,
        user_id: str,
        session_id: str,
        frame: str,
        begun: bool,
        then: Callable[[bool | StoreError], None],
    ) -> None:
        """Have a new message written, after those before it; `begun` if it starts at once.

        `then` is called with whether it is new, once it is on the disk: with `False` if the store
        has it already, and then nothing is changed.
        """
        now = datetime.now(UTC)
        row = {
            "platform": key.platform,
            "channel_id": key.channel_id,
            "request_id": key.request_id,
            "node_id": node_id,
            "user_id": user_id,
            "session_id": session_id,
            "frame": frame,
            "received_at": now,
            "begun_at": now if begun else None,
        }

        def answer(error: Exception | None) -> None:
            if error is None:
                then(True)
            else:
                then(not isinstance(error, IntegrityError) and as_store_error(error))

        self._writer.execute(_INSERT, row, answer)

    async def begin(self, key: MessageKey) -> None:
        """Note that work on the message begins now."""
        begun = {"begun_at": datetime.now(UTC)}
        with errors_in_one_line():
            await self._writer.execute(_BEGIN, _this(key) | begun).wait()

    def end(
        self,
        key: MessageKey,
        *,
        outcome: str,
        reason: str | None,
        terminal: str,
        then: Callable[[StoreError | None], None],
    ) -> None:
        """Have it written how the message ended, with its terminal frame; then call `then`."""
        values = {
            "ended_at": datetime.now(UTC),
            "outcome": outcome,
            # PostgreSQL cannot hold NUL; in the frame JSON has it escaped.
            "reason": None if reason is None else reason.replace("\0", ""),
            "terminal": terminal,
        }

        def answer(error: Exception | None) -> None:
            then(None if error is None else as_store_error(error))

        self._writer.execute(_END, _this(key) | values, answer)

    async def find(self, key: MessageKey) -> Stored | None:
        """Return what is there of a message, `None` if nothing is."""
        statement = select(MessageRow.frame, MessageRow.terminal).where(_THIS)

        def find(connection: Connection) -> Stored | None:
            row = connection.execute(statement, _this(key)).one_or_none()
            return None if row is None else Stored(*row)

        with errors_in_one_line():
            return await self._writer.call(find)

    async def unfinished(self) -> Sequence[Unfinished]:
        """Return what was accepted and has not ended, in the order in which it came."""
        statement = (
            select(
                MessageRow.platform,
                MessageRow.channel_id,
                MessageRow.request_id,
                MessageRow.node_id,
                MessageRow.frame,
                MessageRow.begun_at,
            )
            .where(MessageRow.ended_at.is_(None))
            .order_by(MessageRow.id)
        )

        def find(connection: Connection) -> list[Unfinished]:
            return [
                Unfinished(MessageKey(*row[:3]), row.node_id, row.frame, row.begun_at is not None)
                for row in connection.execute(statement)
            ]

        with errors_in_one_line():
            return await self._writer.call(find)


def _this(key: MessageKey) -> dict[str, str]:
    return {
        "key_platform": key.platform,
        "key_channel_id": key.channel_id,
        "key_request_id": key.request_id,
    }
