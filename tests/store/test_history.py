"""What people are shown of the runs: read from outside, beside a daemon that may be writing."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from sqlalchemy import Engine, insert, text

from clarad.store import (
    Ending,
    HookRuns,
    Outcome,
    StoreError,
    TaskRuns,
    Tasks,
    TaskState,
    Writer,
    open_engine,
)
from clarad.store.history import open_history, open_writable
from clarad.store.migrate import HEAD, rollback
from clarad.store.models import HookRunRow
from clarad.store.tasks import write_pause
from tests.answer import answer
from tests.migrated import migrate
from tests.store.conftest import Outside

NOON: Final = datetime(2027, 3, 1, 12, 0, 0, 654321, UTC)
DONE: Final = Ending(Outcome.RAN, "", 0, 1.5, "out \N{CRAB}", "err", 7, 8)
BROKEN: Final = Ending(Outcome.FAILED, "exit status 3", 3, 0.25, "", "oops", 0, 0)
EVENT: Final = '{"id":"event-1","type":"tool:error"}'


@dataclass
class Daemon:
    """What a daemon writes down."""

    url: str
    hook_runs: HookRuns
    task_runs: TaskRuns
    tasks: Tasks

    async def hook(self, run_id: str, *, hook: str = "greet", **changed: Any) -> None:
        about: dict[str, Any] = {
            "event_id": "event-1",
            "event_type": "tool:error",
            "event": EVENT,
            "caused_by": ("task-9", "hook-9"),
            "due_at": NOON,
            "begun": False,
        }
        await answer(partial(self.hook_runs.add, run_id=run_id, hook=hook, **about | changed))

    async def task(self, run_id: str, number: int, *, task: str = "backup", **changed: Any) -> None:
        at = NOON + timedelta(hours=number)
        about: dict[str, Any] = {"due_at": at, "origin": "schedule"} | changed
        assert await self.task_runs.add(run_id=run_id, task=task, nominal_at=at, **about)

    def hooks_seen(
        self, *, hook: str | None = None, failed: bool = False, limit: int = 100
    ) -> list[str]:
        with open_history(self.url) as history:
            found = history.hook_runs(hook=hook, failed=failed, limit=limit)
        return [run["run"] for run in found]

    def tasks_seen(
        self, *, task: str | None = None, failed: bool = False, limit: int = 100
    ) -> list[str]:
        with open_history(self.url) as history:
            found = history.task_runs(task=task, failed=failed, limit=limit)
        return [run["run"] for run in found]

    def found(self, run_id: str) -> dict[str, Any] | None:
        with open_history(self.url) as history:
            return history.find(run_id)


@pytest.fixture
async def daemon(engine: Engine, url: str, nursery: Any) -> Daemon:
    """A store that serves; it ends with the test."""
    migrate(engine)
    writer = Writer(engine)
    await nursery.start(writer.run)
    return Daemon(url, HookRuns(writer), TaskRuns(writer), Tasks(writer))


def assert_is_nothing(url: str) -> None:
    with open_history(url) as history:
        assert history.hook_runs(hook=None, failed=False, limit=100) == []
        assert history.task_runs(task="backup", failed=True, limit=100) == []
        assert history.find("hook-1") is None
        assert history.last_hook_run("greet") is None
        assert history.last_task_run("backup") is None
        assert history.task_states() == {}


# --- lists ---------------------------------------------------------------------------------------


async def test_runs_of_hooks_are_listed_with_the_newest_first(daemon: Daemon) -> None:
    for name in ("hook-b", "hook-c", "hook-a"):
        await daemon.hook(name)
    assert daemon.hooks_seen() == ["hook-a", "hook-c", "hook-b"]


async def test_runs_of_tasks_are_listed_by_when_they_were_due(daemon: Daemon) -> None:
    # Those that are decided on at one look are written in no order.
    for n, name in ((2, "task-b"), (3, "task-c"), (1, "task-a")):
        await daemon.task(name, n)
    assert daemon.tasks_seen() == ["task-c", "task-b", "task-a"]


async def test_a_list_is_as_long_as_it_may_be(daemon: Daemon) -> None:
    for n in range(5):
        await daemon.hook(f"hook-{n}")
        await daemon.task(f"task-{n}", n)
    assert daemon.hooks_seen(limit=2) == ["hook-4", "hook-3"]
    assert daemon.tasks_seen(limit=2) == ["task-4", "task-3"]


async def test_what_failed_is_listed_alone(daemon: Daemon) -> None:
    await daemon.hook("waits")
    await daemon.hook("runs", begun=True)
    for n, outcome in enumerate(Outcome):
        await daemon.hook(f"hook {outcome}", ending=Ending(outcome))
        await daemon.task(f"task {outcome}", n, ending=Ending(outcome))
    failures = {"failed", "timed_out", "interrupted"}
    assert set(daemon.hooks_seen(failed=True)) == {f"hook {each}" for each in failures}
    assert set(daemon.tasks_seen(failed=True)) == {f"task {each}" for each in failures}


async def test_the_runs_of_one_are_listed_alone_and_counted_alone(daemon: Daemon) -> None:
    for n, name in enumerate(["greet", "other", "greet", "other", "other"]):
        ending = BROKEN if n < 3 else DONE
        await daemon.hook(f"hook-{n}", hook=name, ending=ending)
        await daemon.task(f"task-{n}", n, task=name, ending=ending)
    assert daemon.hooks_seen(hook="greet") == ["hook-2", "hook-0"]
    assert daemon.hooks_seen(hook="greet", limit=1) == ["hook-2"]
    assert daemon.hooks_seen(hook="other", failed=True, limit=1) == ["hook-1"]
    assert daemon.hooks_seen(hook="unknown") == []
    assert daemon.tasks_seen(task="greet") == ["task-2", "task-0"]
    assert daemon.tasks_seen(task="other", failed=True, limit=1) == ["task-1"]


async def test_a_list_says_of_each_run_what_people_ask_first(daemon: Daemon) -> None:
    await daemon.hook("hook-1", begun=True, replay_of="hook-0")
    await daemon.hook_runs.end("hook-1", BROKEN)
    await daemon.task("task-1", 1, origin="operator", due_at=NOON)
    with open_history(daemon.url) as history:
        (hook,) = history.hook_runs(hook=None, failed=False, limit=100)
        (task,) = history.task_runs(task=None, failed=False, limit=100)
    assert (
        hook.items()
        >= {
            "run": "hook-1",
            "hook": "greet",
            "state": "failed",
            "event_type": "tool:error",
            "event_id": "event-1",
            "replay_of": "hook-0",
            "reason": "exit status 3",
            "attempts": 1,
            "due_at": NOON,
            "duration": 0.25,
        }.items()
    )
    assert hook["begun_at"] <= hook["ended_at"]
    assert "event" not in hook
    assert task == {
        "run": "task-1",
        "task": "backup",
        "state": "waiting",
        "nominal_at": NOON + timedelta(hours=1),
        "due_at": NOON,
        "origin": "operator",
        "outcome": None,
        "reason": None,
        "attempts": 0,
        "begun_at": None,
        "ended_at": None,
        "duration": None,
    }


async def test_a_run_waits_or_runs_until_it_has_an_outcome(daemon: Daemon) -> None:
    await daemon.hook("new")
    await daemon.hook("begun", begun=True)
    await daemon.hook("put off", begun=True)
    await daemon.hook_runs.put_off("put off", BROKEN)
    await daemon.hook("again", begun=True)
    await daemon.hook_runs.put_off("again", BROKEN)
    await daemon.hook_runs.begin("again", 2)
    await daemon.hook("ended", begun=True)
    await daemon.hook_runs.end("ended", DONE)
    with open_history(daemon.url) as history:
        runs = history.hook_runs(hook=None, failed=False, limit=100)
    assert {run["run"]: run["state"] for run in runs} == {
        "new": "waiting",
        "begun": "running",
        "put off": "waiting",
        "again": "running",
        "ended": "ran",
    }


async def test_the_last_run_is_the_newest_of_that_name(daemon: Daemon) -> None:
    for n, name in enumerate(["greet", "greet", "other"]):
        await daemon.hook(f"hook-{n}", hook=name)
        await daemon.task(f"task-{n}", n, task=name)
    with open_history(daemon.url) as history:
        hook, task = history.last_hook_run("greet"), history.last_task_run("greet")
        assert history.last_hook_run("unknown") is None
        assert history.last_task_run("unknown") is None
    assert hook is not None
    assert task is not None
    assert (hook["run"], task["run"]) == ("hook-1", "task-1")


# --- one run -------------------------------------------------------------------------------------


async def test_the_run_of_a_hook_is_found_with_its_event_and_its_output(daemon: Daemon) -> None:
    await daemon.hook("hook-1", begun=True)
    await daemon.hook_runs.end("hook-1", DONE)
    run = daemon.found("hook-1")
    assert run is not None
    assert (
        run.items()
        >= {
            "run": "hook-1",
            "hook": "greet",
            "state": "ran",
            "event": EVENT,
            "caused_by": "task-9 hook-9",
            "exit_status": 0,
            "duration": 1.5,
            "stdout": "out \N{CRAB}",
            "stderr": "err",
            "stdout_cut": 7,
            "stderr_cut": 8,
        }.items()
    )


async def test_the_run_of_a_task_is_found_with_its_output(daemon: Daemon) -> None:
    await daemon.task("task-1", 1, begun=True, caused_by=("hook-1",))
    await daemon.task_runs.end("task-1", BROKEN)
    run = daemon.found("task-1")
    assert run is not None
    assert (
        run.items()
        >= {
            "run": "task-1",
            "task": "backup",
            "state": "failed",
            "nominal_at": NOON + timedelta(hours=1),
            "caused_by": "hook-1",
            "exit_status": 3,
            "stdout": None,
            "stderr": "oops",
        }.items()
    )
    assert "event" not in run


async def test_a_run_that_waits_for_another_attempt_shows_what_the_last_one_left(
    daemon: Daemon,
) -> None:
    await daemon.hook("hook-1", begun=True)
    await daemon.hook_runs.put_off("hook-1", BROKEN)
    run = daemon.found("hook-1")
    assert run is not None
    assert (run["state"], run["reason"], run["stderr"]) == ("waiting", "exit status 3", "oops")


async def test_a_run_that_is_not_there_is_not_found(daemon: Daemon) -> None:
    await daemon.hook("hook-1")
    assert daemon.found("hook") is None
    assert daemon.found("%") is None


async def test_all_times_are_in_utc(daemon: Daemon) -> None:
    await daemon.hook("hook-1", begun=True)
    await daemon.hook_runs.end("hook-1", DONE)
    run = daemon.found("hook-1")
    assert run is not None
    for name in ("due_at", "begun_at", "ended_at"):
        assert run[name].utcoffset() == timedelta(0)


async def test_what_is_remembered_of_tasks_is_read(daemon: Daemon) -> None:
    states = {"backup": TaskState("x", NOON, NOON), "report": TaskState("y", NOON, NOON, NOON)}
    await daemon.tasks.save(states)
    with open_history(daemon.url) as history:
        assert history.task_states() == states


# --- a database that is not there, or not as it should be ----------------------------------------


def test_a_database_that_is_not_there_reads_as_nothing_and_is_not_made(tmp_path: Path) -> None:
    assert_is_nothing(f"sqlite:///{tmp_path}/not/there/clarad.db")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_was_never_migrated_reads_as_nothing(url: str) -> None:
    Outside(url).do("CREATE TABLE others (n INTEGER)")
    assert_is_nothing(url)
    assert Outside(url).tables() == {"others"}


def test_a_database_of_an_older_version_reads_as_nothing_and_stays_so(
    url: str, engine: Engine
) -> None:
    migrate(engine)
    rollback(engine)
    before = Outside(url).tables()
    assert_is_nothing(url)
    assert Outside(url).tables() == before


def test_a_database_of_a_newer_version_is_refused(url: str, engine: Engine) -> None:
    migrate(engine)
    Outside(url).do("UPDATE clarad_alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer"), open_history(url):
        pass


@pytest.mark.parametrize("content", [b"not a database " * 1000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_database_is_said(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "clarad.db"
    file.write_bytes(content)
    with pytest.raises(StoreError) as failed, open_history(f"sqlite:///{file}"):
        pass
    assert "\n" not in str(failed.value)
    assert file.read_bytes() == content


async def test_a_database_that_fails_while_it_is_read_is_said(
    daemon: Daemon, outside: Outside
) -> None:
    outside.do("DROP TABLE clarad_hook_runs")
    with pytest.raises(StoreError, match="clarad_hook_runs"):
        daemon.found("hook-1")


# --- beside a daemon -----------------------------------------------------------------------------

WRITE: Final = """\
import os, sys
from sqlalchemy import text
from clarad.store import open_engine

with open_engine(sys.argv[1]).connect() as connection:
    connection.execute(text("UPDATE clarad_hook_runs SET hook = 'renamed'"))
    print("written", flush=True)
    sys.stdin.readline()
    connection.commit()
    print("committed", flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


@contextmanager
def another_process(url: str) -> Iterator["subprocess.Popen[str]"]:
    """Write with another process; it commits when it reads a line, and is killed by the next."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            yield process
    finally:
        process.kill()


def say(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{words}\n")
    process.stdin.flush()


def hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def one_run(engine: Engine) -> None:
    """Have a migrated database with one run, which nobody has open."""
    migrate(engine)
    about = {"hook": "greet", "event_id": "e", "event_type": "t", "event": EVENT}
    common = {"run_id": "hook-1", "caused_by": "", "due_at": NOON, "attempts": 0}
    with engine.begin() as connection:
        connection.execute(insert(HookRunRow).values(about | common))
    engine.dispose()


def hook_of_the_run(url: str) -> str:
    with open_history(url) as history:
        (run,) = history.hook_runs(hook=None, failed=False, limit=100)
    return str(run["hook"])


def test_neither_who_reads_nor_who_writes_waits_for_the_other(url: str, engine: Engine) -> None:
    one_run(engine)
    with another_process(url) as process:
        assert hear(process) == "written"
        assert hook_of_the_run(url) == "greet"
        with open_history(url) as history:
            assert history.find("hook-1") is not None
            say(process, "commit")
            assert hear(process) == "committed"
        assert hook_of_the_run(url) == "renamed"
        say(process, "die")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory for an SQLite database, with nothing else in it."""
    made = tmp_path / "odd #%3F? name"
    made.mkdir()
    return made


@pytest.fixture
def file(directory: Path) -> str:
    """The URL of an SQLite database in that directory, with one run, which nobody has open."""
    url = f"sqlite:///{quote(str(directory))}/clarad.db"
    one_run(open_engine(url))
    return url


def test_reading_what_nobody_has_open_leaves_no_file_behind(directory: Path, file: str) -> None:
    assert hook_of_the_run(file) == "greet"
    assert [path.name for path in directory.iterdir()] == ["clarad.db"]


def test_what_a_killed_daemon_has_committed_is_read_and_its_files_stay(
    directory: Path, file: str
) -> None:
    with another_process(file) as process:
        for words in ("commit", "die"):
            hear(process)
            say(process, words)
    left = {path.name: path.stat().st_size for path in directory.iterdir()}
    assert hook_of_the_run(file) == "renamed"
    assert {path.name: path.stat().st_size for path in directory.iterdir()} == left
    assert left.keys() > {"clarad.db"}


# --- to write without a daemon -------------------------------------------------------------------


def test_what_is_written_without_a_daemon_is_committed_at_the_end(url: str, engine: Engine) -> None:
    migrate(engine)
    outside = Outside(url)
    outside.do(
        "INSERT INTO clarad_tasks (name, schedule, anchor_at, accounted_until)"
        " VALUES ('backup', 'x', '2027-03-01 12:00:00', '2027-03-01 12:00:00')"
    )
    with open_writable(url) as connection:
        assert write_pause(connection, "backup", NOON)
    with open_history(url) as history:
        assert history.task_states()["backup"].paused_at == NOON


def test_what_fails_half_way_writes_nothing(url: str, engine: Engine) -> None:
    one_run(engine)

    def write() -> None:
        with open_writable(url) as connection:
            connection.execute(text("DELETE FROM clarad_hook_runs"))
            connection.execute(text("DELETE FROM nowhere"))

    with pytest.raises(StoreError, match="nowhere"):
        write()
    assert hook_of_the_run(url) == "greet"


def test_a_database_that_was_not_migrated_is_not_written(url: str) -> None:
    with pytest.raises(StoreError, match=f"needs {HEAD}"), open_writable(url):
        pass
    assert Outside(url).tables() == set()
