"""What the log costs the loop for each event; what becomes of it is the business of a thread."""

import logging
import os
import time
from typing import Any, Final

from bench.report import Figure, number, show
from clarad.events import Bus, Event, EventType, Subscriber
from clarad.log.events import EventLog
from clarad.log.redaction import Redactor
from clarad.log.spool import Spool, Writer
from clarad.log.writers import Json, Text

_EVENTS = 1_000
_ROUNDS = 30
_PAUSE_SECONDS = 0.1
_ABOUT: Final[dict[str, Any]] = {
    "platform": "discord",
    "node_id": "discord-adapter",
    "user_id": "discord-1234",
    "channel_id": "channel-1",
    "request_id": "message-1",
    "session_id": "session-1",
    "data": {"outcome": "completed", "duration": 0.25, "text": "An answer. " * 20},
}


class _Nobody:
    """A subscriber that does nothing."""

    types = frozenset(EventType)

    def offer(self, event: Event) -> None:
        """Do nothing."""


def run() -> list[Figure]:
    """Measure events that are logged to nowhere, and events that are not, and print both."""
    logging.getLogger().setLevel(logging.INFO)
    with open(os.devnull, "w") as nowhere:
        floor, _ = _publish(_Nobody())
        text, text_all = _log(Text(nowhere.fileno(), colours=False))
        json, json_all = _log(Json(nowhere.fileno()))
    show(
        f"Logging, best of {_ROUNDS} rounds of {_EVENTS} events, us of CPU for each",
        ["", "loop", "all threads"],
        [
            ["published, not logged", number(floor), number(floor)],
            ["logged as text", number(text), number(text_all)],
            ["logged as JSON", number(json), number(json_all)],
        ],
    )
    return [Figure("an event in the log, CPU of the loop", text - floor, "us")]


def _log(writer: Writer) -> tuple[float, float]:
    redactor = Redactor()
    redactor.hide(["a-secret-of-the-gateway", "a-password-of-the-database"])
    spool = Spool(writer, redactor.redact)
    try:
        return _publish(EventLog(spool.put))
    finally:
        spool.close()


def _publish(subscriber: Subscriber) -> tuple[float, float]:
    """Return the microseconds of an event in this thread, and in all, until it is written."""
    bus = Bus()
    loop: list[float] = []
    everything: list[float] = []
    with bus.attach(subscriber):
        for _ in range(_ROUNDS):
            thread, process = time.thread_time(), time.process_time()
            for _ in range(_EVENTS):
                bus.publish(EventType.MESSAGE_SENT, **_ABOUT)
            loop.append(time.thread_time() - thread)
            time.sleep(_PAUSE_SECONDS)
            everything.append(time.process_time() - process)
    return min(loop) / _EVENTS * 1e6, min(everything) / _EVENTS * 1e6
