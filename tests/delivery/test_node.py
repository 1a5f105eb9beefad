import gc
import json
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.delivery.node import MAX_SENT_TERMINALS, Node
from clarad.delivery.registry import Nodes
from clarad.protocol import CloseCode, Pong, encode
from clarad.store import KEPT_FOR, MessageKey, NodeSession

KEY: Final = MessageKey("test", "c", "m-1")
TERMINAL: Final = b'{"type":"response_end"}'
PONG: Final = Pong(timestamp="now")


class FakeConnection:
    """Remembers what it was given to send, and why it was ended."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: list[CloseCode] = []
        self.to_be_written: list[Callable[[], None]] = []

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def when_written(self, then: Callable[[], None]) -> None:
        self.to_be_written.append(then)

    def fetch_missed(self) -> None:
        pass

    def replace(self) -> None:
        self.end(CloseCode.REPLACED, "replaced")

    def end(self, code: CloseCode, reason: str) -> None:
        assert reason
        self.ended.append(code)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


def connect(nodes: Nodes, sink: FakeConnection, *capabilities: str, platform: str = "test") -> Node:
    """Register, and be given at once what was missed: nothing, as far as the store knows."""
    node, _ = nodes.connect("n", platform, frozenset(capabilities), sink)
    node.catch_up()
    return node


def deliver(node: Node, key: MessageKey = KEY) -> list[bool]:
    """Have a terminal frame sent that was stored; the list grows when it counts as arrived."""
    arrived: list[bool] = []
    node.deliver(key, TERMINAL, node.reserve(key), lambda: arrived.append(True))
    return arrived


# --- registration --------------------------------------------------------------------------------


def test_a_node_is_what_it_registered_as(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection)
    assert (node.id, node.platform) == ("n", "test")


def test_a_node_can_do_what_it_says_it_can(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection, "streaming", "accepted", "juggling")
    assert node.streaming
    assert node.wants_accepted


def test_a_node_that_says_nothing_can_do_nothing(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection)
    assert not node.streaming
    assert not node.wants_accepted


def test_what_a_node_said_last_counts(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection, "streaming", "accepted")
    connect(nodes, FakeConnection())
    assert (node.streaming, node.wants_accepted) == (False, False)


def test_the_same_id_on_another_platform_is_another_node(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    assert connect(nodes, FakeConnection(), platform="other") is not node
    assert connection.ended == []


def test_every_registration_has_a_session_id_of_its_own(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    first = node.session_id
    connect(nodes, FakeConnection())
    assert first
    assert node.session_id not in ("", first)


def test_a_node_that_registers_again_is_the_same_node(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    assert connect(nodes, FakeConnection()) is node


def test_the_connection_that_it_had_before_is_closed_as_replaced(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    second = FakeConnection()
    connect(nodes, second)
    assert connection.ended == [CloseCode.REPLACED]
    assert second.ended == []
    assert node.sink is second


def test_a_node_that_was_away_replaces_nothing(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection)
    nodes.disconnect(node, connection)
    connect(nodes, FakeConnection())
    assert connection.ended == []


def test_another_node_replaces_nothing(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection)
    nodes.connect("other", "test", frozenset(), FakeConnection())
    assert connection.ended == []
    assert node.sink is connection


def test_a_replaced_connection_that_ends_does_not_disconnect_the_node(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    second = FakeConnection()
    connect(nodes, second)
    nodes.disconnect(node, connection)
    assert node.sink is second


# --- frames --------------------------------------------------------------------------------------


def test_a_frame_takes_the_connection_that_the_node_has(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    second = FakeConnection()
    connect(nodes, second)
    node.send(PONG)
    assert (connection.sent, second.sent) == ([], [encode(PONG)])


def test_a_frame_for_a_node_that_is_away_is_dropped(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    nodes.disconnect(node, connection)
    node.send(PONG)
    assert connection.sent == []


def test_a_terminal_frame_is_sent_and_remembered(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection)
    deliver(node)
    assert connection.sent == [TERMINAL]
    assert node.was_sent(KEY)


def test_a_terminal_frame_that_was_never_sent_is_not_remembered(
    nodes: Nodes, connection: FakeConnection
) -> None:
    assert not connect(nodes, connection).was_sent(KEY)


def test_a_terminal_frame_for_a_node_that_is_away_does_not_count_as_delivered(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    nodes.disconnect(node, connection)
    deliver(node)
    assert not node.was_sent(KEY)


def test_what_an_earlier_connection_was_given_does_not_count_as_delivered(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    deliver(node)
    connect(nodes, FakeConnection())
    assert not node.was_sent(KEY)


def test_of_very_many_terminal_frames_the_oldest_are_forgotten(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    keys = [MessageKey("test", "c", f"m-{number}") for number in range(MAX_SENT_TERMINALS + 1)]
    for key in keys:
        deliver(node, key)
    assert [key for key in keys if not node.was_sent(key)] == keys[:1]


# --- sessions that are resumed -------------------------------------------------------------------


def resume(
    nodes: Nodes, session_id: str | None, last_seq: int | None = None, name: str = "n"
) -> tuple[Node, FakeConnection, int | None]:
    """Register with a session, and be given at once what was missed."""
    sink = FakeConnection()
    wanted = frozenset({"resume"})
    node, arrived = nodes.connect(name, "test", wanted, sink, (), session_id, last_seq)
    node.catch_up()
    return node, sink, arrived


def numbers(sink: FakeConnection) -> list[int]:
    return [json.loads(frame)["seq"] for frame in sink.sent]


def test_what_is_sent_while_a_node_is_away_is_kept_for_it(nodes: Nodes) -> None:
    node, first, _ = resume(nodes, None)
    node.send(PONG)
    nodes.disconnect(node, first)
    node.send(PONG)
    deliver(node)
    _, second, arrived = resume(nodes, node.session_id, last_seq=1)
    assert (numbers(first), numbers(second), arrived) == ([1], [2, 3], 1)


def test_frames_wait_for_one_before_them_that_is_still_to_be_stored(nodes: Nodes) -> None:
    node, sink, _ = resume(nodes, None)
    first, second = node.reserve(KEY), node.reserve(KEY)
    node.send(PONG)
    assert sink.sent == []
    node.withdraw(first)
    assert sink.sent == []
    node.deliver(KEY, TERMINAL, second, lambda: None)
    assert numbers(sink) == [2, 3]


def test_a_connection_that_is_not_caught_up_yet_is_sent_nothing(nodes: Nodes) -> None:
    sink = FakeConnection()
    node, _ = nodes.connect("n", "test", frozenset({"resume"}), sink)
    node.send(PONG)
    assert sink.sent == []
    node.catch_up()
    assert numbers(sink) == [1]


def test_a_last_seq_that_was_never_given_out_is_not_believed(nodes: Nodes) -> None:
    node, first, _ = resume(nodes, None)
    node.send(PONG)
    nodes.disconnect(node, first)
    _, second, arrived = resume(nodes, node.session_id, last_seq=10**9)
    node.send(PONG)
    assert (arrived, numbers(second)) == (1, [2])


@pytest.mark.parametrize("session_id", [None, "", "another", "ümlaut"])
def test_without_its_session_id_a_session_is_not_resumed(
    nodes: Nodes, session_id: str | None
) -> None:
    node, sink, _ = resume(nodes, None)
    nodes.disconnect(node, sink)
    was = node.session_id
    assert resume(nodes, session_id, last_seq=0)[2] is None
    assert node.session_id != was


def test_a_plain_node_s_session_is_not_resumed(nodes: Nodes, connection: FakeConnection) -> None:
    node = connect(nodes, connection)
    assert resume(nodes, node.session_id)[2] is None


def test_a_session_without_its_node_is_forgotten_after_a_day(nodes: Nodes) -> None:
    node, sink, _ = resume(nodes, None)
    deliver(node)
    nodes.disconnect(node, sink)
    node.disconnected_at -= KEPT_FOR.total_seconds() + 1
    again, sink, arrived = resume(nodes, node.session_id, last_seq=0)
    assert (again, arrived, sink.sent) == (node, None, [])


def test_of_very_many_nodes_that_are_away_the_oldest_are_forgotten_and_no_number_comes_twice(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clarad.delivery.registry.MAX_AWAY", 1)
    session_ids = {}
    for name in ("old", "new"):
        node, sink, _ = resume(nodes, None, name=name)
        node.send(PONG)
        nodes.disconnect(node, sink)
        session_ids[name] = node.session_id
    del node
    gc.collect()
    assert resume(nodes, session_ids["new"], 1, name="new")[2] == 1
    node, sink, arrived = resume(nodes, session_ids["old"], 1, name="old")
    node.send(PONG)
    assert arrived is None
    assert numbers(sink) == [2]


def test_sessions_of_an_earlier_run_are_resumed_with_numbers_of_this_one(nodes: Nodes) -> None:
    nodes.restore([NodeSession("test", "n", "session", away=60)], last_seq=1000)
    node, sink, arrived = resume(nodes, "session", last_seq=7)
    node.send(PONG)
    assert (arrived, numbers(sink)) == (7, [1001])


# --- memory --------------------------------------------------------------------------------------


def test_a_node_that_somebody_refers_to_is_found_again(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    nodes.disconnect(node, connection)
    assert nodes.find("n", "test") is node


def test_a_node_that_nobody_refers_to_is_forgotten(
    nodes: Nodes, connection: FakeConnection
) -> None:
    node = connect(nodes, connection)
    nodes.disconnect(node, connection)
    was = node.session_id
    del node
    gc.collect()
    assert nodes.find("n", "test").session_id != was


def test_a_node_that_never_registered_has_no_connection(nodes: Nodes) -> None:
    node = nodes.find("n", "test")
    node.send(PONG)
    assert node.sink is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["connect", "disconnect", "send"]),
            st.sampled_from(["a", "b"]),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
def test_every_frame_takes_the_connection_that_came_last_and_is_still_there(
    steps: list[tuple[str, str, int]],
) -> None:
    nodes = Nodes()
    living = {name: nodes.find(name, "test") for name in ("a", "b")}
    came: dict[str, list[FakeConnection]] = {"a": [], "b": []}
    current: dict[str, FakeConnection | None] = {"a": None, "b": None}
    for action, name, number in steps:
        node = living[name]
        if action == "connect":
            came[name].append(FakeConnection())
            current[name] = came[name][-1]
            assert nodes.connect(name, "test", frozenset(), came[name][-1])[0] is node
        elif action == "disconnect" and number < len(came[name]):
            gone = came[name][number]
            nodes.disconnect(node, gone)
            current[name] = None if current[name] is gone else current[name]
        elif action == "send":
            before = [len(one.sent) for one in came[name]]
            node.send(PONG)
            reached = [
                one for one, had in zip(came[name], before, strict=True) if len(one.sent) > had
            ]
            assert reached == [one for one in (current[name],) if one is not None]
