"""The log of the bus's events: a line, or a record with its fields, for each."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

import msgspec

from clarad.events import Event, EventType
from clarad.log.record import Record, Scalar, named
from clarad.systemd import catalogue
from clarad.systemd.catalogue import Entry

LOGGER: Final = "clarad.event"
log = logging.getLogger(LOGGER)


class _Kind(NamedTuple):
    entry: Entry
    level: int = logging.INFO


_KINDS: Final = {
    # "listening on …" says the same, and what to do
    EventType.GATEWAY_STARTUP: _Kind(catalogue.GATEWAY_STARTUP, logging.DEBUG),
    EventType.GATEWAY_SHUTDOWN: _Kind(catalogue.GATEWAY_SHUTDOWN),
    EventType.ADAPTER_CONNECTED: _Kind(catalogue.ADAPTER_CONNECTED),
    EventType.ADAPTER_DISCONNECTED: _Kind(catalogue.ADAPTER_DISCONNECTED),
    EventType.SESSION_START: _Kind(catalogue.SESSION_START),
    EventType.SESSION_END: _Kind(catalogue.SESSION_END),
    EventType.SESSION_TIMEOUT: _Kind(catalogue.SESSION_TIMEOUT),
    EventType.MESSAGE_RECEIVED: _Kind(catalogue.MESSAGE_RECEIVED, logging.DEBUG),
    EventType.MESSAGE_SENT: _Kind(catalogue.MESSAGE_SENT),
    EventType.MESSAGE_CANCELLED: _Kind(catalogue.MESSAGE_CANCELLED),
    EventType.TOOL_START: _Kind(catalogue.TOOL_START),
    EventType.TOOL_END: _Kind(catalogue.TOOL_END),
    EventType.TOOL_ERROR: _Kind(catalogue.TOOL_ERROR, logging.WARNING),
    EventType.SCHEDULER_TASK_RUN: _Kind(catalogue.TASK_STARTED),
    EventType.SCHEDULER_TASK_ERROR: _Kind(catalogue.TASK_ATTEMPT_FAILED, logging.WARNING),
}
_FAILED: Final = _Kind(catalogue.MESSAGE_FAILED, logging.WARNING)
_TIMED_OUT: Final = _Kind(catalogue.MESSAGE_TIMED_OUT, logging.WARNING)
_GIVEN_UP: Final = _Kind(catalogue.MESSAGE_CANCELLED, logging.WARNING)
_NOT_BY_A_USER: Final = frozenset({"session", "daemon"})
_HIGHEST: Final = {
    EventType.MESSAGE_SENT: logging.WARNING,
    EventType.MESSAGE_CANCELLED: logging.WARNING,
}
"""The highest level that an event of a type can have, if that depends on its data."""

_IDS: Final = tuple(
    (name, name.removesuffix("_id"), f"CLARA_{name.upper()}")
    for name in ("platform", "node_id", "user_id", "channel_id", "request_id", "session_id")
)

# The log has no text of users, and no output of commands: the runs in the store have that, and the
# logger `clarad.output`.
_PRIVATE: Final = frozenset({"content", "text", "output", "output_preview", "description"})


class EventLog:
    """A subscriber of the bus. An event becomes text in the writer's thread, not in the loop."""

    def __init__(self, put: Callable[[Event], None] | None) -> None:
        """`put` must not block; without it, this subscribes to no events."""
        self._put = put

    @property
    def types(self) -> frozenset[EventType]:
        """The types that are logged at the current level, which may change."""
        return frozenset() if self._put is None else _types(log.getEffectiveLevel())

    def offer(self, event: Event) -> None:
        """Have the event written, if the current level includes it."""
        assert self._put is not None
        if event.type not in _HIGHEST or log.isEnabledFor(_kind(event).level):
            self._put(_public(event))


@cache
def _types(level: int) -> frozenset[EventType]:
    return frozenset(t for t in EventType if _HIGHEST.get(t, _KINDS[t].level) >= level)


def _public(event: Event) -> Event:
    """Return the event without its private data: an answer of 4 MiB must not wait in the queue."""
    if _PRIVATE.isdisjoint(event.data):
        return event
    public = {name: value for name, value in event.data.items() if name not in _PRIVATE}
    return msgspec.structs.replace(event, data=public)


def _kind(event: Event) -> _Kind:
    if event.type is EventType.MESSAGE_SENT and event.data.get("outcome") != "completed":
        return _FAILED
    if event.type is EventType.MESSAGE_CANCELLED and event.data.get("reason") == "timeout":
        return _TIMED_OUT
    if event.type is EventType.MESSAGE_CANCELLED and event.data.get("by") in _NOT_BY_A_USER:
        return _GIVEN_UP
    return _KINDS[event.type]


def of_event(event: Event) -> Record:
    """Return the record of an event."""
    kind = _kind(event)
    fields: dict[str, Scalar] = named(_public(event).data)
    for name, _, field in _IDS:
        if (value := getattr(event, name)) is not None:
            fields[field] = value
    fields["CLARA_EVENT_ID"], fields["CLARA_EVENT_TYPE"] = event.id, str(event.type)
    if event.caused_by:
        fields["CLARA_CAUSED_BY"] = " ".join(event.caused_by)
    when = event.timestamp.timestamp()
    return Record(when, kind.level, LOGGER, line(event), kind.entry, fields)


def line(event: Event) -> str:
    """Return the event in one line; nothing in it can forge a line or steer a terminal."""
    parts: list[str] = [event.type]
    for name, label, _ in _IDS:
        if (value := getattr(event, name)) is not None:
            parts.append(f"{label}={_plain(value)}")
    parts += [f"{k}={_plain(str(v))}" for k, v in event.data.items() if k not in _PRIVATE]
    return " ".join(parts)


def _plain(text: str) -> str:
    return text if text.isprintable() and " " not in text else repr(text)
