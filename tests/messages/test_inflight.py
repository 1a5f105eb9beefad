"""The messages that live, and how they are found."""

import math

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from clarad.delivery import replay
from clarad.delivery.node import Node
from clarad.messages.inflight import MAX_WAITING, InFlight
from clarad.messages.lifecycle import State
from clarad.messages.turn import Session, SessionKey, Turn, answers
from clarad.protocol import Channel, Message, User
from tests.in_trio import run_in_trio

NODES = [Node("node-1", "test", replay.shared()), Node("node-2", "test", replay.shared())]


def turn(
    request_id: str, channel: str = "c", node: Node = NODES[0], number: float = math.inf
) -> Turn:
    message = Message(
        id=request_id, user=User("test-u", "u"), channel=Channel(channel), content="hello"
    )
    session = Session(SessionKey("test", "test-u", channel))
    return Turn(
        node,
        "test",
        message,
        size=0,
        session=session,
        response_id="r",
        state=State.WAITING,
        publish=lambda *_, **__: None,
        answers=answers(),
        is_known_first=True,
        number=number,
    )


@run_in_trio
def test_what_is_read_back_comes_before_what_is_new_in_the_order_of_its_numbers() -> None:
    inflight = InFlight()
    new, second, third, first = (
        turn("n"),
        turn("2", number=2),
        turn("3", number=3),
        turn("1", number=1),
    )
    for each in (new, second, third, first):
        inflight.add(each)
    assert [inflight.position(each) for each in (first, second, third, new)] == [0, 1, 2, 3]
    assert inflight.remove(second) is None
    assert inflight.remove(first) is third


@run_in_trio
def test_the_first_of_a_channel_has_its_turn_and_the_others_wait() -> None:
    inflight = InFlight()
    first, second, elsewhere = turn("1"), turn("2"), turn("3", "other")
    for each in (first, second, elsewhere):
        inflight.add(each)
    assert [inflight.position(each) for each in (first, second, elsewhere)] == [0, 1, 0]
    assert inflight.remove(first) is second
    assert inflight.remove(second) is None


@run_in_trio
def test_one_that_leaves_from_the_queue_makes_it_nobody_s_turn() -> None:
    inflight = InFlight()
    running, dropped, last = turn("1"), turn("2"), turn("3")
    for each in (running, dropped, last):
        inflight.add(each)
    assert inflight.remove(dropped) is None
    assert inflight.remove(running) is last


@run_in_trio
def test_a_channel_is_full_with_one_that_runs_and_all_that_may_wait() -> None:
    inflight = InFlight()
    for n in range(MAX_WAITING + 1):
        assert not inflight.is_full(turn("next").key)
        inflight.add(turn(f"{n}"))
    assert inflight.is_full(turn("next").key)
    assert not inflight.is_full(turn("next", "other").key)


@run_in_trio
def test_one_id_in_two_channels_is_two_messages_of_one_request() -> None:
    inflight = InFlight()
    here, there = turn("1", "here"), turn("1", "there")
    inflight.add(here)
    inflight.add(there)
    assert inflight.of_request(NODES[0], "1") == [here, there]
    assert inflight.of_request(NODES[1], "1") == []
    inflight.remove(here)
    assert inflight.of_request(NODES[0], "1") == [there]


class Everybody(RuleBasedStateMachine):
    """Whatever comes and goes, each channel has exactly one first, and nobody is forgotten."""

    turns = Bundle("turns")

    def __init__(self) -> None:
        super().__init__()
        self.inflight = InFlight()
        self.model: dict[str, list[Turn]] = {}
        self.count = 0

    @rule(target=turns, channel=st.sampled_from("abc"), node=st.sampled_from(NODES))
    def comes(self, channel: str, node: Node) -> Turn:
        self.count += 1
        made: list[Turn] = []
        run_in_trio(lambda: made.append(turn(f"{self.count}", channel, node)))()
        self.inflight.add(made[0])
        self.model.setdefault(channel, []).append(made[0])
        return made[0]

    @rule(leaving=consumes(turns))
    def goes(self, leaving: Turn) -> None:
        queue = self.model[leaving.key.channel_id]
        was_first = queue[0] is leaving
        queue.remove(leaving)
        assert self.inflight.remove(leaving) is (queue[0] if queue and was_first else None)

    @invariant()
    def everybody_is_found_in_their_place(self) -> None:
        everybody = [each for queue in self.model.values() for each in queue]
        assert set(self.inflight) == set(everybody)
        assert len(self.inflight) == len(everybody)
        for queue in self.model.values():
            assert [self.inflight.position(each) for each in queue] == list(range(len(queue)))
        for each in everybody:
            assert self.inflight.find(each.key) is each
            assert each in self.inflight.of_node(each.node)


TestEverybody = Everybody.TestCase
