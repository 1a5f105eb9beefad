from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.automation.config.entries import Loaded
from clarad.automation.tasks.cron import Cron
from clarad.automation.tasks.task import KIND, Task, load_tasks

relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

Said = list[tuple[int | None, str]]
Load = Callable[[str], Loaded[Task]]

KOLKATA: Final = ZoneInfo("Asia/Kolkata")
BERLIN: Final = ZoneInfo("Europe/Berlin")

EXISTING: Final = """\
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
"""What people have from an older Clara."""


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is in India."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write scheduler.yaml and load it."""

    def run(text: str) -> Loaded[Task]:
        (tmp_path / "scheduler.yaml").write_text(text)
        return load_tasks(tmp_path)

    return run


@pytest.fixture
def one(load: Load) -> Callable[[str], Task]:
    """Load the one task of a file, from its keys."""

    def run(keys: str) -> Task:
        loaded = load(indented(keys))
        assert loaded.problems == []
        [task] = loaded.entries
        return task

    return run


def indented(keys: str) -> str:
    return "tasks:\n  -\n" + "".join(f"    {line}\n" for line in keys.splitlines())


def said(loaded: Loaded[Task]) -> Said:
    return [(problem.line, problem.text) for problem in loaded.problems]


# --- good tasks ----------------------------------------------------------------------------------


def test_tasks_of_an_older_clara_are_loaded_unchanged(load: Load, tmp_path: Path) -> None:
    assert load(EXISTING) == Loaded(
        [
            Task(
                name="cleanup-sessions",
                type="interval",
                interval=3600,
                command="poetry run python -m scripts.cleanup_sessions",
                working_dir=tmp_path,
                timezone=KOLKATA,
            ),
            Task(
                name="daily-backup",
                type="cron",
                cron=Cron.parse("0 3 * * *"),
                command="./scripts/backup.sh",
                working_dir=tmp_path,
                timezone=KOLKATA,
            ),
        ],
        [],
    )


@pytest.mark.parametrize("text", ["", "tasks:\n", "tasks: []\n", "# tasks:\n"])
def test_there_may_be_no_tasks(load: Load, text: str) -> None:
    assert load(text) == Loaded([], [])


def test_there_may_be_no_file(tmp_path: Path) -> None:
    assert load_tasks(tmp_path) == Loaded([], [])


def test_everything_about_a_task_can_be_written(load: Load, tmp_path: Path) -> None:
    loaded = load(
        """
tasks:
  - name: backup
    description: Copies what must not be lost.
    type: cron
    cron: "*/15 8-17 * * mon-fri"
    timezone: Europe/Berlin
    jitter: 120
    command: |
      rsync -a "$SOURCE" /mnt
    working_dir: scripts
    env:
      SOURCE: /srv/data
      LEVEL: 010
    timeout: "7200"
    retries: 2
    overlap: cancel
    catch_up: all
    catch_up_window: 86400
    enabled: off
"""
    )
    assert loaded.problems == []
    assert loaded.entries == [
        Task(
            name="backup",
            description="Copies what must not be lost.",
            type="cron",
            cron=Cron.parse("*/15 8-17 * * mon-fri"),
            timezone=BERLIN,
            jitter=120,
            command='rsync -a "$SOURCE" /mnt\n',
            working_dir=tmp_path / "scripts",
            env={"SOURCE": "/srv/data", "LEVEL": "010"},
            timeout=7200,
            retries=2,
            overlap="cancel",
            catch_up="all",
            catch_up_window=86400,
            enabled=False,
        )
    ]


def test_a_task_without_a_type_is_an_interval(one: Callable[[str], Task]) -> None:
    task = one("name: a\ncommand: b\ninterval: 0.5\ndelay: 0")
    assert (task.type, task.interval, task.delay) == ("interval", 0.5, 0)


def test_the_first_run_of_an_interval_is_not_put_off_by_itself(one: Callable[[str], Task]) -> None:
    assert one("name: a\ncommand: b\ninterval: 5").delay is None


@pytest.mark.parametrize("cron", ['"@hourly"', "0 3 * * *", '"*/5 * * * *"', "'0 0 1 jan *'"])
def test_a_cron_task_has_an_expression(one: Callable[[str], Task], cron: str) -> None:
    task = one(f"name: a\ncommand: b\ntype: cron\ncron: {cron}")
    assert task.cron == Cron.parse(cron.strip("'\""))


def test_a_one_shot_without_a_time_is_at_once(one: Callable[[str], Task]) -> None:
    task = one("name: a\ncommand: b\ntype: one_shot")
    assert (task.delay, task.run_at) == (0, None)


def test_a_one_shot_can_wait(one: Callable[[str], Task]) -> None:
    task = one("name: a\ncommand: b\ntype: one_shot\ndelay: 60")
    assert (task.delay, task.run_at) == (60, None)


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-01 12:00:00", "2027-01-01T06:30:00"),
        ("2027-01-01 12:00", "2027-01-01T06:30:00"),
        ("2027-01-01T12:00:00", "2027-01-01T06:30:00"),
        ('"2027-01-01T12:00"', "2027-01-01T06:30:00"),
        ("2027-01-01t12:00:00.5", "2027-01-01T06:30:00.500000"),
        ("2027-01-01", "2026-12-31T18:30:00"),
        ("2027-01-01T12:00:00Z", "2027-01-01T12:00:00"),
        ("2027-01-01t12:00:00z", "2027-01-01T12:00:00"),
        ("2027-01-01 12:00:00 Z", "2027-01-01T12:00:00"),
        ("2027-01-01 12:00:00+02:00", "2027-01-01T10:00:00"),
        ("2027-01-01 12:00:00 +02:00", "2027-01-01T10:00:00"),
        ("2027-01-01T12:00:00-0530", "2027-01-01T17:30:00"),
        ("20270101T120000Z", "2027-01-01T12:00:00"),
    ],
)
def test_a_time_is_one_on_the_machines_clock_or_has_an_offset(
    one: Callable[[str], Task], written: str, moment: str
) -> None:
    task = one(f"name: a\ncommand: b\ntype: one_shot\nrun_at: {written}")
    assert task.run_at == datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert task.run_at.tzinfo is UTC
    assert task.delay is None


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-01 12:00:00", "2027-01-01T11:00:00"),
        ("2027-03-28 02:30:00", "2027-03-28T01:00:00"),
        ("2027-10-31 02:30:00", "2027-10-31T00:30:00"),
        ("2027-10-31 02:30:00+01:00", "2027-10-31T01:30:00"),
    ],
    ids=["in winter", "skipped", "twice", "with an offset"],
)
def test_a_time_is_one_on_the_clock_of_the_tasks_time_zone(
    one: Callable[[str], Task], written: str, moment: str
) -> None:
    task = one(f"name: a\ncommand: b\ntype: one_shot\nrun_at: {written}\ntimezone: Europe/Berlin")
    assert task.run_at == datetime.fromisoformat(moment).replace(tzinfo=UTC)


def test_a_relative_directory_of_tasks_makes_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scheduler.yaml").write_text(f"{EXISTING}    working_dir: scripts\n")
    loaded = load_tasks(Path())
    assert [task.working_dir for task in loaded.entries] == [tmp_path, tmp_path / "scripts"]


def test_tasks_are_equal_if_their_definitions_are(load: Load) -> None:
    before = load(EXISTING).entries
    assert load(f"# a comment\n{EXISTING}").entries == before
    assert load(EXISTING.replace("3600", "1800")).entries[0] != before[0]
    assert load(EXISTING.replace("0 3", "0 4")).entries[1] != before[1]


def test_a_machine_that_is_nowhere_is_said_once(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Nowhere/Atall")
    loaded = load(EXISTING)
    assert said(loaded) == [
        (None, "this machine's time zone cannot be told: set TZ to a name such as Europe/Berlin")
    ]
    assert {task.timezone.key for task in loaded.entries} == {"UTC"}
    assert load("tasks:\n") == Loaded([], [])


# --- bad tasks -----------------------------------------------------------------------------------

INTERVAL: Final = "name: a\ncommand: b\ninterval: 5"
CRON: Final = 'name: a\ncommand: b\ntype: cron\ncron: "0 3 * * *"'
ONE_SHOT: Final = "name: a\ncommand: b\ntype: one_shot"

SECONDS: Final = "write a number of seconds above 0 and below 1e9, such as 30 or 0.5"
SECONDS_OR_ZERO: Final = "write a number of seconds from 0 to below 1e9, such as 30 or 0.5"
TIME: Final = "write a time such as 2027-03-28 02:30, or 2027-03-28T02:30:00+02:00"

WRONG: Final[dict[str, tuple[str, Said]]] = {
    "no command": (
        "name: a\ninterval: 5",
        [(3, "this task has no command; add it, such as command: ./backup.sh")],
    ),
    "an empty command": (
        "name: a\ninterval: 5\ncommand: ''",
        [(5, "command is empty; write something")],
    ),
    "no interval": (
        "name: a\ncommand: b",
        [(3, "this task has no interval; add it, such as interval: 3600")],
    ),
    "a misspelled interval": (
        "name: a\ncommand: b\nintervall: 5",
        [(5, "intervall is not a key of a task; did you mean interval?")],
    ),
    "an interval of 0": (
        "name: a\ncommand: b\ninterval: 0",
        [(5, f"interval is 0; {SECONDS}")],
    ),
    "an interval that is nearly 0": (
        "name: a\ncommand: b\ninterval: 0.0001",
        [(5, "interval is 0.0001; write a number of seconds from 0.001")],
    ),
    "an interval in words": (
        "name: a\ncommand: b\ninterval: 1 hour",
        [(5, f"interval is 1 hour; {SECONDS}")],
    ),
    "no cron": (
        "name: a\ncommand: b\ntype: cron",
        [(3, 'this task has no cron; add it, such as cron: "0 3 * * *"')],
    ),
    "a cron that is none": (
        'name: a\ncommand: b\ntype: cron\ncron: "0 3 * *"',
        [
            (
                6,
                "cron is not right; write five fields (minute, hour, day of month, month, day of "
                "week), not 4; cron knows no seconds and no years",
            )
        ],
    ),
    "a cron that is a number": (
        "name: a\ncommand: b\ntype: cron\ncron: 5",
        [(6, "cron is not right; YAML reads that as a number: put it in quotes")],
    ),
    "a cron without its type": (
        'name: a\ncommand: b\ncron: "0 3 * * *"',
        [
            (
                5,
                "cron is for type: cron, and this task has type: "
                "interval, as it names none; change "
                "the type, or take cron out",
            )
        ],
    ),
    "a cron of an interval": (
        f'{INTERVAL}\ntype: interval\ncron: "0 3 * * *"',
        [
            (
                7,
                "cron is for type: cron, and this task has type: interval; change the type, or "
                "take cron out",
            )
        ],
    ),
    "an interval and a delay of a cron": (
        f"{CRON}\ninterval: 5\ndelay: 6",
        [
            (
                7,
                "interval is for type: interval, and this task has type: cron; change the type, or "
                "take interval out",
            ),
            (
                8,
                "delay is for type: one_shot or interval, and this task has type: cron; change the "
                "type, or take delay out",
            ),
        ],
    ),
    "a time of an interval": (
        f"{INTERVAL}\nrun_at: 2027-01-01",
        [
            (
                6,
                "run_at is for type: one_shot, and this task has type: interval, as it names none; "
                "change the type, or take run_at out",
            )
        ],
    ),
    "an interval of a one-shot": (
        f"{ONE_SHOT}\ninterval: 5",
        [
            (
                6,
                "interval is for type: interval, and this task "
                "has type: one_shot; change the type, "
                "or take interval out",
            )
        ],
    ),
    "two times of a one-shot": (
        f"{ONE_SHOT}\nrun_at: 2027-01-01\ndelay: 5",
        [(7, "delay and run_at say different times; take one of them out")],
    ),
    "a time that is none": (
        f"{ONE_SHOT}\nrun_at: tomorrow",
        [(6, f"run_at is tomorrow; {TIME}")],
    ),
    "a day that does not exist": (
        f"{ONE_SHOT}\nrun_at: 2027-02-29",
        [(6, f"run_at is 2027-02-29; {TIME}")],
    ),
    "a time before all times": (
        f"{ONE_SHOT}\nrun_at: 0001-01-01",
        [(6, f"run_at is 0001-01-01; {TIME}")],
    ),
    "a list of times": (
        f"{ONE_SHOT}\nrun_at: [2027-01-01]",
        [(6, f"run_at is a list; {TIME}")],
    ),
    "a type that does not exist": (
        "name: a\ncommand: b\ntype: one-shot\ndelay: 5",
        [(5, "type is one-shot; did you mean one_shot? write one of one_shot, interval, cron")],
    ),
    "a misspelled time zone": (
        f"{INTERVAL}\ntimezone: Europe/Berln",
        [(6, "timezone is Europe/Berln; did you mean Europe/Berlin?")],
    ),
    "an offset for a time zone": (
        f"{INTERVAL}\ntimezone: +2",
        [(6, "timezone is +2; YAML reads that as a number: put it in quotes")],
    ),
    "times that are none": (
        f"{INTERVAL}\ntimeout: .inf\ndelay: -1\njitter: .nan\ncatch_up_window: 1e300",
        [
            (6, f"timeout is .inf; {SECONDS}"),
            (7, f"delay is -1; {SECONDS_OR_ZERO}"),
            (8, f"jitter is .nan; {SECONDS_OR_ZERO}"),
            (9, f"catch_up_window is 1e300; {SECONDS_OR_ZERO}"),
        ],
    ),
    "words that are none": (
        f"{INTERVAL}\noverlap: parallel\ncatch_up: non\nretries: few",
        [
            (6, "overlap is parallel; write one of skip, queue, cancel"),
            (7, "catch_up is non; did you mean none? write one of one, none, all"),
            (8, "retries is few; write a whole number from 0 to 100"),
        ],
    ),
    "a directory of nobody": (
        f"{INTERVAL}\nworking_dir: ~nobody-of-this-name/x",
        [
            (
                6,
                "working_dir is ~nobody-of-this-name/x; nobody knows where this home is: write the "
                "whole path",
            )
        ],
    ),
    "a key twice": (
        f"{INTERVAL}\ninterval: 6",
        [(6, "interval is here twice, first on line 5: take one of them out")],
    ),
    "a key of a hook": (
        f"{INTERVAL}\nevent: tool:error",
        [(6, f"event is not a key of a task; write one of {', '.join(KIND.keys)}")],
    ),
    "code": (
        f"{INTERVAL}\nenv: !!python/object/apply:os.system [exit 1]",
        [
            (
                6,
                "env is tagged !!python/object/apply:os.system; write a mapping, such as "
                "BACKUP_DIR: /srv/backup",
            )
        ],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_task_that_is_wrong_is_refused_with_its_fix(load: Load, wrong: str) -> None:
    keys, expected = WRONG[wrong]
    loaded = load(indented(keys))
    assert said(loaded) == expected
    assert loaded.entries == []


def test_everything_that_is_wrong_is_said_in_one_go(load: Load) -> None:
    text = "tasks:\n"
    expected = []
    for keys, wrong in WRONG.values():
        line = text.count("\n") - 1
        text += indented(keys).replace("tasks:\n", "").replace("name: a", f"name: task-{line}")
        expected += [
            (at + line, sentence.replace("first on line 5", f"first on line {5 + line}"))
            for at, sentence in wrong
            if at is not None
        ]
    assert said(load(text)) == expected


@pytest.mark.parametrize("wrong", WRONG)
def test_tasks_of_an_older_clara_survive_a_bad_neighbour(load: Load, wrong: str) -> None:
    bad = indented(WRONG[wrong][0])
    loaded = load(bad + EXISTING.removeprefix("tasks:\n"))
    assert loaded.entries == load(EXISTING).entries


def test_two_tasks_of_one_name_are_refused_and_the_first_counts(load: Load) -> None:
    loaded = load(EXISTING.replace("daily-backup", "cleanup-sessions"))
    assert [task.type for task in loaded.entries] == ["interval"]
    assert said(loaded) == [
        (7, "another task is called cleanup-sessions, on line 2; rename one of them")
    ]


# --- whatever is written -------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.datetimes()
    | st.dates()
)
structures = st.recursive(
    scalars,
    lambda below: st.lists(below) | st.dictionaries(st.text() | scalars, below),
    max_leaves=5,
)
plausible = st.sampled_from(
    ["a", "cron", "interval", "one_shot", "@hourly", "0 3 * * *", "Europe/Berlin", 5, 0, True]
)


@relaxed
@given(st.lists(st.dictionaries(st.sampled_from(KIND.keys), plausible | structures)))
def test_whatever_a_task_is_it_is_read_or_refused(load: Load, tasks: list[Any]) -> None:
    loaded = load(yaml.safe_dump({"tasks": tasks}))
    assert all(f"{problem}".isprintable() for problem in loaded.problems)
    assert len(loaded.entries) == len(tasks) or loaded.problems


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
words = texts.filter(str.strip)
visible = words.filter(lambda text: text.isprintable() and len(text) <= 255)
times = st.integers(1, 10**8) | st.floats(0.001, 1e8)
moments = st.datetimes(
    min_value=datetime(1970, 1, 2),
    max_value=datetime(2999, 1, 1),
    timezones=st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
        lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
    ),
)
common = st.fixed_dictionaries(
    {"name": visible, "command": words},
    optional={
        "description": texts,
        "timeout": times,
        "enabled": st.booleans(),
        "timezone": st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns"]),
        "jitter": times,
        "overlap": st.sampled_from(["skip", "queue", "cancel"]),
        "catch_up": st.sampled_from(["one", "none", "all"]),
        "catch_up_window": times,
        "retries": st.integers(0, 100),
        "env": st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), texts),
    },
)
kinds: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"interval": times}, optional={"delay": times}),
    st.fixed_dictionaries({"type": st.just("cron"), "cron": st.just("0 3 * * *")}),
    st.fixed_dictionaries({"type": st.just("one_shot"), "delay": times}),
    st.fixed_dictionaries({"type": st.just("one_shot"), "run_at": moments}),
)


@relaxed
@given(common, kinds)
def test_a_definition_that_is_dumped_is_loaded_again(
    load: Load, tmp_path: Path, shared: dict[str, Any], schedule: dict[str, Any]
) -> None:
    keys = shared | schedule
    loaded = load(yaml.safe_dump({"tasks": [keys]}))
    assert loaded.problems == []
    expected: dict[str, Any] = {"working_dir": tmp_path} | keys
    expected["timezone"] = ZoneInfo(keys.get("timezone", "Asia/Kolkata"))
    if "cron" in keys:
        expected["cron"] = Cron.parse(keys["cron"])
    assert loaded.entries == [Task(**expected)]
