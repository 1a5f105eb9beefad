from contextlib import suppress

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from clarad.limits.memory import MemoryBudget
from clarad.transport.outbox import (
    BATCH_BYTES,
    MAX_BYTES,
    MAX_FRAMES,
    MAX_SHARED,
    OVERHEAD,
    OWN_BYTES,
    Outbox,
    Overflow,
    outbox_budget,
)

WHOLE = bytes(MAX_BYTES - OVERHEAD)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def budget() -> MemoryBudget:
    return outbox_budget()


@pytest.fixture
def outbox(budget: MemoryBudget) -> Outbox:
    return Outbox(budget)


async def test_frames_are_taken_in_the_order_in_which_they_came(outbox: Outbox) -> None:
    for frame in (b"a", b"b", b"c"):
        outbox.put(frame)
    assert (await outbox.next_batch()).frames == [b"a", b"b", b"c"]


async def test_a_frame_is_taken_once(outbox: Outbox) -> None:
    outbox.put(b"a")
    await outbox.next_batch()
    outbox.put(b"b")
    assert (await outbox.next_batch()).frames == [b"b"]


async def test_taking_waits_for_the_next_frame(outbox: Outbox, nursery: trio.Nursery) -> None:
    taken: list[bytes] = []

    async def take() -> None:
        taken.extend((await outbox.next_batch()).frames)

    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    assert taken == []
    outbox.put(b"a")
    await wait_all_tasks_blocked()
    assert taken == [b"a"]


async def test_closing_ends_the_wait(outbox: Outbox, nursery: trio.Nursery) -> None:
    taken: list[list[bytes]] = []

    async def take() -> None:
        taken.append((await outbox.next_batch()).frames)

    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    outbox.close()
    await wait_all_tasks_blocked()
    assert taken == [[]]


async def test_what_was_queued_before_the_close_is_still_taken(outbox: Outbox) -> None:
    outbox.put(b"a")
    outbox.close()
    assert (await outbox.next_batch()).frames == [b"a"]
    assert (await outbox.next_batch()).frames == []


async def test_what_comes_after_the_close_is_dropped(outbox: Outbox) -> None:
    outbox.close()
    outbox.put(b"a")
    assert (await outbox.next_batch()).frames == []


async def test_a_full_outbox_that_is_closed_overflows_no_more(outbox: Outbox) -> None:
    for _ in range(MAX_FRAMES):
        outbox.put(b"a")
    outbox.close()
    outbox.put(b"b")
    assert (await outbox.next_batch()).frames == [b"a"] * MAX_FRAMES


async def test_closing_twice_is_closing(outbox: Outbox) -> None:
    outbox.close()
    outbox.close()
    assert outbox.closed


async def test_a_wait_that_is_cancelled_loses_no_frame(outbox: Outbox) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await outbox.next_batch()
    outbox.put(b"a")
    assert (await outbox.next_batch()).frames == [b"a"]


async def test_too_many_frames_overflow(outbox: Outbox) -> None:
    for _ in range(MAX_FRAMES):
        outbox.put(b"a")
    with pytest.raises(Overflow):
        outbox.put(b"a")


async def test_too_many_bytes_overflow(outbox: Outbox) -> None:
    outbox.put(WHOLE)
    with pytest.raises(Overflow):
        outbox.put(b"a")


async def test_a_frame_that_does_not_fit_is_not_queued_in_part(outbox: Outbox) -> None:
    outbox.put(b"a")
    with pytest.raises(Overflow):
        outbox.put(bytes(MAX_BYTES))
    assert (await outbox.next_batch()).frames == [b"a"]


async def test_taking_makes_room(outbox: Outbox) -> None:
    outbox.put(b"a")
    outbox.put(WHOLE[1 + OVERHEAD :])
    await outbox.next_batch()
    await outbox.next_batch()
    with pytest.raises(Overflow):  # what was taken last may still be under way
        outbox.put(WHOLE)
    outbox.put(b"b")
    assert (await outbox.next_batch()).frames == [b"b"]
    outbox.put(WHOLE[1 + OVERHEAD :])
    assert (await outbox.next_batch()).frames == [WHOLE[1 + OVERHEAD :]]


# --- in pieces, and beside others ----------------------------------------------------------------


async def test_long_frames_are_taken_one_by_one(outbox: Outbox) -> None:
    long = bytes(BATCH_BYTES)
    for frame in (b"a", long, long, b"b"):
        outbox.put(frame)
    outbox.close()
    taken = [(await outbox.next_batch()).frames for _ in range(5)]
    assert taken == [[b"a"], [long], [long], [b"b"], []]


async def test_peers_that_do_not_read_leave_room_for_the_next(budget: MemoryBudget) -> None:
    for _ in range(100):
        slow = Outbox(budget)
        with suppress(Overflow):
            while True:
                slow.put(bytes(100_000))
    assert budget.used <= MAX_SHARED
    good = Outbox(budget)
    good.put(bytes(OWN_BYTES - OVERHEAD))
    with pytest.raises(Overflow):
        good.put(bytes(100_000))


@pytest.mark.parametrize("frames", [1, 3])
async def test_a_discarded_queue_makes_room(
    outbox: Outbox, budget: MemoryBudget, frames: int
) -> None:
    for _ in range(frames):
        outbox.put(bytes(BATCH_BYTES))
    await outbox.next_batch()
    outbox.discard()
    assert budget.used == 0
    assert (await outbox.next_batch()).frames == []


frames = st.binary(max_size=8) | st.just(bytes(MAX_BYTES // 3))


@relaxed
@given(st.lists(st.sampled_from(["take", "clear", "close", "discard"]) | frames, max_size=50))
async def test_what_is_taken_is_what_was_put_and_fitted(steps: list[str | bytes]) -> None:
    budget = outbox_budget()
    outbox = Outbox(budget)
    queued: list[bytes] = []
    under_way: list[bytes] = []
    closed = False

    def held() -> int:
        return sum(len(frame) + OVERHEAD for frame in queued + under_way)

    for step in steps:
        match step:
            case "close":
                outbox.close()
                closed = True
            case "clear":
                outbox.clear()
                queued = []
            case "discard":
                outbox.discard()
                closed, queued, under_way = True, [], []
            case "take":
                if queued or closed:
                    under_way = (await outbox.next_batch()).frames
                    assert under_way == queued[: len(under_way)]
                    assert bool(under_way) == bool(queued)
                    queued = queued[len(under_way) :]
            case bytes(frame):
                fits = held() + len(frame) + OVERHEAD <= MAX_BYTES
                try:
                    outbox.put(frame)
                except Overflow:
                    assert not closed
                    assert not fits
                else:
                    assert closed or fits
                    queued += [] if closed else [frame]
        assert budget.used == max(held() - OWN_BYTES, 0)


# --- calling back --------------------------------------------------------------------------------


async def test_a_callback_for_a_frame_comes_with_its_batch(outbox: Outbox) -> None:
    written: list[str] = []
    outbox.put(b"a")
    outbox.when_written(lambda: written.append("a"))
    batch = await outbox.next_batch()
    outbox.put(b"b")
    for then in batch.when_written:
        then()
    assert written == ["a"]
    assert (await outbox.next_batch()).when_written == []


async def test_a_callback_for_a_frame_behind_a_long_one_comes_after_both(outbox: Outbox) -> None:
    outbox.put(bytes(BATCH_BYTES))
    outbox.put(b"a")
    outbox.when_written(lambda: None)
    assert (await outbox.next_batch()).when_written == []
    assert len((await outbox.next_batch()).when_written) == 1


async def test_what_is_cleared_is_neither_taken_nor_called_back(outbox: Outbox) -> None:
    outbox.put(b"a")
    outbox.when_written(lambda: pytest.fail("it was never written"))
    outbox.clear()
    outbox.close()
    assert await outbox.next_batch() == ([], [])


async def test_what_was_not_queued_is_never_called_back(outbox: Outbox) -> None:
    outbox.close()
    outbox.put(b"a")
    outbox.when_written(lambda: pytest.fail("it was never written"))
    assert await outbox.next_batch() == ([], [])


async def test_a_callback_with_nothing_queued_needs_no_further_frame(
    outbox: Outbox, nursery: trio.Nursery
) -> None:
    told = trio.Event()
    nursery.start_soon(outbox.next_batch)
    await wait_all_tasks_blocked()
    outbox.when_written(told.set)
    await wait_all_tasks_blocked()
    assert told.is_set()


async def test_a_callback_during_the_last_write_comes_after_it(
    outbox: Outbox, nursery: trio.Nursery
) -> None:
    told = trio.Event()
    outbox.put(b"last")
    await outbox.next_batch()
    outbox.when_written(told.set)
    await wait_all_tasks_blocked()
    assert not told.is_set()
    nursery.start_soon(outbox.next_batch)
    await wait_all_tasks_blocked()
    assert told.is_set()
