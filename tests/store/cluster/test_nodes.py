"""Nodes that may register with any of several daemons: one has a node, and numbers its frames."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio
from sqlalchemy import update

from clarad.store import KEPT_FOR, CancelAsked, LeaseLost, NodeCame, NodeSession, StoreError
from clarad.store.cluster.nodes import ClusterNodeSessions
from clarad.store.models import NodeRow
from clarad.store.node_sessions import SEQ_BITS
from tests.postgres import SHARED
from tests.store.conftest import Outside
from tests.store.daemons import Daemon, Share, SharedDesk
from tests.store.desk import key

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)

SESSIONS = "SELECT session_id FROM clarad_nodes"
HAS_LEFT = "SELECT left_at IS NOT NULL FROM clarad_nodes"


class Registry(ClusterNodeSessions):
    """The nodes of one of several daemons; all here is about one node."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon.writer)
        self.daemon = daemon

    async def register(
        self, *, resumes: bool = True, is_known: bool = False
    ) -> tuple[NodeSession, int]:
        """Have the node register here, and be new here."""
        acquired = await self.acquire("test", "node-1", resumes=resumes, is_known=is_known)
        assert acquired is not None
        return acquired

    async def written(self) -> None:
        """Wait until all that was noted is in the store."""
        await self.daemon.writer.call(lambda _connection: None)

    async def begin_session(self, session_id: str = "session") -> None:
        """Have the node register here, and begin a session."""
        await self.register()
        self.save("test", "node-1", session_id)
        await self.written()

    async def lose(self) -> None:
        self.mark_lost("test", "node-1")
        await self.written()

    async def age(self, age: timedelta) -> None:
        """Have the node been away for so long."""
        left = update(NodeRow).values(left_at=datetime.now(UTC) - age)
        await self.daemon.writer.call(lambda connection: connection.execute(left))


@pytest.fixture
async def two(share: Share) -> Sequence[Registry]:
    """What two daemons know of the nodes."""
    return [Registry(daemon) for daemon in await share(2)]


# --- acquired -----------------------------------------------------------------------------------


async def test_a_node_that_nobody_knows_has_no_session(two: Sequence[Registry]) -> None:
    session, _ = await two[0].register()
    assert session == NodeSession("test", "node-1", "", away=0)


async def test_a_session_is_found_by_whichever_daemon(two: Sequence[Registry]) -> None:
    here, there = two
    await here.begin_session("first")
    session, _ = await there.register()
    assert session.session_id == "first"
    there.save("test", "node-1", "second")
    await there.written()
    session, _ = await here.register()
    assert session.session_id == "second"


async def test_every_daemon_that_has_a_node_numbers_above_all_before_it(
    two: Sequence[Registry],
) -> None:
    numbers = [(await two[turn % 2].register())[1] for turn in range(6)]
    assert all(number % 2**SEQ_BITS == 0 for number in numbers)
    assert numbers == sorted(set(numbers))


async def test_it_numbers_above_the_frames_that_wait_for_the_node(
    two: Sequence[Registry],
) -> None:
    messages = SharedDesk(two[0].daemon)
    await messages.admit(1)
    await messages.end(1, seq=(10 << SEQ_BITS) + 5)
    assert (await two[1].register())[1] == 11 << SEQ_BITS
    other = await two[1].acquire("test", "node-2", resumes=True, is_known=False)
    assert other is not None
    assert other[1] < 10 << SEQ_BITS


async def test_all_are_told_who_has_a_node_from_now_on(two: Sequence[Registry]) -> None:
    here, there = two
    _, after_seq = await here.register()
    assert there.daemon.said() == [NodeCame("test", "node-1", after_seq)]


async def test_who_has_a_node_already_and_knows_more_goes_on_with_it(
    two: Sequence[Registry],
) -> None:
    here, there = two
    await here.begin_session()
    there.daemon.said()
    assert await here.acquire("test", "node-1", resumes=True, is_known=True) is None
    assert there.daemon.said() == []


async def test_who_knows_a_node_that_was_elsewhere_meanwhile_takes_it_anew(
    two: Sequence[Registry],
) -> None:
    here, there = two
    await here.begin_session("here")
    await there.begin_session("there")
    session, _ = await here.register(is_known=True)
    assert session.session_id == "there"


async def test_of_daemons_that_take_a_node_at_once_the_last_one_has_it(
    two: Sequence[Registry], outside: Outside
) -> None:
    after: dict[int, int] = {}

    async def take(registry: Registry) -> None:
        for _ in range(10):
            _, after_seq = await registry.register()
            assert after_seq not in after
            after[after_seq] = registry.daemon.number

    async with trio.open_nursery() as nursery:
        for registry in two:
            nursery.start_soon(take, registry)
    last = max(after)
    assert outside.rows("SELECT after_seq, owner FROM clarad_nodes") == [(last, after[last])]


# --- away ----------------------------------------------------------------------------------------


async def test_how_long_a_node_was_away_is_known_to_whichever_daemon(
    two: Sequence[Registry],
) -> None:
    here, there = two
    await here.begin_session()
    await here.lose()
    await here.age(timedelta(hours=2))
    session, _ = await there.register()
    assert 7200 <= session.away < 7200 + 600


async def test_a_node_that_does_not_resume_counts_as_away_at_once(
    two: Sequence[Registry], outside: Outside
) -> None:
    for is_known in (False, True):
        await two[0].register()
        await two[0].acquire("test", "node-1", resumes=False, is_known=is_known)
        assert outside.rows(HAS_LEFT) == [(True,)]


async def test_a_daemon_that_has_a_node_no_more_changes_nothing_about_it(
    two: Sequence[Registry], outside: Outside
) -> None:
    here, there = two
    await here.begin_session("here")
    await there.begin_session("there")
    here.save("test", "node-1", "too late")
    await here.lose()
    assert outside.rows(SESSIONS) == [("there",)]
    assert outside.rows(HAS_LEFT) == [(False,)]


async def test_the_nodes_of_a_daemon_that_dies_are_away_from_then_on(
    two: Sequence[Registry], outside: Outside
) -> None:
    here, there = two
    await here.begin_session()
    await there.inherit([there.daemon.number])
    assert outside.rows(HAS_LEFT) == [(False,)]
    await there.inherit([here.daemon.number])
    assert outside.rows(HAS_LEFT) == [(True,)]


async def test_who_was_away_already_is_not_away_anew(
    two: Sequence[Registry], outside: Outside
) -> None:
    here, there = two
    await here.begin_session()
    await here.lose()
    left_at = "SELECT left_at FROM clarad_nodes"
    before = outside.rows(left_at)
    await there.inherit([here.daemon.number])
    assert outside.rows(left_at) == before


# --- started, forgotten --------------------------------------------------------------------------


async def test_a_daemon_that_starts_knows_no_node_until_it_comes(
    two: Sequence[Registry],
) -> None:
    here, there = two
    await here.begin_session()
    assert await there.restore() == ([], 0)
    session, _ = await there.register()
    assert session.session_id == "session"


async def test_a_daemon_that_starts_leaves_the_nodes_of_others_connected(
    two: Sequence[Registry], outside: Outside
) -> None:
    await two[0].begin_session()
    await two[1].restore()
    assert outside.rows(HAS_LEFT) == [(False,)]


@pytest.mark.parametrize(("late", "found"), [(-1, [("session",)]), (1, [])])
async def test_a_start_forgets_what_was_kept_for_a_day(
    two: Sequence[Registry], outside: Outside, late: int, found: list[tuple[str]]
) -> None:
    here, there = two
    await here.begin_session()
    await here.age(KEPT_FOR + timedelta(minutes=late))
    await there.restore()
    assert outside.rows(SESSIONS) == found


async def test_a_node_that_is_forgotten_is_gone(two: Sequence[Registry], outside: Outside) -> None:
    here, there = two
    await here.begin_session()
    there.daemon.said()
    here.forget("test", "node-1")
    await here.written()
    assert outside.rows(SESSIONS) == []
    assert there.daemon.said() == []


async def test_what_a_node_that_is_forgotten_has_waiting_elsewhere_is_to_be_cancelled(
    two: Sequence[Registry],
) -> None:
    here, there = two
    waiting = SharedDesk(there.daemon)
    await waiting.admit(1)
    await here.begin_session()
    there.daemon.said()
    here.forget("test", "node-1")
    await here.written()
    assert there.daemon.said() == [CancelAsked("test", "node-1")]
    assert await waiting.messages.to_cancel() == [(key(1), "the node unregistered", False)]
    await waiting.end(1)
    assert await waiting.owed_to(1) is None


async def test_a_node_is_its_own_on_each_platform(
    two: Sequence[Registry], outside: Outside
) -> None:
    here = two[0]
    await here.begin_session()
    await here.acquire("other", "node-1", resumes=True, is_known=False)
    here.save("other", "node-1", "another")
    here.forget("other", "node-1")
    await here.written()
    assert outside.rows(SESSIONS) == [("session",)]


# --- when the database fails ---------------------------------------------------------------------


async def test_whatever_fails_says_so_in_one_line(
    two: Sequence[Registry], outside: Outside
) -> None:
    outside.do("DROP TABLE clarad_nodes")
    for ask in (two[0].register, two[0].restore, partial(two[0].inherit, [1])):
        with pytest.raises(StoreError, match=r"\A.*clarad_nodes.*\Z"):
            await ask()


async def test_who_has_lost_its_lease_takes_no_node(
    two: Sequence[Registry], outside: Outside
) -> None:
    two[0].daemon.epoch.is_lost = True
    with pytest.raises(LeaseLost):
        await two[0].register()
    assert outside.rows(SESSIONS) == []
