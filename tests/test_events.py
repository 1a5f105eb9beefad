from datetime import UTC, timedelta

import pytest

from clarad.events import Bus, EventType
from tests.recorder import recording

STARTUP = EventType.GATEWAY_STARTUP
SENT = EventType.MESSAGE_SENT


@pytest.fixture
def bus() -> Bus:
    return Bus()


def test_the_types_are_a_closed_list() -> None:
    listed = (
        "gateway:startup gateway:shutdown adapter:connected adapter:disconnected session:start "
        "session:end session:timeout message:received message:sent message:cancelled tool:start "
        "tool:end tool:error scheduler:task_run scheduler:task_error"
    )
    assert set(EventType) == set(listed.split())


def test_a_subscriber_is_given_what_is_published(bus: Bus) -> None:
    with recording(bus) as recorder:
        bus.publish(SENT, node_id="n", platform="p", user_id="u", data={"outcome": "completed"})
        (event,) = recorder.recorded()
    assert event.type is SENT
    assert (event.node_id, event.platform, event.user_id) == ("n", "p", "u")
    assert event.data == {"outcome": "completed"}
    assert event.timestamp.tzinfo is UTC
    assert event.timestamp.utcoffset() == timedelta(0)


def test_what_does_not_apply_to_an_event_is_none(bus: Bus) -> None:
    with recording(bus) as recorder:
        bus.publish(STARTUP)
        (event,) = recorder.recorded()
    assert (event.channel_id, event.request_id, event.session_id) == (None, None, None)
    assert event.data == {}


def test_every_event_has_an_id_of_its_own_also_after_a_restart() -> None:
    ids = set()
    for bus in (Bus(), Bus()):
        with recording(bus) as recorder:
            for _ in range(100):
                bus.publish(STARTUP)
            ids |= {event.id for event in recorder.recorded()}
    assert len(ids) == 200


def test_every_subscriber_is_given_every_event(bus: Bus) -> None:
    with recording(bus) as first, recording(bus) as second:
        bus.publish(STARTUP)
        bus.publish(SENT)
        assert first.recorded() == second.recorded() != []


def test_a_subscriber_is_given_only_the_types_that_it_wants(bus: Bus) -> None:
    with recording(bus, [SENT]) as recorder:
        bus.publish(STARTUP)
        bus.publish(SENT)
        assert [event.type for event in recorder.recorded()] == [SENT]


def test_outside_its_block_a_subscriber_is_given_nothing(bus: Bus) -> None:
    bus.publish(STARTUP)
    with pytest.raises(ValueError, match="inside"), recording(bus) as recorder:
        raise ValueError("inside")
    bus.publish(STARTUP)
    assert recorder.recorded() == []
