"""What an adapter remembers over its connections."""

import gc
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad import protocol
from clarad.adapters import Outcome
from clarad.adapters.session import Session
from clarad.protocol import (
    Accepted,
    Cancel,
    Cancelled,
    Error,
    ErrorCode,
    Message,
    Registered,
    ResponseChunk,
    ResponseEnd,
)


def message(request_id: str) -> Message:
    user = protocol.User(id="u", platform_id="u")
    return Message(id=request_id, user=user, channel=protocol.Channel(id="c"), content="hello")


def registered(*, resumed: bool) -> Registered:
    return Registered("n", "session", "now", "", resumed)


def end(request_id: str, seq: int) -> ResponseEnd:
    return ResponseEnd(id="r", request_id=request_id, full_text="", seq=seq)


class Adapter(Session):
    """A session, and what came to it that nobody had asked for."""

    def __init__(self) -> None:
        self.strays: list[Outcome] = []
        self.refused: list[tuple[str, float]] = []
        super().__init__(
            self.strays.append, on_refused=lambda *refused: self.refused.append(refused)
        )

    def take(self, *frames: protocol.Outbound) -> None:
        for frame in frames:
            self.receive(protocol.encode(frame).decode())


@pytest.fixture
async def session() -> Adapter:
    adapter = Adapter()
    adapter.registered(registered(resumed=False))
    return adapter


# --- what is sent again --------------------------------------------------------------------------


async def test_what_was_not_accepted_is_sent_again(session: Adapter) -> None:
    answers = [session.ask(message(f"{n}")) for n in range(3)]
    session.take(Accepted("1", duplicate=False))
    again = [answers[0].message, answers[2].message]
    assert session.registered(registered(resumed=True)) == again


async def test_in_a_new_session_everything_that_has_not_ended_is_sent_again(
    session: Adapter,
) -> None:
    answers = [session.ask(message(f"{n}")) for n in range(3)]
    session.take(Accepted("0", duplicate=False), end("1", 1))
    again = [answers[0].message, answers[2].message]
    assert session.registered(registered(resumed=False)) == again


async def test_a_cancel_is_sent_again_behind_its_message(session: Adapter) -> None:
    answer = session.ask(message("1"))
    assert session.cancel(cancel := Cancel(request_id="1"))
    assert session.registered(registered(resumed=True)) == [answer.message, cancel]


async def test_what_a_daemon_that_stops_refuses_is_sent_to_the_next(session: Adapter) -> None:
    answer = session.ask(message("1"))
    session.take(Error(ErrorCode.SHUTTING_DOWN, "later", recoverable=True, request_id="1"))
    assert session.registered(registered(resumed=True)) == [answer.message]


def refusal(request_id: str, seconds: float) -> Error:
    return Error(ErrorCode.RATE_LIMITED, "slower", True, request_id, seconds)


async def test_what_is_refused_for_now_is_sent_again_once_when_it_is_time(
    session: Adapter,
) -> None:
    answer = session.ask(message("1"))
    session.take(refusal("1", 3))
    assert session.refused == [("1", 3)]
    assert session.retry("1") == answer.message
    assert session.retry("1") is None
    session.take(end("1", 1))
    assert isinstance(await answer.outcome(), ResponseEnd)


async def test_what_is_sent_on_another_connection_meanwhile_is_not_sent_again(
    session: Adapter,
) -> None:
    answer = session.ask(message("1"))
    session.take(refusal("1", 3))
    assert session.registered(registered(resumed=True)) == [answer.message]
    assert session.retry("1") is None


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_what_is_refused_and_cancelled_ends_at_once(
    session: Adapter, cancel_first: bool
) -> None:
    answer = session.ask(message("1"))
    cancel = Cancel(request_id="1", reason="too slow")
    if cancel_first:
        session.cancel(cancel)
    session.take(refusal("1", 3))
    if not cancel_first:
        session.cancel(cancel)
    outcome = await answer.outcome()
    assert isinstance(outcome, Cancelled)
    assert outcome.reason == "too slow"
    assert session.retry("1") is None


# --- what is handed on ---------------------------------------------------------------------------


async def test_a_cancel_that_came_too_late_ends_nothing(session: Adapter) -> None:
    answer = session.ask(message("1"))
    session.take(Error(ErrorCode.NOT_FOUND, "no", recoverable=False, request_id="1"), end("1", 1))
    assert isinstance(await answer.outcome(), ResponseEnd)


async def test_frames_of_a_newer_gateway_are_counted_and_not_handed_on(session: Adapter) -> None:
    session.ask(message("1"))
    session.receive('{"type":"response_dance","request_id":"1","seq":7}')
    session.receive('{"type":"response_dance","request_id":"1"}')
    assert session.last_seq == 7


async def test_an_end_that_nobody_waits_for_is_a_stray_once(session: Adapter) -> None:
    session.take(end("1", 1))
    session.registered(registered(resumed=False))
    session.take(end("1", 1))
    assert [stray.request_id for stray in session.strays] == ["1"]


# --- what is acked -------------------------------------------------------------------------------


async def test_only_what_was_taken_is_acked(session: Adapter) -> None:
    first, second = session.ask(message("1")), session.ask(message("2"))
    session.take(end("1", 10), end("2", 20))
    assert session.due_ack() == 9
    await second.outcome()
    assert session.due_ack() is None
    await first.outcome()
    assert session.due_ack() == 20
    assert session.due_ack() is None


async def test_an_answer_that_nobody_holds_is_not_waited_for(session: Adapter) -> None:
    first, second = session.ask(message("1")), session.ask(message("2"))
    session.take(end("1", 10))
    del first
    gc.collect()
    assert session.due_ack() == 10
    del second
    gc.collect()
    session.take(end("2", 20))
    assert session.due_ack() == 20


class Gateway:
    """Sends frames in order, over connections that break anywhere, as section 5 says."""

    def __init__(self) -> None:
        self.seq = 0
        self.kept: list[Any] = []
        self.accepted: set[str] = set()

    def emit(self, make: Any) -> Any:
        self.seq += 1
        frame = make(self.seq)
        self.kept.append(frame)
        return frame

    def accept(self, asked: Message) -> None:
        if asked.id not in self.accepted:
            self.accepted.add(asked.id)
            self.emit(lambda seq: Accepted(asked.id, duplicate=False, seq=seq))
            self.emit(lambda seq: end(asked.id, seq))
        else:
            self.emit(lambda seq: Accepted(asked.id, duplicate=True, seq=seq))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12), st.booleans()), max_size=12))
def test_whatever_is_lost_on_the_way_each_message_ends_once(
    connections: list[tuple[int, int, bool]],
) -> None:
    """Each connection carries so many frames in, so many out, and may end the session."""
    adapter, gateway = Adapter(), Gateway()
    ends: defaultdict[str, int] = defaultdict(int)
    answers = [adapter.ask(message(f"{n}")) for n in range(4)]
    for sent, received, resumed in [*connections, (100, 100, True), (100, 100, True)]:
        arrived = adapter.arrived if resumed else 0
        for asked in adapter.registered(registered(resumed=resumed))[:sent]:
            assert isinstance(asked, Message)
            gateway.accept(asked)
        for frame in [frame for frame in gateway.kept if frame.seq > arrived][:received]:
            adapter.take(frame)
    for answer in answers:
        ends[answer.message.id] += sum(isinstance(frame, Outcome) for frame in answer._frames)
    assert ends == {answer.message.id: 1 for answer in answers}
    assert adapter.strays == []


# --- text that was written while there was no connection -----------------------------------------


@pytest.mark.parametrize(
    ("chunks", "full_text", "last"),
    [
        (["Good ", "morning."], "Good morning.", None),
        (["Good "], "Good morning.", "morning."),
        ([], "Good morning.", "Good morning."),
        (["morning."], "Good morning.", "\nGood morning."),
        (["morning.\n"], "Good morning.\n", "Good morning.\n"),
        ([], "", None),
    ],
)
async def test_the_chunks_are_the_whole_text(
    session: Adapter, chunks: list[str], full_text: str, last: str | None
) -> None:
    answer = session.ask(message("1"))
    session.take(*(ResponseChunk("r", "1", chunk) for chunk in chunks))
    session.take(ResponseEnd(id="r", request_id="1", full_text=full_text))
    shown = [frame.chunk async for frame in answer if isinstance(frame, ResponseChunk)]
    assert shown == chunks + ([] if last is None else [last])


async def test_an_adapter_that_wants_no_stream_gets_no_chunk() -> None:
    session = Session(lambda _stray: None, streaming=False)
    session.registered(registered(resumed=False))
    answer = session.ask(message("1"))
    session.receive(protocol.encode(ResponseEnd("r", "1", "Good morning.")).decode())
    assert [type(frame) async for frame in answer] == [ResponseEnd]
