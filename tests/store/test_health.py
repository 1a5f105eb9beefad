"""Looking whether the database works: daemons that share it do not get into each other's way."""

import threading

import pytest
import trio
from sqlalchemy import Connection, text
from trio.testing import wait_all_tasks_blocked

from clarad.store import StoreError
from tests.daemon_process import PATIENCE
from tests.postgres import SHARED
from tests.store.daemons import ABOUT, Share, SharedDesk
from tests.store.desk import key

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
        first.writer.submit(lambda _connection: begin.wait(PATIENCE))
        nursery.start_soon(first.writer.check_health)
        await wait_all_tasks_blocked()
        first.writer.submit(hold)
        begin.set()
        assert await trio.to_thread.run_sync(has_looked.wait, PATIENCE)
        assert await second.writer.check_health() is None
    finally:
        begin.set()
        end.set()


NO_ROOM_FOR_MUCH = """\
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
RAISE EXCEPTION 'could not extend the file' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER no_room BEFORE INSERT ON clarad_messages FOR EACH ROW
WHEN (length(NEW.frame) > 100000) EXECUTE FUNCTION no_room()"""


async def test_a_shared_database_without_room_for_what_failed_is_not_taken_for_one_that_works(
    share: Share,
) -> None:
    (daemon,) = await share(1)
    desk = SharedDesk(daemon)
    await daemon.writer.call(lambda connection: connection.execute(text(NO_ROOM_FOR_MUCH)))
    with pytest.raises(StoreError, match="could not extend the file"):
        await desk.accepted(key(1), begun=True, **ABOUT | {"frame": "x" * 200_000})
    for _ in range(2):
        assert "could not extend the file" in str(await daemon.writer.check_health())
    await daemon.writer.call(
        lambda connection: connection.execute(text("DROP TRIGGER no_room ON clarad_messages"))
    )
    assert await daemon.writer.check_health() is None
