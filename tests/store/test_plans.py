"""Every statement that looks for rows finds them by an index, however many rows there are."""

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import pytest
import trio
from sqlalchemy import Connection, Engine, event, text

from clarad.store import (
    Epoch,
    HookRuns,
    MessageKey,
    Messages,
    Missed,
    NodeSessions,
    TaskRuns,
    Writer,
    open_engine,
)
from clarad.store.causes import Causes
from clarad.store.cluster.messages import ClusterMessages
from clarad.store.history import History
from clarad.store.retention import HOOK_RUNS, MESSAGES, TASK_RUNS, Kind, Place
from tests.answer import answer
from tests.migrated import migrate
from tests.postgres import BACKENDS, SHARED, database

NOW: Final = datetime(2026, 6, 1, tzinfo=UTC)
KEY: Final = MessageKey("test", "channel-7", "7")
ENDING: Final[dict[str, Any]] = {
    "outcome": "completed",
    "reason": None,
    "terminal": "{}",
    "seq": None,
}
ABOUT: Final[dict[str, Any]] = {
    "node_id": "node-7",
    "user_id": "u",
    "session_id": "s",
    "frame": "{}",
}

MOMENT: Final = {
    "sqlite": "datetime('2026-01-01', '+' || i || ' seconds') || '.000000'",
    "postgresql": "timestamptz '2026-01-01Z' + i * interval '1 second'",
}
NUMBERS: Final = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
# One row in a thousand is unfinished, and of the messages as many are owed to their nodes.
ENDED: Final = "CASE WHEN i % 1000 <> 7 THEN {moment} END"
RUN: Final = "'run-' || i, '', {moment}, 1, {moment}, " + ENDED
RUN_COLUMNS: Final = "run_id, caused_by, due_at, attempts, begun_at, ended_at"
FILL: Final = (
    "INSERT INTO clarad_messages (platform, channel_id, request_id, node_id, user_id, session_id,"
    " frame, received_at, begun_at, ended_at, delivered_at, seq, owner)"
    f" {NUMBERS} SELECT 'test', 'channel-' || i % 500, '' || i, 'node-' || i % 100, 'u', 's',"
    f" '{{{{}}}}', {{moment}}, {{moment}}, {ENDED},"
    " CASE WHEN i % 1000 NOT IN (7, 107) THEN {moment} END, i, 1 FROM n",
    f"INSERT INTO clarad_hook_runs ({RUN_COLUMNS}, hook, event_id, event_type, event)"
    f" {NUMBERS} SELECT {RUN}, 'hook-' || i % 100, '', '', '{{{{}}}}' FROM n",
    f"INSERT INTO clarad_task_runs ({RUN_COLUMNS}, task, nominal_at, origin)"
    f" {NUMBERS} SELECT {RUN}, 'task-' || i % 100, {{moment}}, 'schedule' FROM n",
)
TABLES: Final = ("clarad_messages", "clarad_hook_runs", "clarad_task_runs")


@pytest.fixture(scope="module", params=BACKENDS)
def full(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """A database with a hundred thousand rows in each table."""
    backend: str = request.param
    with database(backend, tmp_path_factory.mktemp("full"), request.config) as url:
        engine = open_engine(url)
        migrate(engine)
        with engine.begin() as connection:
            for statement in FILL:
                connection.execute(text(statement.format(moment=MOMENT[backend])))
        if backend == "postgresql":  # it does so by itself, some time
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
        yield engine
        engine.dispose()


class Asked:
    """What is asked of the database; each statement is explained before it is run."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.plans: list[str] = []

    def explain(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        if not any(table in statement for table in TABLES):
            return
        explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        other = cursor.connection.cursor()
        other.execute(f"{explain} {statement}", parameters)
        self.plans.append("\n".join(str(row[-1]) for row in other.fetchall()))

    def check(self, index: str) -> None:
        """See that this one was used, and that no table was read as a whole."""
        together = "\n".join(self.plans)
        words, is_sqlite = together.split(), self.engine.dialect.name == "sqlite"
        if is_sqlite and index.startswith("pk_"):
            # Rows lie in the order of their ids: to walk it is not to read all of them.
            assert words[0] == "SCAN", together
            assert "ORDER" not in words, together
            return
        if is_sqlite and index.startswith("uq_"):  # SQLite has names of its own for these
            assert any(word.startswith("sqlite_autoindex_") for word in words), together
        else:
            assert any(word.startswith(index) for word in words), together
        for line in together.splitlines():
            if any(table in line for table in TABLES):
                assert "Seq Scan" not in line, together
                assert "SCAN" not in line or "USING" in line, together


@pytest.fixture
def asked(full: Engine) -> Iterator[Asked]:
    """What the test asks of the database."""
    asked = Asked(full)
    event.listen(full, "before_cursor_execute", asked.explain)
    yield asked
    event.remove(full, "before_cursor_execute", asked.explain)


def shared(writer: Writer) -> ClusterMessages:
    messages = ClusterMessages(writer)
    assert writer.epoch is not None
    writer.epoch.owners = frozenset({1})
    return messages


def history(read: Callable[[History], object]) -> Callable[[Writer], Awaitable[object]]:
    async def ask(writer: Writer) -> object:
        return await writer.call(lambda connection: read(History(connection)))

    return ask


def oldest(kind: Kind, after: Place | None) -> Callable[[Writer], Awaitable[object]]:
    async def ask(writer: Writer) -> object:
        return await writer.call(lambda connection: kind.page(connection, NOW, after))

    return ask


async def arrived(writer: Writer) -> None:
    Missed(writer).arrived("test", "node-7", 5)
    await writer.call(lambda _connection: None)


async def delivered(writer: Writer) -> None:
    Messages(writer).delivered(KEY)
    await writer.call(lambda _connection: None)


Ask = Callable[[Writer], Awaitable[object]]
BY_ITS_KEY: Final = "uq_clarad_messages_platform_channel_id_request_id"
UNDELIVERED: Final = "ix_clarad_messages_undelivered"
IN_CHANNEL: Final = "ix_clarad_messages_unfinished"
IN_ORDER: Final = "ix_clarad_messages_unfinished_id"

STATEMENTS: Final[dict[str, tuple[Ask, str]]] = {
    "a message by its key": (lambda w: Messages(w).find(KEY), BY_ITS_KEY),
    "a message begins": (lambda w: Messages(w).begin(KEY), BY_ITS_KEY),
    "a message ends": (
        lambda w: answer(partial(Messages(w).end, KEY, **ENDING, wanted=True)),
        BY_ITS_KEY,
    ),
    "a message is delivered": (delivered, BY_ITS_KEY),
    "the first page of what is unfinished": (lambda w: Messages(w).unfinished(), IN_ORDER),
    "another page of it": (lambda w: Messages(w).unfinished(50_000), IN_ORDER),
    "how much of it there is": (lambda w: Messages(w).backlog(), IN_CHANNEL),
    "a message is accepted, and those before it are counted": (
        lambda w: answer(
            partial(Messages(w).accept, KEY, begun=False, queued=lambda _: None, most=0, **ABOUT)
        ),
        IN_CHANNEL,
    ),
    "a message begins, if none is before it": (
        lambda w: Messages(w).begin_if_first(KEY),
        IN_CHANNEL,
    ),
    "a message is to be cancelled": (
        lambda w: answer(partial(Messages(w).cancel, "test", "node-7", "7", "why")),
        IN_CHANNEL,
    ),
    "what a node has missed": (
        lambda w: Missed(w).page("test", "node-7", after=0, before=10**6),
        UNDELIVERED,
    ),
    "what has arrived at a node": (arrived, UNDELIVERED),
    "what is owed to all nodes": (lambda w: NodeSessions(w).restore(), UNDELIVERED),
    "unfinished runs of hooks": (
        lambda w: HookRuns(w).unfinished(1000),
        "ix_clarad_hook_runs_unfinished",
    ),
    "unfinished runs of tasks": (
        lambda w: TaskRuns(w).unfinished(),
        "ix_clarad_task_runs_unfinished",
    ),
    "the newest runs of hooks": (
        history(lambda h: h.hook_runs(hook=None, failed=False, limit=20)),
        "pk_clarad_hook_runs",
    ),
    "the newest runs of a hook": (
        history(lambda h: h.hook_runs(hook="hook-7", failed=False, limit=20)),
        "ix_clarad_hook_runs_hook_id",
    ),
    "the newest runs of tasks": (
        history(lambda h: h.task_runs(task=None, failed=False, limit=20)),
        "ix_clarad_task_runs_nominal_at_id",
    ),
    "the newest runs of a task": (
        history(lambda h: h.task_runs(task="task-7", failed=False, limit=20)),
        "uq_clarad_task_runs_task_nominal_at",
    ),
    "runs that a node says have led to it": (
        lambda w: Causes(w).confirm(["run-7", "run-8"]),
        "uq_clarad_task_runs_run_id",
    ),
    "a run of a hook": (history(lambda h: h.find("run-7")), "uq_clarad_hook_runs_run_id"),
    "a run of a task": (history(lambda h: h.find("no such run")), "uq_clarad_task_runs_run_id"),
    "the oldest messages": (oldest(MESSAGES, None), "ix_clarad_messages_ended"),
    "the oldest runs of hooks": (oldest(HOOK_RUNS, None), "ix_clarad_hook_runs_ended"),
    "the oldest runs of tasks": (oldest(TASK_RUNS, None), "ix_clarad_task_runs_ended"),
    "those after them": (oldest(MESSAGES, Place(NOW, 7)), "ix_clarad_messages_ended"),
}

OF_SEVERAL_DAEMONS: Final[dict[str, tuple[Ask, str]]] = {
    "a message is accepted": (
        lambda w: answer(partial(shared(w).accept, KEY, begun=True, **ABOUT)),
        IN_CHANNEL,
    ),
    "a message begins, if it is its turn": (lambda w: shared(w).begin_if_first(KEY), IN_CHANNEL),
    "a message ends, and the next is told": (
        lambda w: answer(partial(shared(w).end, KEY, **ENDING, wanted=True)),
        IN_CHANNEL,
    ),
    "a message is to be cancelled": (
        lambda w: answer(partial(shared(w).cancel, "test", "node-7", "7", "why")),
        IN_CHANNEL,
    ),
    "what is to be cancelled": (lambda w: shared(w).to_cancel(), IN_ORDER),
    "what this daemon has to see to": (lambda w: shared(w).unfinished(), IN_ORDER),
}


async def plan(asked: Asked, nursery: trio.Nursery, ask: Ask, life: Epoch | None) -> None:
    writer = Writer(asked.engine, life)
    await nursery.start(writer.run)
    await ask(writer)
    nursery.cancel_scope.cancel("it was asked")


@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_statement_finds_its_rows_by_an_index(asked: Asked, name: str) -> None:
    ask, index = STATEMENTS[name]
    async with trio.open_nursery() as nursery:
        await plan(asked, nursery, ask, None)
    asked.check(index)


@pytest.mark.parametrize("full", SHARED, indirect=True)
@pytest.mark.parametrize("name", OF_SEVERAL_DAEMONS)
async def test_a_statement_of_several_daemons_does_so_too(asked: Asked, name: str) -> None:
    ask, index = OF_SEVERAL_DAEMONS[name]
    async with trio.open_nursery() as nursery:
        await plan(asked, nursery, ask, Epoch())
    asked.check(index)
