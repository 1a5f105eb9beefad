"""What happens in the daemon, as events: the closed list of types, and the bus for them."""

import itertools
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct


class EventType(StrEnum):
    """The closed list. Hooks and log queries name these."""

    GATEWAY_STARTUP = "gateway:startup"
    GATEWAY_SHUTDOWN = "gateway:shutdown"
    ADAPTER_CONNECTED = "adapter:connected"
    ADAPTER_DISCONNECTED = "adapter:disconnected"
    SESSION_START = "session:start"
    SESSION_END = "session:end"
    SESSION_TIMEOUT = "session:timeout"
    MESSAGE_RECEIVED = "message:received"
    MESSAGE_SENT = "message:sent"
    MESSAGE_CANCELLED = "message:cancelled"
    TOOL_START = "tool:start"
    TOOL_END = "tool:end"
    TOOL_ERROR = "tool:error"
    SCHEDULER_TASK_RUN = "scheduler:task_run"
    SCHEDULER_TASK_ERROR = "scheduler:task_error"


class Event(Struct, frozen=True, kw_only=True):
    """One thing that happened; fields that do not apply are `None`."""

    id: str
    type: EventType
    timestamp: datetime
    node_id: str | None = None
    platform: str | None = None
    user_id: str | None = None
    channel_id: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    caused_by: tuple[str, ...] = ()
    """The runs of hooks and tasks that led to it, the nearest last."""
    data: dict[str, Any] = {}


class Subscriber(Protocol):
    """Receives events as they happen."""

    @property
    def types(self) -> frozenset[EventType]:
        """The types of event that it wants."""

    def offer(self, event: Event) -> None:
        """Take an event; must neither block nor raise."""


class Bus:
    """Offers every event to every subscriber that wants its type."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []
        boot = secrets.token_hex(8)
        self._ids = (f"event-{boot}-{n}" for n in itertools.count(1))

    @contextmanager
    def attach(self, subscriber: Subscriber) -> Iterator[None]:
        """Offer events to `subscriber` within the block."""
        self._subscribers.append(subscriber)
        try:
            yield
        finally:
            self._subscribers.remove(subscriber)

    def publish(self, event_type: EventType, **fields: Any) -> None:
        """Make an event of now and offer it; `fields` are those of `Event`. Never blocks."""
        interested = [s for s in self._subscribers if event_type in s.types]
        if interested:
            now = datetime.now(UTC)
            event = Event(id=next(self._ids), type=event_type, timestamp=now, **fields)
            for subscriber in interested:
                subscriber.offer(event)
