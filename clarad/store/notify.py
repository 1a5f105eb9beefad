"""What the daemons that share a PostgreSQL database say to each other: the payloads of NOTIFY.

They only save waiting. Whatever they announce is in the tables as well, and is found there by
whoever was not connected when it was said.
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
    """A daemon has come or gone."""


class TasksChanged(Struct, frozen=True, tag="tasks"):
    """Tasks are free to be taken, or have been paused or resumed."""


class ChannelMoved(Struct, frozen=True, tag="channel"):
    """A message has ended, and the next of its channel is this life's of a daemon."""

    platform: str
    channel_id: str
    owner: int


class CancelAsked(Struct, frozen=True, tag="cancel"):
    """A node wants messages cancelled, whichever daemon has them."""

    platform: str
    node_id: str


class NodeOwed(Struct, frozen=True, tag="owed"):
    """A terminal frame waits for a node that is not connected where its message ended."""

    platform: str
    node_id: str


class NodeCame(Struct, frozen=True, tag="node"):
    """A node has registered with a daemon, which numbers its frames after `after_seq`.

    Whoever has it with a lower number has it no more.
    """

    platform: str
    node_id: str
    after_seq: int


class TokenRevoked(Struct, frozen=True, tag="revoked"):
    """A token is good for nothing any more."""


Notice = (
    MembersChanged | TasksChanged | ChannelMoved | CancelAsked | NodeOwed | NodeCame | TokenRevoked
)

_DECODER: Final[msgspec.json.Decoder[Notice]] = msgspec.json.Decoder(Notice)


def encode(notice: Notice) -> str:
    """Return the payload, of fewer than the 8,000 bytes that PostgreSQL refuses."""
    return msgspec.json.encode(notice).decode()


def notify(connection: Connection, notice: Notice) -> None:
    """Say it to all daemons, this one too, once the transaction is committed."""
    connection.execute(select(func.pg_notify(CHANNEL, encode(notice))))


def decode(payload: bytes) -> Notice | None:
    """Return what was said, `None` for what only a newer clarad understands."""
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeError) as error:
        log.debug("not understood: %s", error)
        return None
