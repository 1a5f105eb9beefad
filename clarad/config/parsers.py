"""Reads the values of settings. Each raises `ValueError`, with what to write instead."""

import difflib
from pathlib import Path
from typing import Final

from clarad.limits.rate import Rate

RESPONDERS: Final = ("echo", "command", "tools")
LOG_FORMATS: Final = ("auto", "text", "json", "journal")

_DATABASE_FORMS: Final = (
    "write sqlite or postgresql, as sqlite:////path/file.db or postgresql://user@host:port/name"
)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = 36_500 * 86400  # a hundred years, and far from where dates end


def path(text: str) -> Path:
    """Read a path, as an absolute one; `~` is somebody's home."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("nobody knows where this home is; write the whole path") from None


def database_url(text: str) -> str:
    """Read a URL for SQLAlchemy, which wants the driver named.

    `postgres://` is what hosting services hand out.
    """
    # Imported only where the variable is set: `clarad chat` can do without.
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(_DATABASE_FORMS) from None
    match url.drivername:
        case "postgres" | "postgresql" | "postgresql+psycopg":
            url = url.set(drivername="postgresql+psycopg")
        case "sqlite" | "sqlite+pysqlite":
            if url.host is not None:
                raise ValueError(_DATABASE_FORMS)
            in_memory = not url.database or url.database.startswith((":memory:", "file:"))
            if in_memory or url.query.get("mode") == "memory":
                raise ValueError("a database in memory is lost at every stop; name a file")
            url = url.set(drivername="sqlite")
        case _:
            raise ValueError(_DATABASE_FORMS)
    return url.render_as_string(hide_password=False)


def host(text: str) -> str:
    """Read what to listen on: an address, or a name."""
    try:
        text.encode("idna")
    except UnicodeError:
        raise ValueError("no host can be called so; write an address, such as 127.0.0.1") from None
    return text


def port(text: str) -> int:
    """Read a TCP port; 0 is any free one."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError("write a number from 0 (any free port) to 65535")
    return int(text)


def count(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("write a whole number from 1")
    return int(text)


def rate(text: str) -> Rate:
    """Read how many messages are let in a minute, and at once."""
    per_minute, slash, at_once = text.partition("/")
    try:
        rate = count(per_minute)
        return Rate(rate, count(at_once) if slash else rate)
    except ValueError:
        raise ValueError(
            "write messages a minute, such as 60, or 60/10 for no more than 10 at once"
        ) from None


def seconds_or_zero(text: str) -> float:
    """Read a number of seconds, which may be 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError("write a number of seconds, such as 30 or 0.5")
    return value


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    value = seconds_or_zero(text)
    if value == 0:
        raise ValueError("write a number of seconds above 0")
    return value


def period(text: str) -> float | None:
    """Read how long to keep something, in seconds; `None` is for as long as there is room."""
    if text.lower() == "forever":
        return None
    number, unit = text[:-1], _UNITS.get(text[-1:])
    is_number = number.isascii() and number.isdigit() and len(number) <= 9
    seconds = int(number) * unit if is_number and unit is not None else 0
    if not 0 < seconds <= _LONGEST:
        raise ValueError(
            "write a whole number with its unit, s, m, h or d, such as 90d; or forever"
        )
    return float(seconds)


def switch(text: str) -> bool:
    """Read whether something is on."""
    switch = {"1": True, "true": True, "yes": True, "on": True}
    switch |= {"0": False, "false": False, "no": False, "off": False}
    if text.lower() not in switch:
        raise ValueError("write 1 or 0")
    return switch[text.lower()]


def _choice(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        close = difflib.get_close_matches(text, choices, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{hint}write one of {', '.join(choices)}")
    return text


def responder(text: str) -> str:
    """Read which responder answers."""
    return _choice(text, RESPONDERS)


def log_level(text: str) -> str:
    """Read the least level that is logged."""
    return _choice(text.upper(), ("DEBUG", "INFO", "WARNING", "ERROR"))


def log_format(text: str) -> str:
    """Read how records are written."""
    return _choice(text.lower(), LOG_FORMATS)


def origins(text: str) -> frozenset[str]:
    """Read the origins of pages that may connect, separated by commas."""
    origins = [origin.strip().rstrip("/") for origin in text.split(",") if origin.strip()]
    for origin in origins:
        if "://" not in origin:
            raise ValueError(
                f"write {origin!r} with its scheme, such as https://chat.example.org; "
                "separate several with commas"
            )
    return frozenset(origin.lower() for origin in origins)
