"""`clarad init`: examples to begin with, and nothing overwritten."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from clarad.automation.config.entries import Loaded
from clarad.automation.hooks import hook
from clarad.automation.hooks.hook import Hook, load_hooks
from clarad.automation.tasks import task
from clarad.automation.tasks.task import Task, load_tasks
from clarad.cli import main
from clarad.events import EventType
from tests.unprivileged import unprivileged

ROOT: Final = Path(__file__).parents[2]
HOOKS: Final = (ROOT / "hooks" / "hooks.yaml.example").read_text()
TASKS: Final = (ROOT / "scheduler.yaml.example").read_text()

WRITTEN: Final = "hooks/hooks.yaml is written\nscheduler.yaml is written\n"
LEFT: Final = (
    "hooks/hooks.yaml is there already, left as it is\n"
    "scheduler.yaml is there already, left as it is\n"
)

Said = tuple[int, str, str]
Init = Callable[..., Said]


@pytest.fixture
def init(
    clean_settings: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Init:
    """Run `clarad init` with settings; returns its exit status and what it has printed."""
    monkeypatch.chdir(tmp_path)

    def run(**environment: str) -> Said:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status = main(["init"])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def _umask() -> Iterator[None]:
    """Put the process's umask back."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def contents(directory: Path) -> dict[str, str]:
    return {
        f"{path.relative_to(directory)}": path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


# --- what is written -----------------------------------------------------------------------------


def test_both_files_are_written_where_the_daemon_looks(init: Init, tmp_path: Path) -> None:
    assert init() == (0, WRITTEN, "")
    assert contents(tmp_path) == {"hooks/hooks.yaml": HOOKS, "scheduler.yaml": TASKS}


def test_what_is_written_does_nothing_until_somebody_wants_it(init: Init, tmp_path: Path) -> None:
    init()
    assert load_hooks(tmp_path / "hooks") == Loaded([], [])
    assert load_tasks(tmp_path) == Loaded([], [])


def test_the_settings_say_where(init: Init, tmp_path: Path) -> None:
    hooks, scheduler = tmp_path / "a" / "b", tmp_path / "c"
    assert init(CLARA_HOOKS_DIR=f"{hooks}", CLARA_SCHEDULER_DIR=f"{scheduler}") == (
        0,
        f"{hooks}/hooks.yaml is written\n{scheduler}/scheduler.yaml is written\n",
        "",
    )
    assert contents(tmp_path) == {"a/b/hooks.yaml": HOOKS, "c/scheduler.yaml": TASKS}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077], ids=oct)
@pytest.mark.usefixtures("_umask")
def test_what_root_writes_others_can_read_and_what_others_write_is_theirs_alone(
    init: Init, tmp_path: Path, mask: int
) -> None:
    os.umask(mask)
    init(CLARA_HOOKS_DIR=f"{tmp_path}/a/b")
    read_by_others = 0o055 if os.geteuid() == 0 else 0
    for made in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(made.stat().st_mode) == (0o700 | read_by_others) & ~mask
    hooks = tmp_path / "a" / "b" / "hooks.yaml"
    assert stat.S_IMODE(hooks.stat().st_mode) == (0o600 | read_by_others & 0o044) & ~mask


# --- what is left --------------------------------------------------------------------------------


def test_the_second_time_nothing_is_written(init: Init, tmp_path: Path) -> None:
    init()
    (tmp_path / "scheduler.yaml").write_text("tasks: []\n")
    assert init() == (0, LEFT, "")
    assert contents(tmp_path) == {"hooks/hooks.yaml": HOOKS, "scheduler.yaml": "tasks: []\n"}


def test_the_file_that_is_missing_is_written(init: Init, tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "hooks.yaml").touch()
    status, out, _ = init()
    assert (status, out.splitlines()) == (
        0,
        [LEFT.splitlines()[0], WRITTEN.splitlines()[1]],
    )
    assert contents(tmp_path) == {"hooks/hooks.yaml": "", "scheduler.yaml": TASKS}


def test_a_link_to_nothing_is_there(init: Init, tmp_path: Path) -> None:
    (tmp_path / "scheduler.yaml").symlink_to("elsewhere.yaml")
    status, out, _ = init()
    assert (status, out.splitlines()[1]) == (0, LEFT.splitlines()[1])
    assert not (tmp_path / "elsewhere.yaml").exists()


# --- what cannot be written ----------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_is_one_line_and_exit_1(init: Init, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert init(CLARA_HOOKS_DIR=f"{tmp_path}/file/hooks") == (
        1,
        "scheduler.yaml is written\n",
        f"clarad: CLARA_HOOKS_DIR: Not a directory: "
        f"{tmp_path}/file/hooks; name a directory of your "
        "own\n",
    )


def test_a_file_in_the_place_of_a_directory_is_one_line_and_exit_1(
    init: Init, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert init(CLARA_SCHEDULER_DIR=f"{tmp_path}/file") == (
        1,
        "hooks/hooks.yaml is written\n",
        f"clarad: CLARA_SCHEDULER_DIR: Not a directory: {tmp_path}/file/scheduler.yaml; name a "
        "directory of your own\n",
    )


def test_a_directory_of_somebody_else_is_one_line_each_and_exit_1(
    init: Init, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    with unprivileged():
        status, out, err = init()
    tmp_path.chmod(0o700)
    assert (status, out) == (1, "")
    assert [line.partition(": Permission denied: ")[0] for line in err.splitlines()] == [
        "clarad: CLARA_HOOKS_DIR",
        "clarad: CLARA_SCHEDULER_DIR",
    ]


def test_a_bad_setting_is_one_line_and_exit_1(init: Init, tmp_path: Path) -> None:
    status, out, err = init(CLARA_HOOKS_DIR="~nobody-of-this-name/hooks")
    assert (status, out) == (1, "")
    assert err.startswith("clarad: CLARA_HOOKS_DIR=")
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("clean_settings")
def test_half_an_example_is_not_left(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 1; exec "$0" -m clarad init', sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.partition(": File too large: ")[0] for line in done.stderr.splitlines()] == [
        "clarad: CLARA_HOOKS_DIR",
        "clarad: CLARA_SCHEDULER_DIR",
    ]
    assert contents(tmp_path) == {}


# --- the examples --------------------------------------------------------------------------------


def uncommented(text: str) -> str:
    """Take one # away from the lines that have one; those that explain have two."""
    return re.sub(r"^#(?!#)", "", text, flags=re.MULTILINE)


def examples(text: str) -> list[str]:
    """Return the examples one by one: each is a list of one entry."""
    return re.findall(r"^  - (?:.*\n)+?(?=\n|\Z)", uncommented(text), flags=re.MULTILINE)


def hooks_in(directory: Path, text: str) -> Loaded[Hook]:
    (directory / "hooks.yaml").write_text(text)
    return load_hooks(directory)


def tasks_in(directory: Path, text: str) -> Loaded[Task]:
    (directory / "scheduler.yaml").write_text(text)
    return load_tasks(directory)


@pytest.mark.parametrize("example", examples(HOOKS))
def test_each_hook_of_the_example_is_good(tmp_path: Path, example: str) -> None:
    loaded = hooks_in(tmp_path, f"hooks:\n{example}")
    assert (len(loaded.entries), loaded.problems) == (1, [])


@pytest.mark.parametrize("example", examples(TASKS))
def test_each_task_of_the_example_is_good(tmp_path: Path, example: str) -> None:
    loaded = tasks_in(tmp_path, f"tasks:\n{example}")
    assert (len(loaded.entries), loaded.problems) == (1, [])


def test_all_hooks_of_the_example_are_good_together(tmp_path: Path) -> None:
    loaded = hooks_in(tmp_path, uncommented(HOOKS))
    assert loaded.problems == []
    assert len(loaded.entries) == len(examples(HOOKS))
    assert {each.type for each in loaded.entries} == {"shell", "webhook"}


def test_all_tasks_of_the_example_are_good_together(tmp_path: Path) -> None:
    loaded = tasks_in(tmp_path, uncommented(TASKS))
    assert loaded.problems == []
    assert len(loaded.entries) == len(examples(TASKS))
    assert {each.type for each in loaded.entries} == {"interval", "cron", "one_shot"}


def explained(text: str) -> set[str]:
    """Return the words that begin a line of the explanations, after three spaces."""
    return set(re.findall(r"^##   (\w+)(?=  )", text, flags=re.MULTILINE))


def test_the_example_explains_every_key_of_a_hook() -> None:
    assert set(hook.KIND.keys) <= explained(HOOKS)


def test_the_example_explains_every_key_of_a_task() -> None:
    assert set(task.KIND.keys) <= explained(TASKS)


def test_the_examples_show_every_key() -> None:
    for kind, text in ((hook.KIND, HOOKS), (task.KIND, TASKS)):
        shown = set(re.findall(r"(\w+):", "".join(examples(text))))
        assert set(kind.keys) <= shown


def test_the_example_names_every_event() -> None:
    assert {each for each in EventType if f" {each}" not in HOOKS} == set()


@pytest.mark.parametrize(
    "name",
    [
        "CLARA_EVENT_ID",
        "CLARA_EVENT_TYPE",
        "CLARA_TIMESTAMP",
        "CLARA_NODE_ID",
        "CLARA_PLATFORM",
        "CLARA_USER_ID",
        "CLARA_CHANNEL_ID",
        "CLARA_REQUEST_ID",
        "CLARA_SESSION_ID",
        "CLARA_EVENT_DATA",
        "CLARA_<KEY>",
    ],
)
def test_the_example_names_what_a_hook_is_told(name: str) -> None:
    assert f"{name} " in HOOKS
