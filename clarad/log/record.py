"""A record of the log, whatever format it is written in."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from clarad.systemd.catalogue import Entry
from clarad.systemd.journal import NAME

NOTICE: Final = 25
"""The level of important changes of state: between `INFO` and `WARNING`, as in syslog."""

logging.addLevelName(NOTICE, "NOTICE")

Scalar = str | int | float
_SCALARS: Final = (str, int, float)
_formatter: Final = logging.Formatter()


class Record(NamedTuple):
    """One record; `when` is in seconds since 1970, and `fields` have their whole names.

    `message` can have lines after the first: a traceback, for one.
    """

    when: float
    level: int
    logger: str
    message: str
    entry: Entry | None = None
    fields: Mapping[str, Scalar] = {}
    code: tuple[str, int, str] | None = None
    """File, line and function."""


def of_logging(record: logging.LogRecord) -> Record:
    """Return a record of `logging`, with its text formatted: later changes do not affect it."""
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + _formatter.formatException(record.exc_info)
    if record.stack_info:
        message += "\n" + record.stack_info
    return Record(
        record.created,
        record.levelno,
        record.name,
        plain(message),
        getattr(record, "entry", None),
        named(getattr(record, "fields", {})),
        (record.pathname, record.lineno, record.funcName or ""),
    )


def named(fields: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the fields that are single values, by their names in the journal."""
    found: dict[str, Scalar] = {}
    for key, value in fields.items():
        if isinstance(value, _SCALARS) and (name := _name(key)) is not None:
            found[name] = value
    return found


@lru_cache(1000)  # names are chosen by code: there are not many
def _name(key: str) -> str | None:
    name = f"CLARA_{key.upper()}"
    return name if NAME.fullmatch(name) else None


def plain(text: str) -> str:
    """Return the text with escape sequences for control characters; line breaks stay.

    They could steer a terminal, and journalctl hides a text that has any.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return "    " if character == "\t" else ascii(character)[1:-1]
