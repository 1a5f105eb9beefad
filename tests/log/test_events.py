import ast
import logging
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.events import Bus, Event, EventType
from clarad.log.events import LOGGER, EventLog, line, of_event
from clarad.systemd import catalogue
from tests.hostile import HOSTILE

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)


def event(kind: EventType = EventType.SESSION_START, **fields: Any) -> Event:
    return Event(id="event-1", type=kind, timestamp=NOON, **fields)


# --- a line --------------------------------------------------------------------------------------


def test_a_line_says_what_happened_where() -> None:
    happened = event(
        EventType.MESSAGE_SENT,
        node_id="n",
        platform="discord",
        user_id="discord-1",
        channel_id="c",
        request_id="m-1",
        session_id="s",
        data={"outcome": "completed", "duration": 0.25},
    )
    assert line(happened) == (
        "message:sent platform=discord node=n user=discord-1 channel=c request=m-1 session=s "
        "outcome=completed duration=0.25"
    )


def test_what_an_event_does_not_have_is_not_in_its_line() -> None:
    assert line(event()) == "session:start"


@pytest.mark.parametrize("name", ["content", "text"])
def test_what_users_write_is_not_logged(name: str) -> None:
    assert "my diary" not in line(event(EventType.MESSAGE_SENT, data={name: "my diary"}))


def test_an_id_in_another_script_is_shown_as_it_is() -> None:
    assert line(event(user_id="дискорд-一")) == "session:start user=дискорд-一"


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "name", ["node_id", "platform", "user_id", "channel_id", "request_id", "session_id"]
)
def test_no_id_can_break_a_line_or_steer_a_terminal(name: str, value: str) -> None:
    fields: dict[str, Any] = {name: value}
    written = line(event(**fields))
    assert written.isprintable()
    assert len(written.splitlines()) == 1


@pytest.mark.parametrize("value", HOSTILE)
def test_no_data_can_break_a_line_or_steer_a_terminal(value: str) -> None:
    written = line(event(data={"reason": value, "list": [value], "nested": {value: value}}))
    assert written.isprintable()
    assert len(written.splitlines()) == 1


@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u3000", "\t"])
def test_no_id_can_pass_for_another_field(blank: str) -> None:
    written = line(event(user_id=f"x{blank}session=forged", session_id="s"))
    fields = written.split()
    assert "session=forged" not in fields
    assert fields[-1] == "session=s"


@given(st.text(st.characters()))
def test_whatever_an_id_is_its_line_is_printable_and_says_which_it_was(value: str) -> None:
    written = line(event(user_id=value))
    assert written.isprintable()
    shown = written.removeprefix("session:start user=")
    assert shown == value or ast.literal_eval(shown) == value


# --- a record ------------------------------------------------------------------------------------


def test_a_record_has_what_is_in_the_line_as_fields() -> None:
    happened = event(
        EventType.SCHEDULER_TASK_ERROR,
        caused_by=("hook-1", "task-2"),
        data={"task": "backup", "run": "task-2", "duration": 0.25, "exit_status": None},
    )
    record = of_event(happened)
    assert record.entry is catalogue.TASK_ATTEMPT_FAILED
    assert record.when == NOON.timestamp()
    assert record.fields == {
        "CLARA_EVENT_ID": "event-1",
        "CLARA_EVENT_TYPE": "scheduler:task_error",
        "CLARA_CAUSED_BY": "hook-1 task-2",
        "CLARA_TASK": "backup",
        "CLARA_RUN": "task-2",
        "CLARA_DURATION": 0.25,
    }


@pytest.mark.parametrize("name", ["content", "text", "output", "description"])
def test_what_users_write_is_in_no_field(name: str) -> None:
    record = of_event(event(EventType.MESSAGE_SENT, data={name: "my diary"}))
    assert "my diary" not in str(record)


def test_no_data_can_pass_for_the_event_itself() -> None:
    record = of_event(event(data={"event_id": "forged", "session_id": "forged"}, session_id="s"))
    assert record.fields["CLARA_EVENT_ID"] == "event-1"
    assert record.fields["CLARA_SESSION_ID"] == "s"


def test_data_whose_name_cannot_be_a_field_s_is_in_the_line_alone() -> None:
    record = of_event(event(data={"naïve": 1, "x" * 60: 2, "a b": 3}))
    assert set(record.fields) == {"CLARA_EVENT_ID", "CLARA_EVENT_TYPE"}


@pytest.mark.parametrize(
    ("kind", "data", "entry", "level"),
    [
        (EventType.MESSAGE_SENT, {"outcome": "completed"}, catalogue.MESSAGE_SENT, "INFO"),
        (EventType.MESSAGE_SENT, {"outcome": "failed"}, catalogue.MESSAGE_FAILED, "WARNING"),
        (EventType.MESSAGE_CANCELLED, {"by": "node-1"}, catalogue.MESSAGE_CANCELLED, "INFO"),
        (EventType.MESSAGE_CANCELLED, {"by": "session"}, catalogue.MESSAGE_CANCELLED, "WARNING"),
        (EventType.MESSAGE_CANCELLED, {"by": "daemon"}, catalogue.MESSAGE_CANCELLED, "WARNING"),
        (
            EventType.MESSAGE_CANCELLED,
            {"reason": "timeout"},
            catalogue.MESSAGE_TIMED_OUT,
            "WARNING",
        ),
    ],
)
def test_a_message_s_end_is_explained_by_how_it_ended(
    kind: EventType, data: dict[str, Any], entry: catalogue.Entry, level: str
) -> None:
    record = of_event(event(kind, data=data))
    assert record.entry is entry
    assert logging.getLevelName(record.level) == level


@pytest.mark.parametrize("kind", EventType)
def test_every_type_of_event_is_in_the_catalogue(kind: EventType) -> None:
    assert of_event(event(kind)).entry in catalogue.ENTRIES


# --- the levels ----------------------------------------------------------------------------------


class Kept:
    """A spool that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, item: Event) -> None:
        self.events.append(item)


def test_at_info_the_common_events_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    assert set(EventType) - EventLog(Kept().put).types == {
        EventType.GATEWAY_STARTUP,
        EventType.MESSAGE_RECEIVED,
    }


def test_at_warning_only_trouble_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    kept, bus = Kept(), Bus()
    with bus.attach(EventLog(kept.put)):
        for kind in EventType:
            bus.publish(kind, data={"outcome": "completed"})
        bus.publish(EventType.MESSAGE_SENT, data={"outcome": "failed"})
        bus.publish(EventType.MESSAGE_CANCELLED, data={"by": "daemon"})
    assert {happened.type for happened in kept.events} == {
        EventType.MESSAGE_CANCELLED,
        EventType.TOOL_ERROR,
        EventType.SCHEDULER_TASK_ERROR,
        EventType.MESSAGE_SENT,
    }
    assert [e.data["outcome"] for e in kept.events if e.type is EventType.MESSAGE_SENT] == [
        "failed"
    ]


def test_a_level_that_changes_counts_from_the_next_event_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept, bus = Kept(), Bus()
    with bus.attach(EventLog(kept.put)):
        for level in (logging.INFO, logging.DEBUG, logging.ERROR):
            caplog.set_level(level, LOGGER)
            bus.publish(EventType.MESSAGE_RECEIVED, data={"level": level})
    assert [happened.data["level"] for happened in kept.events] == [logging.DEBUG]


def test_an_answer_does_not_wait_in_the_queue_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    kept, bus = Kept(), Bus()
    with bus.attach(EventLog(kept.put)):
        bus.publish(EventType.MESSAGE_SENT, data={"outcome": "completed", "text": "x" * 1000})
    assert kept.events[0].data == {"outcome": "completed"}


def test_without_a_log_no_event_is_wanted() -> None:
    assert EventLog(None).types == frozenset()
