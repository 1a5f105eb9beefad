"""Daemons that share a database: leases, takeovers, and that who is dead writes nothing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest
import trio
from sqlalchemy import Connection, Engine, text

from clarad.store import Epoch, Heartbeat, LeaseLost, MembersChanged, StoreError, Writer
from clarad.store.cluster.membership import ALONE, Membership
from tests.migrated import migrate
from tests.postgres import SHARED
from tests.store.conftest import Outside

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)

RUN = """\
INSERT INTO clarad_task_runs (run_id, task, nominal_at, origin, caused_by, due_at, attempts, owner)
VALUES ('{0}', '{0}', now(), 'schedule', '', now(), 0, {1})"""
END = "UPDATE clarad_task_runs SET ended_at = now() WHERE run_id = '{}'"
EXPIRE = "UPDATE clarad_daemons SET expires_at = now() - interval '1 second' WHERE id = {}"


class Member(Membership):
    """A daemon as far as the others can see."""

    def heartbeat(self, tasks: str = "same", adopted: tuple[int, ...] = ()) -> Heartbeat:
        return self.renew(address="here:1", tasks=tasks, adopted=adopted)

    @property
    def number(self) -> int:
        assert self.epoch.id is not None
        return self.epoch.id


Join = Callable[..., Member]


@pytest.fixture
def join(engine: Engine, connect: Callable[[str], Engine], url: str) -> Iterator[Join]:
    """Have daemons join, each with a state directory of its own."""
    migrate(engine)
    names = (f"instance-{n}" for n in count(1))
    with ExitStack() as stack:

        def join_one(claimant: str | None = None) -> Member:
            name = next(names)
            member = Member(
                connect(url), Epoch(), instance=name, claimant=claimant or name, lease=60
            )
            stack.callback(member.close)
            member.connect()
            member.join()
            return member

        yield join_one


def die(outside: Outside, member: Member) -> None:
    """Let the lease run out."""
    outside.do(EXPIRE.format(member.number))


# --- who lives -----------------------------------------------------------------------------------


def test_each_life_has_a_number_of_its_own_and_a_later_one_a_higher(join: Join) -> None:
    lives = [join().number for _ in range(3)]
    assert lives == sorted(set(lives))


def test_a_daemon_sees_how_many_others_live_and_how_many_know_the_same_tasks(join: Join) -> None:
    first, second, third = join(), join(), join()
    second.heartbeat(tasks="same")
    third.heartbeat(tasks="others")
    look = first.heartbeat(tasks="same")
    assert (look.others, look.alike) == (2, 1)


def test_the_lease_of_who_is_alone_lasts_longer_until_another_one_comes(
    join: Join, outside: Outside
) -> None:
    alone = join()
    assert alone.lease < alone.heartbeat().lasts <= alone.lease * ALONE
    other = join()
    assert alone.heartbeat().lasts <= alone.lease
    die(outside, other)
    assert alone.heartbeat().lasts > alone.lease


def test_a_renewal_keeps_a_daemon_alive(join: Join, outside: Outside) -> None:
    first, second = join(), join()
    die(outside, first)
    first.heartbeat()
    assert second.heartbeat().inherited == frozenset()


def test_a_lease_is_by_the_clock_of_the_database(join: Join) -> None:
    member = join()
    member.heartbeat()
    with member._engine.connect() as connection:
        now = connection.scalar(text("SELECT clock_timestamp()"))
    assert abs((member.epoch.now() - now).total_seconds()) < 10


# --- taking over ---------------------------------------------------------------------------------


def test_who_looks_first_inherits_from_the_dead_and_nobody_else(
    join: Join, outside: Outside
) -> None:
    dead, first, second = join(), join(), join()
    die(outside, dead)
    assert first.heartbeat().inherited == {dead.number}
    assert second.heartbeat().inherited == frozenset()


def test_the_dead_one_finds_that_it_has_lost_its_lease(join: Join, outside: Outside) -> None:
    dead, heir = join(), join()
    die(outside, dead)
    heir.heartbeat()
    with pytest.raises(LeaseLost):
        dead.heartbeat()


def test_who_inherits_from_an_heir_inherits_all_that_it_had(join: Join, outside: Outside) -> None:
    first, second, third = join(), join(), join()
    die(outside, first)
    second.heartbeat()
    die(outside, second)
    assert third.heartbeat().inherited == {first.number, second.number}


def test_an_earlier_life_with_the_same_state_directory_is_over_whatever_its_lease_says(
    join: Join,
) -> None:
    before, other = join("mine"), join("another")
    now = join("mine")
    assert other.heartbeat().inherited == frozenset()
    assert now.heartbeat().inherited == {before.number}


def test_who_leaves_has_his_work_taken_over_at_once(join: Join) -> None:
    leaving, other = join(), join()
    leaving.leave()
    assert other.heartbeat().inherited == {leaving.number}


def test_what_the_dead_have_left_is_inherited_until_it_has_ended(
    join: Join, outside: Outside
) -> None:
    dead, heir = join(), join()
    outside.do(RUN.format("a", dead.number))
    die(outside, dead)
    assert heir.heartbeat().inherited == {dead.number}
    assert heir.heartbeat(adopted=(dead.number,)).inherited == {dead.number}
    outside.do(END.format("a"))
    assert heir.heartbeat().inherited == {dead.number}
    heir.heartbeat(adopted=(dead.number,))
    assert heir.heartbeat().inherited == frozenset()
    assert outside.rows("SELECT id FROM clarad_daemons") == [(heir.number,)]


def test_a_life_is_remembered_as_long_as_tasks_are_down_as_its_own(
    join: Join, outside: Outside
) -> None:
    dead, heir = join(), join()
    outside.do(
        "INSERT INTO clarad_tasks (name, schedule, anchor_at, accounted_until, owner)"
        f" VALUES ('t', 'every 1 s', now(), now(), {dead.number})"
    )
    die(outside, dead)
    heir.heartbeat()
    assert heir.heartbeat(adopted=(dead.number,)).inherited == {dead.number}
    outside.do("UPDATE clarad_tasks SET owner = NULL")
    assert heir.heartbeat(adopted=(dead.number,)).inherited == frozenset()


def test_what_nobody_owned_is_the_next_one_s_that_joins(join: Join, outside: Outside) -> None:
    join()
    outside.do(RUN.format("a", "NULL"))
    joined = join()
    assert outside.rows("SELECT owner FROM clarad_task_runs") == [(joined.number,)]


# --- the fence -----------------------------------------------------------------------------------


@contextmanager
def in_transaction(member: Member) -> Iterator[Connection]:
    with member._engine.connect() as connection, connection.begin():
        member.epoch.fence(connection)
        yield connection


def test_who_has_been_taken_over_from_cannot_write(join: Join, outside: Outside) -> None:
    dead, heir = join(), join()
    with in_transaction(dead):
        pass
    die(outside, dead)
    with in_transaction(dead):  # nobody has taken over yet: nobody else has written
        pass
    heir.heartbeat()
    with pytest.raises(LeaseLost), in_transaction(dead):
        pass


def test_a_takeover_does_not_come_into_the_middle_of_a_transaction(
    join: Join, outside: Outside
) -> None:
    slow, heir = join(), join()
    die(outside, slow)
    with in_transaction(slow):
        assert heir.heartbeat().inherited == frozenset()
    assert heir.heartbeat().inherited == {slow.number}


def test_a_renewal_does_not_wait_for_the_transactions_of_its_daemon(join: Join) -> None:
    member = join()
    with in_transaction(member):
        member.heartbeat()


async def test_the_writer_writes_nothing_for_who_has_been_taken_over_from(
    join: Join, outside: Outside, connect: Callable[[str], Engine], url: str, nursery: trio.Nursery
) -> None:
    dead, heir = join(), join()
    writer = Writer(connect(url), dead.epoch)
    await nursery.start(writer.run)
    insert = text(RUN.format("a", dead.number))
    die(outside, dead)
    heir.heartbeat()
    with pytest.raises(LeaseLost):
        await writer.execute(insert, {}).wait()
    assert outside.rows("SELECT run_id FROM clarad_task_runs") == []
    nursery.cancel_scope.cancel()


async def test_the_writer_does_not_wait_for_a_database_once_it_is_cut(
    join: Join, connect: Callable[[str], Engine], url: str, nursery: trio.Nursery
) -> None:
    writer = Writer(connect(url), join().epoch)
    await nursery.start(writer.run)
    job = writer.execute(text("SELECT pg_sleep(1000)"), {})
    with trio.fail_after(30):
        while not _sleeps(connect(url)):
            await trio.sleep(0.01)
        writer.cut()
        with pytest.raises(Exception, match=r"(?s)."):
            await job.wait()
    nursery.cancel_scope.cancel()


def _sleeps(engine: Engine) -> bool:
    with engine.connect() as connection:
        query = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        return connection.scalar(text(query)) is not None


# --- the connection ------------------------------------------------------------------------------


def test_who_comes_and_who_goes_is_heard(join: Join) -> None:
    first = join()
    first.receive()
    second = join()
    first.heartbeat()
    assert first.receive() == [MembersChanged()]
    second.leave()
    first.heartbeat()
    assert first.receive() == [MembersChanged()]


def test_a_connection_that_is_cut_is_an_error_and_can_be_made_again(
    join: Join, outside: Outside
) -> None:
    member = join()
    member.cut()
    with pytest.raises(StoreError):
        member.heartbeat()
    assert not member.is_connected
    member.connect()
    member.heartbeat()


def test_a_database_that_is_away_is_an_error_in_one_line(
    join: Join, connect: Callable[[str], Engine], url: str
) -> None:
    nowhere = connect(url.replace("?host=", "?host=/nowhere"))
    with pytest.raises(StoreError) as caught:
        Membership(nowhere, Epoch(), instance="i", claimant="h", lease=60).connect()
    assert len(str(caught.value).splitlines()) == 1
