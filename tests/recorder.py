"""A subscriber of the bus that keeps the events for the test."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import trio

from clarad.events import Bus, Event, EventType


class Recorder:
    """Keeps events until they are received."""

    def __init__(self, types: Iterable[EventType]) -> None:
        self.types = frozenset(types)
        self._send, self.events = trio.open_memory_channel[Event](10_000)

    def offer(self, event: Event) -> None:
        """Keep an event."""
        self._send.send_nowait(event)

    def recorded(self) -> list[Event]:
        """Return the events since the last call."""
        found = []
        while self.events.statistics().current_buffer_used:
            found.append(self.events.receive_nowait())
        return found


@contextmanager
def recording(bus: Bus, types: Iterable[EventType] = EventType) -> Iterator[Recorder]:
    """Record the events of these types within the block."""
    recorder = Recorder(types)
    with bus.attach(recorder):
        yield recorder
