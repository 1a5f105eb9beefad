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


Notice = MembersChanged | TasksChanged

_DECODER: Final[msgspec.json.Decoder[Notice]] = msgspec.json.Decoder(Notice)


def encode(notice: Notice) -> str:
    """Return the payload; PostgreSQL takes 8,000 bytes at most."""
    return msgspec.json.encode(notice).decode()


def notify(connection: Connection, notice: Notice) -> None:
    """Say it to all daemons, this one too, once the transaction is committed."""
    connection.execute(select(func.pg_notify(CHANNEL, encode(notice))))


def decode(payload: bytes) -> Notice | None:
    """Return what was said, `None` for what only a newer clarad understands."""
    try:
        return _DECODER.decode(payload)
    except msgspec.DecodeError as error:
        log.debug("not understood: %s", error)
        return None
