"""Messages that other daemons have too: whose turn it is, and who is asked to cancel."""

import json
from typing import Any, NamedTuple, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from clarad import protocol
from clarad.delivery.node import Node, Sink
from clarad.delivery.replay import shared
from clarad.limits.rate import Rates
from clarad.messages import admission, cluster
from clarad.messages.admission import MAX_UNCOMMITTED, AdmissionControl
from clarad.messages.cluster import SharedChannels
from clarad.messages.inflight import InFlight
from clarad.store import CancelAsked, StoreError
from tests.daemon_process import PATIENCE
from tests.postgres import SHARED
from tests.store.conftest import Outside
from tests.store.daemons import STATES, Share, SharedDesk
from tests.store.desk import key, queueing_up

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)

FOR_EVER = 1000.0
"""Seconds until a message looks by itself: only who is told finds out in a test."""


class Side(NamedTuple):
    """What one of several daemons has."""

    messages: SharedDesk
    elsewhere: SharedChannels
    admission_control: AdmissionControl


class Told:
    """A connection that notes the frames it is to send."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(json.loads(frame))


@pytest.fixture
def outside(url: str) -> Outside:
    """Another program that uses the database."""
    return Outside(url)


@pytest.fixture
def told() -> Told:
    """The node's connection."""
    return Told()


@pytest.fixture
def node(told: Told) -> Node:
    """A node that is connected."""
    node = Node("node-1", "test", shared())
    node.connect(cast(Sink, told), frozenset())
    return node


@pytest.fixture
async def two(share: Share, monkeypatch: pytest.MonkeyPatch) -> list[Side]:
    """Two daemons."""
    for name in ("FIRST_POLL", "MAX_POLL"):
        monkeypatch.setattr(cluster, name, FOR_EVER)
    return [_side(SharedDesk(daemon)) for daemon in await share(2)]


def _side(desk: SharedDesk) -> Side:
    kept = AdmissionControl(InFlight(), Rates(None, None))
    return Side(desk, SharedChannels(desk.messages, kept), kept)


async def begin(side: Side, number: int) -> None:
    """Try again until the message has begun."""
    while not await side.elsewhere.begin(key(number), lambda: None):
        pass


async def waits(nursery: trio.Nursery, side: Side, number: int) -> trio.Event:
    """Have a message wait for its turn; the event is set when it has begun."""
    has_begun = trio.Event()

    async def wait() -> None:
        await begin(side, number)
        has_begun.set()

    nursery.start_soon(wait)
    await looked(side)
    return has_begun


async def looked(side: Side) -> None:
    """Wait until whoever wants to look has looked."""
    await wait_all_tasks_blocked()
    await side.messages.writer.call(lambda _connection: None)
    await wait_all_tasks_blocked()


# --- turns ---------------------------------------------------------------------------------------


async def test_a_message_begins_at_once_if_none_is_before_it(
    two: list[Side], outside: Outside
) -> None:
    here, _ = two
    await here.messages.accept(1)
    assert await here.elsewhere.begin(key(1), lambda: pytest.fail("it need not wait"))
    assert outside.rows(STATES) == [("1", "begun")]


async def test_a_message_begins_when_its_channel_has_moved_on(
    two: list[Side], nursery: trio.Nursery
) -> None:
    here, there = two
    await here.messages.admit(1)
    await there.messages.admit(2)
    has_begun = await waits(nursery, there, 2)
    there.elsewhere.channel_moved("test", "channel-1")  # not for long, it seems
    await looked(there)
    assert not has_begun.is_set()
    await here.messages.end(1)
    there.elsewhere.channel_moved("test", "another")
    await looked(there)
    assert not has_begun.is_set()
    there.elsewhere.channel_moved("test", "channel-1")
    with trio.fail_after(PATIENCE):
        await has_begun.wait()


async def test_a_message_that_has_to_wait_lets_others_of_its_daemon_run_meanwhile(
    two: list[Side], nursery: trio.Nursery
) -> None:
    here, there = two
    await here.messages.admit(1)
    await there.messages.admit(2)
    others_may = trio.Event()
    nursery.start_soon(there.elsewhere.begin, key(2), others_may.set)
    with trio.fail_after(PATIENCE):
        await others_may.wait()
    there.elsewhere.channel_moved("test", "channel-1")


async def test_what_is_said_while_the_store_looks_is_not_missed(
    two: list[Side], nursery: trio.Nursery
) -> None:
    here, there = two
    await here.messages.admit(1)
    await there.messages.admit(2)

    async def end() -> None:
        await here.messages.end(1)
        there.elsewhere.channel_moved("test", "channel-1")

    has_begun = trio.Event()

    async def wait() -> None:
        await begin(there, 2)
        has_begun.set()

    async with queueing_up(there.messages.writer):
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        # In the same transaction: the look has found nothing by then, and is not answered yet.
        there.messages.writer.submit(lambda _connection: trio.from_thread.run(end))
    with trio.fail_after(PATIENCE):
        await has_begun.wait()


async def test_a_message_finds_out_by_itself_if_nothing_is_said(
    two: list[Side], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "FIRST_POLL", 0.01)
    here, there = two
    await here.messages.admit(1)
    await there.messages.admit(2)
    has_begun = await waits(nursery, there, 2)
    await here.messages.end(1)
    with trio.fail_after(PATIENCE):
        await has_begun.wait()


async def test_all_that_wait_in_a_channel_look_when_it_moves_on(
    two: list[Side], nursery: trio.Nursery
) -> None:
    here, there = two
    await here.messages.admit(1)
    for number in (2, 3):
        await there.messages.admit(number)
    third, second = [await waits(nursery, there, number) for number in (3, 2)]
    await here.messages.end(1)
    there.elsewhere.channel_moved("test", "channel-1")
    with trio.fail_after(PATIENCE):
        await second.wait()
        assert not third.is_set()
        await there.messages.end(2)
        there.elsewhere.channel_moved("test", "channel-1")
        await third.wait()


async def test_a_store_that_fails_is_an_error_to_who_waits(two: list[Side]) -> None:
    here, _ = two
    here.messages.daemon.epoch.is_lost = True
    with pytest.raises(StoreError):
        await here.elsewhere.begin(key(1), lambda: None)


# --- cancellations -------------------------------------------------------------------------------


async def test_the_daemon_that_has_a_message_is_told_that_it_is_to_be_cancelled(
    two: list[Side], node: Node, told: Told
) -> None:
    here, there = two
    await here.messages.admit(1)
    there.elsewhere.cancel(node, protocol.Cancel("1", "changed my\0 mind"))
    await looked(there)
    assert here.messages.daemon.said() == [CancelAsked("test", "node-1")]
    assert await here.messages.messages.to_cancel() == [(key(1), "changed my mind", True)]
    assert told.frames == []


async def test_a_cancel_of_what_nobody_has_is_not_found(
    two: list[Side], node: Node, told: Told
) -> None:
    two[0].elsewhere.cancel(node, protocol.Cancel("1"))
    await looked(two[0])
    (error,) = told.frames
    assert (error["code"], error["request_id"]) == ("not_found", "1")
    assert error["recoverable"] is False


async def test_a_cancel_that_the_store_fails_can_be_tried_again(
    two: list[Side], node: Node, told: Told, outside: Outside
) -> None:
    outside.do("ALTER TABLE clarad_messages RENAME TO away")
    two[0].elsewhere.cancel(node, protocol.Cancel("1"))
    await looked(two[0])
    (error,) = told.frames
    assert (error["code"], error.get("request_id")) == ("processing_error", None)
    assert error["recoverable"] is True


async def test_what_is_cancelled_again_and_again_is_asked_once_and_answered_once(
    two: list[Side], node: Node, told: Told, nursery: trio.Nursery
) -> None:
    side = two[0]
    async with queueing_up(side.messages.writer):
        for _ in range(MAX_UNCOMMITTED * 2):
            side.elsewhere.cancel(node, protocol.Cancel("1"))
        await wait_all_tasks_blocked()
        with trio.fail_after(PATIENCE):
            await side.admission_control.apply_backpressure(node)  # there is one on its way
    await looked(side)
    assert [error["code"] for error in told.frames] == ["not_found"]
    side.elsewhere.cancel(node, protocol.Cancel("1"))
    await looked(side)
    assert len(told.frames) == 2, "and another one afterwards is another question"


async def test_who_sends_more_cancels_than_the_store_can_answer_waits_for_it(
    two: list[Side],
    node: Node,
    told: Told,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MAX_PAUSE", FOR_EVER)
    side, has_kept_up = two[0], trio.Event()

    async def apply_backpressure() -> None:
        await side.admission_control.apply_backpressure(node)
        has_kept_up.set()

    async with queueing_up(side.messages.writer):
        for number in range(MAX_UNCOMMITTED):
            side.elsewhere.cancel(node, protocol.Cancel(f"{number}"))
        nursery.start_soon(apply_backpressure)
        await wait_all_tasks_blocked()
        assert not has_kept_up.is_set()
    with trio.fail_after(PATIENCE):
        await has_kept_up.wait()
    await looked(side)
    assert len(told.frames) == MAX_UNCOMMITTED
