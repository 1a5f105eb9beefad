"""Which installation it is: a name that stays, and that no other one has."""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Final

import pytest

from clarad.config import instance
from clarad.systemd import catalogue
from tests.daemon_process import clarad, daemon, environment
from tests.unprivileged import NOBODY

COMMANDS: Final = (("run",), ("migrate",), ("tokens", "create", "discord"), ("init",))


def test_a_name_stays_the_same(tmp_path: Path) -> None:
    assert instance.identify(tmp_path) == instance.identify(tmp_path)


def test_every_state_directory_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = set()
    for number in range(3):
        state_dir = tmp_path / str(number)
        state_dir.mkdir()
        names.add(instance.identify(state_dir))
    assert len(names) == 3


def test_a_name_goes_with_the_directory(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    name = instance.identify(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert instance.identify(tmp_path / "new") == name


def test_a_label_is_what_engines_take(tmp_path: Path) -> None:
    label = instance.label(tmp_path)
    assert label == f"clarad-{instance.identify(tmp_path)}"
    assert len(label) <= 40
    assert set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        instance.identify(tmp_path / "nowhere")


def test_a_state_directory_has_one_holder_as_long_as_the_machine_runs(tmp_path: Path) -> None:
    with instance.lock_state_dir(tmp_path):
        before = instance.claimant(tmp_path)
    with instance.lock_state_dir(tmp_path):
        assert instance.claimant(tmp_path) == before


def test_who_holds_a_copy_of_a_state_directory_is_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    holder = instance.claimant(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert instance.identify(tmp_path / "copy") == instance.identify(tmp_path / "one")
    assert instance.claimant(tmp_path / "copy") != holder


def test_all_that_a_daemon_makes_is_for_its_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with daemon(tmp_path / "new" / "state") as process:
            assert clarad("status", env=process.environment).returncode == 0
            made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
            modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in made}
    finally:
        os.umask(before)
    assert modes == {
        "new": "0o700",
        "state": "0o700",
        "control.sock": "0o660",
        "clarad.lock": "0o600",
        "clarad.db": "0o600",
        "clarad.db-wal": "0o600",
        "clarad.db-shm": "0o600",
        "gateway.json": "0o600",
        "instance": "0o600",
        "database": "0o600",
    }


@pytest.mark.parametrize("words", COMMANDS if os.geteuid() == 0 else (), ids=" ".join)
@pytest.mark.parametrize("which", ["state", "below"])
def test_root_makes_nothing_in_the_state_directory_of_another_user(
    tmp_path: Path, words: tuple[str, ...], which: str
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, -1)
    place = {"state": theirs, "below": theirs / "state"}[which]
    env = environment(place, CLARA_HOOKS_DIR=f"{place}", CLARA_SCHEDULER_DIR=f"{place}")
    said = clarad(*words, env=env)
    assert said.returncode != 0
    assert "run `sudo -u nobody clarad " + " ".join(words) + "`" in said.stderr
    assert "Traceback" not in said.stderr
    assert list(theirs.iterdir()) == []


def test_a_name_that_was_lost_is_not_made_up(tmp_path: Path) -> None:
    (tmp_path / "instance").touch()
    said = clarad("run", env=environment(tmp_path))
    assert said.returncode == 65
    assert said.stderr.startswith(f"clarad: {tmp_path}/instance is empty: ")
    assert "remove it" in said.stderr
    assert len(said.stderr.splitlines()) == 1


WAYS_OUT = {
    "the state directory": "Put the directory back, or start the daemon again",
    "the database": "`clarad backup restore FILE`, or begin anew with `clarad migrate --new`",
    "its log": "Start the daemon again",
}


@pytest.mark.parametrize("what", WAYS_OUT)
def test_a_daemon_ends_when_what_it_keeps_is_deleted_under_it(tmp_path: Path, what: str) -> None:
    state, run = tmp_path / "state", tmp_path / "run"
    run.mkdir()
    env = {"RUNTIME_DIRECTORY": f"{run}", "CLARA_LOG_FORMAT": "json"}
    with daemon(state, **env) as process:
        if what == "the state directory":
            shutil.rmtree(state)
        else:
            (state / {"the database": "clarad.db", "its log": "clarad.db-wal"}[what]).unlink()
        assert process.wait() == 74
        assert clarad("status", env=process.environment).returncode == 1
    records = [json.loads(line) for line in process.log.splitlines()]
    [error] = [one for one in records if one["level"] in ("error", "critical")]
    assert f"{state}/clarad." in error["message"]
    assert WAYS_OUT[what] in error["message"]
    assert error["message_id"] == catalogue.STATE_GONE.message_id
    assert "Traceback" not in process.log
