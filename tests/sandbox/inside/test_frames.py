import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.inside.frames import HEADER, MAX_PAYLOAD, Decoder, Frame, FrameError, encode

frames = st.builds(Frame, st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=300))


@given(st.lists(frames), st.data())
def test_however_the_bytes_are_split_the_frames_are_the_same(
    sent: list[Frame], data: st.DataObject
) -> None:
    whole = b"".join(encode(*frame) for frame in sent)
    cuts = data.draw(st.lists(st.integers(0, len(whole))).map(sorted))
    decoder = Decoder()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        received += decoder.feed(whole[start:end])
    assert received == sent


@given(st.lists(frames, min_size=1))
def test_a_frame_is_given_as_soon_as_it_is_whole(sent: list[Frame]) -> None:
    decoder = Decoder()
    for frame in sent:
        encoded = encode(*frame)
        assert decoder.feed(encoded[:-1]) == []
        assert decoder.feed(encoded[-1:]) == [frame]


def test_a_payload_that_no_frame_has_is_refused_before_it_comes() -> None:
    with pytest.raises(FrameError):
        Decoder().feed(HEADER.pack(1, 1, MAX_PAYLOAD + 1))
