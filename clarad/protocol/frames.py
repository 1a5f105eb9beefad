"""The protocol between adapters and the gateway, version 1: frames and codes. No I/O.

A frame is one JSON object in one WebSocket text message; docs/protocol.md is the reference.
Existing adapters depend on the names and types here.
"""

from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

PROTOCOL_VERSION: Final = 1

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the largest frame; a longer one closes the connection with 1009."""

MAX_FIRST_FRAME: Final = 64 * 1024
"""Characters of the largest frame of an unauthenticated peer, so that it cannot fill the memory."""

CAUSED_BY: Final = "CLARA_CAUSED_BY"
"""The variable that tells a command which runs have led to it, the nearest last.

The commands of `clarad` and adapters on `clarad.adapters` pass it on when they connect.
"""

# PostgreSQL cannot hold NUL in a text column, and no platform has it in an id.
Id = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00]*\Z")]

# What a database can hold.
Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ErrorCode(StrEnum):
    """The closed list of `error.code`."""

    INVALID_JSON = "invalid_json"
    INVALID_MESSAGE = "invalid_message"
    UNKNOWN_TYPE = "unknown_type"
    NOT_REGISTERED = "not_registered"
    ALREADY_REGISTERED = "already_registered"
    AUTH_FAILED = "auth_failed"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    QUEUE_FULL = "queue_full"
    NOT_FOUND = "not_found"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    PROCESSING_ERROR = "processing_error"
    NO_SANDBOX = "no_sandbox"
    SHUTTING_DOWN = "shutting_down"


class CloseCode(IntEnum):
    """Why the gateway closes a connection (RFC 6455, section 7.4, and our own from 4000)."""

    UNREGISTERED = 1000
    STOPPING = 1001
    REFUSED = 1008
    TOO_LARGE = 1009
    TOO_MANY_CONNECTIONS = 1013
    REPLACED = 4000
    HEARTBEAT_LOST = 4001
    TOO_SLOW = 4008


class Capability(StrEnum):
    """What a node can ask for in `register`; it changes which frames the node is sent."""

    STREAMING = "streaming"
    ACCEPTED = "accepted"
    RESUME = "resume"


# --- adapter → gateway ---------------------------------------------------------------------------


class User(Struct, frozen=True):
    """Who wrote a message; `id` carries the platform as a prefix, `platform_id` does not."""

    id: Id
    platform_id: Id
    name: str | None = None
    display_name: str | None = None


class Channel(Struct, frozen=True):
    """Where a message was written. Messages of one channel are answered one at a time."""

    id: Id
    type: Literal["dm", "server", "group"] = "server"
    name: str | None = None
    guild_id: str | None = None
    guild_name: str | None = None


class Attachment(Struct, frozen=True):
    """A file that came with a message, as text (`content`) or as base64 (`base64_data`)."""

    type: Literal["image", "file", "text"]
    filename: str
    media_type: str | None = None
    base64_data: str | None = None
    content: str | None = None
    size: int | None = None


class Register(Struct, frozen=True, tag="register"):
    """The first frame of every connection: which node this is, and its capabilities."""

    node_id: Id
    platform: Id
    capabilities: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] = []
    metadata: dict[str, Any] = {}
    secret: str | None = None
    session_id: str | None = None
    last_seq: Seq | None = None
    caused_by: Annotated[list[Id], Meta(max_length=64)] = []
    """The runs of hooks and tasks that led to this connection, the nearest last."""


class Unregister(Struct, frozen=True, tag="unregister"):
    """The node is gone for good."""


class Ping(Struct, frozen=True, tag="ping"):
    """A heartbeat of an adapter that cannot send WebSocket pings."""


class Message(Struct, frozen=True, tag="message"):
    """A user's message, to be answered."""

    id: Id
    user: User
    channel: Channel
    content: str
    attachments: list[Attachment] = []
    reply_chain: list[dict[str, Any]] = []
    tier_override: str | None = None
    metadata: dict[str, Any] = {}


class Cancel(Struct, frozen=True, tag="cancel"):
    """Stop the message with this id."""

    request_id: Id
    reason: Annotated[str, Meta(max_length=4096)] | None = None


class StatusRequest(Struct, frozen=True, tag="status"):
    """How much is running and waiting for this node?"""


class Ack(Struct, frozen=True, tag="ack"):
    """Everything up to this `seq` has arrived."""

    seq: Seq


Inbound = Register | Unregister | Ping | Message | Cancel | StatusRequest | Ack


# --- gateway → adapter ---------------------------------------------------------------------------
# An optional field is left out if it has no value. Every other field is always present, since
# adapters read it without checking.


class Registered(Struct, frozen=True, tag="registered"):
    """The node is in; `session_id` is what it resumes with, `server_time` is ISO 8601 in UTC."""

    node_id: str
    session_id: str
    server_time: str
    adapter_token: str
    resumed: bool = False
    protocol: int = PROTOCOL_VERSION


class Pong(Struct, frozen=True, tag="pong"):
    """The answer to `ping`; `timestamp` is the gateway's, ISO 8601 in UTC."""

    timestamp: str


# Frames about messages have a `seq` if their node resumes. `numbered` appends it to the encoded
# frame, so that one encoding serves with and without it.


class Accepted(Struct, frozen=True, tag="accepted"):
    """The message is in the store and will end in exactly one terminal frame."""

    request_id: str
    duplicate: bool
    seq: int | UnsetType = UNSET


class ResponseStart(Struct, frozen=True, tag="response_start"):
    """Work on the message has begun."""

    id: str
    request_id: str
    model_tier: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET


class ResponseChunk(Struct, frozen=True, tag="response_chunk"):
    """The next piece of the answer's text."""

    id: str
    request_id: str
    chunk: str
    seq: int | UnsetType = UNSET


class ToolStart(Struct, frozen=True, tag="tool_start"):
    """A tool begins; `step` counts from 1 within the message."""

    id: str
    request_id: str
    tool_name: str
    step: int
    emoji: str
    description: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET


class ToolResult(Struct, frozen=True, tag="tool_result"):
    """A tool has ended; `duration_ms` in milliseconds."""

    id: str
    request_id: str
    tool_name: str
    success: bool
    output_preview: str | UnsetType = UNSET
    duration_ms: int | UnsetType = UNSET
    seq: int | UnsetType = UNSET


class FileData(Struct, frozen=True):
    """A file that the answer brings along."""

    filename: str
    content_base64: str
    media_type: str


class ResponseEnd(Struct, frozen=True, tag="response_end"):
    """Terminal: the message is answered, and this is the whole text."""

    id: str
    request_id: str
    full_text: str
    files: list[str] = []
    file_data: list[FileData] = []
    tool_count: int = 0
    components: list[Any] = []
    tokens_used: int | UnsetType = UNSET
    edit_target: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET


class Stopped(Struct):
    """What a cancellation stopped. Filled in by whatever does the stopping.

    A run in a sandbox counts if it had begun and its result was lost, also when it ended by itself
    at that moment; `processes` are those that were killed at its end.
    """

    tools: int = 0
    processes: int = 0
    sandbox_execs: int = 0


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """Terminal: the message was cancelled, everything it had started has ended."""

    request_id: str
    reason: str
    stopped: Stopped
    seq: int | UnsetType = UNSET


class Error(Struct, frozen=True, tag="error"):
    """Something was refused or failed; terminal for a message if it names an accepted one.

    With `retry_after` the message is not accepted, and worth sending again in so many seconds.
    """

    code: ErrorCode
    message: str
    recoverable: bool
    request_id: str | UnsetType = UNSET
    retry_after: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    seq: int | UnsetType = UNSET


class Status(Struct, frozen=True, tag="status"):
    """How much of this node's work runs and waits; `uptime_seconds` is the daemon's.

    With `request_id` it says that this message waits, and `queue_length` is its place.
    """

    active_requests: int
    queue_length: int
    uptime_seconds: int
    node_id: str | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET


Outbound = (
    Registered
    | Pong
    | Accepted
    | ResponseStart
    | ResponseChunk
    | ToolStart
    | ToolResult
    | ResponseEnd
    | Cancelled
    | Error
    | Status
)

# --- decode and encode ---------------------------------------------------------------------------
