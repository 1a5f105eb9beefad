"""A COMMIT that PostgreSQL does not answer: what it was about is never done twice."""

from collections.abc import Callable, Iterator

import pytest
import trio
from sqlalchemy import Connection, Engine, event, text

from clarad.store import Epoch, InDoubt, Writer
from clarad.store.cluster.membership import Membership
from clarad.store.engine import StoreError
from tests.daemon_process import PATIENCE
from tests.migrated import migrate
from tests.network import Network
from tests.postgres import SHARED
from tests.store.conftest import Outside

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)


@pytest.fixture
def network(url: str) -> Iterator[Network]:
    """The network between the writer and the server."""
    network = Network(url)
    yield network
    network.close()


class Account:
    """A writer that adds to a number, and what it was told."""

    def __init__(self, writer: Writer, outside: Outside) -> None:
        self.writer = writer
        self.errors: list[Exception | None] = []
        self.attempts = 0
        """How often it has tried to connect."""
        self._outside = outside

    async def add(self) -> None:
        def add(connection: Connection) -> None:
            connection.execute(text("UPDATE account SET total = total + 1"))

        job = self.writer.submit(add)
        try:
            await job.wait()
        except StoreError as error:
            self.errors.append(error)
        else:
            self.errors.append(None)

    @property
    def failed(self) -> int:
        """How many additions it was told have failed."""
        return sum(error is not None for error in self.errors)

    @property
    def total(self) -> int:
        ((total,),) = self._outside.rows("SELECT total FROM account")
        return int(total)


@pytest.fixture
async def account(
    engine: Engine,
    connect: Callable[[str], Engine],
    network: Network,
    outside: Outside,
    nursery: trio.Nursery,
) -> Account:
    """A writer behind the network, whose life is one of those that share the database."""
    migrate(engine)
    outside.do("CREATE TABLE account (total INTEGER NOT NULL)", "INSERT INTO account VALUES (0)")
    life = Epoch()
    members = Membership(engine, life, instance="here", claimant="here", lease=60)
    members.connect()
    members.join()
    members.close()
    behind = connect(network.url)
    writer = Writer(behind, life)
    account = Account(writer, outside)

    def count(*_about: object) -> None:
        account.attempts += 1

    event.listen(behind, "do_connect", count)
    await nursery.start(writer.run)
    await account.add()  # through a connection that works
    return account


async def test_what_was_committed_is_not_done_again(account: Account, network: Network) -> None:
    network.lose_commit(arrives=True)
    await account.add()
    assert (account.total, account.failed) == (2, 0)


async def test_what_was_not_committed_has_failed(account: Account, network: Network) -> None:
    network.lose_commit(arrives=False)
    await account.add()
    await account.add()
    assert (account.total, account.failed) == (2, 1)


@pytest.mark.parametrize("arrives", [True, False])
async def test_all_that_was_to_be_committed_together_is_done_once(
    account: Account, network: Network, arrives: bool
) -> None:
    network.lose_commit(arrives=arrives)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(account.add)
    assert account.total == len(account.errors) - account.failed


async def test_while_the_database_is_out_of_reach_it_waits(
    account: Account, network: Network
) -> None:
    async with trio.open_nursery() as waiting:
        await cut_off_over_a_commit(account, network, waiting, arrives=True)
        network.mend()
    assert (account.total, account.failed) == (2, 0)


async def test_a_database_that_is_out_of_reach_is_not_tried_for_each_of_many_jobs(
    account: Account, network: Network
) -> None:
    network.cut()
    account.attempts = 0
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(account.add)
    assert account.failed == 50
    assert account.attempts < 10
    network.mend()
    await account.add()
    assert account.total == 2


async def test_a_writer_that_waits_for_the_database_counts_as_alive(
    account: Account, network: Network
) -> None:
    async with trio.open_nursery() as waiting:
        await cut_off_over_a_commit(account, network, waiting, arrives=True)
        await account.writer.progress()
        network.mend()


async def test_a_writer_that_ends_meanwhile_says_that_it_does_not_know(
    account: Account, network: Network, connect: Callable[[str], Engine]
) -> None:
    async with trio.open_nursery() as waiting:
        writer = Writer(connect(network.url), account.writer.epoch)
        account.writer = writer
        await waiting.start(writer.run)
        async with trio.open_nursery() as asking:
            await cut_off_over_a_commit(account, network, asking, arrives=True)
            waiting.cancel_scope.cancel("the daemon stops")
    assert isinstance(account.errors[-1], InDoubt)
    with trio.fail_after(PATIENCE):
        while account.total != 2:  # it had it all the same
            await trio.sleep(0.01)


async def test_a_writer_whose_lease_is_lost_meanwhile_says_that_it_does_not_know(
    account: Account, network: Network
) -> None:
    async with trio.open_nursery() as waiting:
        await cut_off_over_a_commit(account, network, waiting, arrives=False)
        assert account.writer.epoch is not None
        account.writer.epoch.is_lost = True
    assert isinstance(account.errors[-1], InDoubt)
    assert account.total == 1


async def cut_off_over_a_commit(
    account: Account, network: Network, nursery: trio.Nursery, *, arrives: bool
) -> None:
    """Add one, and lose the network over its COMMIT, for longer than the writer needs to see it."""
    network.lose_commit_and_all(arrives=arrives)
    nursery.start_soon(account.add)
    await trio.to_thread.run_sync(network.wait_until_commit_is_lost, PATIENCE)
