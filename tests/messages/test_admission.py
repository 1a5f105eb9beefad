"""What is taken in, and what is refused for now."""

import json
import math
import tracemalloc
from collections.abc import Iterable
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from clarad import protocol
from clarad.delivery import replay
from clarad.delivery.node import Node
from clarad.limits.rate import Rate, Rates
from clarad.messages import admission
from clarad.messages.admission import MAX_PAUSE, MAX_UNCOMMITTED, OWN_BYTES, AdmissionControl
from clarad.messages.inflight import MAX_WAITING, InFlight
from clarad.messages.lifecycle import State
from clarad.messages.turn import Session, SessionKey, Turn, answers
from clarad.protocol import Channel, ErrorCode, Message, User


class Door:
    """An intake, and what has come through."""

    def __init__(self, rates: Rates | None = None) -> None:
        self.inflight = InFlight()
        self.admission = AdmissionControl(self.inflight, rates or Rates())
        self.turns: list[Turn] = []

    def ask(
        self, node: Node, channel: str, user: str = "u", text: str = "", **fields: Any
    ) -> ErrorCode | None:
        """Send a message; return what it is refused with."""
        message = Message(f"{len(self.turns)}", User(user, user), Channel(channel), "", **fields)
        if refusal := self.admission.admit(node, message, text, 0):
            return refusal.code
        turn = Turn(
            node,
            node.platform,
            message,
            size=admission.size(text, message),
            session=Session(SessionKey(node.platform, user, channel)),
            response_id="r",
            state=State.RECEIVED,
            publish=lambda *_, **__: None,
            answers=answers(),
            is_known_first=True,
            number=math.inf,
        )
        self.inflight.add(turn)
        self.admission.add(turn)
        self.turns.append(turn)
        return None

    def end(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            self.inflight.remove(turn)
            self.admission.remove(turn)

    def flood(self, node: Node, text: str = "") -> int:
        """Send a message in a channel each until one is refused; return how many were not."""
        before = len(self.turns)
        while not self.ask(node, f"{node.id}-{len(self.turns)}", text=text):
            pass
        return len(self.turns) - before


def nodes(count: int) -> list[Node]:
    return [Node(f"node-{n}", "test", replay.shared()) for n in range(count)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have room for some hundred messages."""
    monkeypatch.setattr(admission, "MAX_SHARED", 100 * OWN_BYTES)


async def test_a_full_channel_takes_no_more_and_another_one_does() -> None:
    (node,) = nodes(1)
    door = Door()
    assert [door.ask(node, "full") for _ in range(MAX_WAITING + 1)] == [None] * 101
    assert door.ask(node, "full") is ErrorCode.QUEUE_FULL
    assert door.ask(node, "another") is None


@pytest.mark.usefixtures("small")
async def test_a_node_that_floods_leaves_room_for_others() -> None:
    first, *others = nodes(20)
    door = Door()
    flood = door.flood(first)
    assert flood < 100 * OWN_BYTES / admission.OVERHEAD
    assert door.flood(others[0]) > flood / 3
    for node in others[1:]:
        assert door.flood(node) >= 1


@pytest.mark.usefixtures("small")
async def test_long_messages_take_more_room() -> None:
    (node,) = nodes(1)
    assert Door().flood(node, "x" * 100_000) < Door().flood(node) / 5


@pytest.mark.usefixtures("small")
async def test_what_a_message_takes_once_it_is_decoded_counts() -> None:
    (node,) = nodes(1)
    door = Door()
    chain: list[dict[str, Any]] = [{}] * 10_000
    text = json.dumps(chain)
    assert door.ask(node, "c-1", text=text, reply_chain=chain) is None
    assert door.ask(node, "c-2", text=text, reply_chain=chain) is ErrorCode.QUEUE_FULL
    assert door.ask(node, "c-3", text=text) is None


@pytest.mark.usefixtures("small")
async def test_what_there_can_never_be_room_for_is_not_to_be_sent_again() -> None:
    (node,) = nodes(1)
    chain: list[dict[str, Any]] = [{}] * 20_000
    refused = Door().ask(node, "c", text=json.dumps(chain), reply_chain=chain)
    assert refused is ErrorCode.TOO_LARGE


VALUES: Final = (
    "{}", "[]", "[[[[]]]]", "[1]", "0.1", "999", '"\U0001f600"', '{"a":1}', '{"a":{"b":{}}}',
)  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_no_value_takes_more_than_is_counted(value: str) -> None:
    chain = ",".join([f'{{"a":[{",".join([value] * 1000)}]}}'] * 100)
    text = f"""{{"type":"message","id":"m","user":{{"id":"u","platform_id":"u"}},
        "channel":{{"id":"c"}},"content":"","reply_chain":[{chain}]}}"""
    tracemalloc.start()
    message = protocol.decode(text)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(message, Message)
    assert taken <= admission.size(text, message)


@pytest.mark.usefixtures("small")
async def test_messages_that_have_ended_make_room() -> None:
    (node,) = nodes(1)
    door = Door()
    flood = door.flood(node)
    door.end(door.turns)
    assert door.flood(node) == flood


async def test_a_message_that_is_refused_for_want_of_room_costs_no_token() -> None:
    (node,) = nodes(1)
    door = Door(Rates(node=Rate(60, at_once=MAX_WAITING + 2)))
    for _ in range(MAX_WAITING + 10):
        door.ask(node, "full")
    assert door.ask(node, "another") is None
    assert door.ask(node, "another") is ErrorCode.RATE_LIMITED


async def test_rates_that_stay_the_same_go_on_counting() -> None:
    (node,) = nodes(1)
    door = Door(Rates(user=Rate(60, at_once=1)))
    assert door.ask(node, "c") is None
    for of_nodes in (None, Rate(60, at_once=100)):
        door.admission.set_rates(of_nodes, Rate(60, at_once=1))
        assert door.ask(node, "c") is ErrorCode.RATE_LIMITED
    door.admission.set_rates(None, None)
    assert door.ask(node, "c") is None


# --- how fast they are taken in ------------------------------------------------------------------


async def paused(door: Door, node: Node, nursery: trio.Nursery) -> trio.Event:
    """Ask whether to read on; the event is set when the node is read from again."""
    reads_on = trio.Event()

    async def apply_backpressure() -> None:
        await door.admission.apply_backpressure(node)
        reads_on.set()

    nursery.start_soon(apply_backpressure)
    await wait_all_tasks_blocked()
    return reads_on


async def test_a_node_that_sends_more_than_the_store_can_write_waits_for_it(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    door, (node, other) = Door(), nodes(2)
    for _ in range(MAX_UNCOMMITTED):
        assert (await paused(door, node, nursery)).is_set()
        door.admission.add_uncommitted(node)
    reads_on = await paused(door, node, nursery)
    assert not reads_on.is_set()
    assert (await paused(door, other, nursery)).is_set()
    door.admission.remove_uncommitted(node)
    await wait_all_tasks_blocked()
    assert reads_on.is_set()


async def test_a_store_that_stands_still_does_not_keep_a_node_from_being_heard(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    door, (node,) = Door(), nodes(1)
    for _ in range(MAX_UNCOMMITTED):
        door.admission.add_uncommitted(node)
    reads_on = await paused(door, node, nursery)
    mock_clock.jump(MAX_PAUSE)
    await wait_all_tasks_blocked()
    assert reads_on.is_set()
    for _ in range(MAX_UNCOMMITTED):
        door.admission.remove_uncommitted(node)
