"""Which rows of `clarad_messages`: that of one message, and those that are owed to a node."""

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam

from clarad.store.models import MessageRow

KEPT_FOR: Final = timedelta(hours=24)
"""How long a terminal frame is kept for its node, and the session of a node that is lost."""


class MessageKey(NamedTuple):
    """A message's identity, on the wire and in the store."""

    platform: str
    channel_id: str
    request_id: str


THIS: Final = (
    (MessageRow.platform == bindparam("key_platform"))
    & (MessageRow.channel_id == bindparam("key_channel_id"))
    & (MessageRow.request_id == bindparam("key_request_id"))
)

IS_UNDELIVERED: Final = MessageRow.ended_at.is_not(None) & MessageRow.delivered_at.is_(None)
"""The node has not been given the terminal frame, and wants it."""

IS_OWED: Final = IS_UNDELIVERED & (
    MessageRow.ended_at >= bindparam("owed_since", type_=MessageRow.ended_at.type)
)
"""The node still gets the terminal frame when it comes: `owed_since` returns the parameter."""


def owed_since(now: datetime) -> dict[str, Any]:
    """Return the parameter of `IS_OWED`: what ended before that time is owed to nobody."""
    return {"owed_since": now - KEPT_FOR}


def this_message(key: MessageKey) -> dict[str, Any]:
    """Return what names a message in a statement."""
    return {
        "key_platform": key.platform,
        "key_channel_id": key.channel_id,
        "key_request_id": key.request_id,
    }
