"""Messages of several daemons in one table: each channel's one at a time, and in order."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, Engine, func, select, text
from trio.testing import wait_all_tasks_blocked

from clarad.store import (
    CancelAsked,
    ChannelFull,
    ChannelMoved,
    LeaseLost,
    MessageKey,
    NodeOwed,
    StoreError,
)
from clarad.store.cluster.messages import channel_lock
from tests.postgres import SHARED
from tests.store.conftest import Outside
from tests.store.daemons import ABOUT, ENDING, STATES, Share, SharedDesk
from tests.store.desk import FAIL_SAFE, key, queueing_up

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)

SEQS = "SELECT seq FROM clarad_messages"
BEGUN_ELSEWHERE = """\
INSERT INTO clarad_messages (platform, channel_id, request_id, node_id, user_id, session_id, frame,
received_at, begun_at) VALUES ('test', 'channel-1', '1', 'n', 'u', 's', '{}', now(), now())"""
OTHER_CHANNEL = MessageKey("test", "channel-2", "other")


@pytest.fixture
async def two(share: Share) -> list[SharedDesk]:
    """What two daemons have of the messages."""
    return [SharedDesk(daemon) for daemon in await share(2)]


# --- accepted ------------------------------------------------------------------------------------


async def test_a_message_that_is_alone_in_its_channel_begins_at_once(
    two: list[SharedDesk], outside: Outside
) -> None:
    assert await two[0].admit(1) == (True, [])
    assert outside.rows(STATES) == [("1", "begun")]


async def test_a_message_waits_for_those_of_another_daemon_and_is_told_how_many(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await here.admit(1)
    await here.accept(2)
    assert await there.admit(3) == (True, [2])
    assert outside.rows(STATES) == [("1", "begun"), ("2", "waits"), ("3", "waits")]


async def test_it_waits_too_for_one_that_has_not_begun(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await here.accept(1)
    assert await there.admit(2) == (True, [1])
    assert outside.rows(STATES) == [("1", "waits"), ("2", "waits")]


async def test_what_has_ended_is_not_waited_for(two: list[SharedDesk], outside: Outside) -> None:
    here, there = two
    await here.admit(1)
    await here.end(1)
    assert await there.admit(2) == (True, [])


async def test_another_channel_is_not_waited_for(two: list[SharedDesk]) -> None:
    here, there = two
    await here.admit(1)
    ahead: list[int] = []
    assert await there.accepted(OTHER_CHANNEL, begun=True, queued=ahead.append, **ABOUT)
    assert ahead == []


async def test_who_is_told_that_it_waits_is_told_so_before_it_is_accepted(
    two: list[SharedDesk],
) -> None:
    here, there = two
    await here.admit(1)
    told: list[object] = []
    accepted = trio.Event()

    def then(result: bool | StoreError) -> None:
        told.append(result)
        accepted.set()

    there.messages.accept(key(2), begun=True, queued=told.append, then=then, **ABOUT)
    await accepted.wait()
    assert told == [1, True]


async def test_a_message_that_another_daemon_has_is_not_new_and_stays_as_it_is(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    everything = "SELECT * FROM clarad_messages"
    await here.admit(1)
    before = outside.rows(everything)
    assert await there.admit(1) == (False, [])
    assert outside.rows(everything) == before
    await here.end(1)
    assert await there.admit(1) == (False, [])


async def test_of_many_that_come_to_all_daemons_at_once_one_begins(
    two: list[SharedDesk], outside: Outside
) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(two[number % 2].admit, number)
    states = [state for _, state in outside.rows(STATES)]
    assert sorted(states) == ["begun"] + ["waits"] * 99


async def test_a_channel_is_full_with_the_messages_of_all_daemons(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    for number in (1, 2):
        await here.admit(number, most=1)
    with pytest.raises(ChannelFull):
        await there.admit(3, most=1)
    assert outside.rows(STATES) == [("1", "begun"), ("2", "waits")]
    await here.end(1)
    assert await there.admit(3, most=1) == (True, [1])


async def test_what_finds_its_channel_full_leaves_the_others_in_one_transaction(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, _ = two
    for number in (1, 2):
        await here.admit(number, most=1)
    answers: list[object] = []
    about: dict[str, Any] = ABOUT | {"begun": False, "most": 1, "then": answers.append}
    async with queueing_up(here.writer):
        here.messages.accept(MessageKey("test", "channel-3", "another"), **about)
        here.messages.accept(key(3), **about)
        here.messages.accept(OTHER_CHANNEL, **about)
        last = here.writer.submit(lambda _connection: None)
    await last.wait()
    assert [answers[0], type(answers[1]), answers[2]] == [True, ChannelFull, True]
    transactions = "SELECT xmin FROM clarad_messages WHERE channel_id <> 'channel-1'"
    first, second = outside.rows(transactions)
    assert first == second


async def test_what_is_sent_again_to_a_channel_that_is_full_is_there_already(
    two: list[SharedDesk],
) -> None:
    here, there = two
    for number in (1, 2):
        await here.admit(number, most=1)
    assert await there.admit(2, most=1) == (False, [])


async def test_a_message_that_is_written_down_a_second_time_looks_again_whether_it_may_begin(
    two: list[SharedDesk], outside: Outside
) -> None:
    tries = 0

    def let_another_begin(_connection: Connection) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:  # the transaction in which ours had begun was taken back
            outside.do(BEGUN_ELSEWHERE)

    here, ahead = two[0], list[int]()
    async with queueing_up(here.writer):
        here.writer.submit(let_another_begin)
        here.messages.accept(key(2), begun=True, queued=ahead.append, then=lambda _: None, **ABOUT)
        failing = here.writer.execute(text("SELECT 1 / 0"), {})
    with pytest.raises(StoreError, match="division by zero"):
        await failing.wait()
    assert (ahead, tries) == ([1], 2)
    assert outside.rows(STATES) == [("1", "begun"), ("2", "waits")]


# --- begun ---------------------------------------------------------------------------------------


async def test_a_message_begins_when_all_before_it_have_ended(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await here.admit(1)
    await there.admit(2)
    await here.accept(3)
    assert not await there.messages.begin_if_first(key(2))
    await here.end(1)
    assert not await here.messages.begin_if_first(key(3))
    assert await there.messages.begin_if_first(key(2))
    assert outside.rows(STATES) == [("1", "ended"), ("2", "begun"), ("3", "waits")]


async def test_a_message_does_not_begin_beside_one_that_came_after_it(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await here.accept(1)
    await there.accept(2)
    outside.do("UPDATE clarad_messages SET begun_at = now() WHERE request_id = '2'")
    assert not await here.messages.begin_if_first(key(1))
    await there.end(2)
    assert await here.messages.begin_if_first(key(1))


async def test_a_message_that_has_begun_may_be_told_so_again(two: list[SharedDesk]) -> None:
    await two[0].accept(1)
    assert await two[0].messages.begin_if_first(key(1))
    assert await two[0].messages.begin_if_first(key(1))


async def test_of_all_that_ask_at_once_the_first_begins(
    two: list[SharedDesk], outside: Outside
) -> None:
    for number in range(20):
        await two[number % 2].accept(number)
    began: list[int] = []

    async def begin(number: int) -> None:
        while not await two[number % 2].messages.begin_if_first(key(number)):
            if began:
                return
        began.append(number)

    async with trio.open_nursery() as nursery:
        for number in reversed(range(20)):
            nursery.start_soon(begin, number)
    assert began == [0]


async def test_who_is_first_does_not_wait_for_what_is_written_down_behind_it(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await there.accept(1)
    seen: list[bool] = []

    async def begin() -> None:
        with trio.fail_after(FAIL_SAFE):
            seen.append(await there.messages.begin_if_first(key(1)))

    async with queueing_up(here.writer):
        here.messages.accept(key(2), begun=True, then=lambda _: None, **ABOUT)
        deciding = here.writer.submit(lambda _connection: trio.from_thread.run(begin))
    await deciding.wait()
    assert seen == [True]
    assert outside.rows(STATES) == [("1", "begun"), ("2", "waits")]


async def test_who_finds_its_channel_locked_has_its_turn_as_soon_as_that_is_given_back(
    two: list[SharedDesk], connect: Callable[[str], Engine], url: str, nursery: trio.Nursery
) -> None:
    here, _ = two
    await here.accept(1)
    has_begun = trio.Event()

    async def begin() -> None:
        assert await here.messages.begin_if_first(key(1))
        has_begun.set()

    with connect(url).begin() as somebody:
        somebody.execute(select(func.pg_advisory_xact_lock(channel_lock(key(1)))))
        nursery.start_soon(begin)
        await wait_all_tasks_blocked()
        await here.writer.call(lambda _connection: None)  # nothing else waits meanwhile
        assert not has_begun.is_set()
    with trio.fail_after(FAIL_SAFE):
        await has_begun.wait()


async def test_two_that_both_find_themselves_first_do_not_both_begin(
    two: list[SharedDesk], outside: Outside, nursery: trio.Nursery
) -> None:
    here, there = two
    has_begun: list[bool] = []
    answered = trio.Event()

    async def begin() -> None:
        has_begun.append(await there.messages.begin_if_first(key(2)))
        answered.set()

    async def look() -> None:
        """Message 1 is there, has begun, and is not committed: nobody else can see it."""
        with trio.fail_after(FAIL_SAFE):
            assert await there.admit(2) == (True, [1])
            nursery.start_soon(begin)
            await wait_all_tasks_blocked()
            await there.writer.call(lambda _connection: None)
            assert not answered.is_set()

    async with queueing_up(here.writer):
        here.messages.accept(key(1), begun=True, then=lambda _: None, **ABOUT)
        deciding = here.writer.submit(lambda _connection: trio.from_thread.run(look))
    await deciding.wait()
    with trio.fail_after(FAIL_SAFE):
        await answered.wait()
    assert has_begun == [False]
    assert outside.rows(STATES) == [("1", "begun"), ("2", "waits")]


# --- ended ---------------------------------------------------------------------------------------


async def test_whoever_waits_with_another_daemon_is_told_that_the_channel_has_moved_on(
    two: list[SharedDesk],
) -> None:
    here, there = two
    await here.admit(1)
    await there.admit(2)
    await here.end(1)
    assert there.daemon.said() == [ChannelMoved("test", "channel-1", there.daemon.number)]


async def test_of_several_that_wait_the_one_is_told_whose_turn_it_is(share: Share) -> None:
    first, second, third = (SharedDesk(daemon) for daemon in await share(3))
    for number, desk in enumerate((first, third, second)):
        await desk.admit(number)
    await first.end(0)
    (moved,) = second.daemon.said()
    assert isinstance(moved, ChannelMoved)
    assert [desk.messages.has(moved.owner) for desk in (second, third)] == [False, True]


async def test_who_has_taken_over_is_told_in_the_place_of_the_dead(
    two: list[SharedDesk],
) -> None:
    here, there = two
    await here.admit(1)
    await there.admit(2)
    here.daemon.epoch.owners |= {there.daemon.number}
    await here.end(1)
    assert there.daemon.said() == [], "the heir has the next message, and need not tell itself"


async def test_nobody_is_told_if_nobody_waits_elsewhere(two: list[SharedDesk]) -> None:
    here, there = two
    await here.admit(1)
    await here.accept(2)
    await there.accepted(OTHER_CHANNEL, begun=True, **ABOUT)
    await here.end(1)
    assert there.daemon.said() == []


@pytest.mark.parametrize(
    ("is_here", "wanted", "said"),
    [
        (False, True, [NodeOwed("test", "node-1")]),
        (True, True, []),
        (False, False, []),
    ],
)
async def test_others_are_told_of_a_frame_for_a_node_that_is_not_here(
    two: list[SharedDesk], is_here: bool, wanted: bool, said: list[NodeOwed]
) -> None:
    here, there = two
    await here.have_node()
    await here.admit(1)
    there.daemon.said()
    await here.end_for_node(1, is_here=is_here, wanted=wanted)
    assert there.daemon.said() == said


async def test_others_are_told_of_a_frame_for_a_node_that_has_just_gone_to_one_of_them(
    two: list[SharedDesk],
) -> None:
    here, there = two
    await there.have_node()
    await here.admit(1)
    there.daemon.said()
    await here.end_for_node(1, is_here=True)
    assert there.daemon.said() == [NodeOwed("test", "node-1")]


async def test_a_frame_keeps_its_number_if_its_node_is_this_daemon_s(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await here.have_node()
    await here.admit(1)
    there.daemon.said()
    await here.end_for_node(1, seq=7)
    assert outside.rows(SEQS) == [(7,)]
    assert there.daemon.said() == []


async def test_a_frame_has_no_number_if_its_node_is_another_daemon_s_which_is_told(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await here.have_node()
    await there.have_node()
    await here.admit(1)
    there.daemon.said()
    await here.end_for_node(1, seq=7)
    assert outside.rows(SEQS) == [(None,)]
    assert there.daemon.said() == [NodeOwed("test", "node-1")]


async def test_that_is_so_too_if_the_end_is_written_down_a_second_time(
    two: list[SharedDesk], outside: Outside
) -> None:
    here, there = two
    await there.have_node()
    await here.admit(1)
    there.daemon.said()
    async with queueing_up(here.writer):
        here.messages.end(key(1), **ENDING | {"seq": 7}, then=lambda _: None)
        failing = here.writer.execute(text("SELECT 1 / 0"), {})
    with pytest.raises(StoreError, match="division by zero"):
        await failing.wait()
    assert outside.rows(SEQS) == [(None,)]
    assert there.daemon.said() == [NodeOwed("test", "node-1")]


# --- cancelled -----------------------------------------------------------------------------------


async def test_every_daemon_is_asked_to_cancel_a_message_that_has_not_ended(
    two: list[SharedDesk],
) -> None:
    here, there = two
    await here.admit(1)
    assert await there.cancel(1)
    asked = CancelAsked("test", "node-1")
    assert [here.daemon.said(), there.daemon.said()] == [[asked], [asked]]


async def test_who_has_the_message_finds_out_why_it_is_to_be_cancelled(
    two: list[SharedDesk],
) -> None:
    here, there = two
    await here.admit(1)
    await here.admit(2)
    assert await there.cancel(2, reason="enough")
    assert await here.messages.to_cancel() == [(key(2), "enough", True)]
    assert await there.messages.to_cancel() == []
    await here.end(2)
    assert await here.messages.to_cancel() == []


async def test_nobody_is_asked_to_cancel_what_is_another_node_s_or_has_ended(
    two: list[SharedDesk],
) -> None:
    here, there = two
    await here.admit(1)
    assert not await there.cancel(1, node_id="node-2")
    assert not await there.cancel(2)
    assert not await there.cancel(1, platform="other")
    await here.end(1)
    assert not await there.cancel(1)
    assert here.daemon.said() == []


# --- when the database fails ---------------------------------------------------------------------


async def test_whatever_fails_says_so_in_one_line(two: list[SharedDesk], outside: Outside) -> None:
    here = two[0]
    await here.admit(1)
    outside.do("ALTER TABLE clarad_messages RENAME TO away")
    for ask in (
        partial(here.admit, 2),
        partial(here.messages.begin, key(1)),
        partial(here.end_for_node, 1),
        partial(here.cancel, 1),
    ):
        with pytest.raises(StoreError, match=r"\A.*clarad_messages.*\Z"):
            await ask()


async def test_who_has_lost_its_lease_accepts_begins_and_ends_nothing(
    two: list[SharedDesk], outside: Outside
) -> None:
    here = two[0]
    await here.accept(1)
    here.daemon.epoch.is_lost = True
    for ask in (
        partial(here.admit, 2),
        partial(here.messages.begin, key(1)),
        partial(here.end_for_node, 1),
        partial(here.cancel, 1),
    ):
        with pytest.raises(LeaseLost):
            await ask()
    assert outside.rows(STATES) == [("1", "waits")]
