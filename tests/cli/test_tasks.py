"""`clarad tasks`: what runs by the clock, for people and programs, with a daemon and without."""

import json
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from clarad.store import engine
from tests.daemon_process import PATIENCE, Process
from tests.fifo import Fifo
from tests.installation import STEERING, Console, Installation, refused
from tests.postgres import BACKENDS, database
from tests.unprivileged import unprivileged

TASKS: Final = r"""
- name: tick
  type: interval
  interval: 3600
  command: echo tock; echo careful >&2
- name: steer
  type: cron
  cron: 30 2 1 1 *
  timezone: Europe/Berlin
  command: printf 'a\033[31mred\233\302\205\302\2331m\177\r\b\007\n'; exit 3
- name: held
  type: cron
  cron: 0 0 1 1 *
  command: echo begun > begun; read line < go; echo "$line"
- name: warm-up
  type: one_shot
  delay: 100000
  command: echo warm
- name: new-year
  type: one_shot
  run_at: 2099-01-01 00:00
  timezone: Asia/Kathmandu
  command: echo happy
- name: often
  type: interval
  interval: 0.1
  command: echo never
  enabled: false
"""
NAMES: Final = ["tick", "steer", "held", "warm-up", "new-year", "often"]


class Beside(NamedTuple):
    """A daemon that runs; its task `held` says when it has begun, and is told when to go on."""

    process: Process
    installation: Installation
    begun: Fifo
    go: Fifo


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    made = Installation(tmp_path_factory.mktemp("installation"))
    made.write(tasks=TASKS)
    with (
        Fifo(made.directory / "begun") as begun,
        Fifo(made.directory / "go") as go,
        made.daemon() as process,
    ):
        process.wait_for_log("task tick ran")
        process.wait_for_log("task often of ")
        yield Beside(process, made, begun, go)


@pytest.fixture
def clarad(
    daemon: Beside, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands beside that daemon."""
    return Console(daemon.installation, monkeypatch, capsys)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a daemon has left that has run a task and was stopped."""
    made = Installation(tmp_path_factory.mktemp("history"))
    made.write(tasks=TASKS)
    with made.daemon() as process:
        process.wait_for_log("task tick ran")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    return made.directory


@pytest.fixture
def alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands of an installation of the test's own; no daemon runs."""
    made = Installation(tmp_path)
    made.write(tasks=TASKS)
    return Console(made, monkeypatch, capsys)


@pytest.fixture
def stopped(alone: Console, history: Path) -> Console:
    """Commands where a daemon has run, and does not run any more."""
    shutil.copytree(history, alone.installation.directory, dirs_exist_ok=True)
    return alone


def run_now(clarad: Console, task: str) -> str:
    """Run a task, and return the run's id."""
    begun = clarad("tasks", "run", task).out.splitlines()[0]
    return begun.removeprefix("run ").removesuffix(" has begun")


# --- list ----------------------------------------------------------------------------------------


def test_list_shows_each_task_when_it_is_next_and_how_it_ran_last(clarad: Console) -> None:
    status, out, err = clarad("tasks", "list")
    head, *lines = out.splitlines()
    assert (status, err) == (0, "")
    assert head.split() == ["name", "schedule", "enabled", "paused", "next", "last", "last", "at"]
    assert [line.split()[0] for line in lines] == NAMES
    assert re.search(r"  every 3600 s +yes +no +20[^ ]+ [^ ]+  ran      20", lines[0])
    assert re.search(r"  30 2 1 1 \* in Europe/Berlin +yes +no +20[^ ]+-01-01 ", lines[1])
    assert re.search(r"  100000 s after each start +yes +no +- ", lines[3])
    assert re.search(r"  once at 2098-12-31T18:15:00\+00:00 +yes +no +209", lines[4])
    assert re.search(r"  every 0.1 s +no +no +- +skipped  20", lines[5])


def test_list_as_json_is_an_object_a_line(clarad: Console) -> None:
    status, out, err = clarad("tasks", "list", "--json")
    assert (status, err) == (0, "")
    rows = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert list(rows) == NAMES
    assert rows["new-year"]["next_at"] == "2098-12-31T18:15:00+00:00"
    assert rows["steer"]["next_at"].endswith("-01-01T01:30:00+00:00")
    assert [rows[name]["next_at"] for name in ("warm-up", "often")] == [None, None]
    assert rows["often"]["last"] == "skipped"
    assert (rows["tick"]["type"], rows["tick"]["overlap"]) == ("interval", "skip")


def test_an_interval_is_next_a_whole_number_of_intervals_after_its_first_run(
    clarad: Console,
) -> None:
    first = clarad("tasks", "runs", "--task", "tick", "--json").rows[-1]
    [row] = [row for row in clarad("tasks", "list", "--json").rows if row["name"] == "tick"]
    gap = datetime.fromisoformat(row["next_at"]) - datetime.fromisoformat(first["nominal_at"])
    assert gap.total_seconds() == 3600


def test_a_name_that_preview_repeats_cannot_steer_the_terminal(alone: Console) -> None:
    _, out, err = alone("tasks", "preview", "--task", "a\x1b[31m\x9b")
    assert not set(out + err) & set(STEERING)


# --- runs and show -------------------------------------------------------------------------------


def test_every_occurrence_is_in_runs_with_its_reason(clarad: Console) -> None:
    status, out, err = clarad("tasks", "runs", "--task", "often")
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split()[:4] == ["run", "task", "nominal", "state"]
    assert all(re.search(r"  often  20.*  skipped  0 +-  +disabled$", line) for line in lines)


def test_runs_are_shown_the_newest_first(clarad: Console) -> None:
    rows = clarad("tasks", "runs", "--task", "often", "--json").rows
    nominal = [row["nominal_at"] for row in rows]
    assert nominal == sorted(nominal, reverse=True)
    assert len(set(nominal)) == len(nominal)


def test_runs_can_be_those_of_one_task_the_failed_ones_and_so_many(clarad: Console) -> None:
    runs = [run_now(clarad, "steer") for _ in range(3)]
    rows = clarad("tasks", "runs", "--task", "steer", "--failed", "--limit", "2", "--json").rows
    assert [row["run"] for row in rows] == [runs[2], runs[1]]
    assert {row["outcome"] for row in rows} == {"failed"}
    assert clarad("tasks", "runs", "--task", "nobody") == (0, "none\n", "")
    assert clarad("tasks", "runs", "--task", "tick", "--failed", "--json") == (0, "", "")


def test_show_has_everything_that_is_known_of_a_run(clarad: Console) -> None:
    run = run_now(clarad, "tick")
    status, out, err = clarad("tasks", "show", run)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    for line in (["run", run], ["task", "tick"], ["origin", "operator"], ["outcome", "ran"]):
        assert line in lines
    assert out.endswith("\n\nstandard output:\ntock\n\nstandard error:\ncareful\n")
    [row] = clarad("tasks", "show", run, "--json").rows
    assert (row["stdout"], row["stderr"], row["exit_status"]) == ("tock\n", "careful\n", 0)


def test_what_a_command_has_written_does_not_steer_the_terminal(clarad: Console) -> None:
    run = run_now(clarad, "steer")
    shown, as_json = clarad("tasks", "show", run).out, clarad("tasks", "show", run, "--json").out
    assert "a␛[31mred" in shown
    assert not set(shown + as_json) & set(STEERING)
    assert json.loads(as_json)["stdout"] == "a\x1b[31mred\ufffd\x85\x9b1m\x7f\r\b\a\n"


# --- run now -------------------------------------------------------------------------------------


def test_run_runs_a_task_now_and_waits_for_its_end(clarad: Console) -> None:
    status, out, err = clarad("tasks", "run", "tick")
    begun, ended = out.splitlines()
    assert (status, err, ended) == (0, "", "task tick ran")
    run = begun.removeprefix("run ").removesuffix(" has begun")
    assert clarad("tasks", "runs", "--limit", "1", "--task", "tick", "--json").rows[0]["run"] == run


def test_run_exits_1_if_the_task_fails(clarad: Console) -> None:
    status, out, err = clarad("tasks", "run", "steer")
    assert (status, err) == (1, "")
    assert out.splitlines()[1] == "task steer failed: exit status 3"


def test_a_disabled_task_can_be_run_all_the_same(clarad: Console) -> None:
    assert clarad("tasks", "run", "often").status == 0


def test_run_says_so_when_the_task_runs_already(clarad: Console, daemon: Beside) -> None:
    with daemon.installation.start("tasks", "run", "held") as running:
        assert daemon.begun.read() == "begun\n"
        [row] = clarad("tasks", "runs", "--task", "held", "--limit", "1", "--json").rows
        assert row["state"] == "running"
        text = f"'held' runs already (run {row['run']}), with overlap: skip"
        assert clarad("tasks", "run", "held") == refused(text)
        daemon.go.write("done\n")
        out, _ = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (0, f"run {row['run']} has begun\ntask held ran\n")
    assert clarad("tasks", "show", row["run"], "--json").rows[0]["stdout"] == "done\n"


def test_ctrl_c_ends_the_waiting_and_not_the_run(daemon: Beside) -> None:
    with daemon.installation.start("tasks", "run", "held") as running:
        assert running.stdout is not None
        begun = running.stdout.readline()
        assert daemon.begun.read() == "begun\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out, err) == (130, "", "")
    daemon.go.write("done all the same\n")
    run = begun.removeprefix("run ").removesuffix(" has begun\n")
    daemon.process.wait_for_log(f"task held ran (run {run})")


@pytest.mark.parametrize("part", ["run", "pause", "resume"])
def test_a_task_that_is_not_there_is_one_line_with_what_may_be_meant(
    clarad: Console, part: str
) -> None:
    assert clarad("tasks", part, "nobody") == refused("there is no task 'nobody'")
    text = "there is no task 'tik'; did you mean 'tick'?"
    assert clarad("tasks", part, "tik") == refused(text)
    assert clarad("tasks", part, "a\x1b[31m") == refused(r"there is no task 'a\x1b[31m'")


def test_run_needs_the_daemon_and_says_so(stopped: Console) -> None:
    text = "no daemon runs with the state directory {}; start it with `clarad run`"
    expected = refused(text.format(stopped.installation.state_dir))
    assert stopped("tasks", "run", "tick") == expected
    assert stopped("tasks", "run", "nobody") == expected


@pytest.mark.parametrize("part", ["run", "pause", "resume"])
def test_a_socket_that_is_not_ours_is_one_line_that_says_whose(clarad: Console, part: str) -> None:
    path = clarad.installation.state_dir / "control.sock"
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with unprivileged():
            answer = clarad("tasks", part, "tick")
    finally:
        path.chmod(mode)
    assert answer == refused(
        f"{path} belongs to {path.owner()}; run this as that user or with sudo"
    )


def test_a_word_of_a_variable_that_is_not_utf_8_is_one_line(clarad: Console) -> None:
    status, out, err = clarad("tasks", "run", "tick", CLARA_CAUSED_BY="\udcff")
    assert (status, out) == (1, "")
    assert err == "clarad: what is asked for is not UTF-8; write it in UTF-8\n"


# --- pause and resume ----------------------------------------------------------------------------


def test_what_comes_due_of_a_paused_task_is_skipped_until_it_is_resumed(alone: Console) -> None:
    alone.installation.write(tasks="- {name: a, interval: 0.2, command: echo ran > ran}")
    with Fifo(alone.installation.directory / "ran") as ran, alone.installation.daemon() as process:
        ran.read()
        text = "task a is paused: what comes due is skipped\n"
        assert alone("tasks", "pause", "a") == (0, text, "")
        assert alone("tasks", "pause", "a") == (0, text, "")
        process.wait_for_log("skipped: paused")
        [row] = alone("tasks", "list", "--json").rows
        assert (row["paused"], row["next_at"]) == (True, None)
        ran.empty()
        assert alone("tasks", "resume", "a") == (0, "task a goes on\n", "")
        assert ran.read().startswith("ran\n")
    [row] = alone("tasks", "list", "--json").rows
    assert row["paused"] is False
    assert row["next_at"] is not None


def test_without_a_daemon_a_pause_is_for_its_next_start(stopped: Console) -> None:
    text = "no daemon runs; at its next start tick {}\n"
    assert stopped("tasks", "pause", "tick") == (0, text.format("is paused"), "")
    assert stopped("tasks", "list", "--json").rows[0]["paused"] is True
    with stopped.installation.daemon():
        assert stopped("tasks", "list", "--json").rows[0]["paused"] is True
    assert stopped("tasks", "resume", "tick") == (0, text.format("goes on"), "")
    assert stopped("tasks", "list", "--json").rows[0]["paused"] is False


@pytest.mark.parametrize("part", ["pause", "resume"])
def test_without_a_daemon_a_task_has_to_be_one(stopped: Console, part: str) -> None:
    text = "there is no task 'tik'; `clarad tasks list` lists them"
    assert stopped("tasks", part, "tik") == refused(text)


@pytest.mark.parametrize("part", ["pause", "resume"])
def test_a_task_that_no_daemon_has_known_yet_is_one_line_and_exit_1(
    stopped: Console, part: str
) -> None:
    stopped.installation.write(tasks="- {name: new, interval: 5, command: ls}")
    text = "the daemon has never known the task 'new'; start it first"
    assert stopped("tasks", part, "new") == refused(text)


@pytest.mark.parametrize("part", ["pause", "resume"])
def test_without_a_database_nothing_is_paused_and_none_is_made(alone: Console, part: str) -> None:
    text = "the daemon has never known the task 'tick'; start it first"
    assert alone("tasks", part, "tick") == refused(text)
    assert not alone.installation.state_dir.exists()


# --- databases -----------------------------------------------------------------------------------


def test_a_database_that_is_behind_has_no_runs_and_no_tasks_yet(stopped: Console) -> None:
    stopped("migrate", "rollback", "--yes")
    assert {row["last"] for row in stopped("tasks", "list", "--json").rows} == {None}
    assert stopped("tasks", "runs") == (0, "none\n", "")
    text = "the daemon has never known the task 'tick'; start it first"
    assert stopped("tasks", "pause", "tick") == refused(text)


def test_a_database_that_is_locked_is_read_and_not_waited_for(
    stopped: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.01)
    path = stopped.installation.state_dir / "clarad.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert stopped("tasks", "list", "--json").rows[0]["last"] == "ran"
        assert stopped("tasks", "pause", "tick") == refused("database is locked")


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_part_works_on_each_database(
    alone: Console, tmp_path: Path, request: pytest.FixtureRequest, backend: str
) -> None:
    with database(backend, tmp_path, request.config) as url:
        settings = {"DATABASE_URL": url}
        with alone.installation.daemon(**settings) as process:
            process.wait_for_log("task tick ran")
            assert alone("tasks", "run", "steer", **settings).status == 1
            [failed] = alone("tasks", "runs", "--failed", "--json", **settings).rows
            assert alone("tasks", "pause", "tick", **settings).status == 0
        tick, steer, *_ = alone("tasks", "list", "--json", **settings).rows
        assert (tick["paused"], steer["last"]) == (True, "failed")
        assert "a␛[31mred" in alone("tasks", "show", failed["run"], **settings).out
        assert alone("tasks", "resume", "tick", **settings).status == 0
        assert alone("tasks", "list", "--json", **settings).rows[0]["paused"] is False
        assert alone("tasks", "preview", **settings).status == 0


# --- preview -------------------------------------------------------------------------------------

Fires = list[tuple[str, ...]]


def fires(clarad: Console, tasks: str, *words: str, **settings: str) -> Fires:
    """Return what a preview of these tasks has: the UTC and the local time, and the marks."""
    clarad.installation.write(tasks=tasks)
    said = clarad("tasks", "preview", "--json", *words, **settings)
    assert (said.status, said.err) == (0, "")
    assert all({"task", "at", "local", "marks"} == row.keys() for row in said.rows)
    return [(row["at"], row["local"], *row["marks"]) for row in said.rows]


def daily(cron: str, zone: str, name: str = "a") -> str:
    return f"- {{name: {name}, type: cron, cron: '{cron}', timezone: {zone}, command: ls}}\n"


def day(date: str, offset: str, days: int = 1) -> tuple[str, ...]:
    """Return the words for a day on a clock with an offset."""
    end = datetime.fromisoformat(date) + timedelta(days=days)
    return "--from", f"{date}T00:00{offset}", "--to", f"{end:%Y-%m-%d}T00:00{offset}"


def test_a_job_at_a_fixed_hour_runs_once_right_after_the_gap(alone: Console) -> None:
    found = fires(alone, daily("30 2 * * *", "Europe/Berlin"), *day("2027-03-28", "+01:00"))
    assert found == [("2027-03-28T01:00:00+00:00", "2027-03-28T03:00:00+02:00", "gap")]


def test_a_job_that_begins_with_a_star_skips_the_gap(alone: Console) -> None:
    found = fires(alone, daily("0 */2 * * *", "Europe/Berlin"), *day("2027-03-28", "+01:00"))
    local = [local[11:16] for _, local, *_ in found]
    assert local == ["00:00", *(f"{hour:02}:00" for hour in range(4, 24, 2)), "00:00"]
    assert [at for at, *_ in found][:2] == [
        "2027-03-27T23:00:00+00:00",
        "2027-03-28T02:00:00+00:00",
    ]
    assert not any(marks for _, _, *marks in found)


def test_a_job_at_a_fixed_hour_runs_once_in_the_hour_that_comes_twice(alone: Console) -> None:
    found = fires(alone, daily("30 1 * * *", "America/New_York"), *day("2027-11-07", "-04:00"))
    assert found == [("2027-11-07T05:30:00+00:00", "2027-11-07T01:30:00-04:00", "overlap")]


def test_a_job_that_begins_with_a_star_runs_in_both_halves(alone: Console) -> None:
    found = fires(alone, daily("*/30 1 * * *", "America/New_York"), *day("2027-11-07", "-04:00"))
    assert found == [
        ("2027-11-07T05:00:00+00:00", "2027-11-07T01:00:00-04:00", "overlap"),
        ("2027-11-07T05:30:00+00:00", "2027-11-07T01:30:00-04:00", "overlap"),
        ("2027-11-07T06:00:00+00:00", "2027-11-07T01:00:00-05:00", "overlap"),
        ("2027-11-07T06:30:00+00:00", "2027-11-07T01:30:00-05:00", "overlap"),
    ]


def test_clocks_that_change_by_half_an_hour_are_no_different(alone: Console) -> None:
    zone = "Australia/Lord_Howe"
    twice = fires(alone, daily("45 1 * * *", zone), *day("2027-04-04", "+11:00"))
    assert twice == [("2027-04-03T14:45:00+00:00", "2027-04-04T01:45:00+11:00", "overlap")]
    never = fires(alone, daily("15 2 * * *", zone), *day("2027-10-03", "+10:30"))
    assert never == [("2027-10-02T15:30:00+00:00", "2027-10-03T02:30:00+11:00", "gap")]


def test_tasks_that_are_due_together_collide(alone: Console) -> None:
    tasks = daily("30 2 * * *", "Europe/Berlin", "a") + daily("0 3 * * *", "Europe/Berlin", "b")
    found = fires(alone, tasks, *day("2027-03-27", "+01:00", days=2))
    assert [(at, marks) for at, _, *marks in found] == [
        ("2027-03-27T01:30:00+00:00", []),
        ("2027-03-27T02:00:00+00:00", []),
        ("2027-03-28T01:00:00+00:00", ["gap", "collision"]),
        ("2027-03-28T01:00:00+00:00", ["collision"]),
    ]


def test_preview_for_people_has_both_times_the_task_and_the_marks(alone: Console) -> None:
    alone.installation.write(
        tasks=daily("30 2 * * *", "Europe/Berlin", "backup") + daily("0 1 * * *", "UTC", "report")
    )
    assert alone("tasks", "preview", *day("2027-03-28", "Z")) == (
        0,
        "2027-03-28 03:00:00 CEST 2027-03-28T01:00:00Z  backup  gap collision\n"
        "2027-03-28 01:00:00 UTC  2027-03-28T01:00:00Z  report  collision\n",
        "",
    )


def test_preview_can_be_of_one_task(alone: Console) -> None:
    tasks = daily("0 1 * * *", "UTC", "a") + daily("0 1 * * *", "UTC", "b")
    alone.installation.write(tasks=tasks)
    rows = alone("tasks", "preview", "--task", "b", "--json", *day("2027-03-28", "Z")).rows
    assert [(row["task"], row["marks"]) for row in rows] == [("b", [])]
    text = "there is no task 'c'; `clarad tasks list` lists them"
    assert alone("tasks", "preview", "--task", "c") == refused(text)


def test_a_period_has_its_beginning_and_not_its_end(alone: Console) -> None:
    found = fires(
        alone, daily("0 * * * *", "UTC"), "--from=2027-01-01T03:00Z", "--to=2027-01-01T05:00Z"
    )
    assert [at[11:16] for at, *_ in found] == ["03:00", "04:00"]


def test_a_period_is_a_day_from_now_if_nothing_else_is_said(alone: Console) -> None:
    before = datetime.now(UTC)
    found = [datetime.fromisoformat(at) for at, *_ in fires(alone, daily("0 * * * *", "UTC"))]
    assert len(found) == 24
    assert before <= found[0] <= datetime.now(UTC) + timedelta(hours=1)
    assert len(fires(alone, daily("0 * * * *", "UTC"), "--from=2027-01-01T00:30Z")) == 24


@pytest.mark.parametrize(
    ("zone", "start", "at"),
    [
        ("UTC", "2027-03-28", "2027-03-28T00:00:00+00:00"),
        ("Europe/Berlin", "2027-03-28", "2027-03-27T23:00:00+00:00"),
        ("Asia/Kathmandu", "2027-03-28T02:30", "2027-03-27T20:45:00+00:00"),
        ("Europe/Berlin", "2027-03-28 02:30", "2027-03-28T01:00:00+00:00"),  # in the gap
        ("Europe/Berlin", "2027-10-31 02:30", "2027-10-31T00:30:00+00:00"),  # the first of two
        ("Europe/Berlin", "2027-10-31 02:30+01:00", "2027-10-31T01:30:00+00:00"),
    ],
)
def test_a_time_without_an_offset_is_the_machine_s(
    alone: Console, zone: str, start: str, at: str
) -> None:
    found = fires(alone, daily("* * * * *", "UTC"), "--from", start, TZ=zone)[0]
    assert found[0] == at


def test_a_task_without_a_time_zone_goes_by_the_machine_s(alone: Console) -> None:
    tasks = "- {name: a, type: cron, cron: 30 2 * * *, command: ls}"
    found = fires(alone, tasks, "--from=2027-03-28", "--to=2027-03-29", TZ="Europe/Berlin")
    assert found == [("2027-03-28T01:00:00+00:00", "2027-03-28T03:00:00+02:00", "gap")]


def test_what_runs_once_at_a_time_is_in_its_period_only(alone: Console) -> None:
    task = "- {name: a, type: one_shot, run_at: 2027-01-01 00:00, timezone: UTC, command: ls}"
    assert len(fires(alone, task, "--from=2026-12-31T00:00Z", "--to=2027-01-02T00:00Z")) == 1
    assert fires(alone, task, "--from=2027-01-01T00:01Z", "--to=2028-01-01T00:00Z") == []


def test_what_a_preview_leaves_out_is_said(alone: Console) -> None:
    alone.installation.write(tasks=TASKS)
    for name, text in (
        ("often", "often is disabled"),
        ("warm-up", "warm-up runs 100000 s after each start of the daemon"),
    ):
        assert alone("tasks", "preview", "--task", name) == (0, "", f"clarad: {text}\n")
        assert alone("tasks", "preview", "--task", name, "--json") == (0, "", "")


def test_an_interval_keeps_the_phase_that_the_daemon_has_given_it(stopped: Console) -> None:
    [first] = stopped("tasks", "runs", "--task", "tick", "--json").rows
    words = ("--task", "tick", "--from", "2099-01-01T00:00Z", "--to", "2099-01-01T02:00Z")
    rows = stopped("tasks", "preview", "--json", *words).rows
    times = [datetime.fromisoformat(row["at"]) for row in rows]
    assert len(times) == 2
    for time in times:
        assert (time - datetime.fromisoformat(first["nominal_at"])) % timedelta(
            hours=1
        ) == timedelta()


def test_an_interval_that_has_no_phase_yet_is_counted_from_the_period_s_beginning(
    alone: Console,
) -> None:
    found = fires(
        alone,
        "- {name: a, interval: 3600, delay: 600, timezone: UTC, command: ls}",
        "--from=2027-01-01T00:00Z",
        "--to=2027-01-01T02:00Z",
    )
    assert [at[11:16] for at, *_ in found] == ["00:10", "01:10"]
    assert not alone.installation.state_dir.exists()


@pytest.mark.parametrize("bad", ["sqlite:///{}", "postgresql://me:a-password@/n?host={}"])
def test_preview_can_do_without_a_database(alone: Console, tmp_path: Path, bad: str) -> None:
    url = bad.format(tmp_path)
    assert len(fires(alone, daily("0 * * * *", "UTC"), DATABASE_URL=url)) == 24
    alone.installation.write(tasks="- {name: a, interval: 3600, command: ls}")
    status, out, err = alone("tasks", "preview", "--json", DATABASE_URL=url)
    assert (status, len(out.splitlines())) == (0, 24)
    [line] = err.splitlines()
    assert line.startswith("clarad: intervals are counted from the beginning of the period: ")
    assert "a-password" not in line


def test_a_preview_leaves_out_what_is_wrong_and_says_what(alone: Console) -> None:
    alone.installation.write(tasks=daily("0 0 31 2 *", "UTC", "never") + daily("0 1 * * *", "UTC"))
    status, out, err = alone("tasks", "preview", *day("2027-01-01", "Z"))
    assert (status, len(out.splitlines())) == (0, 1)
    [line] = err.splitlines()
    assert "scheduler.yaml:2: cron" in line


@pytest.mark.parametrize("option", ["--from", "--to"])
@pytest.mark.parametrize(
    ("time", "why"),
    [
        ("", "'' is not a time; write it like 2027-03-28 or 2027-03-28T02:30"),
        ("tomorrow", "'tomorrow' is not a time; write it like 2027-03-28 or 2027-03-28T02:30"),
        ("2027-02-30", "'2027-02-30' is not a time; write it like 2027-03-28 or 2027-03-28T02:30"),
        ("\x1b[31m", r"'\x1b[31m' is not a time; write it like 2027-03-28 or 2027-03-28T02:30"),
        ("0001-01-01T00:00+14:00", "write a year from 2 to 9998"),
        ("9999-12-31T23:59-12:00", "write a year from 2 to 9998"),
    ],
)
def test_what_is_no_time_is_refused_with_what_to_write(
    alone: Console, option: str, time: str, why: str
) -> None:
    status, out, err = alone("tasks", "preview", option, time)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == f"clarad tasks preview: error: argument {option}: {why}"


def test_a_machine_without_a_usable_time_zone_is_told_what_to_set(alone: Console) -> None:
    status, out, err = alone("tasks", "preview", "--from", "2027-03-28", TZ="Nowhere/Else")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith("set TZ to a name such as Europe/Berlin")


@pytest.mark.parametrize("end", ["2027-03-27", "2027-03-28"])
def test_a_period_has_to_end_after_its_beginning(alone: Console, end: str) -> None:
    text = "--to is not after --from; write a later time"
    assert alone("tasks", "preview", "--from", "2027-03-28", "--to", end) == refused(text)


def test_the_ends_of_time_are_no_error(alone: Console) -> None:
    tasks = daily("0 0 1 1 *", "Pacific/Kiritimati") + "- {name: b, interval: 36000, command: ls}"
    assert fires(alone, tasks, "--from=0002-01-01T00:00+14:00")
    assert fires(alone, tasks, "--from=9998-12-31T23:59-12:00")


# --- where it is printed to ----------------------------------------------------------------------


def test_a_reader_that_had_enough_is_no_error(alone: Console) -> None:
    alone.installation.write(tasks=daily("* * * * *", "UTC"))
    words = ("tasks", "preview", "--to", "2099-01-01")
    assert alone.installation.print_to_nobody(*words) == (141, "")
