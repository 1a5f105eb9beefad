"""One terminal frame for each accepted message, whatever comes between what.

Hypothesis makes up the order in which messages are sent, sent again and cancelled, the store
answers or fails, the responder ends or crashes, time passes, the node goes and comes back, and the
daemon stops, with a slot or two. Everything is real but the store and the responder, which answer
when they are told. A daemon that has stopped is followed by another one on what it has left.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from operator import add
from typing import Any, TypeVar, cast

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from clarad import protocol
from clarad.delivery.registry import Nodes
from clarad.events import Bus
from clarad.limits.concurrency import Slots
from clarad.limits.rate import Rates
from clarad.nurseries.turns import Turns
from clarad.protocol import CloseCode
from clarad.responders import Answer, Request
from clarad.store import MessageKey, Messages, Stored, StoreError, ToCancel, Unfinished
from tests.peer import TERMINAL, Frame, message

T = TypeVar("T")

MESSAGE_TIMEOUT = 10
SESSION_TIMEOUT = 60
MESSAGES = range(4)


def _key(number: int) -> MessageKey:
    return MessageKey("test", f"{number % 2}", f"{number}")


class SlowStore:
    """Keeps what it is asked to do until it is told to do it, or to fail."""

    def __init__(self) -> None:
        self.frames: dict[MessageKey, str] = {}
        self.begun: set[MessageKey] = set()
        self.ends: defaultdict[MessageKey, list[str]] = defaultdict(list)
        self.cancelled: dict[MessageKey, str] = {}
        self.arrived: set[MessageKey] = set()
        self._pending: list[Callable[[StoreError | None], None]] = []

    def accept(
        self,
        key: MessageKey,
        *,
        frame: str,
        begun: bool,
        then: Callable[[bool | StoreError], None],
        **_: Any,
    ) -> None:
        def do(error: StoreError | None) -> None:
            if error is not None:
                then(error)
            elif key in self.frames:
                then(False)
            else:
                self.frames[key] = frame
                if begun:
                    self.begun.add(key)
                then(True)

        self._pending.append(do)

    async def begin(self, key: MessageKey) -> bool:
        return await self._do(partial(self._begin, key))

    async def begin_if_first(self, key: MessageKey) -> bool:
        def begin() -> bool:
            left = (entry.key for entry in self._unfinished() if entry.key[:2] == key[:2])
            return next(left) == key and self._begin(key)

        return await self._do(begin)

    def _begin(self, key: MessageKey) -> bool:
        self.begun.add(key)
        return True

    def cancel(
        self,
        _platform: str,
        _node: str,
        request_id: str,
        reason: str,
        then: Callable[[bool | StoreError], None],
    ) -> None:
        def do(error: StoreError | None) -> None:
            if error is not None:
                then(error)
                return
            keys = [entry.key for entry in self._unfinished() if entry.key[2] == request_id]
            self.cancelled |= dict.fromkeys(keys, reason)
            then(bool(keys))

        self._pending.append(do)

    async def to_cancel(self, after: int, last: int) -> list[ToCancel]:
        def find() -> list[ToCancel]:
            page = [entry for entry in self._unfinished() if after < entry.number <= last]
            asked = [(entry.key, entry.cancel_reason) for entry in page]
            return [ToCancel(key, reason, True) for key, reason in asked if reason is not None]

        return await self._do(find)

    async def _do(self, function: Callable[[], T]) -> T:
        """Have it done when the store is told to answer."""
        done = trio.Event()
        outcome: list[T | StoreError] = []

        def do(error: StoreError | None) -> None:
            outcome.append(function() if error is None else error)
            done.set()

        self._pending.append(do)
        with trio.CancelScope(shield=True):
            await done.wait()
        if isinstance(outcome[0], StoreError):
            raise outcome[0]
        return outcome[0]

    def end(
        self, key: MessageKey, *, terminal: str, then: Callable[[StoreError | None], None], **_: Any
    ) -> None:
        def do(error: StoreError | None) -> None:
            if error is None:
                self.ends[key].append(terminal)
            then(error)

        self._pending.append(do)

    def delivered(self, key: MessageKey) -> None:
        self.arrived.add(key)

    async def find(self, key: MessageKey) -> Stored | None:
        await trio.lowlevel.checkpoint()
        ends = self.ends[key]
        if key not in self.frames:
            return None
        owed_to = None if key in self.arrived else "node-1"
        return Stored(self.frames[key], ends[0] if ends else None, owed_to)

    owners = None

    async def backlog(self) -> tuple[int, Counter[tuple[str, str]]]:
        await trio.lowlevel.checkpoint()
        return len(self.frames), Counter({("test", "node-1"): len(self._unfinished())})

    async def unfinished(self, after: int, _of: None, last: int) -> list[Unfinished]:
        """Return what was accepted and has not ended, a message at a time."""

        def find() -> list[Unfinished]:
            return [entry for entry in self._unfinished() if after < entry.number <= last][:1]

        return await self._do(find)

    def _unfinished(self) -> list[Unfinished]:
        return [
            Unfinished(number, key, "node-1", frame, key in self.begun, self.cancelled.get(key))
            for number, (key, frame) in enumerate(self.frames.items(), start=1)
            if not self.ends[key]
        ]

    @property
    def interrupted(self) -> list[MessageKey]:
        """What has begun and has not ended."""
        return [entry.key for entry in self._unfinished() if entry.begun]

    def answer(self, error: StoreError | None = None) -> bool:
        """Do, or fail, all that was asked for; `False` if there was nothing."""
        pending, self._pending = self._pending, []
        for do in pending:
            do(error)
        return bool(pending)


class Obedient:
    """A responder that ends when it is told to."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.running = self.most = 0
        self.busy: Counter[str] = Counter()
        self.overlapped: set[str] = set()
        self.release: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.crash: set[str] = set()

    async def respond(self, request: Request, answer: Answer) -> None:
        self.ran.append((request.message.channel.id, request.message.id))
        self.running += 1
        self.most = max(self.most, self.running)
        channel = request.message.channel.id
        self.busy[channel] += 1
        if self.busy[channel] > 1:
            self.overlapped.add(channel)
        answer.text("some ")
        try:
            await self.release[request.message.id].wait()
        finally:
            self.running -= 1
            self.busy[channel] -= 1
            answer.text("more")
        if request.message.id in self.crash:
            raise RuntimeError("as the test wants it")


class Wire:
    """A connection that keeps what it is sent."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(json.loads(frame))

    def when_written(self, then: Callable[[], None]) -> None:
        then()

    def fetch_missed(self) -> None:
        pass

    def replace(self) -> None:
        pass

    def end(self, code: CloseCode, reason: str) -> None:
        pass


class World:
    """The sessions, and all that can happen to them."""

    def __init__(self, resumes: bool, slots: int) -> None:
        self.store, self.responder, self.nodes = SlowStore(), Obedient(), Nodes()
        self.wanted = frozenset({"streaming", "accepted"} | ({"resume"} if resumes else set()))
        self.slots = slots
        self.turns = self.make_turns()
        self.wires: list[Wire] = []
        self.left: tuple[int, ...] = ()
        self.session_id = ""
        self.connect()

    def make_turns(self) -> Turns:
        return Turns(
            bus=Bus(),
            nodes=self.nodes,
            store=cast(Messages, self.store),
            responder=self.responder,
            session_timeout=SESSION_TIMEOUT,
            message_timeout=MESSAGE_TIMEOUT,
            slots=Slots(self.slots),
            rates=Rates(),
        )

    def connect(self) -> None:
        last_seq = max((frame.get("seq", 0) for frame in self.frames), default=0)
        self.store.arrived |= {_key(number) for number in MESSAGES if self.has_ended(number)}
        self.wires.append(Wire())
        about = ("node-1", "test", self.wanted, self.wires[-1], (), self.session_id, last_seq)
        self.node, _ = self.nodes.connect(*about)
        self.session_id = self.node.session_id
        self.node.catch_up()

    @property
    def frames(self) -> list[Frame]:
        return [frame for wire in self.wires for frame in wire.frames]

    def has_ended(self, number: int) -> bool:
        """Whether the node was sent the end of this message."""
        return any(
            frame.get("request_id") == f"{number}" and is_end(frame) for frame in self.frames
        )

    def disconnect(self) -> None:
        self.nodes.disconnect(self.node, self.wires[-1])

    def submit(self, number: int) -> None:
        if self.node.sink is None:
            return  # nothing can be sent without a connection
        if "resume" in self.wanted and self.has_ended(number):
            return  # it knows
        text = json.dumps({"type": "message", **message(f"{number}", channel=f"{number % 2}")})
        frame = protocol.decode(text)
        assert isinstance(frame, protocol.Message)
        self.turns.submit(self.node, frame, text)

    def cancel(self, number: int) -> None:
        if self.node.sink is None:
            return
        self.turns.cancel(self.node, protocol.Cancel(request_id=f"{number}"))

    def finish(self, number: int) -> None:
        self.responder.release[f"{number}"].set()

    def crash(self, number: int) -> None:
        self.responder.crash.add(f"{number}")
        self.finish(number)

    def refuse(self) -> None:
        self.turns.stop_accepting()

    def stop(self) -> None:
        self.refuse()
        self.turns.stop()

    async def begin(self, nursery: trio.Nursery) -> None:
        """Begin another life of the daemon, on what the one before has left."""
        self.turns = self.make_turns()
        await nursery.start(self.turns.run)
        await wait_all_tasks_blocked()

    async def finish_all(self, clock: MockClock) -> None:
        """Let everything end that is under way, with a store that works."""
        for number in MESSAGES:
            self.finish(number)
        for _ in range(4):
            clock.jump(1)  # a store that had failed is tried again
            await wait_all_tasks_blocked()
            while self.store.answer():
                await wait_all_tasks_blocked()

    async def end(self, clock: MockClock) -> None:
        """Stop, with a store that works."""
        self.stop()
        for _ in range(2):
            await wait_all_tasks_blocked()
            while self.store.answer():
                await wait_all_tasks_blocked()
            clock.jump(1)  # a store that had failed is tried again


STEPS = st.one_of(
    st.just(("store answers",)),
    st.tuples(
        st.sampled_from(["submit", "submit", "finish", "finish", "cancel", "crash"]),
        st.sampled_from(MESSAGES),
    ),
    st.tuples(st.sampled_from(["store fails", "disconnect", "connect"])),
    st.tuples(st.just("time"), st.sampled_from([1, MESSAGE_TIMEOUT, SESSION_TIMEOUT])),
)


STOP = st.sampled_from([("refuse",), ("stop",)])

LIVES = st.lists(
    st.builds(add, st.lists(STEPS, max_size=40), st.lists(STEPS | STOP, max_size=10)),
    min_size=1,
    max_size=3,
)
"""What happens in each life of the daemon."""


SLOTS = st.sampled_from([1, 2])


async def live_through(
    resumes: bool,
    slots: int,
    lives: list[list[tuple[Any, ...]]],
    clock: MockClock,
    finished: bool = False,
) -> World:
    """Live these lives, and one more in which all that is left ends."""
    world = World(resumes, slots)
    deeds: dict[str, Callable[..., object]] = {
        "submit": world.submit,
        "cancel": world.cancel,
        "finish": world.finish,
        "crash": world.crash,
        "store answers": world.store.answer,
        "store fails": partial(world.store.answer, StoreError("the disk is full")),
        "disconnect": world.disconnect,
        "connect": world.connect,
        "refuse": world.refuse,
        "stop": world.stop,
        "time": clock.jump,
    }
    for steps in lives:
        async with trio.open_nursery() as nursery:
            await world.begin(nursery)
            for name, *arguments in steps:
                deeds[name](*arguments)
                await wait_all_tasks_blocked()
            if finished:
                await world.finish_all(clock)
                world.left = world.turns.count()[1:]
            await world.end(clock)
            nursery.cancel_scope.cancel()
        assert not world.store.interrupted  # a stop leaves nothing that has begun
    async with trio.open_nursery() as nursery:
        await world.begin(nursery)
        await world.finish_all(clock)
        await world.end(clock)
        nursery.cancel_scope.cancel()
    return world


@settings(max_examples=7 * settings().max_examples, deadline=None)
@given(SLOTS, LIVES)
def test_each_accepted_message_ends_once_and_says_nothing_after(
    slots: int, lives: list[list[tuple[Any, ...]]]
) -> None:
    clock = MockClock()
    world = trio.run(live_through, False, slots, lives, clock, clock=clock)
    assert world.responder.most <= slots
    for key in world.store.frames:
        assert len(world.store.ends[key]) == 1
        if '"reason":"the daemon is stopping"' in world.store.ends[key][0]:
            assert key in world.store.begun
    assert {key for key, ends in world.store.ends.items() if ends} == set(world.store.frames)
    assert not world.responder.overlapped
    accepted = [key[1:] for key in world.store.frames]
    for channel in {channel for channel, _ in accepted}:
        ran = [which for which in world.responder.ran if which[0] == channel]
        assert ran == [which for which in accepted if which in ran]
    assert len(world.responder.ran) == len(set(world.responder.ran))
    for wire in world.wires:
        for number in MESSAGES:
            assert_one_end([f for f in wire.frames if f.get("request_id") == f"{number}"])


@settings(max_examples=5 * settings().max_examples, deadline=None)
@given(SLOTS, LIVES)
@example(
    1,
    [
        [("store answers",), ("submit", 1), ("disconnect",)],
        [("submit", 1), ("connect",), ("connect",), ("disconnect",)],
    ],
)
def test_over_all_its_connections_a_node_that_resumes_is_given_each_end_once(
    slots: int, lives: list[list[tuple[Any, ...]]]
) -> None:
    clock = MockClock()
    world = trio.run(live_through, True, slots, [*lives, [("connect",)]], clock, clock=clock)
    numbers = [frame["seq"] for frame in world.frames if not is_refusal(frame)]
    assert numbers == sorted(set(numbers))
    assert not any("seq" in frame for frame in world.frames if is_refusal(frame))
    for number in MESSAGES:
        frames = [frame for frame in world.frames if frame.get("request_id") == f"{number}"]
        assert_one_end(frames)
        assert world.has_ended(number) is (_key(number) in world.store.frames)


@settings(max_examples=5 * settings().max_examples, deadline=None)
@given(SLOTS, st.lists(STEPS, max_size=40))
def test_whatever_happens_to_the_others_a_message_that_waits_has_its_turn(
    slots: int, steps: list[tuple[Any, ...]]
) -> None:
    clock = MockClock()
    world = trio.run(live_through, False, slots, [steps], clock, True, clock=clock)
    assert world.left == (0, 0)


def assert_one_end(frames: list[Frame]) -> None:
    """At most one terminal frame of an accepted message, and nothing of its answer after it."""
    answers = [frame for frame in frames if is_of_an_answer(frame)]
    ends = [n for n, frame in enumerate(answers) if is_end(frame)]
    assert len(ends) <= 1
    assert not ends or ends[0] == len(answers) - 1


def is_end(frame: Frame) -> bool:
    return is_of_an_answer(frame) and frame["type"] in TERMINAL


def is_refusal(frame: Frame) -> bool:
    not_stored = "could not be stored" in frame.get("message", "")
    return not_stored or frame.get("code") in {"shutting_down", "queue_full"}


def is_of_an_answer(frame: Frame) -> bool:
    told = frame["type"] in {"accepted", "status"} or frame.get("code") == "not_found"
    return not (told or is_refusal(frame))
