"""Counting frames: where they end, however their bytes come, and which are too many."""

from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clarad.transport.frames import (
    CONTROL_INTERVAL,
    FEW_FRAGMENTS,
    FRAGMENT_SIZE,
    MAX_CONTROL,
    Frames,
)

CONTINUATION, TEXT, PING, PONG = 0x00, 0x01, 0x09, 0x0A
FINAL: Final = 0x80
LENGTHS: Final = (0, 1, 125, 126, 127, 128, 65535, 65536)


class Frame(NamedTuple):
    """A client's frame, masked with zeros; one of a server is not masked."""

    head: int
    length: int
    masked: bool = True

    @property
    def data(self) -> bytes:
        mask = 0x80 if self.masked else 0
        if self.length < 126:
            size = bytes([mask | self.length])
        elif self.length < 1 << 16:
            size = bytes([mask | 126]) + self.length.to_bytes(2, "big")
        else:
            size = bytes([mask | 127]) + self.length.to_bytes(8, "big")
        return bytes([self.head]) + size + bytes(4 * self.masked) + b"x" * self.length


frames = st.builds(
    Frame,
    st.sampled_from([TEXT, TEXT | FINAL, CONTINUATION, CONTINUATION | FINAL, PING | FINAL]),
    st.sampled_from(LENGTHS) | st.integers(0, 300),
    st.booleans(),
)


def follow(counted: Frames, data: bytes, most: int) -> list[bytes]:
    """Return the pieces that are passed on."""
    pieces, at = [], 0
    while at < len(data):
        end = counted.advance(data, at, most)
        assert end > at
        pieces.append(data[at:end])
        at = end
    return pieces


@given(st.lists(frames, max_size=20), st.integers(1, 5))
def test_what_comes_at_once_is_cut_where_frames_end(sent: list[Frame], most: int) -> None:
    counted = Frames()
    pieces = follow(counted, b"".join(frame.data for frame in sent), most)
    texts = [frame.data for frame in sent]
    assert pieces == [b"".join(texts[n : n + most]) for n in range(0, len(texts), most)]
    assert counted.count == len(sent)


@settings(deadline=None)
@given(st.lists(frames, max_size=10), st.lists(st.integers(1, 400), min_size=1))
def test_however_the_bytes_are_split_the_count_is_the_same(
    sent: list[Frame], sizes: list[int]
) -> None:
    data = b"".join(frame.data for frame in sent)
    counted, at, n = Frames(), 0, 0
    while at < len(data):
        part = data[at : at + sizes[n % len(sizes)]]
        assert b"".join(follow(counted, part, 1)) == part
        at, n = at + len(part), n + 1
    assert counted.count == len(sent)
    assert counted.received == sum(frame.length for frame in sent if not frame.head & 0x08)


def sent(*frames: Frame, now: float = 0.0) -> str | None:
    """Return what there was too much of."""
    counted = Frames()
    for frame in frames:
        counted.advance(frame.data, 0, 1)
        if what := counted.find_excess(now):
            return what
    return None


@pytest.mark.parametrize("size", [0, 1])
def test_a_message_may_not_come_in_many_small_fragments(size: int) -> None:
    pieces = [Frame(TEXT, size)] + [Frame(CONTINUATION, size)] * (FEW_FRAGMENTS - 1)
    assert sent(*pieces) is None
    assert sent(*pieces, Frame(CONTINUATION | FINAL, size)) == "a message in too many fragments"


def test_a_long_message_may_come_in_many_fragments() -> None:
    assert sent(Frame(TEXT, FRAGMENT_SIZE), *[Frame(CONTINUATION, FRAGMENT_SIZE)] * 1000) is None


def test_each_message_has_its_own_fragments() -> None:
    pieces = [Frame(TEXT, 1)] + [Frame(CONTINUATION, 1)] * 40 + [Frame(CONTINUATION | FINAL, 1)]
    assert sent(*pieces * 10) is None


@pytest.mark.parametrize("kind", [PING, PONG])
def test_only_so_many_control_frames_may_come_at_once(kind: int) -> None:
    assert sent(*[Frame(kind | FINAL, 0)] * MAX_CONTROL) is None
    assert sent(*[Frame(kind | FINAL, 0)] * (MAX_CONTROL + 1)) == "too many pings or pongs"


def test_control_frames_may_come_again_and_again_with_time_between() -> None:
    counted = Frames()
    for n in range(100_000):
        counted.advance(Frame(PING | FINAL, 4).data, 0, 1)
        assert counted.find_excess(n * CONTROL_INTERVAL) is None
    assert counted.received == 0
