"""What was not kept is said: each kind of broken promise, one at a time."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert

from clarad.protocol import Error, ErrorCode, ResponseEnd
from clarad.store import open_engine
from clarad.store.models import HookRunRow, MessageRow, TaskRunRow
from tests.migrated import migrate
from tests.soak.ledger import Asked, Ledger
from tests.soak.promises import Acts, broken, broken_so_far, gaps

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Told:
    """A ledger, a database and what commands have done, which agree until a test changes one."""

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.ledger = Ledger()
        self.engine = engine
        self.acts = directory / "acts"
        self.acts.mkdir()

    def message(self, name: str, outcome: str = "completed") -> Asked:
        """Have a message that was answered, and is in the store."""
        number = len(self.ledger.asked)
        asked = Asked(name, "c", "text", number, asked_at=0, ended_at=1)
        asked.outcomes.append(ResponseEnd(id="r", request_id=name, full_text="text"))
        self.ledger.asked[name] = asked
        self._insert(
            MessageRow,
            platform="soak",
            channel_id="c",
            request_id=name,
            node_id="n",
            user_id="u",
            session_id="s",
            frame="{}",
            received_at=NOW,
            begun_at=NOW,
            ended_at=NOW,
            outcome=outcome,
        )
        return asked

    def occurrence(self, number: int) -> None:
        """Have a run of the task that is due each half second."""
        at = NOW + timedelta(seconds=number / 2)
        self._insert(
            TaskRunRow,
            run_id=f"{number}",
            task="every",
            origin="schedule",
            caused_by="",
            due_at=at,
            nominal_at=at,
            ended_at=at,
            attempts=1,
            outcome="ran",
        )
        self.act("task", f"{number}")

    def hook_run(self, number: int, request_id: str) -> None:
        """Have a run of a hook for a message that was heard."""
        event = {"type": "message:received", "request_id": request_id}
        self._insert(
            HookRunRow,
            run_id=f"{number}",
            hook="heard",
            event_id=f"{number}",
            event_type=event["type"],
            event=json.dumps(event),
            caused_by="",
            due_at=NOW,
            ended_at=NOW,
            attempts=1,
            outcome="ran",
        )
        self.act("hook", f"{number}")

    def act(self, kind: str, name: str) -> None:
        """Do as a command does."""
        with (self.acts / f"{kind}-{name}").open("a") as file:
            file.write("x")

    @property
    def broken(self) -> str:
        return "\n".join(broken(self.engine, self.ledger, Acts(self.acts)))

    def _insert(self, model: type[MessageRow | HookRunRow | TaskRunRow], **values: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(model).values(**values))


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    engine = open_engine(f"sqlite:///{tmp_path}/clarad.db")
    migrate(engine)
    made = Told(tmp_path, engine)
    made.message("m1")
    for number in range(3):
        made.occurrence(number)
    yield made
    engine.dispose()


def test_nothing_is_said_of_what_was_kept(told: Told) -> None:
    assert told.broken == ""


def test_a_message_without_an_answer_is_lost(told: Told) -> None:
    told.message("m2").outcomes.clear()
    assert told.broken == "lost: m2, stored as completed"


def test_a_second_answer_is_said(told: Told) -> None:
    asked = told.message("m2")
    asked.outcomes *= 2
    assert told.broken.startswith("answered twice: [ResponseEnd")


def test_an_answer_that_the_store_knows_otherwise_is_said(told: Told) -> None:
    told.message("m2", "cancelled")
    assert told.broken.startswith("m2 is stored as cancelled, and was told as [ResponseEnd")


def test_a_failure_of_what_cannot_fail_is_said(told: Told) -> None:
    text = "The message failed."
    error = Error(ErrorCode.PROCESSING_ERROR, text, recoverable=False, request_id="m2")
    told.message("m2", "failed").outcomes[0] = error
    assert told.broken.startswith("m2 failed, and nothing was wrong with it")


def test_a_message_that_ran_twice_is_said(told: Told) -> None:
    told.act("begun", "m1")
    told.act("begun", "m1")
    assert told.broken == "m1 was run twice"


def test_messages_that_overtook_each_other_are_said(told: Told) -> None:
    told.message("m2").number = -1
    assert told.broken == "the messages of c were not taken in the order in which they came"


def test_messages_that_ran_at_once_are_said(told: Told) -> None:
    told.message("m2")
    told.act("begun", "m2")
    told.act("begun", "m1")
    assert told.broken == "m2 was begun before m1 had ended"


def test_a_run_that_acted_more_often_than_it_was_tried_is_said(told: Told) -> None:
    told.act("task", "1")
    assert told.broken == "task run 1 acted 2 times in 1 attempts"


def test_an_occurrence_without_a_row_is_said(told: Told) -> None:
    told.occurrence(4)
    assert told.broken.startswith("task every has nothing between 2026-01-01 00:00:01")
    assert list(gaps(told.engine)) == told.broken.splitlines()


def test_a_one_shot_that_was_never_due_is_said(told: Told) -> None:
    found = list(broken(told.engine, told.ledger, Acts(told.acts), [NOW]))
    assert found == [f"task once-0 was due once, at {NOW}, and has 0 rows"]


def test_a_hook_that_heard_of_one_message_twice_is_said(told: Told) -> None:
    told.hook_run(1, "m1")
    told.hook_run(2, "m1")
    assert told.broken == "hook heard has 2 runs for message:received of m1"


def test_an_answer_that_the_store_knows_otherwise_is_said_after_a_restart(told: Told) -> None:
    kept, other = told.message("m2"), told.message("m3", "cancelled")
    (said,) = broken_so_far(told.engine, [kept, other])
    assert said.startswith("m3 is stored as cancelled, and was told as [ResponseEnd")
