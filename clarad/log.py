"""The log: readable lines on standard error, and a line for each event."""

import logging
import sys
from contextlib import suppress
from typing import Final

import trio

from clarad.events import Event, EventType, Subscription

log = logging.getLogger("clarad.event")

_LEVELS: Final = {
    EventType.GATEWAY_STARTUP: logging.DEBUG,  # "listening on …" says the same, and what to do
    EventType.MESSAGE_RECEIVED: logging.DEBUG,
    EventType.MESSAGE_CANCELLED: logging.WARNING,
    EventType.TOOL_ERROR: logging.WARNING,
    EventType.SCHEDULER_TASK_ERROR: logging.WARNING,
}
_IDS: Final = ("platform", "node_id", "user_id", "channel_id", "request_id", "session_id")

# What users wrote is not for the log, nor what commands did: their runs in the store have it.
_PRIVATE: Final = frozenset({"content", "text", "output", "output_preview", "description"})

PAUSE: Final = 0.02
"""Seconds between two writes; events in between are written together."""


def set_up(level: str) -> None:
    """Send everything from `level` on to standard error."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(message)s"
    )
    for chatty in ("alembic", "httpcore", "httpx", "trio-websocket"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Log from `level` on."""
    logging.getLogger().setLevel(level)


def logged_types() -> frozenset[EventType]:
    """Return the types of event that are logged at the level that was set up."""
    return frozenset(
        kind for kind in EventType if log.isEnabledFor(_LEVELS.get(kind, logging.INFO))
    )


async def write_events(
    subscription: Subscription, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Log each event of the subscription until it is closed; those of `PAUSE` in one write.

    Cancelling writes what is there, and ends.
    """
    task_status.started()
    try:
        async for first in subscription.events:
            _write(first, subscription)
            await trio.sleep(PAUSE)
    finally:
        _write(None, subscription)


def _write(first: Event | None, subscription: Subscription) -> None:
    """Write `first` and whatever else has queued up."""
    lines = [] if first is None else [_stamped(first)]
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            lines.append(_stamped(subscription.events.receive_nowait()))
    sys.stderr.write("".join(lines))
    if dropped := subscription.take_dropped():
        log.warning("%d events were not logged: too many at once", dropped)


def _stamped(event: Event) -> str:
    """Return the line as a log record of the event's level would have it."""
    when = event.timestamp.astimezone().isoformat(" ", "milliseconds")[:23].replace(".", ",")
    level = logging.getLevelName(_LEVELS.get(event.type, logging.INFO))
    return f"{when} {level:7} {line(event)}\n"


def line(event: Event) -> str:
    """Return the event in one line; nothing in it can forge a line or steer a terminal."""
    parts: list[str] = [event.type]
    for name in _IDS:
        value = getattr(event, name)
        if value is not None:
            parts.append(f"{name.removesuffix('_id')}={_plain(value)}")
    parts += [f"{k}={_plain(str(v))}" for k, v in event.data.items() if k not in _PRIVATE]
    return " ".join(parts)


def _plain(text: str) -> str:
    return text if text.isprintable() and " " not in text else repr(text)
