"""The terminal frames that nodes have missed: not written to a connection, or not acked."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, or_, select, update

from clarad.store.engine import StoreError
from clarad.store.message_rows import (
    IS_OWED,
    IS_UNDELIVERED,
    THIS,
    MessageKey,
    owed_since,
    this_message,
)
from clarad.store.messages import log_failure
from clarad.store.models import MessageRow
from clarad.store.node_sessions import this_node
from clarad.store.writer import Writer

PAGE: Final = 100
PAGE_CHARACTERS: Final = 1024 * 1024
"""Frames, and characters of theirs, that are read at once; a frame that is longer is alone."""

_AT_A_TIME: Final = 4
"""Frames that a database may hand over at once."""

_NODE: Final = (MessageRow.node_id == bindparam("of_node_id")) & (
    MessageRow.platform == bindparam("of_platform")
)
_ARRIVED: Final = (
    update(MessageRow.__table__)  # type: ignore[arg-type]
    .where(_NODE & IS_UNDELIVERED & (MessageRow.seq <= bindparam("up_to")))
    .values(delivered_at=bindparam("now"))
)
_MISSED: Final = (
    select(MessageRow.channel_id, MessageRow.request_id, MessageRow.terminal, MessageRow.seq)
    .where(_NODE & IS_OWED)
    .where(
        or_(
            MessageRow.seq.is_(None),
            (MessageRow.seq > bindparam("after")) & (MessageRow.seq < bindparam("before")),
        )
    )
    .order_by(MessageRow.seq.is_not(None), MessageRow.seq, MessageRow.id)
    .limit(PAGE)
    .execution_options(yield_per=_AT_A_TIME)
)

_NUMBER: Final = (
    update(MessageRow.__table__)  # type: ignore[arg-type]
    .where(THIS & MessageRow.delivered_at.is_(None))
    .values(seq=bindparam("new_seq"))
)


class MissedFrame(NamedTuple):
    """A terminal frame, JSON; `seq` is its number, if it has one."""

    key: MessageKey
    terminal: str
    seq: int | None


class Missed:
    """The terminal frames in `clarad_messages` that have still to arrive."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def page(
        self, platform: str, node_id: str, *, after: int, before: int
    ) -> Sequence[MissedFrame]:
        """Return the next page for a node: frames without a number, then those between the two.

        Raises:
            StoreError: the database fails.
        """
        which = this_node(platform, node_id)
        which |= {"after": after, "before": before, **owed_since(self._writer.now())}

        def read(connection: Connection) -> list[MissedFrame]:
            found: list[MissedFrame] = []
            characters = 0
            with connection.execute(_MISSED, which) as rows:
                for channel_id, request_id, terminal, seq in rows:
                    assert terminal is not None  # the message has ended
                    key = MessageKey(platform, channel_id, request_id)
                    characters += len(terminal)
                    if found and characters > PAGE_CHARACTERS:
                        break
                    found.append(MissedFrame(key, terminal, seq))
            return found

        return await self._writer.call(read)

    def arrived(self, platform: str, node_id: str, seq: int) -> None:
        """Note, within a second, that the node has all frames up to this number."""
        values = {"up_to": seq, "now": self._writer.now()}
        self._writer.execute_later(_ARRIVED, this_node(platform, node_id) | values, log_failure)

    def number(self, key: MessageKey, seq: int, then: Callable[[StoreError | None], None]) -> None:
        """Give a frame that another daemon has stored a number of this one's; then call `then`."""

        def number(connection: Connection) -> None:
            connection.execute(_NUMBER, this_message(key) | {"new_seq": seq})

        self._writer.submit(number, then)

    def forget(self, platform: str, node_id: str) -> None:
        """Note that the node wants none of its frames any more."""
        every = (
            update(MessageRow).where(_NODE & IS_UNDELIVERED).values(delivered_at=self._writer.now())
        )

        def forget(connection: Connection) -> None:
            connection.execute(every, this_node(platform, node_id))

        self._writer.submit(forget, log_failure)
