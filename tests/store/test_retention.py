"""What is deleted once it was kept long enough, and what never is, on SQLite and on PostgreSQL."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import pytest
import trio
from sqlalchemy import Connection, Engine, event, func, insert, select, text

from clarad.store import KEPT_FOR, Retention, StoreError, Writer
from clarad.store import retention as module
from clarad.store.models import AttachmentsRow, HookRunRow, MessageRow, TaskRow, TaskRunRow
from clarad.store.retention import ATTACHMENTS, HOOK_RUNS, MESSAGES, TASK_RUNS, Kind, Place
from tests.daemon_process import PATIENCE
from tests.migrated import migrate
from tests.postgres import SHARED
from tests.store.daemons import Share, SharedDesk

NOW: Final = datetime.now(UTC)
KEEP: Final = timedelta(days=90)
SECOND: Final = timedelta(seconds=1)
OLD: Final = NOW - KEEP - SECOND

TABLES: Final[dict[Kind, Any]] = {
    MESSAGES: MessageRow,
    HOOK_RUNS: HookRunRow,
    TASK_RUNS: TaskRunRow,
}
NAMES: Final = ["messages", "hook runs", "task runs"]
KINDS: Final = pytest.mark.parametrize("kind", list(TABLES), ids=NAMES)

Values = dict[str, Any]


def message(number: int, ended_at: datetime | None, **changed: Any) -> Values:
    return {
        "id": number,
        "platform": "test",
        "channel_id": "channel-1",
        "request_id": f"{number}",
        "node_id": "node-1",
        "user_id": "user-1",
        "session_id": "session-1",
        "frame": "{}",
        "received_at": ended_at or OLD,
        "ended_at": ended_at,
        "delivered_at": ended_at,
    } | changed


def run(number: int, ended_at: datetime | None, **changed: Any) -> Values:
    return {
        "id": number,
        "run_id": f"run-{number}",
        "caused_by": "",
        "due_at": ended_at or OLD,
        "attempts": 1,
        "ended_at": ended_at,
    } | changed


def hook_run(number: int, ended_at: datetime | None, **changed: Any) -> Values:
    event = {"event_id": "event-1", "event_type": "tool:end", "event": "{}"}
    return run(number, ended_at, hook="greet", **event) | changed


def task_run(number: int, ended_at: datetime | None, **changed: Any) -> Values:
    nominal_at = NOW - 2 * KEEP + number * SECOND
    return run(number, ended_at, task="backup", nominal_at=nominal_at, origin="schedule") | changed


MAKE: Final[dict[Kind, Callable[..., Values]]] = {
    MESSAGES: message,
    HOOK_RUNS: hook_run,
    TASK_RUNS: task_run,
}


def write(engine: Engine, table: Any, rows: Iterable[Values]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(table), list(rows))


def left(engine: Engine, kind: Kind) -> list[int]:
    row = TABLES[kind]
    with engine.connect() as connection:
        return list(connection.scalars(select(row.id).order_by(row.id)))


@pytest.fixture
async def retention(engine: Engine, nursery: trio.Nursery) -> Retention:
    """A store that serves; it ends with the test."""
    migrate(engine)
    writer = Writer(engine)
    await nursery.start(writer.run)
    return Retention(writer)


async def sweep(retention: Retention, kind: Kind, before: datetime = NOW - KEEP) -> int:
    """Delete all that may go; return how many transactions it took."""
    place, count = await retention.delete(kind, before, None), 1
    while place is not None:
        place, count = await retention.delete(kind, before, place), count + 1
    return count


# --- what goes, and what stays -------------------------------------------------------------------


@KINDS
async def test_what_ended_before_is_deleted_and_the_rest_stays(
    engine: Engine, retention: Retention, kind: Kind
) -> None:
    ends = [OLD, OLD, NOW - KEEP, NOW, None]
    write(engine, TABLES[kind], [MAKE[kind](n, at) for n, at in enumerate(ends, start=1)])
    await sweep(retention, kind)
    assert left(engine, kind) == [3, 4, 5]


@pytest.mark.parametrize(
    ("ended_ago", "delivered", "stays"),
    [
        (KEPT_FOR - timedelta(hours=2), False, True),
        (KEPT_FOR - timedelta(hours=2), True, False),
        (KEPT_FOR + timedelta(minutes=1), False, False),
    ],
    ids=["owed", "delivered", "owed for too long"],
)
async def test_what_is_owed_to_a_node_stays_for_as_long_as_frames_are_kept(
    engine: Engine, retention: Retention, ended_ago: timedelta, delivered: bool, stays: bool
) -> None:
    ended_at = NOW - ended_ago
    row = message(1, ended_at, delivered_at=ended_at if delivered else None)
    write(engine, MessageRow, [row])
    await sweep(retention, MESSAGES, NOW - SECOND)
    assert left(engine, MESSAGES) == [1] * stays


async def test_the_newest_run_of_a_task_stays_and_the_newest_that_the_clock_has_started(
    engine: Engine, retention: Retention
) -> None:
    by_hand = {"origin": "operator"}
    rows = [task_run(1, OLD), task_run(2, OLD), task_run(3, OLD, **by_hand)]
    rows += [task_run(4, OLD, **by_hand), task_run(5, OLD, task="other")]
    write(engine, TaskRunRow, rows)
    await sweep(retention, TASK_RUNS)
    assert left(engine, TASK_RUNS) == [2, 4, 5]


async def test_an_occurrence_that_its_task_is_not_accounted_for_keeps_its_row(
    engine: Engine, retention: Retention
) -> None:
    rows = [task_run(n, OLD) for n in range(1, 6)]
    write(engine, TaskRunRow, rows)
    accounted_until = rows[1]["nominal_at"]
    state = {"name": "backup", "schedule": "hourly", "anchor_at": OLD}
    write(engine, TaskRow, [state | {"accounted_until": accounted_until}])
    await sweep(retention, TASK_RUNS)
    assert left(engine, TASK_RUNS) == [3, 4, 5]


async def test_an_old_run_that_waits_again_is_not_deleted_behind_its_back(
    engine: Engine, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL another daemon may run what was down as missed, after it was looked at."""
    write(engine, TaskRunRow, [task_run(1, None), task_run(2, OLD)])
    monkeypatch.setattr(Kind, "page", lambda _kind, *_: [Place(OLD, 1)])
    await retention.delete(TASK_RUNS, NOW - KEEP, None)
    assert left(engine, TASK_RUNS) == [1, 2]


async def test_attachments_go_before_their_messages_and_those_of_what_has_not_ended_stay(
    engine: Engine, retention: Retention
) -> None:
    ends = [OLD, NOW, None]
    write(engine, MessageRow, [message(n, at) for n, at in enumerate(ends, start=1)])
    old = {"received_at": OLD, "attachments": "[]"}
    write(engine, AttachmentsRow, [{"message_id": n} | old for n in (1, 2, 3)])
    await sweep(retention, ATTACHMENTS)
    with engine.connect() as connection:
        kept = list(connection.scalars(select(AttachmentsRow.message_id)))
    assert sorted(kept) == [2, 3]
    assert left(engine, MESSAGES) == [1, 2, 3]


async def test_attachments_go_with_their_message(engine: Engine, retention: Retention) -> None:
    write(engine, MessageRow, [message(1, OLD)])
    kept = {"message_id": 1, "received_at": OLD, "attachments": "[]"}
    write(engine, AttachmentsRow, [kept])
    await sweep(retention, MESSAGES)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(AttachmentsRow)) == 0


@pytest.mark.parametrize("seed", range(10))
async def test_exactly_what_may_go_goes(engine: Engine, retention: Retention, seed: int) -> None:
    """Random rows, and what a plain reading of docs/operations.md says of each."""
    chance = random.Random(seed)
    keep = chance.choice([timedelta(minutes=1), timedelta(hours=24), KEEP])
    # As far apart that it does not matter when the store looks at its clock.
    times = [NOW - age * step for step in (keep, KEPT_FOR) for age in (0.5, 0.9, 1.1, 1.5)]
    messages = [
        message(n, chance.choice([None, *times]), delivered_at=chance.choice([None, NOW]))
        for n in range(1, 400)
    ]
    hook_runs = [hook_run(n, chance.choice([None, *times])) for n in range(1, 400)]
    task_runs = [
        task_run(
            n,
            chance.choice([None, *times]),
            task=f"task-{chance.randrange(20)}",
            origin=chance.choice(["schedule", "operator"]),
            nominal_at=NOW - 2 * KEEP + chance.randrange(10**6) * SECOND + n * SECOND / 1000,
        )
        for n in range(1, 400)
    ]
    known = {f"task-{n}": NOW - 2 * KEEP + chance.randrange(10**6) * SECOND for n in range(10)}
    write(engine, MessageRow, messages)
    write(engine, HookRunRow, hook_runs)
    write(engine, TaskRunRow, task_runs)
    write(
        engine,
        TaskRow,
        [
            {"name": name, "schedule": "", "anchor_at": NOW, "accounted_until": until}
            for name, until in known.items()
        ],
    )

    def is_old(row: Values) -> bool:
        return row["ended_at"] is not None and row["ended_at"] < NOW - keep

    def is_owed(row: Values) -> bool:
        return row["delivered_at"] is None and row["ended_at"] > NOW - KEPT_FOR

    def is_newest(row: Values) -> bool:
        of_task = [other for other in task_runs if other["task"] == row["task"]]
        of_clock = [other for other in of_task if other["origin"] == "schedule"]
        newest = [max(rows, key=lambda r: r["nominal_at"]) for rows in (of_task, of_clock) if rows]
        return row in newest

    def is_open(row: Values) -> bool:
        until = known.get(row["task"])
        is_beyond = until is not None and until < row["nominal_at"]
        return is_beyond and row["origin"] == "schedule"

    expected = {
        MESSAGES: [row["id"] for row in messages if not is_old(row) or is_owed(row)],
        HOOK_RUNS: [row["id"] for row in hook_runs if not is_old(row)],
        TASK_RUNS: [
            row["id"] for row in task_runs if not is_old(row) or is_newest(row) or is_open(row)
        ],
    }
    for kind, ids in expected.items():
        await sweep(retention, kind, NOW - keep)
        assert left(engine, kind) == ids


# --- a little at a time --------------------------------------------------------------------------


async def test_what_stays_is_looked_at_once_in_a_sweep(
    engine: Engine, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_TIME", 60)
    ended_at = NOW - KEPT_FOR / 2
    owed = [message(n, ended_at, delivered_at=None) for n in range(1, 1001)]
    write(engine, MessageRow, [*owed, message(1001, ended_at + SECOND)])
    transactions = await sweep(retention, MESSAGES, NOW - SECOND)
    assert left(engine, MESSAGES) == list(range(1, 1001))
    assert transactions == -(-1001 // module.PAGE) + 1


async def test_a_transaction_that_takes_long_is_ended_after_a_row(
    engine: Engine, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_TIME", 0)
    write(engine, MessageRow, [message(n, OLD) for n in range(1, 4)])
    await retention.delete(MESSAGES, NOW - KEEP, None)
    assert left(engine, MESSAGES) == [2, 3]


async def test_a_store_that_is_not_waited_for_is_idle(engine: Engine, retention: Retention) -> None:
    assert retention.is_idle
    seen: list[bool] = []
    await retention._writer.call(lambda _connection: seen.append(retention.is_idle))
    assert seen == [False]


MANY: Final = 100_000
FILL: Final = {
    "clarad_messages": (
        "id, platform, channel_id, request_id, node_id, user_id, session_id, frame, received_at,"
        " ended_at, delivered_at",
        "n, 'p', 'c', n, 'n', 'u', 's', '', {at}, {at}, {at}",
    ),
    "clarad_attachments": ("message_id, received_at, attachments", "n, {at}, ''"),
    "clarad_hook_runs": (
        "id, run_id, caused_by, due_at, attempts, ended_at, hook, event_id, event_type, event",
        "n, n, '', {at}, 1, {at}, 'h', 'e', 't', ''",
    ),
    "clarad_task_runs": (
        "id, run_id, caused_by, due_at, attempts, ended_at, task, nominal_at, origin",
        "n, n, '', {at}, 1, {at}, 't', {at}, 'schedule'",
    ),
}
NUMBERS: Final = {
    "sqlite": "(WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count"
    f" WHERE n < {MANY}) SELECT n FROM count)",
    "postgresql": f"generate_series(1, {MANY}) AS n",
}
AT: Final = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', '2026-01-01', n || ' seconds')",
    "postgresql": "timestamptz '2026-01-01' + n * interval '1 second'",
}


def fill(connection: Connection, table: str) -> None:
    """Write very many rows that have ended."""
    dialect = connection.dialect.name
    columns, values = FILL[table]
    chosen = values.format(at=AT[dialect])
    connection.execute(
        text(f"INSERT INTO {table} ({columns}) SELECT {chosen} FROM {NUMBERS[dialect]}")
    )
    connection.execute(text(f"ANALYZE {table}"))


@pytest.mark.parametrize("kind", [*TABLES, ATTACHMENTS], ids=[*NAMES, "attachments"])
async def test_no_statement_looks_through_a_table(
    engine: Engine, retention: Retention, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_TIME", 0)
    index = "ix_clarad_attachments_received_at_message_id"
    with engine.begin() as connection:
        if kind is ATTACHMENTS:
            fill(connection, "clarad_messages")
            fill(connection, "clarad_attachments")
        else:
            table = TABLES[kind].__tablename__
            index = f"ix_{table}_ended"
            fill(connection, table)
    plans: list[str] = []
    event.listen(engine, "before_cursor_execute", partial(explain, plans))
    place = await retention.delete(kind, NOW, None)
    await retention.delete(kind, NOW, place)
    first, _, following, _ = plans
    for plan in (first, following):
        assert index in plan
        assert "SORT" not in plan.upper()
        assert "TEMP B-TREE" not in plan
    for plan in plans:
        assert "SCAN" not in plan.upper().replace("INDEX SCAN", "").replace("INDEX ONLY SCAN", "")


def explain(
    plans: list[str], connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any
) -> None:
    """Ask the database how it is going to do what concerns our tables."""
    if "FROM clarad_" in statement:
        beside = cursor.connection.cursor()
        how = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        beside.execute(f"{how} {statement}", parameters)
        plans.append(" ".join(str(row[-1]) for row in beside))


# --- when it does not get through ----------------------------------------------------------------

HELD_UP: Final = """\
import sys, time
from sqlalchemy import event
import trio
from clarad.store import Retention, Writer, open_engine
from clarad.store import retention
from tests.store.test_retention import KEEP, NOW, sweep

retention.BATCH_TIME = 60
engine = open_engine(sys.argv[1])
deleted = 0

@event.listens_for(engine, "after_cursor_execute")
def stand_still(connection, cursor, statement, *_):
    global deleted
    deleted += statement.startswith("DELETE")
    if deleted == 10:
        print("deleting", flush=True)
        time.sleep(600)

async def main():
    async with trio.open_nursery() as nursery:
        writer = Writer(engine)
        await nursery.start(writer.run)
        await sweep(Retention(writer), retention.MESSAGES)

trio.run(main)
"""


def kill_in_the_middle(url: str) -> None:
    """Have another process delete, and kill it when it has deleted some, but not committed."""
    command = [sys.executable, "-c", HELD_UP, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "deleting\n"
        finally:
            process.send_signal(signal.SIGKILL)


async def test_a_kill_in_the_middle_of_a_batch_loses_nothing(
    url: str, engine: Engine, retention: Retention
) -> None:
    ends = [OLD if n % 2 else NOW for n in range(1, 101)]
    write(engine, MessageRow, [message(n, at) for n, at in enumerate(ends, start=1)])
    everything = left(engine, MESSAGES)
    await trio.to_thread.run_sync(kill_in_the_middle, url)
    assert left(engine, MESSAGES) == everything
    with trio.fail_after(PATIENCE):  # PostgreSQL finds out that nobody is there any more
        while left(engine, MESSAGES) == everything:
            await sweep(retention, MESSAGES)
    assert left(engine, MESSAGES) == everything[1::2]


async def test_a_store_that_fails_says_so(
    engine: Engine, retention: Retention, outside: Any
) -> None:
    outside.do("ALTER TABLE clarad_messages RENAME TO away")
    with pytest.raises(StoreError, match="clarad_messages"):
        await retention.delete(MESSAGES, NOW, None)


# --- several daemons -----------------------------------------------------------------------------


@pytest.mark.parametrize("url", SHARED, indirect=True)
async def test_of_two_daemons_one_deletes_at_a_time_and_accepts_go_on_meanwhile(
    engine: Engine, share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await share(2)
    write(engine, MessageRow, [message(n, OLD) for n in (1001, 1002)])
    with engine.begin() as connection:
        assert module._has_lock(connection)
        await sweep(Retention(other.writer), MESSAGES)
        assert left(engine, MESSAGES) == [1001, 1002]
        assert await SharedDesk(one).accept("new")
    await sweep(Retention(other.writer), MESSAGES)
    assert left(engine, MESSAGES) == [1]


@pytest.mark.parametrize("url", SHARED, indirect=True)
async def test_two_daemons_delete_each_row_once(
    engine: Engine, share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemons = await share(2)
    write(engine, MessageRow, [message(n, OLD if n % 3 else NOW) for n in range(1, 901)])
    async with trio.open_nursery() as nursery:
        for daemon in daemons:
            nursery.start_soon(sweep, Retention(daemon.writer), MESSAGES)
    await sweep(Retention(daemons[0].writer), MESSAGES)
    assert left(engine, MESSAGES) == list(range(3, 901, 3))


# --- how much there is ---------------------------------------------------------------------------


async def test_an_empty_database_has_a_size_and_reaches_back_to_nothing(
    retention: Retention,
) -> None:
    size, *since = await retention.extent()
    assert size > 0
    assert since == [None, None]


async def test_it_reaches_back_to_the_oldest_row(engine: Engine, retention: Retention) -> None:
    write(engine, MessageRow, [message(1, OLD), message(2, NOW)])
    write(engine, HookRunRow, [hook_run(1, NOW)])
    write(engine, TaskRunRow, [task_run(1, OLD - SECOND)])
    _, *since = await retention.extent()
    assert since == [OLD, OLD - SECOND]


async def test_what_is_written_makes_it_larger(engine: Engine, retention: Retention) -> None:
    before = await retention.extent()
    frame = random.Random(1).randbytes(500_000).hex()
    write(engine, MessageRow, [message(1, NOW, frame=frame)])
    assert (await retention.extent()).size > before.size + 500_000
