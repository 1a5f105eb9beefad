"""The log: to the journal with its fields, as readable lines in a terminal, or as JSON.

The log has all that clarad and its libraries pass to `logging` and `warnings`, and the events of
the bus, in one order: all go through one bounded queue, and one thread writes them (`spool`).
"""

import logging
import os
import sys
from collections.abc import Iterable
from typing import Final

from clarad.log.events import EventLog
from clarad.log.record import NOTICE, of_logging
from clarad.log.redaction import Redactor
from clarad.log.spool import FLUSH, Spool, Writer
from clarad.log.writers import Json, Native, Text
from clarad.systemd import catalogue, journal

__all__ = [
    "NOTICE",
    "close",
    "event_log",
    "hide",
    "is_for_people",
    "set_level",
    "set_up",
]

OUTPUT: Final = "clarad.output"
"""The logger of what commands of hooks and tasks write."""

log = logging.getLogger(__name__)


class _Handler(logging.Handler):
    """Puts the records of `logging` into the spool. `logging` closes it when the process ends."""

    def __init__(self, writer: Writer, redactor: Redactor, *, for_people: bool) -> None:
        super().__init__()
        self.redactor = redactor
        self.for_people = for_people
        self._writer = writer
        self.spool = Spool(writer, redactor.redact)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.spool.put(of_logging(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        super().close()
        if self.spool.close(FLUSH) and isinstance(self._writer, Native):
            self._writer.drain(FLUSH)


def set_up(level: str, style: str = "auto", secrets: Iterable[str] = ()) -> None:
    """Write everything from `level` on; `secrets` never appear in it.

    `style` is `text`, `json`, `journal`, or `auto`: the journal if standard error leads there, and
    text otherwise.
    """
    for chatty in ("alembic", "httpcore", "httpx", "trio-websocket"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    redactor = Redactor()
    redactor.hide(secrets)
    writer, trouble = _choose(style)
    for_people = isinstance(writer, Text)
    logging.getLogger().addHandler(_Handler(writer, redactor, for_people=for_people))
    set_level(level)
    if trouble:
        log.warning("%s", trouble, extra=catalogue.NO_JOURNAL.about())


def set_level(level: str) -> None:
    """Write everything from `level` on, from now on."""
    logging.getLogger().setLevel(level)
    # What commands write is for the journal; in a terminal it would hide what the daemon says.
    is_wanted = level == "DEBUG" or not is_for_people()
    logging.getLogger(OUTPUT).setLevel(logging.NOTSET if is_wanted else logging.CRITICAL)


def hide(secrets: Iterable[str]) -> None:
    """Redact these secrets from now on."""
    if (handler := _find()) is not None:
        handler.redactor.hide(secrets)


def is_for_people() -> bool:
    """Whether the log is readable lines, or not set up."""
    handler = _find()
    return handler is None or handler.for_people


def event_log() -> EventLog:
    """Return the bus's subscriber that logs events; it wants none if the log is not set up."""
    handler = _find()
    return EventLog(None if handler is None else handler.spool.put)


def close() -> None:
    """Write what is queued, for at most `FLUSH` seconds, and end."""
    if (handler := _find()) is not None:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        handler.close()


def _find() -> _Handler | None:
    # `logging` is the process's own, and so is its handler: it is kept there, and nowhere else.
    return next((h for h in logging.getLogger().handlers if isinstance(h, _Handler)), None)


def _choose(style: str) -> tuple[Writer, str]:
    """Return the writer, and a sentence if it is not the one that was wanted."""
    fd = _standard_error()
    if style == "json":
        return Json(fd), ""
    trouble = ""
    if style == "journal" or (style == "auto" and journal.is_connected(os.environ, fd)):
        try:
            return Native(journal.Journal(journal.SOCKET)), ""
        except OSError as error:
            trouble = (
                f"the journal cannot be reached at {journal.SOCKET} ({error.strerror}): the log "
                "goes to standard error, as text"
            )
    is_steered = os.isatty(fd) and os.environ.get("TERM") != "dumb"
    # https://no-color.org: whatever it is, if it is not empty
    return Text(fd, colours=is_steered and not os.environ.get("NO_COLOR")), trouble


def _standard_error() -> int:
    """Return its descriptor; if it was closed before the start, 2 may be the database by now."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError):
        return os.open(os.devnull, os.O_WRONLY)
