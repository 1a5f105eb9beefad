"""Rows that the store has refused are written once it takes them, a page at a time."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from clarad.automation.runs.retries import RetryQueue, Then
from clarad.automation.runs.run import PAGE, STORE_RETRY
from clarad.store import StoreError

FULL = StoreError("the disk is full")


class Store:
    """Takes rows, unless it is full or one of them is wrong; writes them when others have run."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.is_full = True
        self.wrong: set[int] = set()
        self.asked: list[int] = []
        self.written: list[int] = []
        self.told: list[StoreError | None] = []
        self.given_up = trio.Event()
        self.most_at_once = 0
        self._queue: list[tuple[int, Then]] = []
        self._is_asked = trio.Event()
        nursery.start_soon(self._run)

    def write(self, number: int, *, then: Then) -> None:
        self.asked.append(number)
        self._queue.append((number, then))
        self._is_asked.set()

    async def _run(self) -> None:
        while True:
            await self._is_asked.wait()
            await wait_all_tasks_blocked()
            self._is_asked = trio.Event()
            self.most_at_once = max(self.most_at_once, len(self._queue))
            queue, self._queue = self._queue, []
            for number, then in queue:
                if self.is_full or number in self.wrong:
                    then(FULL)
                else:
                    self.written.append(number)
                    then(None)

    def put(self, queue: RetryQueue, *numbers: int) -> None:
        """Have rows written later that were refused."""
        for number in numbers:
            queue.put(partial(self.write, number), self.told.append, FULL)


@pytest.fixture
async def store(nursery: trio.Nursery) -> AsyncIterator[Store]:
    yield Store(nursery)
    nursery.cancel_scope.cancel("the test has ended")


@pytest.fixture
def queue(store: Store, nursery: trio.Nursery) -> RetryQueue:
    """A queue that runs."""
    queue = RetryQueue(store.given_up)
    nursery.start_soon(queue.run)
    return queue


async def test_a_store_that_fails_is_asked_once_a_second_however_many_rows_wait(
    autojump_clock: MockClock, store: Store, queue: RetryQueue
) -> None:
    store.put(queue, *range(1000))
    await trio.sleep(10.5 * STORE_RETRY)
    assert store.asked == list(range(10))
    assert store.told == []


async def test_once_it_works_again_it_is_handed_all_in_their_order_page_by_page(
    autojump_clock: MockClock, store: Store, queue: RetryQueue
) -> None:
    store.put(queue, *range(3 * PAGE))
    await trio.sleep(STORE_RETRY / 2)
    store.is_full = False
    await trio.sleep(STORE_RETRY)
    assert store.written == list(range(3 * PAGE))
    assert store.told == [None] * 3 * PAGE
    assert store.most_at_once == PAGE


async def test_a_row_that_cannot_be_written_keeps_no_other_from_it(
    autojump_clock: MockClock, store: Store, queue: RetryQueue
) -> None:
    store.is_full, store.wrong = False, {0}
    store.put(queue, 0, 1, 2)
    await trio.sleep(5 * STORE_RETRY)
    assert store.written == [1, 2]
    store.wrong = set()
    await trio.sleep(2 * STORE_RETRY)
    assert store.written == [1, 2, 0]


async def test_when_the_daemon_gives_up_each_is_told_why_it_was_refused(
    autojump_clock: MockClock, store: Store, queue: RetryQueue
) -> None:
    store.put(queue, 0, 1)
    await trio.sleep(1.5 * STORE_RETRY)
    store.given_up.set()
    await wait_all_tasks_blocked()
    assert store.told == [FULL, FULL]
