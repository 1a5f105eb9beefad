"""Tasks in a real daemon, with real commands: what they are told, and what becomes of them."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from clarad.automation.definitions import Definitions
from clarad.automation.hooks.hook import Hook
from clarad.automation.tasks.task import Task, load_tasks
from clarad.automation.tasks.task_run import OUTPUT_TAIL
from clarad.events import EventType
from tests import machine
from tests.conftest import Start
from tests.daemon_process import Marker
from tests.postgres import BACKENDS, database
from tests.runs import (
    WAIT,
    Found,
    have_ended,
    stop,
    task_runs,
    until_hook_runs,
    until_task_runs,
    with_outcome,
)

SEED = """\
tasks:
  - name: cleanup-sessions
    type: interval
    interval: 3600
    command: poetry run python -m scripts.cleanup_sessions

  - name: daily-backup
    type: cron
    cron: "0 3 * * *"
    command: ./scripts/backup.sh
"""

MakeTask = Callable[..., Task]


@pytest.fixture
def task(tmp_path: Path) -> MakeTask:
    """Make tasks that are due once, at once, and run in the test's directory."""

    def make(command: str = ":", name: str = "t", **fields: Any) -> Task:
        if "interval" not in fields:
            fields |= {"type": "one_shot", "delay": 0.0}
        return machine.task(name, command=command, working_dir=tmp_path, **fields)

    return make


# --- what a task is told -------------------------------------------------------------------------


async def test_tasks_of_an_older_clara_load_and_run_as_they_are(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scheduler.yaml").write_text(SEED)
    for program in ("poetry", "scripts/backup.sh"):
        path = tmp_path / program
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/bin/sh\necho "$0 $*"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    loaded = load_tasks(tmp_path)
    assert loaded.problems == []
    running = await start(Definitions(tasks=loaded.entries))
    [run] = await until_task_runs(running, have_ended(1), "cleanup-sessions")
    words = f"{tmp_path}/poetry run python -m scripts.cleanup_sessions\n"
    assert (run["outcome"], run["stdout"]) == ("ran", words)
    report = await running.daemon.operations.run_task("daily-backup", (), lambda _: None)
    assert report.outcome == "ran"
    [run] = await task_runs(running, "daily-backup")
    assert run["stdout"] == "./scripts/backup.sh \n"


async def test_a_command_knows_its_task_and_its_occurrence(
    start: Start, tmp_path: Path, task: MakeTask
) -> None:
    names = ["TASK", "NOMINAL_TIME", "RUN", "ATTEMPT", "CAUSED_BY"]
    words = " ".join(f"$CLARA_{name}" for name in names)
    told = task(f'echo "{words} $COLOUR"; pwd', env={"COLOUR": "a $b"})
    running = await start(Definitions(tasks=[told]))
    [run] = await until_task_runs(running, have_ended(1))
    nominal_time = run["nominal_at"].isoformat()
    assert run["stdout"].splitlines() == [
        f"t {nominal_time} {run['run_id']} 1 {run['run_id']} a $b",
        str(tmp_path),
    ]


async def test_a_run_that_somebody_led_to_knows_by_what(start: Start, task: MakeTask) -> None:
    running = await start(
        Definitions(tasks=[task('echo "$CLARA_CAUSED_BY"', interval=3600.0, overlap="queue")])
    )
    await until_task_runs(running, have_ended(1))
    await running.daemon.operations.run_task("t", ["hook-1", "task-2"], lambda _: None)
    _, run = await task_runs(running)
    assert (run["origin"], run["caused_by"]) == ("operator", "hook-1 task-2")
    assert run["stdout"] == f"hook-1 task-2 {run['run_id']}\n"


# --- how a run ends ------------------------------------------------------------------------------


async def test_a_run_is_announced_before_its_command_has_ended(
    start: Start, tmp_path: Path, task: MakeTask
) -> None:
    running = await start(Definitions(tasks=[task(WAIT)]))
    event = await running.event(EventType.SCHEDULER_TASK_RUN)
    [run] = await task_runs(running)
    assert (event.data["task"], event.data["run"]) == ("t", run["run_id"])
    assert run["outcome"] is None
    (tmp_path / "go").touch()
    await until_task_runs(running, have_ended(1))
    assert running.events_of(EventType.SCHEDULER_TASK_ERROR) == []


@pytest.mark.usefixtures("_hasty")
async def test_a_run_that_takes_too_long_ends_with_all_that_it_has_started(
    clock: MockClock, start: Start, task: MakeTask, marker: Marker
) -> None:
    hang = f"echo begun; trap '' TERM; setsid sleep {marker.text} & sleep {marker.text}"
    running = await start(Definitions(tasks=[task(hang, timeout=20)]))
    await until_task_runs(running, lambda _: len(marker.alive) == 3)  # the shell and both `sleep`s
    clock.jump(20)
    event = await running.event(EventType.SCHEDULER_TASK_ERROR)
    [run] = await until_task_runs(running, have_ended(1))
    assert marker.alive == []
    assert (run["outcome"], run["stdout"]) == ("timed_out", "begun\n")
    assert run["reason"] == "it had not ended within 20 s"
    assert event.data["outcome"] == "timed_out"
    assert event.data["exit_status"] is None
    assert event.data["output"] == "begun\n"


@pytest.mark.usefixtures("_hasty")
async def test_hooks_on_a_failure_have_its_details_by_the_names_that_they_always_had(
    start: Start, tmp_path: Path, task: MakeTask
) -> None:
    names = ["TASK_NAME", "TASK_TYPE", "TASK", "NOMINAL_TIME", "ATTEMPT", "EXIT_STATUS", "OUTCOME"]
    words = " ".join(f"$CLARA_{name}" for name in names)
    alarm = Hook(
        name="alarm",
        events=frozenset({EventType.SCHEDULER_TASK_ERROR}),
        command=f'echo "{words}" > told; echo "$CLARA_DURATION" > duration; cat > event.json',
        working_dir=tmp_path,
    )
    much = OUTPUT_TAIL + 1
    failing = task(f"yes | head -c {much}; echo why >&2; exit 7")
    running = await start(Definitions(hooks=[alarm], tasks=[failing]))
    [run] = await until_task_runs(running, have_ended(1))
    await until_hook_runs(running, have_ended(1))
    told = (tmp_path / "told").read_text().split()
    assert told == ["t", "one_shot", "t", run["nominal_at"].isoformat(), "1", "7", "failed"]
    assert float((tmp_path / "duration").read_text()) == run["duration"]
    event = json.loads((tmp_path / "event.json").read_text())
    assert event["caused_by"] == [run["run_id"]]
    assert len(event["data"]["output"]) == OUTPUT_TAIL
    assert event["data"]["output"].endswith("ywhy\n")


@pytest.mark.usefixtures("_hasty")
async def test_a_run_that_fails_is_tried_again_and_each_failure_is_told(
    start: Start, task: MakeTask
) -> None:
    running = await start(Definitions(tasks=[task('[ "$CLARA_ATTEMPT" = 3 ]', retries=5)]))
    [run] = await until_task_runs(running, have_ended(1))
    assert (run["outcome"], run["attempts"]) == ("ran", 3)
    events = running.events_of(EventType.SCHEDULER_TASK_ERROR)
    assert [(event.data["attempt"], event.data["again"]) for event in events] == [
        (1, True),
        (2, True),
    ]


@pytest.mark.usefixtures("_hasty")
async def test_after_its_last_attempt_a_run_has_failed(start: Start, task: MakeTask) -> None:
    running = await start(Definitions(tasks=[task("echo why >&2; exit 7", retries=1)]))
    [run] = await until_task_runs(running, have_ended(1))
    assert (run["outcome"], run["attempts"], run["exit_status"]) == ("failed", 2, 7)
    assert (run["reason"], run["stderr"]) == ("exit status 7", "why\n")


async def test_what_cannot_be_started_fails_with_the_reason(
    start: Start, tmp_path: Path, task: MakeTask
) -> None:
    lost = msgspec.structs.replace(task(), working_dir=tmp_path / "nowhere")
    running = await start(Definitions(tasks=[lost]))
    [run] = await until_task_runs(running, have_ended(1))
    assert run["outcome"] == "failed"
    assert "nowhere" in run["reason"]
    [event] = running.events_of(EventType.SCHEDULER_TASK_ERROR)
    assert event.data["reason"] == run["reason"]


async def test_two_runs_of_a_task_never_go_on_at_once(
    start: Start, tmp_path: Path, task: MakeTask
) -> None:
    command = "mkdir busy && echo ok >> log; sleep 0.05; rmdir busy"
    busy = task(command, interval=0.02, overlap="queue")
    running = await start(Definitions(tasks=[busy]))
    await until_task_runs(running, lambda found: with_outcome(found, "ran") >= 5)
    await running.daemon.operations.pause_task("t")
    for run in await task_runs(running):
        assert run["stderr"] in (None, ""), run


@pytest.mark.usefixtures("_hasty")
async def test_how_a_run_ended_is_written_once_the_disk_has_room(
    start: Start, tmp_path: Path, task: MakeTask, caplog: pytest.LogCaptureFixture
) -> None:
    async def limit(pages: str) -> None:
        pragma = f"PRAGMA max_page_count = {pages}"
        await running.daemon.writer.call(lambda database: database.exec_driver_sql(pragma).scalar())

    much = task(f"echo once >> times; {WAIT}; yes | head -c 60000")
    running = await start(Definitions(tasks=[much]))
    await until_task_runs(running, lambda found: (tmp_path / "times").exists())
    await limit("1")  # which SQLite takes for: not one page more (sqlite.org/pragma.html)
    (tmp_path / "go").touch()
    with trio.fail_after(30):
        while not re.search("task t waits, .* database or disk is full", caplog.text):
            await trio.sleep(0.01)
    [run] = await task_runs(running)
    assert run["outcome"] is None
    await limit("1000000")
    [run] = await until_task_runs(running, have_ended(1))
    assert (run["outcome"], len(run["stdout"])) == ("ran", 60_000)
    assert (tmp_path / "times").read_text() == "once\n"


# --- stops and starts ----------------------------------------------------------------------------


async def test_a_stop_lets_a_run_end(start: Start, tmp_path: Path, task: MakeTask) -> None:
    running = await start(Definitions(tasks=[task(f"{WAIT}; echo done")]))
    await until_task_runs(running, lambda found: len(found) == 1)
    running.daemon.request_stop()
    (tmp_path / "go").touch()
    await stop(running)
    after = await start(database_url=running.settings.database_url)
    [run] = await task_runs(after)
    assert (run["outcome"], run["stdout"]) == ("ran", "done\n")


@pytest.mark.usefixtures("_hasty")
async def test_past_the_drain_a_run_is_cancelled_and_what_waits_is_for_the_next_start(
    start: Start, task: MakeTask, marker: Marker
) -> None:
    hang = task(f"sleep {marker.text}", interval=3600.0, overlap="queue")
    running = await start(Definitions(tasks=[hang]), drain_timeout=0.05)
    await until_task_runs(running, lambda found: len(found) == 1)
    running.daemon._scheduler.run_now("t")
    await until_task_runs(running, lambda found: len(found) == 2)
    await stop(running)
    assert marker.alive == []
    after = await start(Definitions(tasks=[msgspec.structs.replace(hang, command="echo now")]))
    cancelled, ran = await until_task_runs(after, have_ended(2))
    assert (cancelled["outcome"], cancelled["reason"]) == ("cancelled", "the daemon is stopping")
    assert (ran["outcome"], ran["stdout"]) == ("ran", "now\n")


async def test_after_a_kill_what_ran_is_interrupted_or_tried_again_and_what_waited_runs(
    start: Start, task: MakeTask, marker: Marker
) -> None:
    hang = f"sleep {marker.text}"
    every = {"interval": 3600.0, "overlap": "queue"}
    before = await start(
        Definitions(
            tasks=[
                task(hang, "t", **every),
                task(hang, "again", **every, retries=1),
                task(hang, "gone", **every),
            ]
        )
    )
    for name in ("t", "again", "gone"):
        before.daemon._scheduler.run_now(name)
        await until_task_runs(before, lambda found: len(found) == 2, name)
    # On the same database, as if the first had been killed.
    after = await start(Definitions(tasks=[task(name="t"), task(name="again", retries=1)]))
    interrupted, ran = (await until_task_runs(after, lambda found: have_ended(2)(found[:2])))[:2]
    assert (interrupted["outcome"], ran["outcome"]) == ("interrupted", "ran")
    again = await until_task_runs(after, lambda found: have_ended(2)(found[:2]), "again")
    assert [(run["outcome"], run["attempts"]) for run in again[:2]] == [("ran", 2), ("ran", 1)]
    gone = await until_task_runs(after, have_ended(2), "gone")
    assert [run["outcome"] for run in gone] == ["interrupted", "skipped"]
    assert gone[1]["reason"] == "the task was removed"


async def test_a_replayed_or_later_attempt_keeps_what_led_to_it_over_a_kill(
    start: Start, task: MakeTask, marker: Marker
) -> None:
    hang = task(f"sleep {marker.text}", interval=3600.0, overlap="queue")
    before = await start(Definitions(tasks=[hang]))
    before.daemon._scheduler.run_now("t", caused_by=["hook-1"])
    await until_task_runs(before, lambda found: len(found) == 2)
    told = msgspec.structs.replace(hang, command='echo "$CLARA_CAUSED_BY"')
    after = await start(Definitions(tasks=[told]))
    _, run = await until_task_runs(after, have_ended(2))
    assert run["stdout"] == f"hook-1 {run['run_id']}\n"


async def test_runs_that_failed_are_served_again_and_none_is_lost(
    start: Start, tmp_path: Path, task: MakeTask
) -> None:
    async def fail() -> None:
        raise RuntimeError("as the test wants it")

    often = task(interval=0.05)
    patient = task(WAIT, "patient", interval=3600.0, overlap="queue")
    running = await start(Definitions(tasks=[often, patient]))
    running.daemon._scheduler.run_now("patient")
    await until_task_runs(running, lambda found: len(found) == 2, "patient")
    nursery = running.daemon._task_runner._nursery
    assert nursery is not None
    nursery.start_soon(fail)
    await until_task_runs(running, lambda found: found[0]["outcome"] == "cancelled", "patient")
    before = len(await task_runs(running))

    def are_complete(found: list[Found]) -> bool:
        times = sorted(run["nominal_at"] for run in found)
        steps = {later - earlier for earlier, later in pairwise(times)}
        return with_outcome(found[before:], "ran") > 5 and steps == {timedelta(seconds=0.05)}

    await until_task_runs(running, are_complete)
    (tmp_path / "go").touch()
    found = await until_task_runs(running, have_ended(2), "patient")
    assert [run["outcome"] for run in found] == ["cancelled", "ran"]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_hooks_and_tasks_go_on_after_a_stop_on_both_databases(
    start: Start,
    tmp_path: Path,
    task: MakeTask,
    marker: Marker,
    backend: str,
    request: pytest.FixtureRequest,
) -> None:
    alarm = Hook(
        name="alarm",
        events=frozenset({EventType.SCHEDULER_TASK_ERROR}),
        command='printf "before\\0after"; echo "$CLARA_TASK"',
        working_dir=tmp_path,
    )
    failing = task("printf 'a\\0b'; exit 1", interval=3600.0)
    with database(backend, tmp_path, request.config) as url:
        for _ in range(2):
            running = await start(Definitions(hooks=[alarm], tasks=[failing]), database_url=url)
            [run] = await until_task_runs(running, have_ended(1))
            assert (run["outcome"], run["stdout"]) == ("failed", "ab")
            await until_hook_runs(running, have_ended(1))
            await stop(running)
