"""Cron expressions, meaning what they mean to Debian's cron. No I/O.

The reference is Debian's cron 3.0pl1-162: entry.c for what may be written, `find_jobs` and the
main loop in cron.c for what runs when. The rules, in its words:

1. A job is *wildcard* if its minute or its hour begins with `*` (`MIN_STAR`, `HR_STAR`; `*/2` and
   `@hourly` too), and *fixed* if not.
2. Day of month and day of week must both match if one of them begins with `*` (`DOM_STAR`,
   `DOW_STAR`), and either is enough if not.
3. The clock goes forward by less than three hours: wildcard jobs skip the gap; a fixed job that has
   times in the gap runs right after it. Cron runs it for each of these times, some seconds apart.
   Here one moment is one run, so that it runs once, also for a time that follows the gap at once.
4. The clock goes back by three hours at most: wildcard jobs run in both halves of the overlap;
   fixed jobs run in the first.
5. Anything beyond (the 30th of December 2011 that Samoa left out, say) is a new clock: nothing is
   made up for, and what is on the clock twice runs twice.

Cron takes a change of the clock by up to five minutes for a late awakening; no zone has had one
since 1970 that a job would notice, and there is no case for it here.

Stricter than cron in what cron takes and makes nonsense of: it ignores what follows a `*` or a
number (`*foo`, `5.5`), never runs on a range that goes backwards, nor on the 31st of February.

croniter walks the calendar, on naive times and with every value of every field written out.
Rejected: giving it the fields as they are written. Even when it is told to imitate cron it reads
`5-5` as the whole field, and runs `0 0 1,*/10 * 0-6` on four days of the month instead of on all;
and with aware times it gets the changes of the clock wrong. Rejected too: a calendar of our own,
six times as fast as croniter, and as much code again as the fields are.
"""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

MAX_LENGTH: Final = 500
"""Characters of an expression; one that lists every minute, hour, day and month has 358."""

NEW_CLOCK: Final = timedelta(hours=3)
"""The clock goes by this much forward, or by more back: no daylight saving (`3*MINUTE_COUNT`)."""

_NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    words: Mapping[str, int] = {}


_MONTHS: Final = "jan feb mar apr may jun jul aug sep oct nov dec"
_WEEKDAYS: Final = "sun mon tue wed thu fri sat"
_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, {word: n for n, word in enumerate(_MONTHS.split(), 1)}),
    _Field("day of week", 0, 7, {word: n for n, word in enumerate(_WEEKDAYS.split())}),
)
_ALL_MINUTES, _ALL_HOURS, _ALL_DAYS, _ALL_MONTHS, _ALL_WEEKDAYS = (
    frozenset(range(low, high + 1)) for low, high in ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
)
_LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_ITEM: Final = re.compile(
    r"(?:\*|(?P<low>[A-Za-z0-9]+)(?:-(?P<high>[A-Za-z0-9]+))?)(?:/(?P<step>[0-9]+))?"
)


class CronError(ValueError):
    """An expression that cannot be used; the text is one sentence: where, and what to write."""


class Fire(NamedTuple):
    """A moment at which to run."""

    at: datetime
    """In UTC."""
    mark: Literal["", "gap", "overlap"]
    """`gap`: for a local time that does not exist, right after the gap. `overlap`: its local time
    occurs twice."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression that has been understood. Two are equal if they are written alike."""

    text: str
    """As written."""
    _listed: str = field(compare=False, repr=False)
    """The same with every value written out, which leaves croniter nothing to misread."""
    _both_days: bool = field(compare=False, repr=False)
    """Day of month and day of week must both match."""
    _wildcard: bool = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> "Cron":
        """Understand an expression of five fields, or one of `@hourly` and the like.

        Raises:
            CronError: it is wrong, or would never run.
        """
        fields = _split(text)
        minutes, hours, days, months, weekdays = map(_values, _FIELDS, fields)
        weekdays = {day % 7 for day in weekdays}
        starred = [written.startswith("*") for written in fields]
        both_days = starred[2] or starred[4]
        longest = max(_LONGEST[month - 1] for month in months)
        if both_days and min(days) > longest:
            raise CronError(
                f"day of month: {min(days)} is in none of its months, so it would never run; "
                f"write a day up to {longest}"
            )
        return cls(
            text=text,
            _listed=" ".join(
                (
                    _list(minutes, _ALL_MINUTES),
                    _list(hours, _ALL_HOURS),
                    # Where either is enough a `*` would be taken for "not this one".
                    _list(days, _ALL_DAYS if both_days else frozenset()),
                    _list(months, _ALL_MONTHS),
                    _list(weekdays, _ALL_WEEKDAYS if both_days else frozenset()),
                )
            ),
            _both_days=both_days,
            _wildcard=starred[0] or starred[1],
        )

    def fires(self, after: datetime, zone: ZoneInfo) -> Iterator[Fire]:
        """Yield every run after the aware moment `after`, each later than the one before.

        The fields are those of a clock on a wall in `zone`. Ends with the year 9998, as near to
        never as every zone has datetimes for.
        """
        assert after.tzinfo is not None
        if after.year >= MAXYEAR:
            return
        last = after.astimezone(UTC)
        for fire in self._on_clock(_earliest_reading(last, zone), zone):
            if fire.at > last:
                last = fire.at
                yield fire

    def _on_clock(self, start: datetime, zone: ZoneInfo) -> Iterator[Fire]:
        """Yield what the clock in `zone` shows from `start` on; several may be at one moment."""
        second_half = deque[Fire]()
        for local in self._times(start):
            before, after = _offsets(local, zone)
            at = (local - before).replace(tzinfo=UTC)
            while second_half and second_half[0].at <= at:
                yield second_half.popleft()
            if before == after:
                yield Fire(at, "")
            elif before > after:
                yield Fire(at, "overlap")
                if self._wildcard or before - after > NEW_CLOCK:
                    second_half.append(Fire(at + (before - after), "overlap"))
            elif not self._wildcard and after - before < NEW_CLOCK:
                yield Fire(_end_of_gap(local, zone), "gap")
        yield from second_half

    def _times(self, start: datetime) -> Iterator[datetime]:
        """Yield the naive times from `start` on that match, as if every day had 24 hours."""
        times = croniter(
            self._listed,
            start.replace(second=0, microsecond=0) - timedelta(minutes=1),
            ret_type=datetime,
            day_or=not self._both_days,
        )
        with suppress(CroniterBadDateError):  # the last of them was before the end of time
            while (found := times.get_next(datetime)).year < MAXYEAR:
                yield found


def _offsets(local: datetime, zone: ZoneInfo) -> tuple[timedelta, timedelta]:
    """Return the offsets before and after the change of the clock that `local` is in.

    They are equal if it is in none; in a gap the second is larger, in an overlap the first
    (PEP 495).
    """
    before, after = zone.utcoffset(local), zone.utcoffset(local.replace(fold=1))
    assert before is not None
    assert after is not None
    return before, after


def _end_of_gap(local: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment after the gap that `local` is in."""
    before, after = _offsets(local, zone)
    start = (local - after).replace(tzinfo=UTC)  # still before the gap

    def is_past(seconds: int) -> bool:
        return (start + timedelta(seconds=seconds)).astimezone(zone).utcoffset() == after

    length = int((after - before).total_seconds())
    return start + timedelta(seconds=bisect_left(range(length), True, key=is_past))


def _earliest_reading(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return the earliest time that the clock in `zone` shows from `moment` on."""
    local = moment.astimezone(zone).replace(tzinfo=None, fold=0)
    before, after = _offsets(local, zone)
    return local - max(before - after, timedelta(0))


def _split(text: str) -> list[str]:
    """Return the five fields."""
    if len(text) > MAX_LENGTH:
        raise CronError(
            f"a cron expression has at most {MAX_LENGTH} characters; write a shorter one"
        )
    stripped = text.strip()
    if stripped == "@reboot":
        raise CronError("@reboot is no time; write a one_shot task with a delay instead")
    if stripped.startswith("@") and stripped not in _NICKNAMES:
        raise CronError(f"{_shown(stripped)} is not known; write one of {', '.join(_NICKNAMES)}")
    fields = re.split("[ \t]+", _NICKNAMES.get(stripped, stripped))
    if len(fields) != len(_FIELDS):
        raise CronError(
            f"write five fields ({', '.join(spec.name for spec in _FIELDS)}), "
            f"not {len(fields) if stripped else 0}; cron knows no seconds and no years"
        )
    return fields


def _values(spec: _Field, text: str) -> set[int]:
    """Return what a field stands for."""
    return {value for item in text.split(",") for value in _range(spec, item)}


def _range(spec: _Field, item: str) -> range:
    """Return what one of the places between the commas of a field stands for."""
    match = _ITEM.fullmatch(item)
    if match is None:
        raise CronError(
            f"{spec.name}: {_shown(item)} means nothing to cron; write *, a number, "
            f"a range such as {spec.low}-{spec.high}, or a step such as */2"
        )
    low_text, high_text, step_text = match["low"], match["high"], match["step"]
    step = int(step_text or 1)
    if step == 0:
        raise CronError(f"{spec.name}: a step of 0 leads nowhere; write a step from 1")
    if low_text is None:
        return range(spec.low, spec.high + 1, step)
    low = _number(spec, low_text)
    if high_text is None:
        if step_text is not None:
            raise CronError(
                f"{spec.name}: a step needs a range; write {low}-{spec.high}/{step_text}"
            )
        return range(low, low + 1)
    high = _number(spec, high_text)
    if low > high:
        raise CronError(
            f"{spec.name}: the range {low_text}-{high_text} goes backwards; "
            f"write {_span(low, spec.high)},{_span(spec.low, high)}"
        )
    return range(low, high + 1, step)


def _number(spec: _Field, text: str) -> int:
    """Return the number or the name that is one end of a range."""
    value = spec.words.get(text.lower(), -1)
    if text.isdigit():
        value = int(text)
    if not spec.low <= value <= spec.high:
        names = f" or one of {', '.join(spec.words)}" if spec.words else ""
        raise CronError(
            f"{spec.name}: {_shown(text)} is no {spec.name}; "
            f"write a number from {spec.low} to {spec.high}{names}"
        )
    return value


def _list(values: set[int], all_values: frozenset[int]) -> str:
    """Return the values as a field of cron; all of them are a `*`, which costs croniter less."""
    return "*" if values == all_values else ",".join(map(str, sorted(values)))


def _span(low: int, high: int) -> str:
    """Return a range as it is written."""
    return f"{low}-{high}" if low < high else str(low)


def _shown(text: str) -> str:
    """Return the text as it can be shown: printable, and short."""
    return repr(text if len(text) <= 20 else text[:19] + "…")
