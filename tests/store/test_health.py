"""Looking whether the database works: daemons that share it do not get into each other's way."""

import threading

import pytest
import trio
from sqlalchemy import Connection
from trio.testing import wait_all_tasks_blocked

from tests.daemon_process import PATIENCE
from tests.postgres import SHARED
from tests.store.daemons import Share

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)


async def test_a_daemon_that_looks_does_not_wait_for_the_transaction_of_another_that_has_looked(
    share: Share, nursery: trio.Nursery
) -> None:
    first, second = await share(2)
    begin, has_looked, end = (threading.Event() for _ in range(3))

    def hold(_connection: Connection) -> None:
        has_looked.set()
        end.wait(PATIENCE)

    try:
        # What comes while the writer is busy is one transaction: the look, and a job behind it.
        first.writer.hand_in(lambda _connection: begin.wait(PATIENCE))
        nursery.start_soon(first.writer.complaint)
        await wait_all_tasks_blocked()
        first.writer.hand_in(hold)
        begin.set()
        assert await trio.to_thread.run_sync(has_looked.wait, PATIENCE)
        assert await second.writer.complaint() is None
    finally:
        begin.set()
        end.set()
