"""What the store promises of messages, on SQLite and on PostgreSQL."""

import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, Engine, event, select
from trio.testing import wait_all_tasks_blocked

from clarad.store import MessageKey, Messages, Stored, StoreError, Unfinished, Writer
from clarad.store.models import MessageRow
from clarad.store.unfinished import PAGE_CHARACTERS
from tests.postgres import SHARED
from tests.store.conftest import Outside
from tests.store.desk import PRIVATE, Desk, key, open_desk, queueing_up


def rows(outside: Outside, columns: str = "*") -> list[tuple[Any, ...]]:
    return outside.rows(f"SELECT {columns} FROM clarad_messages ORDER BY id")


# --- accepted, begun, ended ----------------------------------------------------------------------


async def test_an_accepted_message_is_on_the_disk(desk: Desk, outside: Outside) -> None:
    assert await desk.accept(1, frame='{"type":"message"}')
    columns = "platform, channel_id, request_id, node_id, user_id, session_id, frame"
    assert rows(outside, columns) == [
        ("test", "channel-1", "1", "node-1", "test-u", "session-1", '{"type":"message"}')
    ]


async def test_a_message_that_is_there_already_is_not_new(desk: Desk) -> None:
    assert await desk.accept(1)
    assert not await desk.accept(1)


async def test_a_message_that_is_there_already_stays_as_it_is(desk: Desk, outside: Outside) -> None:
    await desk.accept(1)
    await desk.end(1)
    before = rows(outside)
    await desk.accept(1, frame="another", begun=True, user_id="other", node_id="other")
    assert rows(outside) == before


@pytest.mark.parametrize("part", range(3), ids=MessageKey._fields)
async def test_messages_that_differ_in_one_part_of_the_key_are_two(desk: Desk, part: int) -> None:
    other = [*key(1)]
    other[part] = "other"
    about = {"node_id": "n", "user_id": "u", "session_id": "s", "frame": "{}"}
    assert await desk.accepted(key(1), **about, begun=False)
    assert await desk.accepted(MessageKey(*other), **about, begun=False)


async def test_a_thousand_messages_at_once_are_all_there(desk: Desk) -> None:
    new: list[bool] = []

    async def accept(number: int) -> None:
        new.append(await desk.accept(number))

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(accept, number)
    assert new == [True] * 1000
    assert sorted(await desk.unfinished(), key=int) == [f"{number}" for number in range(1000)]


async def test_of_many_that_send_the_same_message_at_once_one_is_new(desk: Desk) -> None:
    new: list[bool] = []

    async def accept() -> None:
        new.append(await desk.accept(1))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(accept)
    assert sorted(new) == [False] * 99 + [True]
    assert await desk.unfinished() == ["1"]


async def test_one_that_is_there_already_costs_the_others_no_commit(
    desk: Desk, engine: Engine
) -> None:
    await desk.accept("known")
    commits: list[Connection] = []
    event.listen(engine, "commit", commits.append)
    new: dict[object, bool] = {}

    async def accept(number: object) -> None:
        new[number] = await desk.accept(number)

    async with trio.open_nursery() as nursery, queueing_up(desk.writer):
        for number in (1, 2, "known", 3):
            nursery.start_soon(accept, number)
            await wait_all_tasks_blocked()
    assert new == {1: True, 2: True, "known": False, 3: True}
    assert len(commits) == 2, "one for what held the writer up, one for all of them"


async def test_messages_end_each_in_its_own_way(desk: Desk, outside: Outside) -> None:
    for number in (1, 2):
        await desk.accept(number)
    await desk.end(2, outcome="cancelled", reason="requested", terminal='{"2":2}')
    columns = "request_id, outcome, reason, terminal"
    assert rows(outside, columns) == [
        ("1", None, None, None),
        ("2", "cancelled", "requested", '{"2":2}'),
    ]


async def test_a_message_ends_whatever_letters_its_reason_has(desk: Desk) -> None:
    """A reason comes from an adapter as it is, and PostgreSQL cannot hold NUL in a text."""
    await desk.accept(1)
    await desk.end(1, outcome="cancelled", reason="bored\0", terminal="{}")
    assert await desk.unfinished() == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "'); DROP TABLE clarad_messages; --",
        "%s %(frame)s :frame ? $1 {frame}",
        "line\r\nline\u2028line",
        "\N{PILE OF POO} \N{RIGHT-TO-LEFT OVERRIDE}abc e\N{COMBINING ACUTE ACCENT} \ufffe",
        r"\u0000 \ud800 \x00",
        "x" * 4_000_000,
    ],
    ids=["empty", "quotes", "placeholders", "lines", "unicode", "escapes", "4 MB"],
)
async def test_a_frame_comes_back_letter_for_letter(desk: Desk, text: str) -> None:
    await desk.accept(1, frame=text)
    await desk.end(1, outcome="completed", reason=text[:100], terminal=text)
    assert await desk.messages.find(key(1)) == Stored(text, text, "node-1")


@pytest.mark.parametrize("letter", ["x", "\N{PILE OF POO}"], ids=["ascii", "astral"])
async def test_the_longest_names_that_the_protocol_lets_through_fit(
    desk: Desk, letter: str
) -> None:
    long = MessageKey(letter * 255, letter * 255, letter * 255)
    await desk.accepted(
        long, node_id=letter * 255, user_id=letter * 255, session_id="s", frame="{}", begun=False
    )
    assert [entry.key for entry in await desk.messages.unfinished()] == [long]


async def test_text_that_is_no_text_is_refused_and_the_others_are_in(desk: Desk) -> None:
    """The protocol lets no lone surrogate through; should one come, it must not stop the store."""
    with pytest.raises((StoreError, UnicodeError)):
        await desk.accept(1, frame="\ud800")
    await desk.accept(2)
    assert await desk.unfinished() == ["2"]


# --- find and unfinished -------------------------------------------------------------------------


async def test_find_finds_nothing_of_an_unknown_message(desk: Desk) -> None:
    await desk.accept(1)
    assert await desk.messages.find(key(2)) is None


async def test_find_has_the_frame_of_a_message_that_runs(desk: Desk) -> None:
    await desk.accept(1, frame='{"a":1}')
    assert await desk.messages.find(key(1)) == Stored('{"a":1}', None)


async def test_find_has_the_terminal_frame_of_a_message_that_has_ended(desk: Desk) -> None:
    await desk.accept(1, frame='{"a":1}')
    await desk.end(1, outcome="completed", reason=None, terminal='{"b":2}')
    assert await desk.messages.find(key(1)) == Stored('{"a":1}', '{"b":2}', "node-1")


async def test_find_says_to_whom_the_terminal_frame_is_owed_until_it_is_delivered(
    desk: Desk,
) -> None:
    for number in (1, 2):
        await desk.accept(number)
    await desk.end(1, wanted=True)
    await desk.end(2, wanted=False)
    assert await desk.owed_to(1) == "node-1"
    assert await desk.owed_to(2) is None
    desk.messages.delivered(key(1))
    assert await desk.owed_to(1) is None


async def test_nothing_is_unfinished_at_first(desk: Desk) -> None:
    assert await desk.messages.unfinished() == []


async def test_what_has_not_ended_is_unfinished_in_the_order_in_which_it_came(desk: Desk) -> None:
    for number in (5, 3, 9, 1, 7):
        await desk.accept(number)
    for number in (9, 5):
        await desk.end(number)
    assert await desk.unfinished() == ["3", "1", "7"]


async def test_messages_are_in_the_order_in_which_they_were_handed_in(desk: Desk) -> None:
    numbers = [5, 3, 9, 1, 7]
    about = {"node_id": "n", "user_id": "u", "session_id": "s", "frame": "{}"}
    async with trio.open_nursery() as nursery:
        for n in numbers:
            nursery.start_soon(partial(desk.accepted, key(n), **about, begun=False))
            await wait_all_tasks_blocked()
    assert await desk.unfinished() == [f"{n}" for n in numbers]


async def test_an_unfinished_message_says_whether_it_has_begun(desk: Desk) -> None:
    await desk.accept("waits")
    await desk.accept("begins at once", begun=True)
    await desk.accept("begins later")
    await desk.messages.begin(key("begins later"))
    found = await desk.messages.unfinished()
    assert {entry.key.request_id: entry.begun for entry in found} == {
        "waits": False,
        "begins at once": True,
        "begins later": True,
    }


async def test_an_unfinished_message_has_all_that_it_takes_to_go_on(desk: Desk) -> None:
    await desk.accept(1, frame='{"a":1}', node_id="node-7")
    assert await desk.messages.unfinished() == [
        Unfinished(1, key(1), "node-7", '{"a":1}', begun=False)
    ]


async def test_long_unfinished_messages_are_read_a_few_at_a_time(desk: Desk) -> None:
    for number in range(5):
        await desk.accept(number, frame="x" * (PAGE_CHARACTERS // 2))
    assert len(await desk.messages.unfinished()) == 2
    assert await desk.unfinished() == [f"{number}" for number in range(5)]


async def test_one_that_is_longer_than_a_page_is_alone(desk: Desk) -> None:
    for number in range(2):
        await desk.accept(number, frame="x" * (PAGE_CHARACTERS + 1))
    assert len(await desk.messages.unfinished()) == 1
    assert await desk.unfinished() == ["0", "1"]


async def test_what_was_unfinished_is_found_by_the_next_start(
    url: str, connect: Callable[[str], Engine], nursery: trio.Nursery
) -> None:
    first = await open_desk(connect(url), nursery)
    await first.accept(1)
    second = await open_desk(connect(url), nursery)
    assert await second.unfinished() == ["1"]


# --- times ---------------------------------------------------------------------------------------


async def stored_times(desk: Desk) -> list[datetime | None]:
    columns = select(MessageRow.received_at, MessageRow.begun_at, MessageRow.ended_at)
    return await desk.writer.call(lambda connection: list(connection.execute(columns).one()))


async def test_times_come_back_aware_and_in_utc(desk: Desk) -> None:
    await desk.accept(1, begun=True)
    await desk.end(1)
    for time in await stored_times(desk):
        assert time is not None
        assert time.utcoffset() == timedelta(0)


async def test_times_are_the_times_at_which_it_happened(desk: Desk) -> None:
    before = datetime.now(UTC)
    await desk.accept(1)
    await desk.messages.begin(key(1))
    await desk.end(1)
    received, begun, ended = await stored_times(desk)
    assert received is not None
    assert begun is not None
    assert ended is not None
    assert before <= received <= begun <= ended <= datetime.now(UTC)


async def test_what_has_not_happened_has_no_time(desk: Desk) -> None:
    await desk.accept(1)
    _received, begun, ended = await stored_times(desk)
    assert begun is None
    assert ended is None


# --- a database that fails -----------------------------------------------------------------------


def check_error(error: StoreError) -> None:
    """Assert that it can be shown to anyone, in a log of lines."""
    assert str(error)
    assert len(str(error).splitlines()) == 1
    for private in (PRIVATE, "test-u", "channel-1"):
        assert private not in str(error)


METHODS: dict[str, Callable[[Desk], Any]] = {
    "accept": lambda desk: desk.accept(1),
    "begin": lambda desk: desk.messages.begin(key(1)),
    "end": lambda desk: desk.end(1),
    "find": lambda desk: desk.messages.find(key(1)),
    "unfinished": lambda desk: desk.messages.unfinished(),
}


@pytest.mark.parametrize("method", METHODS)
async def test_a_table_that_is_gone_is_a_store_error_in_one_line(
    desk: Desk, outside: Outside, method: str
) -> None:
    outside.do("ALTER TABLE clarad_messages RENAME TO away")
    with pytest.raises(StoreError) as caught:
        await METHODS[method](desk)
    check_error(caught.value)


@pytest.mark.parametrize("method", METHODS)
async def test_a_store_error_does_not_show_the_statement(
    desk: Desk, outside: Outside, method: str
) -> None:
    outside.do("ALTER TABLE clarad_messages RENAME TO away")
    with pytest.raises(StoreError) as caught:
        await METHODS[method](desk)
    for statement in ("INSERT INTO", "SELECT clarad_", "UPDATE clarad_"):
        assert statement not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
async def test_a_store_that_does_not_run_is_a_store_error(engine: Engine, method: str) -> None:
    writer = Writer(engine)
    with pytest.raises(StoreError):
        await METHODS[method](Desk(Messages(writer), writer))


async def test_the_store_goes_on_when_the_table_is_back(desk: Desk, outside: Outside) -> None:
    outside.do("ALTER TABLE clarad_messages RENAME TO hidden")
    with pytest.raises(StoreError):
        await desk.accept(1)
    outside.do("ALTER TABLE hidden RENAME TO clarad_messages")
    assert await desk.accept(1)


async def test_a_thousand_messages_on_a_failing_database_all_fail(
    desk: Desk, outside: Outside
) -> None:
    outside.do("ALTER TABLE clarad_messages RENAME TO away")
    failed: list[StoreError] = []

    async def accept(number: int) -> None:
        try:
            await desk.accept(number)
        except StoreError as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(accept, number)
    assert len(failed) == 1000
    for error in failed[::100]:
        check_error(error)


READ_ONLY = {
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
    "postgresql": (
        "SET default_transaction_read_only = on",
        "SET default_transaction_read_only = off",
    ),
}


async def test_a_database_that_turns_read_only_is_a_store_error_and_the_store_goes_on_after_it(
    engine: Engine, nursery: trio.Nursery
) -> None:
    raw: list[Any] = []
    event.listen(engine, "connect", lambda connection, _record: raw.append(connection))
    desk = await open_desk(engine, nursery)
    protect, unprotect = READ_ONLY[engine.dialect.name]
    raw[-1].execute(protect)
    raw[-1].commit()
    with pytest.raises(StoreError, match=r"read-?only") as caught:
        await desk.accept(1)
    check_error(caught.value)
    raw[-1].execute(unprotect)
    raw[-1].commit()
    assert await desk.accept(1)


# --- failures that only one of the databases has -------------------------------------------------


@pytest.fixture
async def sqlite_desk(
    tmp_path: Path, connect: Callable[[str], Engine], nursery: trio.Nursery
) -> Desk:
    """A store on SQLite, in `test.db`."""
    return await open_desk(connect(f"sqlite:///{tmp_path}/test.db"), nursery)


async def test_a_file_that_another_program_holds_is_a_store_error_and_the_store_goes_on_after_it(
    tmp_path: Path, sqlite_desk: Desk
) -> None:
    await sqlite_desk.in_thread(lambda c: c.exec_driver_sql("PRAGMA busy_timeout = 0").scalar())
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked") as caught:
        await sqlite_desk.accept(1)
    check_error(caught.value)
    other.execute("ROLLBACK")
    other.close()
    assert await sqlite_desk.accept(1)


async def test_a_full_disk_is_a_store_error_and_the_store_goes_on_when_there_is_room(
    sqlite_desk: Desk,
) -> None:
    await sqlite_desk.in_thread(limit_pages(20))
    with pytest.raises(StoreError, match="full") as caught:
        await sqlite_desk.accept(1, frame="x" * 1_000_000)
    check_error(caught.value)
    await sqlite_desk.in_thread(limit_pages(1_000_000))
    assert await sqlite_desk.accept(1, frame="x" * 1_000_000)


async def test_a_disk_that_fills_up_takes_nothing_back_that_was_accepted(
    sqlite_desk: Desk, nursery: trio.Nursery
) -> None:
    """SQLite takes the whole transaction back by itself then, not only the statement."""
    accepted: set[str] = set()
    failed: dict[str, StoreError] = {}

    async def accept(number: int, size: int) -> None:
        try:
            if await sqlite_desk.accept(number, frame="x" * size):
                accepted.add(f"{number}")
        except StoreError as error:
            failed[f"{number}"] = error

    await sqlite_desk.in_thread(limit_pages(20))
    still, go_on = threading.Event(), threading.Event()

    def stand_still(_connection: Connection) -> None:
        still.set()
        go_on.wait(10)

    nursery.start_soon(sqlite_desk.in_thread, stand_still)
    await trio.to_thread.run_sync(still.wait, 10)
    async with trio.open_nursery() as accepting:
        for number, size in enumerate([10, 10, 4_000_000, 10, 10]):
            accepting.start_soon(accept, number, size)
            await wait_all_tasks_blocked()
        go_on.set()
    assert set(await sqlite_desk.unfinished()) == accepted
    assert "full" in str(failed["2"])


def limit_pages(pages: int) -> Callable[[Connection], object]:
    """Have SQLite take the disk for full when the file has this many pages."""
    return lambda connection: connection.exec_driver_sql(
        f"PRAGMA max_page_count = {pages}"
    ).scalar()


@pytest.mark.parametrize("url", SHARED, indirect=True)
async def test_the_store_goes_on_after_the_server_has_cut_the_connection(
    desk: Desk, outside: Outside
) -> None:
    outside.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    try:
        await desk.accept(1)
    except StoreError as error:
        check_error(error)
    assert await desk.accept(2)
    assert "2" in await desk.unfinished()
