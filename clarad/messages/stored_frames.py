"""Messages as they were stored, read leniently. No I/O.

The frame of a message is stored as it came, perhaps by another version of clarad. A rule that is
stricter today, or a field that was not needed then, is no reason to lose what was accepted.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from clarad import protocol
from clarad.protocol import Attachment, Channel, Message, User
from clarad.store import MessageKey

S = TypeVar("S", bound=msgspec.Struct)

_UNKNOWN = "unknown"


class Unreadable(Exception):  # noqa: N818 - it is what is known of it
    """Nothing can be made of a stored frame; the text says why."""


def read(frame: str, key: MessageKey) -> Message:
    """Return the message; of one that today's rules refuse, all that can be read.

    Raises:
        Unreadable: there is no user or no content in it.
    """
    try:
        found = protocol.decode(frame)
    except protocol.Refused as refused:
        return _read_leniently(frame, key, refused)
    if not isinstance(found, Message):
        raise Unreadable("it is no message")
    return found


def stand_in(key: MessageKey) -> Message:
    """Return a message without content, for one that cannot be read."""
    user = User(id=_UNKNOWN, platform_id=_UNKNOWN)
    return Message(id=key.request_id, user=user, channel=Channel(id=key.channel_id), content="")


def _read_leniently(frame: str, key: MessageKey, refused: protocol.Refused) -> Message:
    try:
        whole = msgspec.json.decode(frame, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise Unreadable(str(refused)) from None
    user, channel, content = (whole.get(name) for name in ("user", "channel", "content"))
    if not isinstance(user, dict) or not isinstance(content, str):
        raise Unreadable(str(refused))
    return _lenient(
        Message,
        whole,
        id=key.request_id,
        user=_lenient(User, user),
        channel=_lenient(Channel, channel, id=key.channel_id),
        content=content,
        attachments=[_lenient(Attachment, one) for one in _list(whole.get("attachments"))],
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _lenient(kind: type[S], given: Any, **known: Any) -> S:
    """Make a struct of what is known and given; what is wrong or missing has its default."""
    fields = given if isinstance(given, Mapping) else {}
    values = dict(known)
    for field in msgspec.structs.fields(kind):
        if field.name in known or (field.name not in fields and not field.required):
            continue
        value = fields.get(field.name)
        try:
            values[field.name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            if field.required:  # all of these are texts
                values[field.name] = value if isinstance(value, str) and value else _UNKNOWN
    return kind(**values)
