"""The way of every record: a bounded queue, and a thread that writes.

Nothing that a journal, a terminal or a pipe does can make the loop wait. (Rejected: a handler that
writes at once. A frozen journald stalls the loop after some 400 messages.)
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from clarad.events import Event
from clarad.log.events import of_event
from clarad.log.record import Record, plain
from clarad.systemd import catalogue

CAPACITY: Final = 10_000
"""Records that wait; more are dropped and counted. As many again can be on their way out."""

PAUSE: Final = 0.02
"""Seconds between two writes; what comes in between is written together."""

FLUSH: Final = 2.0
"""Seconds that a close waits for what is queued: a journal that stands still hangs no stop."""

_LOGGER: Final = __name__


class Writer(Protocol):
    """Where records go; called in the spool's thread."""

    def write(self, records: Sequence[Record], closing: threading.Event) -> int:
        """Write them, however long that takes; return how many are lost.

        Once `closing` is set nothing is waited for that may never come.
        """


class Spool:
    """The queue and its thread. `put` may be called in any thread, and in a signal's handler."""

    def __init__(
        self,
        writer: Writer,
        redact: Callable[[Record], Record],
        capacity: int = CAPACITY,
    ) -> None:
        """Start the thread."""
        self._writer = writer
        self._redact = redact
        self._capacity = capacity
        self._queue: list[Record | Event] = []
        self._dropped = 0
        self._changed = threading.Condition()  # reentrant: a collection in `put` can warn of a leak
        self._closing = threading.Event()
        # A daemon: whoever waits for a frozen journald at the end of the process waits for ever.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, item: Record | Event) -> None:
        """Have it written, or count it as dropped if the queue is full; never blocks."""
        with self._changed:
            if len(self._queue) >= self._capacity:
                self._dropped += 1
                return
            self._queue.append(item)
            if len(self._queue) == 1:
                self._changed.notify()

    def close(self, timeout: float = FLUSH) -> bool:
        """Write what is queued, for at most `timeout` seconds; return whether all is written.

        What is put in afterwards is not written.
        """
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._dropped or self._closing.is_set()):
                    self._changed.wait()
                items, self._queue = self._queue, []
                dropped, self._dropped = self._dropped, 0
            lost = self._write([self._record(item) for item in items])
            if dropped and self._write([_of_dropped(dropped)]):
                lost += dropped
            with self._changed:
                self._dropped += lost
                if self._closing.is_set() and not self._queue:
                    return
            self._closing.wait(PAUSE)

    def _write(self, records: Sequence[Record]) -> int:
        return self._writer.write(records, self._closing) if records else 0

    def _record(self, item: Record | Event) -> Record:
        try:
            return self._redact(of_event(item) if isinstance(item, Event) else item)
        except Exception as error:  # the records behind this one are not to suffer
            return _of_failure(error)


def _of_dropped(count: int) -> Record:
    text = f"{count} records of the log were dropped: too many at once"
    entry = catalogue.RECORDS_DROPPED
    return Record(time.time(), logging.WARNING, _LOGGER, text, entry, {"CLARA_DROPPED": count})


def _of_failure(error: Exception) -> Record:
    text = plain(f"a record could not be written ({type(error).__name__}); this is a bug")
    return Record(time.time(), logging.ERROR, _LOGGER, text, catalogue.INTERNAL_ERROR)
