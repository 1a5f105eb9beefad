"""Which runs are believed to have led to what a node does, on SQLite and on PostgreSQL."""

from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from sqlalchemy import Engine, insert

from clarad.store import Causes, Ending, Outcome, Writer
from clarad.store.models import Base, HookRunRow, TaskRunRow
from clarad.store.runs import new_row

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
HOOK = {"hook": "h", "event_id": "e", "event_type": "tool:error", "event": "{}"}
TASK = {"task": "t", "nominal_at": NOW, "origin": "schedule"}


class Desk:
    """Runs in a store, and what is believed of them."""

    def __init__(self, engine: Engine, writer: Writer) -> None:
        self._engine = engine
        self.causes = Causes(writer)

    def add(
        self,
        run_id: str,
        *caused_by: str,
        about: dict[str, Any] = HOOK,
        begun: bool = True,
        ending: Ending | None = None,
        owner: int | None = None,
    ) -> None:
        row = new_row(run_id, caused_by, NOW, begun=begun, ending=ending, owner=owner) | about
        table = HookRunRow if "hook" in about else TaskRunRow
        with self._engine.begin() as connection:
            connection.execute(insert(table), row)


@pytest.fixture
async def desk(engine: Engine, nursery: trio.Nursery) -> Desk:
    """A store that serves; it ends with the test."""
    Base.metadata.create_all(engine)
    writer = Writer(engine)
    await nursery.start(writer.run)
    return Desk(engine, writer)


async def test_a_run_that_goes_on_is_believed_with_what_led_to_it(desk: Desk) -> None:
    desk.add("task-1", about=TASK, ending=Ending(Outcome.RAN))
    desk.add("hook-2", "task-1")
    assert await desk.causes.confirm(["task-1", "hook-2"]) == ("task-1", "hook-2")
    assert await desk.causes.confirm(["hook-2"]) == ("task-1", "hook-2")


async def test_a_task_s_run_is_believed_and_another_daemon_s(desk: Desk) -> None:
    desk.add("task-1", about=TASK, owner=7)
    assert await desk.causes.confirm(["task-1"]) == ("task-1",)


async def test_the_nearest_that_goes_on_counts(desk: Desk) -> None:
    desk.add("hook-1")
    desk.add("hook-2", "hook-1")
    desk.add("hook-3", "hook-1", "hook-2", ending=Ending(Outcome.RAN))
    said = ["hook-1", "hook-2", "hook-3", "hook-4"]
    assert await desk.causes.confirm(said) == ("hook-1", "hook-2")


@pytest.mark.parametrize(
    "said",
    [
        [],
        ["hook-1"],
        [f"hook-{n}" for n in range(64)],
        ["over"],
        ["waiting"],
        ["goes-on ", "x" * 255, "' OR 1=1 --"],
    ],
    ids=["none", "made up", "64 made up", "over", "waiting", "strange"],
)
async def test_what_is_made_up_or_does_not_go_on_is_not_believed(
    desk: Desk, said: list[str]
) -> None:
    desk.add("over", ending=Ending(Outcome.FAILED))
    desk.add("waiting", begun=False)
    desk.add("goes-on")
    assert await desk.causes.confirm(said) == ()
