import ast
import logging
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any, Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from clarad.events import Bus, Event, EventType
from clarad.log import PAUSE, line, logged_types, write_events

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


HOSTILE: Final = [
    "x\n2026-01-01 12:00:00,000 INFO    stopped",
    "x\r\nstopped",
    "x\rstopped",
    "x\vstopped",
    "x\fstopped",
    "x\x1cstopped",
    "x\x85stopped",
    "x\u2028stopped",
    "x\u2029stopped",
    "x\x1b[2J\x1b[1;1Hstopped",
    "x\x9b2Jstopped",
    "x\x1b]0;title\x07",
    "x\bstopped",
    "x\0stopped",
    "x\u202estopped",
    "x\u200bstopped",
    "x\ufeffstopped",
    "x\udc80stopped",
]


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


# --- the levels ----------------------------------------------------------------------------------


def test_at_info_the_common_events_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clarad.event")
    assert set(EventType) - logged_types() == {
        EventType.GATEWAY_STARTUP,
        EventType.MESSAGE_RECEIVED,
    }


def test_at_warning_only_trouble_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "clarad.event")
    assert logged_types() == {
        EventType.MESSAGE_CANCELLED,
        EventType.TOOL_ERROR,
        EventType.SCHEDULER_TASK_ERROR,
    }


def test_at_debug_everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "clarad.event")
    assert logged_types() == set(EventType)


# --- the log of events ---------------------------------------------------------------------------


async def test_every_event_is_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    bus = Bus()
    with bus.subscribe() as subscription:
        bus.publish(EventType.SESSION_START, user_id="u")
        bus.publish(EventType.MESSAGE_CANCELLED, data={"reason": "enough"})
    await write_events(subscription)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" INFO    session:start user=u")
    assert second.endswith(" WARNING message:cancelled reason=enough")


async def test_events_are_logged_as_they_come(
    capsys: pytest.CaptureFixture[str], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bus = Bus()
    with bus.subscribe() as subscription:
        await nursery.start(write_events, subscription)
        for user in ("a", "b"):
            bus.publish(EventType.SESSION_START, user_id=user)
            await trio.sleep(PAUSE)
            await wait_all_tasks_blocked()
            assert capsys.readouterr().err.endswith(f"session:start user={user}\n")


async def test_a_hostile_id_is_one_line_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    bus = Bus()
    with bus.subscribe() as subscription:
        for value in HOSTILE:
            bus.publish(EventType.SESSION_START, user_id=value)
    await write_events(subscription)
    assert len(capsys.readouterr().err.splitlines()) == len(HOSTILE)


async def test_events_that_were_too_many_are_counted_in_the_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus()
    with bus.subscribe(capacity=2) as subscription:
        for _ in range(5):
            bus.publish(EventType.SESSION_START)
    await write_events(subscription)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert caplog.messages == ["3 events were not logged: too many at once"]


def test_the_log_goes_to_standard_error_and_libraries_are_quiet_in_it() -> None:
    program = (
        "import logging; from clarad import log; log.set_up('INFO');"
        "logging.getLogger('clarad').info('hello');"
        "logging.getLogger('clarad').debug('chatter');"
        "logging.getLogger('alembic.runtime').info('chatter')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith(" INFO    hello\n")


def test_what_libraries_say_of_a_webhook_is_not_logged_since_its_address_is_a_secret() -> None:
    code = (
        "import logging; from clarad.log import set_up; set_up('DEBUG'); "
        "print([logging.getLogger(n).isEnabledFor(logging.INFO) for n in ('httpx', 'httpcore')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[False, False]\n"
