from datetime import UTC, timedelta

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from clarad.events import Bus, Event, EventType, Subscription

STARTUP = EventType.GATEWAY_STARTUP
SENT = EventType.MESSAGE_SENT


@pytest.fixture
def bus() -> Bus:
    return Bus()


def queued(subscription: Subscription) -> list[Event]:
    found = []
    while True:
        try:
            found.append(subscription.events.receive_nowait())
        except trio.WouldBlock:
            return found


def test_the_types_are_a_closed_list() -> None:
    listed = (
        "gateway:startup gateway:shutdown adapter:connected adapter:disconnected session:start "
        "session:end session:timeout message:received message:sent message:cancelled tool:start "
        "tool:end tool:error scheduler:task_run scheduler:task_error"
    )
    assert set(EventType) == set(listed.split())


async def test_a_subscriber_receives_what_is_published(bus: Bus) -> None:
    with bus.subscribe() as subscription:
        bus.publish(SENT, node_id="n", platform="p", user_id="u", data={"outcome": "completed"})
        event = await subscription.events.receive()
    assert event.type is SENT
    assert (event.node_id, event.platform, event.user_id) == ("n", "p", "u")
    assert event.data == {"outcome": "completed"}


async def test_what_does_not_apply_to_an_event_is_none(bus: Bus) -> None:
    with bus.subscribe() as subscription:
        bus.publish(STARTUP)
        event = await subscription.events.receive()
    assert (event.channel_id, event.request_id, event.session_id) == (None, None, None)
    assert event.data == {}


async def test_an_events_time_is_in_utc(bus: Bus) -> None:
    with bus.subscribe() as subscription:
        bus.publish(STARTUP)
        event = await subscription.events.receive()
    assert event.timestamp.tzinfo is UTC
    assert event.timestamp.utcoffset() == timedelta(0)


async def test_every_event_has_an_id_of_its_own(bus: Bus) -> None:
    with bus.subscribe() as subscription:
        for _ in range(100):
            bus.publish(STARTUP)
        ids = {event.id for event in queued(subscription)}
    assert len(ids) == 100


async def test_two_boots_of_the_daemon_do_not_share_ids() -> None:
    ids = set()
    for bus in (Bus(), Bus()):
        with bus.subscribe() as subscription:
            bus.publish(STARTUP)
            ids.add((await subscription.events.receive()).id)
    assert len(ids) == 2


async def test_every_subscriber_receives_every_event(bus: Bus) -> None:
    with bus.subscribe() as first, bus.subscribe() as second:
        bus.publish(STARTUP)
        bus.publish(SENT)
        assert queued(first) == queued(second) != []


async def test_a_subscriber_receives_only_the_types_that_it_asked_for(bus: Bus) -> None:
    with bus.subscribe([SENT]) as subscription:
        bus.publish(STARTUP)
        bus.publish(SENT)
        assert [event.type for event in queued(subscription)] == [SENT]


async def test_publishing_to_nobody_is_nothing(bus: Bus) -> None:
    bus.publish(STARTUP)
    with bus.subscribe() as subscription:
        assert queued(subscription) == []


async def test_what_does_not_fit_is_dropped_and_counted(bus: Bus) -> None:
    with bus.subscribe(capacity=2) as subscription:
        for number in range(5):
            bus.publish(SENT, data={"number": number})
        assert [event.data["number"] for event in queued(subscription)] == [0, 1]
        assert subscription.dropped == 3


async def test_a_slow_subscriber_costs_the_others_nothing(bus: Bus) -> None:
    with bus.subscribe(capacity=1) as slow, bus.subscribe(capacity=10) as quick:
        for _ in range(5):
            bus.publish(SENT)
        assert (len(queued(quick)), quick.dropped) == (5, 0)
        assert slow.dropped == 4


async def test_after_a_while_there_is_room_again(bus: Bus) -> None:
    with bus.subscribe(capacity=1) as subscription:
        bus.publish(SENT)
        queued(subscription)
        bus.publish(STARTUP)
        assert [event.type for event in queued(subscription)] == [STARTUP]


async def test_the_end_of_a_subscription_ends_the_iteration_after_what_is_queued(
    bus: Bus, nursery: trio.Nursery
) -> None:
    seen: list[EventType] = []
    ended = trio.Event()

    async def read(subscription: Subscription) -> None:
        async for event in subscription.events:
            seen.append(event.type)
        ended.set()

    with bus.subscribe() as subscription:
        nursery.start_soon(read, subscription)
        await wait_all_tasks_blocked()
        bus.publish(STARTUP)
        bus.publish(SENT)
    await ended.wait()
    assert seen == [STARTUP, SENT]


async def test_after_its_end_a_subscription_receives_nothing(bus: Bus) -> None:
    with bus.subscribe() as subscription:
        pass
    bus.publish(STARTUP)
    with pytest.raises(trio.EndOfChannel):
        subscription.events.receive_nowait()


async def test_a_subscription_ends_also_when_its_block_fails(bus: Bus) -> None:
    subscriptions: list[Subscription] = []

    def fail() -> None:
        with bus.subscribe() as subscription:
            subscriptions.append(subscription)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    with pytest.raises(trio.EndOfChannel):
        subscriptions[0].events.receive_nowait()


async def test_a_subscriber_that_has_closed_its_end_disturbs_no_publisher(bus: Bus) -> None:
    with bus.subscribe() as gone, bus.subscribe() as there:
        gone.events.close()
        bus.publish(STARTUP)
        assert [event.type for event in queued(there)] == [STARTUP]


@given(
    st.integers(0, 5),
    st.frozensets(st.sampled_from(EventType)),
    st.lists(st.none() | st.sampled_from(EventType), max_size=30),
)
def test_a_subscriber_misses_only_what_it_did_not_ask_for_and_what_did_not_fit(
    capacity: int, types: frozenset[EventType], steps: list[EventType | None]
) -> None:
    bus = Bus()
    waiting: list[EventType] = []
    dropped = 0
    with bus.subscribe(types, capacity) as subscription:
        for step in steps:
            if step is None:
                assert [event.type for event in queued(subscription)] == waiting
                waiting = []
                continue
            bus.publish(step)
            if step in types:
                if len(waiting) < capacity:
                    waiting.append(step)
                else:
                    dropped += 1
        assert [event.type for event in queued(subscription)] == waiting
        assert subscription.dropped == dropped
