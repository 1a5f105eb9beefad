"""What the store promises of sessions that nodes resume, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from clarad.store import KEPT_FOR, NodeSessions
from clarad.store.models import NodeRow
from tests.store.desk import Desk


@pytest.fixture
async def sessions(desk: Desk) -> NodeSessions:
    """Of a daemon that has just started."""
    made = NodeSessions(desk.writer)
    await made.restore()
    return made


async def restore(desk: Desk) -> tuple[dict[str, str], int]:
    """Start anew: return the sessions by their nodes, and above what to number."""
    found, after_seq = await NodeSessions(desk.writer).restore()
    return {session.node_id: session.session_id for session in found}, after_seq


async def test_an_empty_database_has_no_session(desk: Desk) -> None:
    assert (await restore(desk))[0] == {}


async def test_the_last_session_of_each_node_is_found(desk: Desk, sessions: NodeSessions) -> None:
    sessions.save("test", "a", "first")
    sessions.save("test", "b", "second")
    sessions.save("test", "a", "third")
    assert (await restore(desk))[0] == {"a": "third", "b": "second"}


async def test_a_node_s_id_is_its_own_on_each_platform(desk: Desk, sessions: NodeSessions) -> None:
    sessions.save("one", "a", "first")
    sessions.save("two", "a", "second")
    sessions.forget("two", "a")
    found, _ = await NodeSessions(desk.writer).restore()
    assert [(session.platform, session.session_id) for session in found] == [("one", "first")]


async def test_a_session_that_is_forgotten_is_gone(desk: Desk, sessions: NodeSessions) -> None:
    sessions.save("test", "a", "first")
    sessions.forget("test", "a")
    assert (await restore(desk))[0] == {}


async def test_every_start_numbers_above_what_any_before_it_may_have(
    desk: Desk, sessions: NodeSessions
) -> None:
    _, first = await restore(desk)
    _, second = await restore(desk)
    sessions.save("test", "a", "session")
    _, third = await restore(desk)
    _, fourth = await restore(desk)
    assert first == second  # nothing was numbered in between
    assert fourth > third >= second + 2**32 - 1


async def test_it_is_above_the_frames_that_are_kept(desk: Desk) -> None:
    await desk.accept(1)
    await desk.end(1, seq=10 * 2**32 + 5)
    assert (await restore(desk))[1] == 11 * 2**32


@pytest.mark.parametrize(("late", "found"), [(-1, {"a": "session"}), (1, {})])
async def test_a_session_is_kept_for_a_day_without_its_node(
    desk: Desk, sessions: NodeSessions, late: int, found: dict[str, str]
) -> None:
    sessions.save("test", "a", "session")
    sessions.mark_lost("test", "a")
    left = update(NodeRow).values(left_at=datetime.now(UTC) - KEPT_FOR - timedelta(minutes=late))
    await desk.in_thread(lambda connection: connection.execute(left))
    assert (await restore(desk))[0] == found


async def test_who_was_connected_at_a_kill_has_been_away_since_the_start(
    desk: Desk, sessions: NodeSessions
) -> None:
    sessions.save("test", "a", "session")
    ((_, _, _, away),) = (await NodeSessions(desk.writer).restore())[0]
    assert away == 0
