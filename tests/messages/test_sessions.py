"""Sessions: made by a first message, found by the next, ended by time or by too many others."""

from collections import defaultdict
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from clarad.events import Bus
from clarad.messages import sessions
from clarad.messages.sessions import Sessions
from clarad.messages.turn import Session, SessionKey
from tests.recorder import Recorder, recording

TIMEOUT = 60.0


class House:
    """The sessions of a daemon in one channel, and what became of them."""

    def __init__(self, nursery: trio.Nursery, bus: Bus, recorder: Recorder) -> None:
        self.sessions = Sessions(bus, TIMEOUT)
        nursery.start_soon(self.sessions.run)
        self._recorder = recorder

    def enter(self, user: str, *caused_by: str) -> Session:
        return self.sessions.acquire(SessionKey("test", user, "channel"), caused_by)

    async def visit(self, *users: str) -> None:
        """Have a message of each user come and end."""
        for user in users:
            self.sessions.release(self.enter(user))
            await wait_all_tasks_blocked()

    def told(self) -> list[tuple[str | None, str]]:
        """Return what was published since: whose session it was, and what of it."""
        return [
            (event.user_id, event.data.get("reason", event.type.partition(":")[2]))
            for event in self._recorder.recorded()
        ]


@pytest.fixture
def house(nursery: trio.Nursery) -> Iterator[House]:
    """A daemon without sessions."""
    bus = Bus()
    with recording(bus) as recorder:
        yield House(nursery, bus, recorder)


async def test_a_first_message_makes_a_session_and_the_next_one_finds_it(house: House) -> None:
    session = house.enter("a")
    await wait_all_tasks_blocked()
    assert house.enter("a") is session
    assert house.enter("b") is not session
    await wait_all_tasks_blocked()
    assert house.told() == [("a", "start"), ("b", "start")]
    assert len(house.sessions) == 2


async def test_what_led_to_the_first_message_led_to_the_session(house: House) -> None:
    assert house.enter("a", "run-1", "run-2").caused_by == ("run-1", "run-2")
    assert house.enter("a", "run-3").caused_by == ("run-1", "run-2")


async def test_a_session_ends_when_nothing_has_come_for_its_time(
    autojump_clock: MockClock, house: House
) -> None:
    house.sessions.release(house.enter("a"))
    await trio.sleep(TIMEOUT - 1)
    await house.visit("a")  # from here on it counts anew
    await trio.sleep(TIMEOUT - 1)
    assert house.told() == [("a", "start")]
    await trio.sleep(2)
    assert house.told() == [("a", "timeout"), ("a", "timeout")]  # once for each kind of event
    assert len(house.sessions) == 0


async def test_a_session_with_a_message_does_not_time_out_before_that_has_left(
    autojump_clock: MockClock, house: House
) -> None:
    session = house.enter("a")
    await trio.sleep(TIMEOUT * 3.5)
    assert house.told() == [("a", "start")]
    house.sessions.release(session)
    await trio.sleep(TIMEOUT - 1)
    assert house.told() == []
    await trio.sleep(2)
    assert house.told() == [("a", "timeout"), ("a", "timeout")]


async def test_of_too_many_without_a_message_the_one_that_is_so_longest_ends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_IDLE", 2)
    await house.visit("a", "b", "a")
    assert [what for _, what in house.told()] == ["start", "start"]
    await house.visit("c")
    assert house.told() == [("c", "start"), ("b", "crowded_out")]
    assert len(house.sessions) == 2


async def test_a_session_with_a_message_is_not_crowded_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_IDLE", 1)
    busy = house.enter("busy")
    house.enter("busy")
    house.sessions.release(busy)
    await house.visit("a", "b", "c")
    assert house.enter("busy") is busy
    assert [user for user, what in house.told() if what == "crowded_out"] == ["a", "b"]


async def test_sessions_that_end_with_the_daemon_say_so() -> None:
    bus = Bus()
    with recording(bus) as recorder:
        async with trio.open_nursery() as nursery:
            house = House(nursery, bus, recorder)
            await house.visit("a")
            await house.sessions.end_all()
            nursery.cancel_scope.cancel("the daemon is stopping")
        assert house.told() == [("a", "start"), ("a", "shutdown")]
        assert len(house.sessions) == 0


async def test_a_shorter_timeout_holds_for_sessions_that_are_there(
    autojump_clock: MockClock, house: House
) -> None:
    await house.visit("a")
    house.sessions.set_timeout(1)
    await trio.sleep(2)
    assert len(house.sessions) == 0


async def test_a_session_that_ends_by_time_while_all_are_ended_ends_once(
    autojump_clock: MockClock, house: House
) -> None:
    for number in range(sessions.END_BATCH * 2):
        house.sessions.release(house.enter(f"{number}"))
    house.sessions.set_timeout(0)
    await house.sessions.end_all()
    ends: defaultdict[str | None, list[str]] = defaultdict(list)
    for user, what in house.told():
        ends[user].append(what)
    once = (["start", "timeout", "timeout"], ["start", "shutdown"])
    assert all(told in once for told in ends.values())
    assert len(ends) == sessions.END_BATCH * 2


class Woken(trio.abc.Instrument):
    """Counts the steps of the task that ends sessions."""

    def __init__(self) -> None:
        self.times = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.times += task.name.endswith("Sessions.run")


async def test_messages_that_come_and_end_do_not_wake_the_task_that_ends_sessions(
    house: House,
) -> None:
    await house.visit("a")
    woken = Woken()
    trio.lowlevel.add_instrument(woken)
    await house.visit("a", "b", "a")
    assert woken.times == 0
