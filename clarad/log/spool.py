"""The log's bounded queue, and the thread that writes its records.

No journal, terminal or pipe can make the event loop wait. (Rejected: a handler that writes at once.
A frozen journald stalls the loop after some 400 messages.)
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
"""Records that wait at most; more are dropped and counted. The thread can have as many again."""

PAUSE: Final = 0.02
"""Seconds between two writes; records that arrive in between are written together."""

FLUSH: Final = 2.0
"""Seconds that a close waits for queued records: a frozen journal must not hang the stop."""

_LOGGER: Final = __name__


class Writer(Protocol):
    """Where records go; called in the spool's thread."""

    def write(self, records: Sequence[Record], closing: threading.Event) -> int:
        """Write the records, however long that takes; return how many are lost.

        Once `closing` is set, do not wait for a journal that may never come back.
        """


class Spool:
    """The queue and its thread. `put` may be called in any thread, and in a signal handler."""

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
        # A daemon thread: the end of the process must not wait for a frozen journald.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, item: Record | Event) -> None:
        """Queue a record, or count it as dropped if the queue is full. Never blocks."""
        with self._changed:
            if len(self._queue) >= self._capacity:
                self._dropped += 1
                return
            self._queue.append(item)
            if len(self._queue) == 1:
                self._changed.notify()

    def close(self, timeout: float = FLUSH) -> bool:
        """Write queued records for at most `timeout` seconds; return whether all were written.

        Records that are put in afterwards are lost.
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
        except Exception as error:  # the records behind this one must still be written
            return _of_failure(error)


def _of_dropped(count: int) -> Record:
    text = f"{count} records of the log were dropped: too many at once"
    entry = catalogue.RECORDS_DROPPED
    return Record(time.time(), logging.WARNING, _LOGGER, text, entry, {"CLARA_DROPPED": count})


def _of_failure(error: Exception) -> Record:
    text = plain(f"a record could not be written ({type(error).__name__}); this is a bug")
    return Record(time.time(), logging.ERROR, _LOGGER, text, catalogue.INTERNAL_ERROR)
