"""The lease: kept while it can be, lost when it must be, and what the dead have left taken over."""

from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import trio
from sqlalchemy import Engine, NullPool, create_engine, text
from trio.testing import wait_all_tasks_blocked

from clarad.nurseries import lease
from clarad.nurseries.lease import Lease
from clarad.store import Epoch, Heartbeat, Notice, StoreError, TasksChanged
from clarad.store.cluster.membership import Membership
from tests.daemon_process import PATIENCE
from tests.migrated import migrate
from tests.postgres import SHARED
from tests.store.conftest import Outside
from tests.store.daemons import Daemon, Share

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)

LONG = 600.0
"""Seconds of a lease: what happens in a test is not because time passes."""

LOOK = """SELECT pg_notify('clarad', '{"type":"members"}')"""
"""Has whoever hears it renew its lease at once."""

HELD_UP = """SELECT 1 FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'"""


class Holder:
    """A lease that is kept, and all that it tells its daemon."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.life = Epoch()
        self.looks: list[Heartbeat] = []
        self.notices: list[Notice | None] = []
        self.inherited: list[tuple[str, frozenset[int]]] = []
        self.failures = 0
        self.bugs = 0
        self.losses = 0
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._grown = trio.Event()
        members = Membership(engine, self.life, instance="holder", claimant="holder", lease=seconds)
        self.lease = Lease(
            members,
            inherit=(self._inherit_first, self._inherit_second),
            on_heartbeat=self._looked,
            on_notice=self._heard,
            tasks=lambda: "some",
            on_loss=self._lose,
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as self.scope:  # one for each run
            await self.lease.run(task_status=task_status)
        self.ended.set()

    async def stop(self) -> None:
        self.scope.cancel("stopping")
        await self.ended.wait()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until this is so; it is looked at whenever the daemon was told something."""
        with trio.fail_after(PATIENCE):
            while not condition():
                await self._grown.wait()

    def _grow(self) -> None:
        self._grown.set()
        self._grown = trio.Event()

    def _looked(self, look: Heartbeat) -> None:
        self.looks.append(look)
        self._grow()

    def _heard(self, notice: Notice | None) -> None:
        self.notices.append(notice)
        self._grow()

    def _lose(self) -> None:
        self.losses += 1
        self._grow()

    async def _inherit_first(self, lives: Collection[int]) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("as the test wants it")
        self._note("first", lives)

    async def _inherit_second(self, lives: Collection[int]) -> None:
        if self.bugs:
            self.bugs -= 1
            raise ValueError("as the test wants it")
        self._note("second", lives)

    def _note(self, name: str, lives: Collection[int]) -> None:
        self.inherited.append((name, frozenset(lives)))
        self._grow()


@pytest.fixture
def outside(url: str) -> Outside:
    """Another program that uses the database."""
    return Outside(url)


@contextmanager
def renewals_held_up(outside: Outside) -> Iterator[None]:
    """Have whoever renews a lease wait."""
    engine = create_engine(outside.url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT id FROM clarad_daemons FOR UPDATE")
        yield


@contextmanager
def in_transaction(outside: Outside, daemon: Daemon) -> Iterator[None]:
    """Have a daemon be in the middle of a transaction, as `Epoch.fence` has it."""
    engine = create_engine(outside.url, poolclass=NullPool)
    fence = f"SELECT id FROM clarad_daemons WHERE id = {daemon.number} FOR KEY SHARE"
    with engine.begin() as connection:
        connection.exec_driver_sql(fence)
        yield


Hold = Callable[..., Awaitable[Holder]]


@pytest.fixture
def hold(url: str, connect: Callable[[str], Engine], nursery: trio.Nursery) -> Hold:
    """Have a lease kept, of so many seconds; it ends with the test."""
    migrate(connect(url))

    async def hold(seconds: float = LONG) -> Holder:
        holder = Holder(connect(url), seconds)
        await nursery.start(holder.run)
        return holder

    return hold


@pytest.fixture
async def other(share: Share) -> Daemon:
    """Another daemon, which lives on the same database."""
    (daemon,) = await share(1)
    return daemon


# --- kept ----------------------------------------------------------------------------------------


async def test_a_daemon_is_ready_once_its_life_has_begun(hold: Hold) -> None:
    holder = await hold()
    assert holder.life.id is not None
    assert holder.life.owners == {holder.life.id}
    assert len(holder.looks) == 1


async def test_a_lease_is_renewed_as_time_passes(hold: Hold) -> None:
    holder = await hold(PATIENCE / 10)
    await holder.until(lambda: len(holder.looks) > 2)
    assert holder.losses == 0


async def test_a_table_that_somebody_has_locked_costs_no_lease(
    other: Daemon, hold: Hold, outside: Outside, connect: Callable[[str], Engine], url: str
) -> None:
    holder = await hold(PATIENCE / 10)
    other.leave()
    await holder.until(lambda: holder.looks[-1].inherited)  # it looks whether work of it is left
    holder.lease.set_ready("here:1")
    await holder.until(lambda: other.number in holder.life.owners)
    with connect(url).begin() as somebody:
        somebody.execute(text("LOCK TABLE clarad_messages, clarad_hook_runs, clarad_task_runs"))
        for looks in (len(holder.looks) + n for n in range(3)):
            outside.do(LOOK)
            await holder.until(lambda looks=looks: len(holder.looks) > looks)  # type: ignore[misc]
        assert holder.looks[-1].inherited == {other.number}
    outside.do(LOOK)
    await holder.until(lambda: not holder.looks[-1].inherited)
    assert (holder.losses, holder.notices.count(None)) == (0, 0), "nor the connection"


async def test_what_others_say_is_passed_on(hold: Hold, outside: Outside) -> None:
    holder = await hold()
    outside.do("""SELECT pg_notify('clarad', '{"type":"tasks"}')""")
    await holder.until(lambda: TasksChanged() in holder.notices)


async def test_a_connection_that_breaks_is_made_again_and_something_may_have_been_missed(
    hold: Hold, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RETRY", 0.01)
    holder = await hold()
    outside.rows(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await holder.until(lambda: None in holder.notices and len(holder.looks) > 1)
    assert holder.losses == 0


async def test_a_database_that_is_away_at_the_start_is_an_error(
    url: str, connect: Callable[[str], Engine]
) -> None:
    nowhere = Holder(connect(url.replace("?host=", "?host=/nowhere")), LONG)
    with pytest.raises(StoreError):
        await nowhere.run()


# --- taken over ----------------------------------------------------------------------------------


async def test_what_the_dead_have_left_is_gone_on_with_in_order_once_the_daemon_can(
    other: Daemon, hold: Hold, outside: Outside
) -> None:
    holder = await hold()
    other.leave()
    dead = frozenset({other.number})
    await holder.until(lambda: holder.looks[-1].inherited == dead)
    assert holder.inherited == []
    assert other.number not in holder.life.owners
    holder.lease.set_ready("here:1")
    await holder.until(lambda: len(holder.inherited) == 2)
    assert holder.inherited == [("first", dead), ("second", dead)]
    assert other.number in holder.life.owners


async def test_a_takeover_that_fails_is_tried_again_before_anything_builds_on_it(
    other: Daemon, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RETRY", 0.01)
    holder = await hold()
    holder.lease.set_ready("here:1")
    holder.failures = 3
    other.leave()
    await holder.until(lambda: len(holder.inherited) == 2)
    assert [name for name, _ in holder.inherited] == ["first", "second"]
    assert holder.failures == 0


async def test_a_takeover_that_ends_the_lease_s_task_is_gone_on_with_when_that_is_started_again(
    other: Daemon, url: str, connect: Callable[[str], Engine], nursery: trio.Nursery
) -> None:
    holder = Holder(connect(url), LONG)
    holder.bugs = 1
    holder.lease.set_ready("here:1")

    async def run_until_it_raises() -> None:
        async with trio.open_nursery() as first:
            await first.start(holder.run)
            other.leave()

    with trio.fail_after(PATIENCE), pytest.raises(ExceptionGroup):
        await run_until_it_raises()
    await nursery.start(holder.run)
    await holder.until(lambda: len(holder.inherited) == 2)
    dead = frozenset({other.number})
    assert holder.inherited == [("first", dead), ("second", dead)]


async def test_each_life_is_taken_over_once(share: Share, hold: Hold, outside: Outside) -> None:
    first, second = await share(2)
    holder = await hold()
    holder.lease.set_ready("here:1")
    for daemon in (first, second):
        daemon.leave()
        dead = frozenset({daemon.number})
        await holder.until(partial(holder.inherited.__contains__, ("second", dead)))
    looks = len(holder.looks)
    outside.do(LOOK)
    await holder.until(lambda: len(holder.looks) > looks)
    lives = [lives for name, lives in holder.inherited if name == "first"]
    assert lives == [{first.number}, {second.number}]


async def test_who_dies_in_the_middle_of_a_transaction_is_taken_over_from_once_that_has_ended(
    other: Daemon, hold: Hold, outside: Outside
) -> None:
    holder = await hold()
    holder.lease.set_ready("here:1")
    with in_transaction(outside, other):
        expire = "UPDATE clarad_daemons SET expires_at = clock_timestamp()"
        outside.do(f"{expire} WHERE id = {other.number}", LOOK)
        await holder.until(lambda: holder.looks[-1].is_held_up)
    await holder.until(lambda: holder.inherited)
    assert holder.inherited[0] == ("first", frozenset({other.number}))


async def test_what_was_left_before_the_start_is_the_start_s_to_recover(
    other: Daemon, hold: Hold
) -> None:
    other.leave()
    holder = await hold()
    assert holder.life.owners == {holder.life.id, other.number}


# --- lost, given up ------------------------------------------------------------------------------


async def test_who_has_been_taken_over_from_ends_its_work_once(
    hold: Hold, outside: Outside
) -> None:
    holder = await hold()
    outside.do("UPDATE clarad_daemons SET heir = id", LOOK)
    await holder.until(lambda: holder.losses)
    outside.do(LOOK)
    assert holder.life.is_lost
    assert holder.losses == 1


async def test_who_cannot_renew_its_lease_ends_its_work(
    other: Daemon, hold: Hold, outside: Outside
) -> None:
    holder = await hold(1)
    with renewals_held_up(outside):
        await holder.until(lambda: holder.losses)
    assert holder.life.is_lost


async def test_who_stops_leaves_his_work_to_others_at_once(other: Daemon, hold: Hold) -> None:
    holder = await hold()
    await holder.stop()
    assert other.renew(address="", tasks="", adopted=()).inherited == {holder.life.id}


async def test_who_stops_in_the_middle_of_a_renewal_does_so_too(
    other: Daemon, hold: Hold, outside: Outside
) -> None:
    holder = await hold()
    with renewals_held_up(outside):
        outside.do(LOOK)
        with trio.fail_after(PATIENCE):
            while not outside.rows(HELD_UP):
                await trio.sleep(0.01)
        holder.scope.cancel("stopping")
        await wait_all_tasks_blocked()
    await holder.ended.wait()
    assert other.renew(address="", tasks="", adopted=()).inherited == {holder.life.id}


async def test_who_has_lost_its_lease_has_nothing_to_leave(
    other: Daemon, hold: Hold, outside: Outside
) -> None:
    holder = await hold()
    outside.do(f"UPDATE clarad_daemons SET heir = {other.number} WHERE id = {holder.life.id}", LOOK)
    await holder.until(lambda: holder.losses)
    until = f"SELECT expires_at FROM clarad_daemons WHERE id = {holder.life.id}"
    before = outside.rows(until)
    await holder.stop()
    assert outside.rows(until) == before
