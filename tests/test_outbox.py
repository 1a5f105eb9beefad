import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from clarad.outbox import MAX_BYTES, MAX_FRAMES, Outbox, Overflow

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


async def test_frames_are_taken_in_the_order_in_which_they_came(outbox: Outbox) -> None:
    for frame in (b"a", b"b", b"c"):
        outbox.put(frame)
    assert (await outbox.take()).frames == [b"a", b"b", b"c"]


async def test_a_frame_is_taken_once(outbox: Outbox) -> None:
    outbox.put(b"a")
    await outbox.take()
    outbox.put(b"b")
    assert (await outbox.take()).frames == [b"b"]


async def test_taking_waits_for_the_next_frame(outbox: Outbox, nursery: trio.Nursery) -> None:
    taken: list[bytes] = []

    async def take() -> None:
        taken.extend((await outbox.take()).frames)

    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    assert taken == []
    outbox.put(b"a")
    await wait_all_tasks_blocked()
    assert taken == [b"a"]


async def test_closing_ends_the_wait(outbox: Outbox, nursery: trio.Nursery) -> None:
    taken: list[list[bytes]] = []

    async def take() -> None:
        taken.append((await outbox.take()).frames)

    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    outbox.close()
    await wait_all_tasks_blocked()
    assert taken == [[]]


async def test_what_was_queued_before_the_close_is_still_taken(outbox: Outbox) -> None:
    outbox.put(b"a")
    outbox.close()
    assert (await outbox.take()).frames == [b"a"]
    assert (await outbox.take()).frames == []


async def test_what_comes_after_the_close_is_dropped(outbox: Outbox) -> None:
    outbox.close()
    outbox.put(b"a")
    assert (await outbox.take()).frames == []


async def test_a_full_outbox_that_is_closed_overflows_no_more(outbox: Outbox) -> None:
    for _ in range(MAX_FRAMES):
        outbox.put(b"a")
    outbox.close()
    outbox.put(b"b")
    assert (await outbox.take()).frames == [b"a"] * MAX_FRAMES


async def test_closing_twice_is_closing(outbox: Outbox) -> None:
    outbox.close()
    outbox.close()
    assert outbox.closed


async def test_a_wait_that_is_cancelled_loses_no_frame(outbox: Outbox) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await outbox.take()
    outbox.put(b"a")
    assert (await outbox.take()).frames == [b"a"]


async def test_too_many_frames_overflow(outbox: Outbox) -> None:
    for _ in range(MAX_FRAMES):
        outbox.put(b"a")
    with pytest.raises(Overflow):
        outbox.put(b"a")


async def test_too_many_bytes_overflow(outbox: Outbox) -> None:
    outbox.put(bytes(MAX_BYTES - 1))
    outbox.put(b"a")
    with pytest.raises(Overflow):
        outbox.put(b"a")


async def test_a_frame_that_does_not_fit_is_not_queued_in_part(outbox: Outbox) -> None:
    outbox.put(b"a")
    with pytest.raises(Overflow):
        outbox.put(bytes(MAX_BYTES))
    assert (await outbox.take()).frames == [b"a"]


async def test_taking_makes_room(outbox: Outbox) -> None:
    whole = bytes(MAX_BYTES)
    outbox.put(whole)
    await outbox.take()
    outbox.put(whole)
    assert (await outbox.take()).frames == [whole]


frames = st.binary(max_size=8) | st.just(bytes(MAX_BYTES // 3))


@relaxed
@given(st.lists(st.sampled_from(["take", "close"]) | frames, max_size=50))
async def test_what_is_taken_is_what_was_put_and_fitted(steps: list[str | bytes]) -> None:
    outbox = Outbox()
    queued: list[bytes] = []
    closed = False
    for step in steps:
        if step == "close":
            outbox.close()
            closed = True
        elif step == "take":
            if queued or closed:
                assert (await outbox.take()).frames == queued
                queued = []
        elif isinstance(step, bytes):
            try:
                outbox.put(step)
            except Overflow:
                overflowed = True
            else:
                overflowed = False
            fits = sum(map(len, queued)) + len(step) <= MAX_BYTES
            assert overflowed == (not closed and not fits)
            if fits and not closed:
                queued.append(step)


# --- calling back --------------------------------------------------------------------------------


async def test_who_waits_for_a_frame_to_be_written_comes_with_it(outbox: Outbox) -> None:
    written: list[str] = []
    outbox.put(b"a")
    outbox.when_written(lambda: written.append("a"))
    batch = await outbox.take()
    outbox.put(b"b")
    for then in batch.when_written:
        then()
    assert written == ["a"]
    assert (await outbox.take()).when_written == []


async def test_what_is_cleared_is_neither_taken_nor_called_back(outbox: Outbox) -> None:
    outbox.put(b"a")
    outbox.when_written(lambda: pytest.fail("it was never written"))
    outbox.clear()
    outbox.close()
    assert await outbox.take() == ([], [])


async def test_what_was_not_queued_is_never_called_back(outbox: Outbox) -> None:
    outbox.close()
    outbox.put(b"a")
    outbox.when_written(lambda: pytest.fail("it was never written"))
    assert await outbox.take() == ([], [])
