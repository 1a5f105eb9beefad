"""A daemon's life on a database: whose rows are its own, its fence, and what time it is there."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, text

from clarad.store import Epoch, LeaseLost
from clarad.store.epoch import owned
from clarad.store.models import TaskRow
from tests.postgres import BACKENDS, SHARED
from tests.store.conftest import Outside
from tests.store.daemons import Share

PAST = datetime(2027, 3, 1, 12, tzinfo=UTC)


# --- what time it is -----------------------------------------------------------------------------


def test_until_the_database_has_told_the_time_it_is_the_machine_s() -> None:
    before = datetime.now(UTC)
    assert before <= Epoch().now() <= datetime.now(UTC)


def test_the_time_is_the_database_s_and_goes_on_with_no_regard_for_the_machine_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Epoch()
    told_at = time.monotonic()
    life.tell_time(PAST, told_at, told_at)
    monkeypatch.setattr(time, "monotonic", lambda: told_at + 100)
    assert timedelta(seconds=100) <= life.now() - PAST < timedelta(seconds=101)
    life.tell_time(PAST + timedelta(seconds=90), told_at + 100, told_at + 100)
    assert abs(life.now() - PAST - timedelta(seconds=90)) < timedelta(milliseconds=1)


def test_an_answer_that_is_slow_to_come_does_not_set_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Epoch()
    life.tell_time(PAST, 1000, 1000)
    life.tell_time(PAST + timedelta(seconds=3), 1001, 1005)  # any time between the two
    monkeypatch.setattr(time, "monotonic", lambda: 1005)
    assert life.now() == PAST + timedelta(seconds=5)


# --- whose rows they are -------------------------------------------------------------------------


@pytest.fixture
def owners(connect: Callable[[str], Engine], url: str) -> Callable[..., list[Any]]:
    """Of a task that nobody has and of those of three lives, return the owners of those found."""
    engine = connect(url)
    TaskRow.__table__.create(engine)  # type: ignore[attr-defined]
    with engine.begin() as connection:
        for owner in ("NULL", "1", "2", "3"):
            connection.execute(
                text(
                    "INSERT INTO clarad_tasks (name, schedule, anchor_at, accounted_until, owner)"
                    f" VALUES ('of {owner}', '', '{PAST:%F %T}', '{PAST:%F %T}', {owner})"
                )
            )

    def find(*which: Any) -> list[Any]:
        with engine.connect() as connection:
            found = select(TaskRow.owner).where(owned(TaskRow.owner, *which)).order_by(TaskRow.name)
            return list(connection.scalars(found))

    return find


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
def test_who_has_the_database_to_itself_sees_to_everything(
    owners: Callable[..., list[Any]],
) -> None:
    assert owners(None) == [1, 2, 3, None]


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
def test_a_life_sees_to_its_own_and_to_what_it_has_taken_over(
    owners: Callable[..., list[Any]],
) -> None:
    life = Epoch()
    life.owners = frozenset({1, 3})
    assert owners(life) == [1, 3]
    assert owners(life, [2]) == [2]
    assert owners(life, []) == []


# --- the fence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", SHARED, indirect=True)
async def test_a_fence_lets_a_life_through_that_goes_on(share: Share) -> None:
    here, _ = await share(2)
    assert await here.writer.call(lambda connection: connection.scalar(text("SELECT 1"))) == 1


@pytest.mark.parametrize("url", SHARED, indirect=True)
@pytest.mark.parametrize(
    "end", ["UPDATE clarad_daemons SET heir = id", "DELETE FROM clarad_daemons"]
)
async def test_a_fence_stops_a_life_that_has_an_heir_or_is_forgotten(
    share: Share, outside: Outside, end: str
) -> None:
    (here,) = await share(1)
    outside.do(end)
    with pytest.raises(LeaseLost):
        await here.writer.call(lambda _connection: None)


@pytest.mark.parametrize("url", SHARED, indirect=True)
async def test_a_fence_stops_a_life_that_knows_of_its_end_whatever_the_database_says(
    share: Share,
) -> None:
    (here,) = await share(1)
    here.epoch.is_lost = True
    with pytest.raises(LeaseLost):
        await here.writer.call(lambda _connection: None)
