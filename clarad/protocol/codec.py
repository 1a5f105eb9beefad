"""Decodes and encodes frames, and explains what is wrong with a bad one. No I/O."""

from collections.abc import Callable
from types import UnionType
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from clarad.protocol.frames import (
    Error,
    ErrorCode,
    Inbound,
    Outbound,
)


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A frame that is refused; `error` is the frame to answer it with."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        request_id: str | UnsetType = UNSET,
        *,
        recoverable: bool = False,
    ) -> None:
        super().__init__(message)
        self.error = Error(
            code=code, message=message, recoverable=recoverable, request_id=request_id
        )


def tags(frames: UnionType) -> frozenset[str]:
    """Return the `type` of each of these frames."""
    return frozenset(str(struct.__struct_config__.tag) for struct in frames.__args__)


_inbound: Final = msgspec.json.Decoder(Inbound)
_outbound: Final = msgspec.json.Decoder(Outbound)
_encoder: Final = msgspec.json.Encoder()

_LONGEST_REASON: Final = 300
_INBOUND_TYPES: Final = tags(Inbound)


def decode(text: str) -> Inbound:
    """Read one frame of an adapter.

    Raises:
        Refused: it is not a frame of this protocol; the exception holds the answer to it.
    """
    try:
        frame: Inbound = _inbound.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise refusal(text, error, _INBOUND_TYPES) from None
    return frame


def decode_outbound(text: str | bytes) -> Outbound:
    """Read one frame of the gateway, as an adapter does; raises `msgspec.MsgspecError`."""
    frame: Outbound = _outbound.decode(text)
    return frame


encode: Final[Callable[[Struct], bytes]] = _encoder.encode
"""Write one frame, as UTF-8."""


def numbered(frame: bytes, seq: int) -> bytes:
    """Return the encoded frame with its `seq`. The frame needs at least one field."""
    return b'%b,"seq":%d}' % (frame[:-1], seq)


def refusal(text: str, error: Exception, known: frozenset[str]) -> Refused:
    """Return the exception for a frame that could not be decoded as one of the `known` types."""
    try:
        whole = msgspec.json.decode(text)
    except RecursionError:
        return Refused(ErrorCode.INVALID_JSON, "The frame is nested too deeply; flatten it.")
    except msgspec.ValidationError as unusable:  # a number out of range
        return Refused(ErrorCode.INVALID_MESSAGE, f"The frame is wrong: {unusable}.")
    except (msgspec.DecodeError, UnicodeError) as malformed:
        return Refused(ErrorCode.INVALID_JSON, f"The frame is not valid JSON: {malformed}.")
    if not isinstance(whole, dict):
        return Refused(ErrorCode.INVALID_MESSAGE, "A frame is a JSON object; send one.")
    request_id = _readable_id(whole)
    kind = whole.get("type")
    if not isinstance(kind, str):
        return Refused(ErrorCode.INVALID_MESSAGE, 'The frame has no "type"; add one.', request_id)
    if kind not in known:
        return Refused(
            ErrorCode.UNKNOWN_TYPE,
            f"The daemon does not know frames of type {kind[:64]!r}; do not send them.",
            request_id,
        )
    # The error may quote what was sent, and that may be megabytes.
    reason = str(error) if len(str(error)) <= _LONGEST_REASON else f"{error!s:.{_LONGEST_REASON}} …"
    return Refused(ErrorCode.INVALID_MESSAGE, f"The {kind!r} frame is wrong: {reason}.", request_id)


def _readable_id(frame: dict[str, Any]) -> str | UnsetType:
    for value in (frame.get("request_id"), frame.get("id")):
        if isinstance(value, str) and 1 <= len(value) <= 255:
            return value
    return UNSET
