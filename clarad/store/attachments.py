"""The attachments of messages, in a table of their own.

SQLite rewrites a whole row whenever a column changes: in the table of messages, 10 MiB of
attachments would be written four times. Attachments may also be deleted before their messages.
"""

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, text

_FIELD: Final = "attachments"
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])

_KEEP: Final = text(
    "INSERT INTO clarad_attachments (message_id, received_at, attachments)"
    " SELECT id, received_at, :attachments FROM clarad_messages"
    " WHERE platform = :platform AND channel_id = :channel_id AND request_id = :request_id"
)


def split(frame: str) -> tuple[str, str]:
    """Return a `message` frame without its attachments, and those; both JSON.

    It takes 50 ms for the longest ones, so it is done in the store's thread.
    """
    fields = _fields.decode(frame)
    attachments = fields.pop(_FIELD)
    return msgspec.json.encode(fields).decode(), str(attachments, "utf-8")


def join(frame: str, attachments: str | None) -> str:
    """Return the frame with its attachments, if they are still there."""
    return frame if attachments is None else f'{frame[:-1]},"{_FIELD}":{attachments}}}'


def keep(connection: Connection, row: dict[str, Any], attachments: str) -> None:
    """Insert the attachments of a new message; `row` are the message's columns."""
    connection.execute(_KEEP, row | {"attachments": attachments})
