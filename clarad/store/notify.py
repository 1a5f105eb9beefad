"""The notices that daemons on a PostgreSQL database send each other: the payloads of NOTIFY.

Notices only save waiting. What they announce is in the tables, too, where a daemon that was not
connected finds it.
"""

import logging
from typing import Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, func, select

log = logging.getLogger(__name__)

CHANNEL: Final = "clarad"
"""The channel of NOTIFY and LISTEN."""


class MembersChanged(Struct, frozen=True, tag="members"):
    """A daemon has joined or left."""


class TasksChanged(Struct, frozen=True, tag="tasks"):
    """Tasks have no owner any more, or were paused or resumed."""


class ChannelMoved(Struct, frozen=True, tag="channel"):
    """A message has ended, and the next one of its channel belongs to the epoch `owner`."""

    platform: str
    channel_id: str
    owner: int


class CancelAsked(Struct, frozen=True, tag="cancel"):
    """A node has asked to cancel messages that may be with any daemon."""

    platform: str
    node_id: str


class NodeOwed(Struct, frozen=True, tag="owed"):
    """A terminal frame waits for a node that is not connected where its message ended."""

    platform: str
    node_id: str


class NodeCame(Struct, frozen=True, tag="node"):
    """A node has registered with a daemon, which numbers its frames after `after_seq`.

    A daemon that has the node with a lower number has lost it.
    """

    platform: str
    node_id: str
    after_seq: int


class TokenRevoked(Struct, frozen=True, tag="revoked"):
    """A token was revoked."""


Notice = (
    MembersChanged | TasksChanged | ChannelMoved | CancelAsked | NodeOwed | NodeCame | TokenRevoked
)

_DECODER: Final[msgspec.json.Decoder[Notice]] = msgspec.json.Decoder(Notice)


def encode(notice: Notice) -> str:
    """Return the payload; all are shorter than the 8,000 bytes that PostgreSQL refuses."""
    return msgspec.json.encode(notice).decode()


def notify(connection: Connection, notice: Notice) -> None:
    """Send the notice to all daemons, this one too, when the transaction commits."""
    connection.execute(select(func.pg_notify(CHANNEL, encode(notice))))


def decode(payload: bytes) -> Notice | None:
    """Return the notice; `None` for one that only a newer clarad knows."""
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeError) as error:
        log.debug("not understood: %s", error)
        return None
