"""What has to be so after all, whatever went wrong."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, text

from clarad.store.models import HookRunRow, MessageRow, TaskRunRow
from tests.soak.automation import INTERVALS
from tests.soak.ledger import Asked, Ledger
from tests.soak.users import PLATFORM


class Acts:
    """What commands have really done: one byte a time in a file of each kind and id."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def times(self, kind: str, name: str) -> int:
        """Return how often it was done."""
        path = self._directory / f"{kind}-{name}"
        return path.stat().st_size if path.exists() else 0

    def moment(self, kind: str, name: str) -> int | None:
        """Return when it was done last, in nanoseconds."""
        path = self._directory / f"{kind}-{name}"
        return path.stat().st_mtime_ns if path.exists() else None


def broken(
    engine: Engine, ledger: Ledger, acts: Acts, once: Sequence[datetime] = ()
) -> Iterator[str]:
    """Say in one line each which promises were not kept; `once` is when the one-shots were due."""
    with engine.connect() as connection:
        yield from _torn(connection)
        messages = connection.execute(_MESSAGES).all()
        hooks = connection.execute(select(*HookRunRow.__table__.columns)).all()
        tasks = connection.execute(select(*TaskRunRow.__table__.columns)).all()
    yield from ledger.broken
    yield from _messages(messages, ledger, acts)
    yield from _order(messages, ledger, acts)
    yield from _runs("hook", hooks, acts)
    yield from _runs("task", [row for row in tasks if row.task != "hang"], acts)
    yield from _hooks_once(hooks)
    yield from _occurrences(tasks)
    yield from _one_shots(tasks, once)


def broken_so_far(engine: Engine, told: Sequence[Asked]) -> list[str]:
    """Say which of these ends the store does not know, or knows otherwise, and if it is torn."""
    these = _MESSAGES.where(MessageRow.request_id.in_([message.id for message in told]))
    with engine.connect() as connection:
        torn = list(_torn(connection))
        stored = {row.request_id: row for row in connection.execute(these)}
    return [*torn, *_told_otherwise(told, stored)]


def gaps(engine: Engine, once: Sequence[datetime] = ()) -> list[str]:
    """Say which occurrences have no row; `once` is as for `broken`."""
    columns = TaskRunRow.task, TaskRunRow.nominal_at
    with engine.connect() as connection:
        rows = connection.execute(select(*columns)).all()
    return [*_occurrences(rows), *_one_shots(rows, once)]


_MESSAGES: Final = select(
    MessageRow.id, MessageRow.channel_id, MessageRow.request_id, MessageRow.outcome
).where(MessageRow.platform == PLATFORM)
"""Of the users; who sends rubbish may lose what it likes."""


def _torn(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        said = connection.execute(text("PRAGMA integrity_check")).scalars().all()
        if said != ["ok"]:
            yield f"PRAGMA integrity_check: {said}"


def _messages(rows: Sequence[Any], ledger: Ledger, acts: Acts) -> Iterator[str]:
    """Each was answered once, as it is written down, and was run once at the most."""
    stored = {row.request_id: row for row in rows}
    if len(stored) != len(rows):
        yield f"{len(rows) - len(stored)} messages have more than one row"
    for message in ledger.lost:
        found = stored.get(message.id)
        yield f"lost: {message.id}, {'no row' if found is None else f'stored as {found.outcome}'}"
    for message in ledger.answered_twice:
        yield f"answered twice: {message.outcomes}"
    told = [message for message in ledger.asked.values() if message.outcomes]
    yield from _told_otherwise(told, stored)
    for message in ledger.asked.values():
        if acts.times("begun", message.id) > 1 or acts.times("ended", message.id) > 1:
            yield f"{message.id} was run twice"
    for request_id in stored.keys() - ledger.asked.keys():
        yield f"{request_id} is in the store, and nobody asked it"


def _told_otherwise(told: Sequence[Asked], stored: Mapping[str, Any]) -> Iterator[str]:
    """What was told of the end of a message was committed before."""
    for message in told:
        row = stored.get(message.id)
        if row is None:
            yield f"{message.id} was answered and has no row: {message.outcomes}"
        elif row.outcome != message.outcome:
            yield f"{message.id} is stored as {row.outcome}, and was told as {message.outcomes}"
        elif message.outcome == "failed":
            yield f"{message.id} failed, and nothing was wrong with it: {message.outcomes}"


def _order(rows: Sequence[Any], ledger: Ledger, acts: Acts) -> Iterator[str]:
    """In each channel one ran after the other, in the order in which they were asked."""
    in_order = sorted(rows, key=lambda row: (row.channel_id, row.id))
    for channel, group in groupby(in_order, key=lambda row: row.channel_id):
        members = [row.request_id for row in group]
        asked = [
            ledger.asked[member].number for member in members if not ledger.asked[member].refusals
        ]
        if asked != sorted(asked):
            yield f"the messages of {channel} were not taken in the order in which they came"
        ran = [member for member in members if acts.times("begun", member)]
        for before, after in pairwise(ran):
            begun = acts.moment("begun", before) or 0
            ended = acts.moment("ended", before) or begun
            if (acts.moment("begun", after) or 0) < max(begun, ended):
                yield f"{after} was begun before {before} had ended"


def _runs(kind: str, rows: Sequence[Any], acts: Acts) -> Iterator[str]:
    """Each has one outcome, and has acted as often as that says."""
    for row in rows:
        acted = acts.times(kind, row.run_id)
        if row.ended_at is None:
            yield f"{kind} run {row.run_id} has not ended"
        elif acted > row.attempts:
            yield f"{kind} run {row.run_id} acted {acted} times in {row.attempts} attempts"
        elif row.outcome == "ran" and not acted:
            yield f"{kind} run {row.run_id} is said to have run, and has not"
        elif row.outcome in ("failed", "timed_out"):
            yield f"{kind} run {row.run_id} ended as {row.outcome}: {row.reason}"


def _hooks_once(rows: Sequence[Any]) -> Iterator[str]:
    """Each hook had one run for what happened: to a message, to a session, or by a task's run."""
    about: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        event = json.loads(row.event)
        about[row.hook, event["type"], _subject(event)] += 1
    for (hook, kind, subject), times in about.items():
        if times > 1:
            yield f"hook {hook} has {times} runs for {kind} of {subject}"


def _subject(event: dict[str, Any]) -> str:
    return str(event["request_id"] or event["session_id"] or event["data"]["run"])


def _occurrences(rows: Sequence[Any]) -> Iterator[str]:
    """Each occurrence from the first to the last has one row."""
    for task, interval in INTERVALS.items():
        times = sorted(row.nominal_at for row in rows if row.task == task)
        for before, after in pairwise(times):
            if after - before != timedelta(seconds=interval):
                yield f"task {task} has nothing between {before} and {after}"


def _one_shots(rows: Sequence[Any], once: Sequence[datetime]) -> Iterator[str]:
    for number, due_at in enumerate(once):
        times = sum(row.task == f"once-{number}" for row in rows)
        if times != 1:
            yield f"task once-{number} was due once, at {due_at}, and has {times} rows"
