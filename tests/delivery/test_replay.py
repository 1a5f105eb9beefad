"""The window of frames that a node may ask for again."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from clarad.delivery.replay import (
    MAX_BYTES,
    MAX_FRAMES,
    MAX_SHARED,
    OVERHEAD,
    ReplayBuffer,
    ReplayFrame,
    shared,
)
from clarad.protocol import Accepted, decode_outbound, encode, numbered
from clarad.store import MessageKey

FRAME = b'{"type":"pong"}'
KEY = MessageKey("test", "c", "m-1")


def seqs(window: ReplayBuffer, after: int = 0) -> list[int]:
    return [kept.seq for kept in window.after(after)]


def test_a_numbered_frame_is_the_frame_with_its_number() -> None:
    frame = decode_outbound(numbered(encode(Accepted("m-1", duplicate=False)), 7))
    assert frame == Accepted("m-1", duplicate=False, seq=7)


def test_numbers_go_on_above_the_last() -> None:
    window = ReplayBuffer(shared(), last=41)
    window.fill(window.reserve(None), FRAME)
    assert json.loads(next(window.after(0)).frame) == {"type": "pong", "seq": 42}


def test_of_very_many_frames_the_oldest_that_were_sent_are_dropped() -> None:
    window = ReplayBuffer(shared())
    for _ in range(MAX_FRAMES + 5):
        window.fill(window.reserve(None), FRAME)
    window.trim(sent=3)
    assert window.first == seqs(window)[0] == 4
    window.trim(sent=window.last)
    assert window.first == seqs(window)[0] == 6
    assert len(seqs(window)) == MAX_FRAMES


def test_of_very_long_frames_the_oldest_are_dropped() -> None:
    window = ReplayBuffer(shared())
    for _ in range(3):
        window.fill(window.reserve(None), FRAME + b" " * (MAX_BYTES // 2))
    window.trim(sent=window.last)
    assert seqs(window) == [3]


def test_of_very_many_nodes_each_keeps_less() -> None:
    budget = shared()
    windows = [ReplayBuffer(budget) for _ in range(50)]
    for window in windows:
        for _ in range(4):
            window.fill(window.reserve(None), FRAME + b" " * (MAX_BYTES // 5))
            window.trim(sent=window.last)
    assert budget.used <= MAX_SHARED
    assert len(seqs(windows[0])) == 4
    assert seqs(windows[-1]) == []


def test_a_new_session_has_the_terminal_frames_and_those_that_are_still_to_come() -> None:
    window = ReplayBuffer(shared())
    for key in (None, KEY, None, KEY):
        window.fill(window.reserve(key), FRAME)
    window.reserve(KEY)
    window.keep_terminal()
    assert seqs(window) == [2, 4, 5]


class Model:
    """The same, said in the simplest way."""

    def __init__(self) -> None:
        self.budget = shared()
        self.window = ReplayBuffer(self.budget)
        self.all: list[ReplayFrame] = []
        self.gone = 0

    def reserve(self, _: int) -> None:
        self.all.append(self.window.reserve(KEY))

    def fill(self, n: int) -> None:
        if (kept := self._pick(n)) is not None and not kept.settled:
            self.window.fill(kept, FRAME)

    def forget(self, n: int) -> None:
        self.window.forget(n)
        self.gone = max(self.gone, min(n, self.window.last))

    def _pick(self, n: int) -> ReplayFrame | None:
        return self.all[n % len(self.all)] if self.all else None


@given(st.lists(st.tuples(st.sampled_from(["reserve", "fill", "forget"]), st.integers(0, 20))))
def test_all_that_was_not_forgotten_is_there_in_order(steps: list[tuple[str, int]]) -> None:
    model = Model()
    for name, n in steps:
        step: Any = getattr(model, name)
        step(n)
    left = [kept for kept in model.all if kept.seq > model.gone]
    assert list(model.window.after(0)) == left
    assert [kept for kept in model.all if kept.here] == left
    assert model.window.first == model.gone + 1
    filled = [kept.frame for kept in left if kept.settled]
    assert model.budget.used == sum(len(frame) + OVERHEAD for frame in filled)
