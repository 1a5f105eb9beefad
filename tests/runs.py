"""The runs of hooks and of tasks, as they are in the store of a daemon that runs."""

from collections.abc import Callable
from typing import Any, Final

import trio
from sqlalchemy import select

from clarad.store.models import HookRunRow, TaskRunRow
from tests.conftest import Running

PATIENCE: Final = 30.0
"""Seconds until something that has to happen counts as not happening."""

WAIT: Final = "until [ -e go ]; do sleep 0.01; done"
"""A command that waits until the test has made a file called `go`."""

Found = dict[str, Any]
Condition = Callable[[list[Found]], bool]


async def hook_runs(running: Running) -> list[Found]:
    """Return the runs of all hooks, the first one first."""
    return await _read(running, select(HookRunRow).order_by(HookRunRow.id))


async def task_runs(running: Running, task: str = "t") -> list[Found]:
    """Return the runs of a task, the first one first."""
    rows = select(TaskRunRow).where(TaskRunRow.task == task)
    return await _read(running, rows.order_by(TaskRunRow.id))


async def until_hook_runs(running: Running, condition: Condition) -> list[Found]:
    """Wait until the runs of all hooks are in the store as they should be."""
    with trio.fail_after(PATIENCE):
        while not condition(found := await hook_runs(running)):
            await trio.sleep(0.01)
    return found


async def until_task_runs(running: Running, condition: Condition, task: str = "t") -> list[Found]:
    """Wait until the runs of a task are in the store as they should be."""
    with trio.fail_after(PATIENCE):
        while not condition(found := await task_runs(running, task)):
            await trio.sleep(0.01)
    return found


def have_ended(count: int) -> Condition:
    return lambda found: len(found) == count and all(run["outcome"] for run in found)


def with_outcome(found: list[Found], outcome: str | None) -> int:
    return sum(run["outcome"] == outcome for run in found)


def begun(found: list[Found]) -> int:
    return sum(run["begun_at"] is not None for run in found)


async def stop(running: Running) -> None:
    """Have the daemon stop, and wait until it has."""
    running.daemon.request_stop()
    with trio.fail_after(PATIENCE):
        await running.daemon.stopped.wait()


async def _read(running: Running, statement: Any) -> list[Found]:
    def read(connection: Any) -> list[Found]:
        return [dict(row) for row in connection.execute(statement).mappings()]

    return await running.daemon.writer.call(read)
