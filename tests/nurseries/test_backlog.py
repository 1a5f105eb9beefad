"""Thousands of runs at once: they wait, and nobody waits for them.

That no step of the daemon's holds the loop is what `start` looks at, in each test that uses it.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from sqlalchemy import Engine, insert

from clarad.automation.definitions import Definitions
from clarad.automation.hooks.hook import Hook
from clarad.events import Bus, Event, EventType
from clarad.nurseries import hooks as runner
from clarad.nurseries.hooks import Hooks
from clarad.store import HookRuns, StoreError
from clarad.store.models import HookRunRow, TaskRunRow
from tests.conftest import Start
from tests.machine import NOON, task
from tests.migrated import migrate
from tests.runs import PATIENCE, WAIT

COUNT = 10_000


SAYS_ITS_RUN = f'echo "$CLARA_RUN" > said.part; mv said.part said; {WAIT}'


async def first_run(directory: Path) -> str:
    """Wait until a run has begun, and return its id."""
    said = trio.Path(directory / "said")
    with trio.fail_after(PATIENCE):
        while not await said.exists():
            await trio.sleep(0.01)
    return (await said.read_text()).strip()


def unfinished(number: int, prefix: str) -> dict[str, Any]:
    """Return what rows of hooks' and of tasks' runs have in common, of one that waits."""
    return {"run_id": f"{prefix}-{number}", "caused_by": "", "due_at": NOON, "attempts": 0}


@pytest.fixture
def engine(tmp_path: Path, connect: Callable[[str], Engine]) -> Engine:
    """The database of the daemon that `start` will start."""
    engine = connect(f"sqlite:///{tmp_path}/clarad.db")
    migrate(engine)
    return engine


async def test_runs_of_tasks_that_were_left_are_gone_on_with_in_pages(
    start: Start, tmp_path: Path, engine: Engine
) -> None:
    rows = [
        {"task": "t", "nominal_at": NOON - timedelta(seconds=number), "origin": "schedule"}
        | unfinished(number, "task")
        for number in range(COUNT)
    ]
    with engine.begin() as connection:
        connection.execute(insert(TaskRunRow), rows)
    about: dict[str, Any] = {"command": SAYS_ITS_RUN, "working_dir": tmp_path}
    await start(Definitions(tasks=[task(interval=3600.0, overlap="queue", **about)]))
    assert await first_run(tmp_path) == "task-0"


async def test_runs_of_hooks_that_were_left_are_gone_on_with_in_pages(
    start: Start, tmp_path: Path, engine: Engine
) -> None:
    event = Event(id="event", type=EventType.MESSAGE_RECEIVED, timestamp=NOON)
    text = msgspec.json.encode(event).decode()
    rows = [
        {"hook": "h", "event_id": f"event-{number}", "event_type": event.type.value, "event": text}
        | unfinished(number, "hook")
        for number in range(COUNT)
    ]
    with engine.begin() as connection:
        connection.execute(insert(HookRunRow), rows)
    waits = Hook(
        name="h",
        events=frozenset({EventType.MESSAGE_RECEIVED}),
        command=SAYS_ITS_RUN,
        overlap="queue",
        working_dir=tmp_path,
    )
    await start(Definitions(hooks=[waits]))
    assert await first_run(tmp_path) == "hook-0"


class Full(HookRuns):
    """A store of runs that takes none."""

    def __init__(self) -> None:
        self.asked = 0

    async def unfinished(self, *_: Any) -> list[Any]:
        return []

    def add(self, *, then: Callable[[StoreError | None], None], **_: Any) -> None:
        self.asked += 1
        then(StoreError("the disk is full"))


async def test_what_waits_for_a_store_that_fails_is_bounded_and_tried_one_at_a_time(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(runner, "MAX_ACTIVE", 10)
    store, bus = Full(), Bus()
    events = frozenset({EventType.ADAPTER_CONNECTED})
    hook = Hook(name="h", events=events, command="true", working_dir=tmp_path)
    hooks = Hooks([hook], store, trio.Event())
    await nursery.start(hooks.run)
    with bus.attach(hooks):
        for _ in range(100):
            bus.publish(EventType.ADAPTER_CONNECTED)
    assert store.asked == 20
    assert sum("no hook runs for event" in message for message in caplog.messages) == 80
    await trio.sleep(9.5)
    assert store.asked == 29
    nursery.cancel_scope.cancel("the test has ended")
