"""The frames that the measurements send and read.

They are written down here a second time on purpose: a bench that used clarad's own types would
not notice a change of the wire, and the bare server must not depend on clarad.
"""

from typing import Any

import msgspec


class Register(msgspec.Struct, tag="register"):
    """Adapter to gateway: the first frame of a connection."""

    node_id: str
    platform: str
    capabilities: list[str]
    metadata: dict[str, Any] = {}
    secret: str = ""


class Registered(msgspec.Struct, tag="registered"):
    """Gateway to adapter: the connection may send messages now."""

    node_id: str
    session_id: str
    server_time: str
    adapter_token: str
    resumed: bool = False
    protocol: int = 1


class User(msgspec.Struct):
    """Who wrote a message."""

    id: str
    platform_id: str
    name: str | None = None
    display_name: str | None = None


class Channel(msgspec.Struct):
    """Where a message was written; messages of one channel run one at a time."""

    id: str
    type: str = "server"
    name: str | None = None
    guild_id: str | None = None
    guild_name: str | None = None


class Message(msgspec.Struct, tag="message"):
    """Adapter to gateway: something to answer."""

    id: str
    user: User
    channel: Channel
    content: str
    attachments: list[dict[str, Any]] = []
    reply_chain: list[dict[str, Any]] = []
    tier_override: str | None = None
    metadata: dict[str, Any] = {}


class Cancel(msgspec.Struct, tag="cancel"):
    """Adapter to gateway: stop answering a message."""

    request_id: str
    reason: str | None = None


class ResponseStart(msgspec.Struct, tag="response_start"):
    """Gateway to adapter: an answer begins."""

    id: str
    request_id: str
    model_tier: str | None = None


class ResponseChunk(msgspec.Struct, tag="response_chunk"):
    """Gateway to adapter: a piece of an answer."""

    id: str
    request_id: str
    chunk: str
    accumulated: str | None = None


class ResponseEnd(msgspec.Struct, tag="response_end"):
    """Gateway to adapter: the whole answer, and the end of it."""

    id: str
    request_id: str
    full_text: str
    files: list[str] = []
    file_data: list[dict[str, str]] = []
    tool_count: int = 0
    tokens_used: int | None = None
    edit_target: str | None = None
    components: list[dict[str, Any]] = []


class Received(msgspec.Struct):
    """What a client reads of any frame of the gateway; other fields are skipped."""

    type: str
    request_id: str | None = None
    full_text: str | None = None
    code: str | None = None
    message: str | None = None


class UnexpectedFrameError(Exception):
    """The gateway answered with a frame that the measurement has no use for."""

    def __init__(self, frame: Received) -> None:
        """Describe `frame` in one line."""
        detail = " ".join(filter(None, [frame.code, frame.message]))
        super().__init__(f"{frame.type} for {frame.request_id}: {detail or 'no detail'}")
