"""The queue of the log and its thread: what is lost when whoever reads stands still."""

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import trio

from clarad.events import Event, EventType
from clarad.log.record import Record
from clarad.log.spool import Spool
from clarad.log.writers import Native
from clarad.systemd import catalogue
from clarad.systemd.journal import Journal
from tests.journald import journald

PATIENCE = 30.0


def record(message: str) -> Record:
    return Record(0.0, logging.INFO, "test", message)


def untouched(item: Record) -> Record:
    return item


class Kept:
    """A writer that keeps what it is given, and stands still while it is held."""

    def __init__(self, *, held: bool = False) -> None:
        self.records: list[Record] = []
        self.is_writing = threading.Event()
        self.has_written = threading.Event()
        self.open = threading.Event()
        self.losing = 0
        if not held:
            self.open.set()

    def write(self, records: Sequence[Record], _closing: threading.Event) -> int:
        self.is_writing.set()
        self.open.wait()
        if self.losing:
            self.losing -= 1
            return len(records)
        self.records += records
        self.has_written.set()
        return 0

    @property
    def messages(self) -> list[str]:
        return [record.message for record in self.records]


def test_what_is_put_is_written_in_its_order_before_it_is_closed() -> None:
    kept = Kept()
    spool = Spool(kept, untouched)
    for n in range(1000):
        spool.put(record(str(n)))
    assert spool.close(PATIENCE)
    assert kept.messages == [str(n) for n in range(1000)]


def test_an_event_and_a_record_keep_their_order() -> None:
    kept = Kept()
    spool = Spool(kept, untouched)
    spool.put(record("before"))
    spool.put(Event(id="e", type=EventType.SESSION_START, timestamp=datetime.now(UTC)))
    spool.put(record("after"))
    assert spool.close(PATIENCE)
    assert kept.messages == ["before", "session:start", "after"]


def test_what_does_not_fit_is_counted_and_a_record_says_how_many_it_were() -> None:
    kept = Kept(held=True)
    spool = Spool(kept, untouched, capacity=10)
    spool.put(record("first"))
    assert kept.is_writing.wait(PATIENCE)
    for n in range(25):
        spool.put(record(str(n)))
    kept.open.set()
    assert spool.close(PATIENCE)
    assert kept.messages[:-1] == ["first", *(str(n) for n in range(10))]
    said = kept.records[-1]
    assert said.message == "15 records of the log were dropped: too many at once"
    assert said.entry is catalogue.RECORDS_DROPPED
    assert said.fields == {"CLARA_DROPPED": 15}


def test_what_the_writer_loses_is_counted_as_well() -> None:
    kept = Kept(held=True)
    kept.losing = 1
    spool = Spool(kept, untouched)
    for n in range(3):
        spool.put(record(str(n)))
    kept.open.set()
    assert kept.has_written.wait(PATIENCE)
    assert spool.close(PATIENCE)
    assert kept.messages == ["3 records of the log were dropped: too many at once"]


def test_a_writer_that_stands_still_holds_up_no_stop() -> None:
    kept = Kept(held=True)
    spool = Spool(kept, untouched)
    spool.put(record("never written"))
    assert not spool.close(0.05)
    kept.open.set()
    assert spool.close(PATIENCE)


def test_a_record_that_cannot_be_made_costs_no_other() -> None:
    def fail(item: Record) -> Record:
        if item.message == "bad":
            raise ValueError("no")
        return item

    kept = Kept()
    spool = Spool(kept, fail)
    for message in ("good", "bad", "good"):
        spool.put(record(message))
    assert spool.close(PATIENCE)
    assert kept.messages == [
        "good",
        "a record could not be written (ValueError); this is a bug",
        "good",
    ]


async def test_a_journald_that_stands_still_does_not_stall_the_loop_and_gets_the_rest_later(
    tmp_path: Path,
) -> None:
    put, capacity = 20_000, 1000
    with journald(tmp_path) as daemon, trio.fail_after(PATIENCE):
        journal = Journal(daemon.path)
        spool = Spool(Native(journal), untouched, capacity=capacity)
        for n in range(put):
            spool.put(record(f"{n}"))
            if n % 100 == 0:
                await trio.lowlevel.checkpoint()

        arrived: list[int] = []
        dropped = 0

        def read() -> None:
            nonlocal dropped
            while len(arrived) + dropped < put:
                found = daemon.read(PATIENCE)
                assert found is not None
                if "CLARA_DROPPED" in found:
                    dropped += int(found["CLARA_DROPPED"])
                else:
                    arrived.append(int(found["MESSAGE"]))

        await trio.to_thread.run_sync(read)
        assert spool.close(PATIENCE)
        journal.close()
        assert daemon.read(0) is None
    assert arrived == sorted(arrived)
    assert dropped > 0
    assert len(arrived) + dropped == put


async def test_a_journald_that_is_started_again_gets_what_came_meanwhile(tmp_path: Path) -> None:
    with journald(tmp_path) as daemon:
        journal = Journal(daemon.path)
    spool = Spool(Native(journal), untouched)
    spool.put(record("meanwhile"))
    with journald(tmp_path) as daemon:
        found = await trio.to_thread.run_sync(daemon.read, PATIENCE)
        assert found is not None
        assert found["MESSAGE"] == "meanwhile"
    assert spool.close(PATIENCE)
    journal.close()
