"""What an earlier life has left is read back in pages, while new messages are answered."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from clarad.messages import recovery
from clarad.messages.inflight import MAX_WAITING
from clarad.messages.recovery import Recovery
from clarad.store import Messages, open_engine, unfinished
from tests.conftest import Running, Start
from tests.migrated import migrate
from tests.peer import Frame, Peer, message

INSERT = """\
INSERT INTO clarad_messages
(platform, channel_id, request_id, node_id, user_id, session_id, frame, received_at, begun_at)
VALUES ('test', ?, ?, 'node-1', 'test-u', 'session-1', ?, ?, ?)"""

Leave = Callable[..., None]


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Leave unfinished messages in the database for the next start."""
    engine = open_engine(f"sqlite:///{tmp_path}/clarad.db")
    migrate(engine)
    engine.dispose()

    def leave(
        request_id: str, channel: str = "c", *, frame: str | None = None, begun: bool = False
    ) -> None:
        if frame is None:
            frame = json.dumps({"type": "message"} | message(request_id, "hold", channel))
        now = datetime.now(UTC).isoformat(" ")
        with closing(sqlite3.connect(tmp_path / "clarad.db")) as database, database:
            database.execute(INSERT, (channel, request_id, frame, now, now if begun else None))

    return leave


@pytest.fixture
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page has one message, and is read when none that was read back is left."""
    monkeypatch.setattr(unfinished, "PAGE_CHARACTERS", 1)
    monkeypatch.setattr(recovery, "MAX_LIVE", 0)


async def begun(running: Running, request_id: str) -> None:
    with trio.fail_after(10):
        await running.responder.begun[request_id].wait()


async def accepted(peer: Peer, request_id: str) -> Frame:
    while (frame := await peer.receive())["type"] != "accepted":
        pass
    assert frame["request_id"] == request_id
    return frame


@pytest.mark.usefixtures("_one_by_one")
async def test_new_messages_are_answered_while_others_are_still_unread(
    leave: Leave, start: Start
) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    running = await start()
    await begun(running, "old-1")
    peer = await running.node()
    await peer.ask("new", "hello", "elsewhere")
    assert (await peer.outcome_of("new"))["type"] == "response_end"
    for number in ("old-1", "old-2"):
        await begun(running, number)
        running.responder.release[number].set()
    ends = await peer.outcomes_of("old-1", "old-2")
    assert [end["full_text"] for end in ends] == ["partly done"] * 2


@pytest.mark.usefixtures("_one_by_one")
async def test_a_new_message_waits_for_those_of_its_channel_that_are_still_unread(
    leave: Leave, start: Start
) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    leave("old-3", "b")
    running = await start()
    await begun(running, "old-1")
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("new", "hello", "b")
    await accepted(peer, "new")
    await peer.ask("later", "hello", "elsewhere")
    assert (await peer.outcome_of("later"))["type"] == "response_end"
    for number in ("old-1", "old-2", "old-3"):
        await begun(running, number)
        running.responder.release[number].set()
    assert (await peer.outcome_of("new"))["type"] == "response_end"
    assert running.responder.ran == ["old-1", "later", "old-2", "old-3", "new"]


@pytest.mark.usefixtures("_one_by_one")
async def test_a_new_message_is_told_its_place_behind_those_that_are_still_unread(
    leave: Leave, start: Start
) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    leave("old-3", "b")
    running = await start()
    await begun(running, "old-1")
    peer = await running.node()
    for place, number in enumerate(("new-1", "new-2"), start=2):
        await peer.ask(number, "hello", "b")
        status = await peer.expect("status")
        assert (status["request_id"], status["queue_length"]) == (number, place)


@pytest.mark.usefixtures("_one_by_one")
async def test_unread_messages_count_among_those_that_may_wait_in_a_channel(
    leave: Leave, start: Start
) -> None:
    leave("old", "a")
    for number in range(MAX_WAITING + 1):
        leave(f"old-{number}", "b")
    running = await start()
    await begun(running, "old")
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("new", "hello", "b")
    refusal = await peer.expect("error")
    assert (refusal["request_id"], refusal["code"]) == ("new", "queue_full")
    await peer.ask(f"old-{MAX_WAITING}", "hold", "b")
    assert (await accepted(peer, f"old-{MAX_WAITING}"))["duplicate"] is True


@pytest.mark.usefixtures("_one_by_one")
async def test_an_unread_message_that_is_sent_again_is_run_once(leave: Leave, start: Start) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    running = await start()
    await begun(running, "old-1")
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("old-2", "hold", "b")
    assert (await accepted(peer, "old-2"))["duplicate"] is True
    for number in ("old-1", "old-2"):
        running.responder.release[number].set()
    assert (await peer.outcome_of("old-2"))["type"] == "response_end"
    assert running.responder.ran == ["old-1", "old-2"]


@pytest.mark.usefixtures("_one_by_one")
async def test_an_unread_message_is_cancelled_when_it_is_read(leave: Leave, start: Start) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    running = await start()
    await begun(running, "old-1")
    peer = await running.node()
    await peer.send("cancel", request_id="old-2", reason="changed my mind")
    await peer.send("cancel", request_id="unknown")
    assert (await peer.outcome_of("unknown"))["code"] == "not_found"
    running.responder.release["old-1"].set()
    outcome = await peer.outcome_of("old-2")
    assert (outcome["type"], outcome["reason"]) == ("cancelled", "changed my mind")
    assert running.responder.ran == ["old-1"]


@pytest.mark.usefixtures("_one_by_one")
async def test_a_cancel_of_an_unread_message_outlives_the_daemon(
    leave: Leave, start: Start
) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    before = await start()
    await begun(before, "old-1")
    peer = await before.node()
    await peer.send("cancel", request_id="old-2", reason="changed my mind")
    await peer.send("cancel", request_id="unknown")
    assert (await peer.outcome_of("unknown"))["code"] == "not_found"
    after = await start()  # on the same database, as if the first had been killed
    again = await after.node()
    outcome = await again.outcome_of("old-2")
    assert (outcome["type"], outcome["reason"]) == ("cancelled", "changed my mind")


@pytest.mark.usefixtures("_one_by_one")
async def test_unread_messages_are_counted(leave: Leave, start: Start) -> None:
    for number in range(3):
        leave(f"old-{number}", f"{number}")
    running = await start()
    await begun(running, "old-0")
    peer = await running.node()
    await peer.send("status")
    status = await peer.expect("status")
    assert (status["active_requests"], status["queue_length"]) == (1, 2)
    assert running.daemon.turns.count()[1:] == (1, 2)
    for number in range(3):
        running.responder.release[f"old-{number}"].set()
    await peer.outcomes_of("old-0", "old-1", "old-2")
    assert running.daemon.turns.count()[1:] == (0, 0)


@pytest.mark.usefixtures("_one_by_one")
async def test_a_stop_leaves_unread_messages_to_the_next_start(leave: Leave, start: Start) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    before = await start()
    await begun(before, "old-1")
    before.daemon.request_stop()
    before.responder.release["old-1"].set()
    with trio.fail_after(10):
        await before.daemon.stopped.wait()
    assert before.responder.ran == ["old-1"]
    after = await start()
    after.responder.release["old-2"].set()
    peer = await after.node()
    ends = await peer.outcomes_of("old-1", "old-2")
    assert [end["type"] for end in ends] == ["response_end"] * 2


@pytest.mark.usefixtures("_one_by_one")
async def test_a_cancel_finds_unread_messages_beside_one_that_runs(
    leave: Leave, start: Start
) -> None:
    leave("same", "a")
    leave("same", "b")
    running = await start()
    await begun(running, "same")
    peer = await running.node()
    await peer.send("cancel", request_id="same", reason="changed my mind")
    ends = [await peer.outcome_of("same") for _ in range(2)]
    assert [(end["type"], end["reason"]) for end in ends] == [("cancelled", "changed my mind")] * 2
    assert running.responder.ran == ["same"]


OWED = "SELECT count(*) FROM clarad_messages WHERE ended_at IS NULL OR delivered_at IS NULL"


async def all_ended_for_nobody(url: str) -> None:
    """Wait until nothing is unfinished, or kept for a node."""
    with trio.fail_after(10), closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        while database.execute(OWED).fetchone() != (0,):
            await trio.sleep(0.01)


@pytest.mark.usefixtures("_one_by_one")
async def test_an_unread_message_of_a_node_that_unregisters_is_cancelled_for_nobody(
    leave: Leave, start: Start
) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    leave("old-3", "c", begun=True)
    running = await start()
    await begun(running, "old-1")
    peer = await running.node()
    await peer.send("unregister")
    assert await peer.close_code() == 1000
    next_owner = await running.node()
    await all_ended_for_nobody(running.settings.database_url)
    assert await next_owner.is_silent()
    assert running.responder.ran == ["old-1"]


@pytest.mark.usefixtures("_one_by_one")
async def test_after_a_kill_unread_messages_of_a_node_that_had_unregistered_are_cancelled(
    leave: Leave, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    before = await start()
    await begun(before, "old-1")
    monkeypatch.setattr(before.daemon.turns._recovery, "_recover", lambda *_: None)
    peer = await before.node()
    await peer.send("unregister")
    assert await peer.close_code() == 1000
    after = await start()  # on the same database, as if the first had been killed
    next_owner = await after.node()
    await all_ended_for_nobody(after.settings.database_url)
    assert await next_owner.is_silent()
    assert after.responder.ran == []


async def test_a_node_that_unregisters_while_its_page_is_gone_through_has_none_of_it_run(
    leave: Leave, start: Start
) -> None:
    for number in range(300):
        leave(f"old-{number}", f"{number}")
    running = await start(max_running=1)
    peer = await running.node()
    await peer.send("unregister")
    assert await peer.close_code() == 1000
    next_owner = await running.node()
    await all_ended_for_nobody(running.settings.database_url)
    assert await next_owner.is_silent()


async def fail() -> None:
    raise ValueError("as the test wants it")


@pytest.mark.usefixtures("_one_by_one")
async def test_what_is_cancelled_while_the_turns_are_started_again_is_cancelled(
    leave: Leave, start: Start
) -> None:
    leave("old-1", "a")
    leave("old-2", "b")
    running = await start()
    await begun(running, "old-1")
    peer = await running.node()
    turns = running.daemon.turns
    turns._start_soon(fail)
    await peer.outcome_of("old-1")
    await trio.testing.wait_all_tasks_blocked()
    await peer.send("cancel", request_id="old-2", reason="changed my mind")
    outcome = await peer.outcome_of("old-2")
    assert (outcome["type"], outcome["reason"]) == ("cancelled", "changed my mind")
    assert running.responder.ran == ["old-1"]


class Successor:
    """The store of a daemon that has two lives to see to; nothing is left of any."""

    owners = frozenset({1, 2})

    def __init__(self) -> None:
        self.read: list[Collection[int]] = []

    async def backlog(self) -> tuple[int, Counter[tuple[str, str]]]:
        return 0, Counter()

    async def unfinished(self, _after: int, of: Collection[int], _last: int | None) -> list[Any]:
        self.read.append(of)
        return []


async def test_a_life_that_is_read_at_the_start_is_not_read_again_when_it_is_inherited(
    nursery: trio.Nursery,
) -> None:
    successor = Successor()
    recovery = Recovery(cast(Messages, successor), lambda *_: None, lambda _: None)
    first = await recovery.prepare()
    for lives in ({2}, {2, 3}):
        recovery.inherit(lives)
    nursery.start_soon(recovery.run, first)
    await trio.testing.wait_all_tasks_blocked()
    assert set(successor.read) == {successor.owners, frozenset({3})}
    nursery.cancel_scope.cancel("the test has ended")


# --- rows that today's rules refuse --------------------------------------------------------------


def changed(**fields: Any) -> str:
    """Return the frame of a message with other fields; `None` leaves one out."""
    whole = {"type": "message"} | message("m1") | fields
    return json.dumps({name: value for name, value in whole.items() if value is not None})


USER = {"id": "test-u", "platform_id": "u"}


@pytest.mark.parametrize(
    "frame",
    [
        changed(id="m" * 300),
        changed(user=USER | {"platform_id": "u" * 300}),
        changed(user={"id": "test-u"}),
        changed(user=USER | {"name": 7}),
        changed(channel={"id": "c", "type": "thread"}),
        changed(channel=None),
        changed(attachments=[{"type": "hologram", "filename": "x"}, 7]),
        changed(reply_chain="none", metadata=[], tier_override=5),
        changed(type="chat_message", mood="good"),
    ],
)
async def test_a_stored_message_that_today_s_rules_refuse_is_answered(
    leave: Leave, start: Start, frame: str
) -> None:
    leave("m1", frame=frame)
    running = await start()
    peer = await running.node()
    assert (await peer.outcome_of("m1"))["full_text"] == "hello"


@pytest.mark.parametrize(
    "frame", ["", "nonsense", "[]", "{}", '{"type":"ping"}', changed(content=None), changed(user=7)]
)
async def test_a_stored_message_that_cannot_be_read_ends_with_an_error_and_stops_nothing_else(
    leave: Leave, start: Start, caplog: pytest.LogCaptureFixture, frame: str
) -> None:
    leave("m1", frame=frame)
    leave("m2")
    running = await start()
    running.responder.release["m2"].set()
    peer = await running.node(capabilities=("accepted",))
    unreadable, other = await peer.outcomes_of("m1", "m2")
    assert (unreadable["code"], unreadable["recoverable"]) == ("processing_error", False)
    assert other["type"] == "response_end"
    assert "the stored message 'm1' (row 1) cannot be read" in caplog.text
    await peer.ask("m1", "hello")
    assert (await accepted(peer, "m1"))["duplicate"] is True
    assert running.responder.ran == ["m2"]
