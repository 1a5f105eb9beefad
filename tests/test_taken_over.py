"""What several daemons have left on one PostgreSQL is read back, and can be cancelled meanwhile."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, Engine, text

from clarad.events import EventType
from clarad.messages import recovery
from clarad.store import open_engine, unfinished
from tests.conftest import Start
from tests.migrated import migrate
from tests.peer import message
from tests.postgres import SHARED, database

LEASE = 2

LIFE = text("""\
INSERT INTO clarad_daemons (instance, holder, address, tasks, expires_at)
VALUES (:name, :name, '', '', clock_timestamp() + make_interval(secs => :left)) RETURNING id""")

EXPIRE = text("UPDATE clarad_daemons SET expires_at = clock_timestamp() WHERE id = :life")

MESSAGE = text("""\
INSERT INTO clarad_messages
(platform, channel_id, request_id, node_id, user_id, session_id, frame, received_at, owner)
VALUES ('test', :channel, :id, 'node-1', 'test-u', 'session-1', :frame, now(), :life)""")

OWED = text("SELECT count(*) FROM clarad_messages WHERE ended_at IS NULL OR delivered_at IS NULL")


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that daemons can share."""
    with database(request.param, tmp_path, request.config) as url:
        yield url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """The same database, migrated, for the test."""
    engine = open_engine(url)
    migrate(engine)
    yield engine
    engine.dispose()


def life(connection: Connection, name: str, left: float) -> int:
    """Have another daemon's lease end in so many seconds."""
    number: int = connection.execute(LIFE, {"name": name, "left": left}).scalar_one()
    return number


def leave(
    connection: Connection, life: int, request_id: str, channel: str, content: str = "hello"
) -> None:
    frame = json.dumps({"type": "message"} | message(request_id, content, channel))
    about = {"channel": channel, "id": request_id, "frame": frame, "life": life}
    connection.execute(MESSAGE, about)


async def test_messages_that_wait_for_one_that_is_taken_over_later_do_not_keep_it_unread(
    url: str, engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "PAGE_CHARACTERS", 1)
    monkeypatch.setattr(recovery, "MAX_LIVE", 0)
    with engine.begin() as connection:
        dead, dying = life(connection, "dead", -5), life(connection, "dying", 1000)
        leave(connection, dying, "m1", "c")
        leave(connection, dead, "m2", "c")
        leave(connection, dead, "m3", "c")
    running = await start(database_url=url, lease=LEASE)
    peer = await running.node()
    with engine.begin() as connection:
        connection.execute(EXPIRE, {"life": dying})
    ends = await peer.outcomes_of("m1", "m2", "m3")
    assert [end["type"] for end in ends] == ["response_end"] * 3
    assert running.responder.ran == ["m1", "m2", "m3"]


async def test_a_message_is_cancelled_while_its_page_is_gone_through(
    url: str, engine: Engine, start: Start
) -> None:
    running = await start(database_url=url, lease=LEASE, max_running=1)
    peer = await running.node()
    with engine.begin() as connection:
        dead = life(connection, "dead", -5)
        for number in range(400):
            leave(connection, dead, f"m{number}", f"c{number}", "hold")
    await running.event(EventType.SESSION_START)
    await peer.send("cancel", request_id="m399", reason="changed my mind")
    outcome = await peer.outcome_of("m399")
    assert (outcome["type"], outcome["reason"]) == ("cancelled", "changed my mind")


async def test_messages_with_another_daemon_end_for_nobody_when_their_node_unregisters(
    url: str, engine: Engine, start: Start
) -> None:
    here = await start(database_url=url)
    there = await start(database_url=url)
    peer = await there.node()
    await peer.ask("m1", "hold")
    await peer.ask("m2", "hold")
    while (await peer.receive())["type"] != "status":  # m1 begins before it, or after it
        pass
    moved = await here.node()
    await moved.send("unregister")
    assert await moved.close_code() == 1000
    with trio.fail_after(10):
        while not await trio.to_thread.run_sync(all_ended_for_nobody, engine):
            await trio.sleep(0.01)
    for daemon in (here, there):
        next_owner = await daemon.node()
        assert await next_owner.is_silent()
    assert there.responder.ran == ["m1"]


def all_ended_for_nobody(engine: Engine) -> bool:
    """Whether nothing is unfinished, or kept for a node."""
    with engine.connect() as connection:
        return bool(connection.scalar(OWED) == 0)
