"""The formats of the log: text, JSON, and the journal's. All run in the thread of the spool."""

import json
import os
import select
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING, getLevelName
from typing import Final

import msgspec

from clarad.log.record import NOTICE, Record, Scalar
from clarad.systemd.journal import Journal, encode

RETRY: Final = 0.5
"""Seconds until the next try if no journald listens: it is being restarted."""

_PRIORITIES: Final = {CRITICAL: 2, ERROR: 3, WARNING: 4, NOTICE: 5, INFO: 6, DEBUG: 7}  # syslog(3)
_COLOURS: Final = {
    CRITICAL: "\x1b[1;31m",
    ERROR: "\x1b[31m",
    WARNING: "\x1b[33m",
    NOTICE: "\x1b[1m",
    DEBUG: "\x1b[2m",
}
_PLAIN: Final = "\x1b[0m"
_INDENT: Final = "\n    "


class Text:
    """A line for each record; further lines of it are indented: no text can forge a record."""

    def __init__(self, fd: int, *, colours: bool) -> None:
        """Write to `fd`."""
        self._fd = fd
        self._colours = colours

    def write(self, records: Sequence[Record], _closing: threading.Event) -> int:
        """Write them at once."""
        _write(self._fd, "".join(map(self._line, records)))
        return 0

    def _line(self, record: Record) -> str:
        when = datetime.fromtimestamp(record.when).isoformat(" ", "milliseconds").replace(".", ",")
        level = f"{getLevelName(record.level):7}"
        if self._colours and (colour := _COLOURS.get(record.level)):
            level = f"{colour}{level}{_PLAIN}"
        return f"{when} {level} {record.message.rstrip().replace(chr(10), _INDENT)}\n"


class Json:
    """One JSON object a line, with the fields of the journal in small letters."""

    def __init__(self, fd: int) -> None:
        """Write to `fd`."""
        self._fd = fd

    def write(self, records: Sequence[Record], _closing: threading.Event) -> int:
        """Write them at once."""
        _write(self._fd, "".join(map(_json, records)))
        return 0


class Native:
    """The journal, in its own protocol."""

    def __init__(self, journal: Journal) -> None:
        """Write to `journal`."""
        self._journal = journal

    def write(self, records: Sequence[Record], closing: threading.Event) -> int:
        """Send the records one by one; wait for a journald that is being restarted."""
        return sum(not self._hand_over(record, closing) for record in records)

    def drain(self, timeout: float) -> None:
        """Wait, before the process ends, until journald has read the records."""
        self._journal.drain(timeout)

    def _hand_over(self, record: Record, closing: threading.Event) -> bool:
        data = encode((name, str(value)) for name, value in fields_of(record).items())
        while True:
            try:
                self._journal.send(data)
            except (ConnectionRefusedError, FileNotFoundError):
                if closing.wait(RETRY):
                    return False
            except OSError:
                return False
            else:
                return True


def fields_of(record: Record) -> Mapping[str, Scalar]:
    """Return all fields of a record, by their names in the journal (systemd.journal-fields(7))."""
    fields: dict[str, Scalar] = {
        "MESSAGE": record.message,
        "PRIORITY": _PRIORITIES.get(record.level, 6),
        "SYSLOG_IDENTIFIER": "clarad",
        "LOGGER": record.logger,
        # journald's own timestamp is when it received the record, which may have waited.
        "CLARA_TIMESTAMP": datetime.fromtimestamp(record.when, UTC).isoformat(),
    }
    if record.entry is not None:
        fields["MESSAGE_ID"] = record.entry.message_id
    if record.code is not None:
        fields["CODE_FILE"], fields["CODE_LINE"], fields["CODE_FUNC"] = record.code
    return {**record.fields, **fields}


def _json(record: Record) -> str:
    fields = {name.lower(): value for name, value in fields_of(record).items()}
    when = fields.pop("clara_timestamp")
    level = getLevelName(record.level).lower()
    shown = {"timestamp": when, "level": level, "message": fields.pop("message"), **fields}
    with suppress(UnicodeEncodeError):  # half a surrogate pair
        line = msgspec.json.encode(shown).decode()
        if line.isprintable():
            return line + "\n"
    return json.dumps(shown) + "\n"  # in ASCII: nothing in it can steer a terminal


def _write(fd: int, text: str) -> None:
    """Write the whole text, and wait as long as that takes.

    An error is dropped: there is nowhere left to report that standard error fails.
    """
    left = memoryview(text.encode(errors="backslashreplace"))
    with suppress(OSError):
        while left:
            try:
                left = left[os.write(fd, left) :]
            except BlockingIOError:  # whoever shares the terminal with us has made it so
                select.select([], [fd], [])
