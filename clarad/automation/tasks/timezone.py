"""Finds time zones by name, and converts their local times to UTC."""

import warnings
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

import tzlocal

from clarad.automation.config.values import nearest

# Python's own documentation names KeyError; `Europe` is a directory, and `../x` a bad value.
_NOT_FOUND: Final = (KeyError, ValueError, OSError)


def find(name: str) -> ZoneInfo:
    """Return the time zone of this name.

    Raises:
        ValueError: there is none; the text says what to write.
    """
    try:
        return ZoneInfo(name)
    except _NOT_FOUND:
        close = _nearest(name)
    raise ValueError(
        f"did you mean {close}?" if close else "write a name such as Europe/Berlin or UTC"
    )


def of_machine() -> ZoneInfo:
    """Return the time zone that TZ or /etc names now; UTC if neither names one.

    Raises:
        ValueError: they say something that cannot be used; the text is one sentence.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of taking UTC
            return _kept(tzlocal.reload_localzone().key)
    except _NOT_FOUND:
        raise ValueError(
            "this machine's time zone cannot be told: set TZ to a name such as Europe/Berlin"
        ) from None


def instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the time in UTC at which the clocks of a zone show the naive time `wall`.

    What they show twice is the first time; what they skip is the moment at which they skip it.

    Raises:
        OverflowError: it is not within the years 1 to 9999.
    """

    def shown_at(time: datetime) -> datetime:
        return time.astimezone(zone).replace(tzinfo=None)

    at = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if shown_at(at) == wall:
        return at
    # PEP 495: read with the offset of before the clocks were put forward, a time that they skip
    # is after that moment, and with the other offset before it. Clocks change at full seconds.
    early = wall.replace(tzinfo=zone, fold=1, microsecond=0).astimezone(UTC)
    span = range(int((at - early).total_seconds()) + 1)
    second = timedelta(seconds=1)
    return early + second * bisect_left(
        span, True, key=lambda seconds: shown_at(early + second * seconds) >= wall
    )


@cache
def _kept(key: str) -> ZoneInfo:
    """Return the machine's zone, the same object each time.

    Two that were read from a file, as tzlocal does if /etc/localtime has no name, are never equal,
    and with them no two tasks would be.
    """
    try:
        return ZoneInfo(key)
    except _NOT_FOUND:
        return tzlocal.get_localzone()


def _nearest(name: str) -> str | None:
    zones, cities = _names()
    word = name.replace(" ", "_")
    city = word.rpartition("/")[2]
    if city.lower() in cities:
        return cities[city.lower()]
    # Near enough: PST is like MST, and Europe like Faeroe.
    if "/" in word:
        return nearest(word, zones, cutoff=0.8)
    close = nearest(city, tuple(cities), cutoff=0.8)
    return cities[close] if close else None


@cache
def _names() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of all zones, and of those named after a city, by the city."""
    zones = tuple(sorted(available_timezones()))
    cities = {
        zone.rpartition("/")[2].lower(): zone
        for zone in zones
        if "/" in zone and not zone.startswith("Etc/")
    }
    return zones, cities
