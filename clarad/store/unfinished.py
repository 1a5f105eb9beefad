"""The messages that were accepted and have not ended, as recovery reads them."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, func, select

from clarad.store.attachments import join
from clarad.store.message_rows import MessageKey
from clarad.store.models import AttachmentsRow, MessageRow

PAGE: Final = 500
PAGE_CHARACTERS: Final = 1024 * 1024
"""Unfinished messages, and characters of theirs, that are read at once; a longer one is alone."""

_AT_A_TIME: Final = 4
"""Messages that a database may hand over at once."""

_EVERY: Final = 2**63 - 1
"""Above all numbers that there are."""


class Unfinished(NamedTuple):
    """A message that an earlier run of the daemon accepted and did not end."""

    number: int
    key: MessageKey
    node_id: str
    frame: str
    begun: bool
    cancel_reason: str | None = None
    wanted: bool = True
    """Whether its node is still to be given its end."""


class ToCancel(NamedTuple):
    """An unfinished message that has to be cancelled; `wanted` is as of `Unfinished`."""

    key: MessageKey
    reason: str
    wanted: bool


_UNFINISHED: Final = (
    select(
        MessageRow.id,
        MessageRow.platform,
        MessageRow.channel_id,
        MessageRow.request_id,
        MessageRow.node_id,
        MessageRow.frame,
        AttachmentsRow.attachments,
        MessageRow.begun_at,
        MessageRow.cancel_reason,
        MessageRow.delivered_at.is_(None),
    )
    .outerjoin(AttachmentsRow, AttachmentsRow.message_id == MessageRow.id)
    .where(MessageRow.ended_at.is_(None), MessageRow.id > bindparam("after"))
    .where(MessageRow.id <= bindparam("last"))
    .order_by(MessageRow.id)
    .limit(PAGE)
    .execution_options(yield_per=_AT_A_TIME)
)
_TO_CANCEL: Final = select(
    MessageRow.platform,
    MessageRow.channel_id,
    MessageRow.request_id,
    MessageRow.cancel_reason,
    MessageRow.delivered_at.is_(None),
).where(
    MessageRow.ended_at.is_(None),
    MessageRow.cancel_reason.is_not(None),
    MessageRow.id > bindparam("after"),
    MessageRow.id <= bindparam("last"),
)
_NODES: Final = (MessageRow.platform, MessageRow.node_id)
_BY_NODE: Final = select(*_NODES, func.count()).where(MessageRow.ended_at.is_(None))


def count_by_node(
    connection: Connection, which: ColumnElement[bool]
) -> tuple[int, Counter[tuple[str, str]]]:
    """Return the highest number of all messages, and the unfinished ones by platform and node."""
    last = connection.scalar(select(func.max(MessageRow.id))) or 0
    rows = connection.execute(_BY_NODE.where(which).group_by(*_NODES))
    return last, Counter({(platform, node): count for platform, node, count in rows})


def read_page(
    connection: Connection, which: ColumnElement[bool], after: int, last: int | None
) -> Sequence[Unfinished]:
    """Return the next messages with numbers from after `after` to `last`, by their numbers."""
    found: list[Unfinished] = []
    characters = 0
    with connection.execute(_UNFINISHED.where(which), _between(after, last)) as rows:
        for number, *key, node_id, text, attachments, begun_at, reason, wanted in rows:
            frame = join(text, attachments)
            characters += len(frame)
            # The rest of the result is not fetched: what was read so far is a page.
            if found and characters > PAGE_CHARACTERS:
                break
            begun, this = begun_at is not None, MessageKey(*key)
            found.append(Unfinished(number, this, node_id, frame, begun, reason, wanted))
    return found


def read_cancelled(
    connection: Connection, which: ColumnElement[bool], after: int, last: int | None
) -> Sequence[ToCancel]:
    """Return the messages, with numbers in that range, that somebody has asked to cancel."""
    rows = connection.execute(_TO_CANCEL.where(which), _between(after, last))
    return [ToCancel(MessageKey(*key), str(reason), wanted) for *key, reason, wanted in rows]


def _between(after: int, last: int | None) -> dict[str, int]:
    return {"after": after, "last": _EVERY if last is None else last}
