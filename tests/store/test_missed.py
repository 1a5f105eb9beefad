"""What the store promises of terminal frames that have not arrived, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from clarad.store import KEPT_FOR, Missed, MissedFrame, StoreError, missed
from clarad.store.models import MessageRow
from tests.store.conftest import Outside
from tests.store.desk import Desk, key

EVERY = {"after": 0, "before": 2**62}


class Given:
    """The frames that nodes have missed, as they are read."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.missed = Missed(desk.writer)

    async def end(self, number: int, seq: int | None = None, terminal: str = "{}") -> None:
        await self.desk.accept(number)
        await self.desk.end(number, terminal=terminal, seq=seq)

    async def page(self, node_id: str = "node-1", after: int = 0, before: int = 2**62) -> list[str]:
        page = await self.missed.page("test", node_id, after=after, before=before)
        return [frame.key.request_id for frame in page]

    async def age(self, number: int, age: timedelta) -> None:
        """Have the message ended this long ago."""
        when = datetime.now(UTC) - age
        row = update(MessageRow).where(MessageRow.request_id == f"{number}")
        await self.desk.in_thread(lambda connection: connection.execute(row.values(ended_at=when)))


@pytest.fixture
def given(desk: Desk) -> Given:
    return Given(desk)


async def test_what_has_ended_and_was_not_delivered_is_missed(given: Given) -> None:
    await given.desk.accept(3)
    await given.end(1, terminal='{"a":1}')
    await given.end(2, seq=7)
    assert await given.missed.page("test", "node-1", **EVERY) == [
        MissedFrame(key(1), '{"a":1}', None),
        MissedFrame(key(2), "{}", 7),
    ]


async def test_another_node_or_platform_misses_nothing(given: Given) -> None:
    await given.end(1)
    assert await given.page("node-2") == []
    assert await given.missed.page("other", "node-1", **EVERY) == []


async def test_what_has_no_number_comes_first_and_the_rest_by_number(given: Given) -> None:
    for number, seq in ((1, 30), (2, None), (3, 10), (4, None), (5, 20)):
        await given.end(number, seq)
    assert await given.page() == ["2", "4", "3", "5", "1"]


async def test_a_range_of_numbers_leaves_out_its_ends(given: Given) -> None:
    for number in range(1, 6):
        await given.end(number, seq=number)
    assert await given.page(after=1, before=5) == ["2", "3", "4"]


async def test_a_page_has_a_bound_in_frames_and_in_characters(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missed, "PAGE_CHARACTERS", 10)
    for number, length in ((1, 20), (2, 5), (3, 5), (4, 1)):
        await given.end(number, number, "x" * length)
    assert await given.page() == ["1"]
    assert await given.page(after=1) == ["2", "3"]


async def test_what_is_delivered_is_missed_no_more(given: Given) -> None:
    for number in (1, 2):
        await given.end(number)
    given.desk.messages.delivered(key(1))
    assert await given.page() == ["2"]


async def test_what_has_arrived_up_to_a_number_is_missed_no_more(given: Given) -> None:
    for number, seq in ((1, 1), (2, 2), (3, 3), (4, None)):
        await given.end(number, seq)
    given.missed.arrived("test", "node-1", 2)
    assert await given.page() == ["4", "3"]


async def test_what_is_forgotten_is_missed_no_more(given: Given) -> None:
    await given.end(1)
    await given.end(2, seq=1)
    given.missed.forget("test", "node-2")
    assert await given.page() == ["1", "2"]
    given.missed.forget("test", "node-1")
    assert await given.page() == []


async def test_it_is_kept_for_a_day(given: Given) -> None:
    for number in (1, 2):
        await given.end(number)
    await given.age(1, KEPT_FOR + timedelta(minutes=1))
    await given.age(2, KEPT_FOR - timedelta(minutes=1))
    assert await given.page() == ["2"]


async def test_a_database_that_fails_is_a_store_error(given: Given, outside: Outside) -> None:
    outside.do("ALTER TABLE clarad_messages RENAME TO away")
    with pytest.raises(StoreError):
        await given.page()
